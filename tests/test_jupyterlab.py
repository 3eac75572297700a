"Restart-and-run-all: every page and report by a real kernel, and one of them in a real JupyterLab."
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
REPORTS = sorted((ROOT/'nbs'/'reports').glob('*.ipynb'))
CHROMIUM = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome','google-chrome-stable'))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason='no Chromium on PATH')


def run_all(path, cwd):
    "A fresh kernel in `cwd` runs every cell, as `Restart Kernel and Run All Cells` does; the executed notebook."
    from nbclient import NotebookClient
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=600, resources=dict(metadata=dict(path=str(cwd)))).execute()
    return nb


def wrong(nb):
    "Cells that ended in an error or were not run."
    return [c.source[:200] for c in nb.cells if c.cell_type=='code' and c.source.strip() and
            (c.execution_count is None or any(o.output_type=='error' for o in c.outputs))]


@pytest.mark.long
@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.stem)
def test_page_runs_from_the_root(tree, path):
    "`tests/test_pages.py` runs it in nbs/; a person with another editor has the project's root as working folder."
    assert not wrong(run_all(tree/'nbs'/path.name, tree))


@pytest.mark.long
@pytest.mark.parametrize('where', ['.','nbs','nbs/reports'])
@pytest.mark.parametrize('path', REPORTS, ids=lambda p: p.stem)
def test_report_runs_as_it_stands(tree, path, where):
    "With the defaults of its parameters, whatever the working folder."
    assert not wrong(run_all(tree/'nbs'/'reports'/path.name, tree/where))


def test_a_failing_cell_is_noticed(tmp_path):
    "That the two tests above can fail."
    from nbclient.exceptions import CellExecutionError
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('1/0')]), tmp_path/'bad.ipynb')
    with pytest.raises(CellExecutionError, match='ZeroDivisionError'): run_all(tmp_path/'bad.ipynb', tmp_path)


def lab_command():
    "What `make lab` runs, as words."
    line = re.search(r'^lab:.*\n\t(.*)', (ROOT/'Makefile').read_text(), re.M)[1]
    return [sys.executable,'-m','jupyter',*shlex.split(line.replace('$(BIN)/jupyter',''))]


@pytest.fixture
def lab(tree):
    "A JupyterLab as `make lab` starts it, in a copy of the tree and with settings of its own; its address and token."
    own = {f'JUPYTER_{k}_DIR':str(tree.parent/k.lower()) for k in ('CONFIG','DATA','RUNTIME')}
    extra = ['--no-browser','--ServerApp.port=0','--ServerApp.token=t','--allow-root']
    out = open(tree.parent/'lab.log','w+')
    server = subprocess.Popen([*lab_command(),*extra], cwd=tree, env=os.environ|own, stdout=out, stderr=out, start_new_session=True)
    def log(): return (tree.parent/'lab.log').read_text()
    until = time.monotonic()+120
    while not (found := re.search(r'http://(?:localhost|127\.0\.0\.1):(\d+)/lab\S*', log())):
        assert server.poll() is None and time.monotonic()<until, log()
        time.sleep(.5)
    yield f'http://127.0.0.1:{found[1]}', log
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(30)
    out.close()


@pytest.mark.long
def test_make_lab_opens_the_index_page(lab):
    url,log = lab
    with urlopen(f'{url}/?token=t', timeout=60) as r: assert r.url.split('?')[0]==f'{url}/lab/tree/nbs/index.ipynb'
    with urlopen(f'{url}/api/contents/nbs?token=t', timeout=60) as r: listed = r.read().decode()
    assert '"nbs/13_folds.ipynb"' in listed and '"nbs/reports"' in listed
    assert 'Traceback' not in log()


@pytest.mark.long
@needs_chromium
def test_page_runs_in_jupyterlab(lab, tree, tmp_path):
    "Restart Kernel and Run All Cells, by the menu's own command; the page is saved and no cell failed."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    url,_ = lab
    page_file = tree/'nbs'/'20_metrics.ipynb'
    nb = nbformat.read(page_file, as_version=4)
    for c in nb.cells:
        if c.cell_type=='code': c.outputs,c.execution_count = [],None
    nbformat.write(nb, page_file)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        page.goto(f'{url}/lab/tree/nbs/{page_file.name}?token=t&reset')
        page.wait_for_selector('.jp-NotebookPanel .jp-Cell', timeout=120_000)
        page.get_by_text(re.compile(r'\| Idle')).wait_for(timeout=60_000)
        page.get_by_role('menuitem', name='Kernel', exact=True).click()
        page.get_by_role('menuitem', name=re.compile('Restart Kernel and Run All Cells')).click()
        page.locator('.jp-Dialog .jp-mod-accept').click()
        until = time.monotonic()+180
        while time.monotonic()<until:
            page.keyboard.press('Control+s')
            page.wait_for_timeout(2000)
            if not wrong(done := nbformat.read(page_file, as_version=4)): break
        page.screenshot(path=str(tmp_path/'jupyterlab.png'))
        browser.close()
    assert not wrong(done)
    assert sum(len(c.outputs) for c in done.cells if c.cell_type=='code')>5
