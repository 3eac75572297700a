"""A report goes the whole way: executed by nbclient, written as HTML; and README.md follows from its notebook."""
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

from ipbes_classifier.report_html import notebook_to_html

nbclient = pytest.importorskip('nbclient')
ROOT = Path(__file__).resolve().parent.parent
v4 = nbformat.v4
HOSTILE = '<script>alert(1)</script>'
CODE = f'''import pandas as pd
%matplotlib inline
from matplotlib.figure import Figure
frame = pd.DataFrame(dict(title=[{HOSTILE!r}, '<img src=x onerror=alert(2)>']))
print(frame.title[0])
display(frame)
frame.title[1]'''
FIGURE = 'fig = Figure(figsize=(2,2)); fig.subplots().plot([0,1]); fig'


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    "A tiny report that prints, displays and returns hostile titles, and draws."
    nb = v4.new_notebook(cells=[v4.new_markdown_cell('# Errors\n\nAs $x$ and [a link](https://example.org).'), v4.new_code_cell(CODE),
        v4.new_code_cell(FIGURE), v4.new_code_cell('fold = 0', metadata=dict(tags=['parameters']))])
    nb.metadata.kernelspec = dict(name='python3', display_name='python3', language='python')
    nbclient.NotebookClient(nb, timeout=60).execute()
    path = tmp_path_factory.mktemp('report')/'errors.ipynb'
    nbformat.write(nb, path)
    return path


@pytest.fixture(scope='module')
def html(executed): return notebook_to_html(executed).read_text(encoding='utf-8')


def test_titles_arrive_as_text(html):
    assert '<script' not in html
    assert not re.search(r'<img[^>]*onerror', html)
    assert html.count('&lt;script&gt;alert(1)&lt;/script&gt;')>=2


def test_asks_no_other_computer(html):
    loads = re.findall(r'<(?:script|link|img|iframe|source|object|embed)\b[^>]*?(?:src|href|data)="(?!data:)[^"]*"', html)
    assert not loads
    assert not re.search(r'@import|url\(\s*["\']?(?:https?:)?//', html)
    assert "default-src 'none'" in html


def test_figures_are_inside(html): assert 'src="data:image/png;base64,' in html


def test_same_notebook_same_bytes(executed, html, tmp_path):
    assert notebook_to_html(executed, tmp_path/'x.html').read_text(encoding='utf-8')==html


def test_ids_of_cells_do_not_show(executed, html, tmp_path):
    nb = nbformat.read(executed, as_version=4)
    for i,c in enumerate(nb.cells): c['id'] = f'other-{i}'
    nbformat.write(nb, tmp_path/executed.name)
    assert notebook_to_html(tmp_path/executed.name).read_text(encoding='utf-8')==html


@pytest.fixture(scope='module')
def readme():
    spec = importlib.util.spec_from_file_location('readme', ROOT/'scripts'/'readme.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def index(tmp_path):
    out = v4.new_output('execute_result', {'text/plain':'2','text/html':'<b>2</b>'})
    cells = [v4.new_markdown_cell('# Title\n\n![a report](images/x.png) <img src="images/y.png">'), v4.new_code_cell('#| hide\nsecret = 1'),
             v4.new_code_cell('#| eval: false\n1+1', outputs=[out])]
    path = tmp_path/'index.ipynb'
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def test_readme_follows_from_index(readme, index):
    text = readme.render(index)
    assert '](nbs/images/x.png)' in text and 'src="nbs/images/y.png"' in text
    assert 'secret' not in text and '#|' not in text and '<b>' not in text
    assert '```python\n1+1\n```\n\n    2\n' in text


def test_readme_check_says_what_differs(readme, index, tmp_path, capsys):
    args = ['--index',str(index),'--readme',str(tmp_path/'README.md')]
    assert readme.main([*args,'--check'])==1
    assert readme.main(args)==0
    assert readme.main([*args,'--check'])==0
    (tmp_path/'README.md').write_text('# Old\n')
    assert readme.main([*args,'--check'])==1
    said = capsys.readouterr()
    assert '-# Old' in said.out and 'scripts/readme.py' in said.err
