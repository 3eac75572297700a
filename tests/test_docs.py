"The front door: every line of README runs as it stands, and the docs site is whole and needs no network."
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from moods import serving
from test_assess import SECRETS, Services, cited
from test_openalex import OpenAlexServer, work
from test_zotero import GROUP, paper

from ipbes_classifier.records import read_records

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')
sys.path.insert(0, str(ROOT/'scripts'))


def fences(text):
    "Code blocks as (heading above, language, code)."
    heading,inside,out = '',None,[]
    for l in text.splitlines():
        mark = l.startswith(('~~~','```'))
        if inside is not None:
            if mark: out.append((heading,inside[0],'\n'.join(inside[1:]))); inside = None
            else: inside.append(l)
        elif mark: inside = [l[3:]]
        elif l.startswith('#'): heading = l.lstrip('# ')
    return out


BLOCKS = fences(README)
TOURS = ['For an analyst','For a developer','For an engineer','Searching settings, and many runs','Screening']
SERVED = ['A new assessment','Getting the data'] # ask services, which stand on 127.0.0.1 in tests
FITTED = {'A model to be used'}  # its commands are run by test_final
OUTSIDE = ('pip install','make ') # reach for a package index or the hub, or are tested elsewhere


def blocks(heading): return [(kind,code) for h,kind,code in BLOCKS if h==heading]


def run_block(kind, code, cwd, left_at):
    "Run a block in `cwd` as a person would, in bash or in a fresh Python; the folder in which the shell ended."
    env = os.environ|dict(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", MPLBACKEND='Agg', HF_HUB_OFFLINE='1')
    if kind=='python': command = [sys.executable,'-c',code]
    else: command = ['bash','-e','-o','pipefail','-c',f'{code}\npwd > {shlex.quote(str(left_at))}']
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1200, stdin=subprocess.DEVNULL)
    assert not done.returncode, f'{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
    return (cwd if kind=='python' else Path(left_at.read_text().strip())), done.stdout


def run_tour(heading, cwd, left_at):
    "All blocks below a heading in order, each where the last one ended; that folder, and what was printed."
    said = []
    for kind,code in blocks(heading):
        if any(o in code for o in OUTSIDE): continue
        cwd,out = run_block(kind, code, cwd, left_at)
        said.append(out)
    return cwd,said


def test_every_block_of_readme_is_run_or_named():
    "A new section with commands has to enter a test."
    known = {*TOURS,*SERVED,*FITTED,'Two commands','Install','Citing'}
    assert {h for h,*_ in BLOCKS}==known, 'add the section to a test here'
    assert all(len(blocks(h))>0 for h in known)


def test_make_knows_the_commands():
    text = (ROOT/'Makefile').read_text()
    named = {t for code in ['\n'.join(c for _,_,c in BLOCKS),*re.findall('`[^`\n]+`',README)] for t in re.findall(r'^`?make ([\w-]+)',code,re.M)}
    assert {'demo','test','lab','docs'}<=named
    for target in named: assert re.search(rf'^{target}:', text, re.M), target


def test_install_names_extras_that_exist():
    from configparser import ConfigParser
    settings = ConfigParser()
    settings.read(ROOT/'settings.ini')
    there = {k.removesuffix('_requirements') for k in settings['DEFAULT'] if k.endswith('_requirements')}|{'all'}
    named = {e for found in re.findall(r"\[([\w,]+)\]'", '\n'.join(c for _,_,c in BLOCKS)) for e in found.split(',')}
    named |= {e for row in re.findall(r'^\| (`\w+`(?:, `\w+`)*) \| \w+', README.split('## Install')[1], re.M) for e in re.findall(r'\w+',row)}
    assert {'train','minilm','search'}<=named<=there


def test_what_lies_in_the_checkout_is_named_before_a_tour_leaves_it():
    for heading in TOURS:
        text = '\n'.join(code for _,code in blocks(heading))
        if 'constraints.txt' in text: assert text.rindex('constraints.txt')<text.index('cd '), heading


def test_commands_of_the_table_exist_with_their_twins():
    from importlib import import_module
    from typer.testing import CliRunner
    from ipbes_classifier.cli import app
    offered = {c.name or c.callback.__name__ for c in app.registered_commands}|{g.name for g in app.registered_groups}
    below = {(g.name,c.name or c.callback.__name__) for g in app.registered_groups for c in g.typer_instance.registered_commands}
    rows = re.findall(r'^\| (`ipbes .+?) \| .+ \| (`.+?`) \|$', README, re.M)
    named = {c for cells,_ in rows for c in re.findall(r'`ipbes ([a-z-]+)',cells)}
    assert named==offered and {f for cells,_ in rows for f in re.findall(r'`ipbes (fetch|audit) ([a-z]+)',cells)}==below
    for _,cell in rows:
        for twin in re.findall(r'`([\w.]+)`',cell):
            module,name = twin.split('.')
            assert callable(getattr(import_module(f'ipbes_classifier.{module}'),name)), twin
    assert CliRunner().invoke(app,['--help']).exit_code==0


def test_analyst_and_developer_get_through(tmp_path):
    "The developer's lines begin where the analyst's end."
    where,_ = run_tour('For an analyst', tmp_path, tmp_path/'pwd')
    assert where==tmp_path/'myassessment' and (where/'scored.csv').read_text().count('\n')==4
    run_tour('For a developer', where, tmp_path/'pwd')


def asked(code, **urls):
    "Lines of README as they stand, but for the addresses of services, the number of the group and how much is drawn."
    small = code.replace('2352922',str(GROUP)).replace('20_000','300')
    small = re.sub(r'--sample \d+', '--sample 300', small)
    more = ' '.join(f'api.{k}={v}' for k,v in urls.items())
    return re.sub(r'^(ipbes (?:assess|fetch|fill) [^#\n]*?)(?=\s*(?:#.*)?$)', rf'\1 {more}', small, flags=re.M)


def test_a_new_assessment_by_one_command_and_in_python(tmp_path, monkeypatch):
    for k,v in SECRETS.items(): monkeypatch.setenv(k, v)
    (_,shell),(_,python) = blocks('A new assessment')
    with serving(server=Services()) as s:
        s.put(*map(cited,range(48)))
        urls = dict(zotero_url=s.url, crossref_url=f'{s.url}/crossref', openalex_url=f'{s.url}/openalex')
        _,said = run_block('sh', asked(shell,**urls), tmp_path, tmp_path/'pwd')
        assert 'prevalence' in said and (tmp_path/'invasions/results/final_model').is_dir()
        _,again = run_block('python', asked(python), tmp_path, tmp_path/'pwd') # the addresses stand in the project now
    assert again.count('done before')==6 and 'nothing new' in again


def test_the_data_come_by_the_commands_of_readme(tmp_path):
    words = 'In a dry year we counted all plants of this plot, and in a wet year those that had come back.'.split()
    index = {w:[i for i,x in enumerate(words) if x==w] for w in words}
    works = [work(n, abstract_inverted_index=index, topics=[dict(id='https://openalex.org/T10005',display_name='Plots')], publication_year=2010) for n in range(300)]
    ((_,shell),) = blocks('Getting the data')
    with serving(server=Services()) as s, serving(server=OpenAlexServer(works)) as o:
        s.put(*(paper(n, **(dict(abstractNote='') if n%3==0 else {})) for n in range(30)))
        where,_ = run_block('sh', 'ipbes init p && cd p', tmp_path, tmp_path/'pwd')
        run_block('sh', asked(shell, zotero_url=s.url, crossref_url=f'{s.url}/crossref', openalex_url=o.url), where, tmp_path/'pwd')
    filled = read_records(where/'data/raw/filled_IAS.csv')
    assert len(filled)==30 and (filled.abstract!='').sum()==30 and (read_records(where/'data/raw/zotero_IAS.csv').abstract!='').sum()==20
    assert len(read_records(where/'library.ris'))==30 and len(read_records(where/'data/raw/openalex'))==240 and len(read_records(where/'data/raw/citing'))


@pytest.mark.long
def test_engineer_gets_through(tmp_path):
    "Shell first, then its twin in Python, which finds the grid done."
    where,said = run_tour('For an engineer', tmp_path, tmp_path/'pwd')
    made = {p.name.split('__fold')[0] for p in (where/'papermill_runs/first').glob('*.html')}
    assert {'train__tfidf-logreg__logloss','train__minilm__BCE'}<made
    assert re.search(r'7 executed, 0 done before', said[0]) and re.search(r'0 executed, 7 done before', said[0])


@pytest.mark.long
def test_searches_and_a_grid_get_through(tmp_path):
    "The dry run lists what then is executed; a changed setting touches what it says."
    where,said = run_tour('Searching settings, and many runs', tmp_path, tmp_path/'pwd')
    assert (where/'configs/best_hpo.yaml').is_file() and list((where/'papermill_runs/main').glob('compare__*.html'))
    assert '11 executed' in said[2] and 'Ensemble' in said[2]


@pytest.mark.long
def test_screening_gets_through(tmp_path):
    "The first pass puts papers aside; without it, all are read."
    where,said = run_tour('Screening', tmp_path, tmp_path/'pwd')
    assert 'put aside by the first pass' in said[0] and 'put aside' not in said[1]
    assert (where/'why.html').is_file() and list((where/'found/ranked/IAS').glob('*.parquet'))


def test_a_failing_block_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match='nobody'): run_block('sh', 'ipbes predict nobody.csv -m none -o out.csv', tmp_path, tmp_path/'pwd')
    with pytest.raises(AssertionError, match='ZeroDivision'): run_block('python', '1/0', tmp_path, tmp_path/'pwd')


def test_fences_tell_headings_and_languages():
    assert fences('# A\n~~~sh\nls # x\n~~~\n## B\n```python\n1\n```\n')==[('A','sh','ls # x'),('B','python','1')]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The built docs."
    pytest.importorskip('material', reason='mkdocs-material is not installed: pip install -e .[docs]')
    import docs
    out = tmp_path_factory.mktemp('docs')
    docs.build(out/'md', out/'site', docs.gather(out/'md'))
    return out/'site'


def test_links_of_the_site_lead_somewhere(site):
    "And nothing is loaded from elsewhere."
    from docs import broken
    assert not broken(site)


def test_every_page_module_and_report_is_on_the_site(site):
    have = {p.relative_to(site).as_posix() for p in site.rglob('*.html')}
    pages = {p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb')}
    assert pages|{'examples'}=={Path(p).stem for p in have if p.startswith(('pages/','howto/'))}
    assert {f'reference/{p.stem}.html' for p in (ROOT/'ipbes_classifier').glob('*.py') if not p.name.startswith('_')}<=have
    assert {f'reports/{p.name}' for p in (ROOT/'papermill_runs/sample').glob('*.html')}<=have
    assert {'index.html','reference/commands.html','contributing.html','changelog.html'}<=have


def test_pages_show_outputs_and_hide_directives(site):
    html = (site/'pages/13_folds.html').read_text(encoding='utf-8')
    assert '<th>cluster</th>' in html and 'folds.py' in html and '../reference/folds.html' in html
    assert '#| ' not in re.sub(r'<[^>]+>','',html) and 'nbdev_export()' not in html
    assert list((site/'pages/13_folds').glob('*.png'))
    assert not [p.name for p in site.glob('pages/*.html') if 'Export -' in p.read_text(encoding='utf-8')], 'a heading with nothing below'
    assert '<math' in (site/'pages/20a_thresholds.html').read_text(encoding='utf-8')


def test_reference_has_names_types_and_comments(site):
    text = re.sub(r'<[^>]+>','',(site/'reference/metrics.html').read_text(encoding='utf-8'))
    assert 'def evaluate(' in text and '# (n,L) 0/1 labels' in text


def test_broken_links_and_foreign_scripts_are_found(tmp_path):
    from docs import broken
    (tmp_path/'b.html').write_text('<p id="here">b</p>')
    (tmp_path/'a.html').write_text('<a href="b.html#here">fine</a><a href="b.html#gone">1</a><a href="c.html">2</a><a href="https://x.org">fine</a>'
                                   '<script src="https://cdn.org/x.js"></script><a id="top" href="#top">fine</a>')
    assert broken(tmp_path)==['a.html: b.html#gone leads to no such place','a.html: c.html leads to no file','a.html: loads https://cdn.org/x.js from elsewhere']


def test_a_link_to_nothing_stops_the_build():
    from docs import relink
    assert relink('see [x](13_folds.ipynb#Files) and `13_folds`', 'index.md', ROOT)=='see [x](pages/13_folds.md#Files) and [`13_folds`](pages/13_folds.md)'
    assert relink('```\n[x](nowhere.md)\n```', 'index.md', ROOT)=='```\n[x](nowhere.md)\n```'
    with pytest.raises(ValueError, match='nowhere.md leads to nothing'): relink('[x](nowhere.md)', 'index.md', ROOT)
