"Pages run, fit the exported modules, and keep the rules that a reader relies on."
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from papermill import inspect_notebook

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in (ROOT/'nbs').glob('*.ipynb') if not p.name.startswith('.'))
REPORTS = sorted((ROOT/'nbs'/'reports').glob('*.ipynb'))
MODULES = sorted(p for p in (ROOT/'ipbes_classifier').glob('*.py') if not p.name.startswith('_'))
MOST_LINES = 60 # of an exported cell


def page(p): return pytest.param(p, id=p.stem)


def cells(path, kind):
    "The sources of a notebook's cells of one kind."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type']==kind]


def module_of(path):
    "The module that a page exports; `None` for a page without one."
    found = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(cells(path,'code')), re.M)
    return found and found[1]


def exported(path):
    "The exported cells of a page."
    return [s for s in cells(path,'code') if re.match(r'\s*#\s*\|\s*exporti?\b', s)]


def bytes_under(folder):
    "Content of every file of the tree that export and cleaning may touch."
    return {str(p.relative_to(folder)):p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and '__pycache__' not in p.parts and p.name!='.last_checked'}


def python(*args, cwd, timeout=600, **env):
    "Run Python in `cwd`; the completed process, its output as text."
    return subprocess.run([sys.executable,*args], cwd=cwd, env=os.environ|env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)


def test_export_and_clean_change_nothing(tree):
    "Modules are removed first, so that one whose page is gone shows as a difference."
    before = bytes_under(tree)
    for p in (tree/'ipbes_classifier').glob('*.py'):
        if p.name!='__init__.py': p.unlink()
    for module,command in (('nbdev.doclinks','nbdev_export'),('nbdev.clean','nbdev_clean')):
        done = python('-c', f'from {module} import {command}; {command}()', cwd=tree)
        assert not done.returncode, done.stderr
    after = bytes_under(tree)
    changed = sorted(k for k in before.keys()|after.keys() if before.get(k)!=after.get(k))
    assert not changed, f"run nbdev_export and nbdev_clean and commit; they change {changed}"


# imports what most pages do, which takes longer than many a page, and then forks a process for each page that it is sent
SERVER = """
import gc, os, signal, sys
from pathlib import Path
import datasketch, matplotlib.pyplot, pyarrow.parquet, scipy.stats, seaborn, sklearn.feature_extraction.text, sklearn.linear_model, torch, transformers
from nbdev.config import get_config
from nbdev.test import test_nb

gc.freeze() # collections in a page need not go through what was imported here
for line in sys.stdin:
    path,log = line.rstrip('\\n').split('\\t')
    if pid := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(pid,0)[1]), flush=True)
        continue
    signal.alarm(600)
    for fd,name,flags in ((0,os.devnull,os.O_RDONLY),(1,log,os.O_WRONLY|os.O_CREAT),(2,log,os.O_WRONLY|os.O_APPEND)): os.dup2(os.open(name,flags),fd)
    os.chdir(Path(path).parent)
    sys.argv = ['']
    cfg = get_config()
    ok,_ = test_nb(Path(path), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
    sys.exit(not ok)
"""

@pytest.fixture(scope='module')
def run_page(tmp_path_factory):
    "A function that runs a page in a process of its own; its exit code, and what it printed."
    log = tmp_path_factory.mktemp('pages')/'log'
    with subprocess.Popen([sys.executable,'-c',SERVER], cwd=ROOT/'nbs', env=os.environ|dict(IN_TEST='1'), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        def run(path):
            log.unlink(missing_ok=True)
            server.stdin.write(f'{path}\t{log}\n')
            server.stdin.flush()
            if not (code := server.stdout.readline()): pytest.fail(f'the process that runs pages has ended with exit code {server.wait()}', pytrace=False)
            return int(code), log.read_text(errors='replace')
        yield run


@pytest.mark.parametrize('path', [page(p) for p in PAGES])
def test_page_runs(path, run_page):
    "Every cell not flagged `notest`, `slow` or `gpu`, in a process of its own, as JupyterLab starts it: in nbs/."
    code,out = run_page(path)
    if code: pytest.fail(f"{path.relative_to(ROOT)}: exit code {code}\n{out[-10000:]}", pytrace=False)


@pytest.mark.parametrize('path', [page(p) for p in PAGES if module_of(p)])
def test_page_opens_with_its_question(path):
    opening = cells(path,'markdown')[0]
    assert re.fullmatch(r'# \S.*\n+> \S[^\n]*[.?!]`?(\n\n.*)?', opening, re.S), f"{path.name} should open with `# Title` and `> One sentence.`: {opening[:200]!r}"


@pytest.mark.parametrize('path', [page(p) for p in PAGES if module_of(p)])
def test_exported_cells_are_short(path):
    long = [(len(s.splitlines()),s.splitlines()[1]) for s in exported(path) if len(s.splitlines())>MOST_LINES]
    assert not long, f"{path.name}: split these, or grow the class with @patch"


def test_each_module_has_one_page():
    "nbdev lets a second page overwrite the module of the first, and keeps a module whose page is gone."
    modules = [m for m in map(module_of,PAGES) if m]
    assert sorted(modules)==sorted(p.stem for p in MODULES)
    assert not [p.name for p in REPORTS if module_of(p)], "a report exports nothing: its functions belong to a page"


@pytest.mark.parametrize('path', [page(p) for p in MODULES])
def test_no_label_name_in_exported_code(path):
    "Labels are configuration."
    labels = [o['name'] for o in yaml.safe_load((ROOT/'configs'/'config.yaml').read_text(encoding='utf-8'))['labels']]
    found = [f'{i}: {s.strip()}' for i,s in enumerate(path.read_text(encoding='utf-8').splitlines(),1)
             if re.search(rf"\b({'|'.join(map(re.escape,labels))})\b", s)]
    assert not found, f"{path.name} knows a label's name; take it from the configuration or the columns"


@pytest.mark.parametrize('path', [page(p) for p in MODULES])
def test_public_names_have_a_docstring(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    public = [o for o in tree.body if isinstance(o,(ast.FunctionDef,ast.ClassDef)) and not o.name.startswith('_')]
    bare = [o.name for o in public if not ast.get_docstring(o)]
    assert ast.get_docstring(tree) and not bare


def tracked():
    "Files that git keeps, or would once added; everything but build outputs where there is no git."
    try: out = subprocess.run(['git','ls-files','-co','--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError,subprocess.CalledProcessError): pytest.skip('not a git checkout')
    return [ROOT/o for o in out if (ROOT/o).is_file()]


def test_no_path_of_somebodys_machine():
    "A warning or traceback kept in a page's output tells where it ran, and nobody else has that folder."
    folders = ['work/','root/','tmp/w/',r'home/(?!jovyan)\w+/',r'Users/\w+/']
    mine = re.compile(r'(?<![\w.+/~-])/('+'|'.join(folders)+')')
    found = []
    for p in tracked():
        try: text = p.read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found += [f'{p.relative_to(ROOT)}:{i}: {s.strip()[:120]}' for i,s in enumerate(text.splitlines(),1) if len(s)<5000 and mine.search(s)]
    assert not found


def test_readme_is_the_index_page():
    script = ROOT/'scripts'/'readme.py'
    if not script.exists(): pytest.skip('scripts/readme.py does not exist')
    done = python(str(script), '--check', cwd=ROOT)
    assert not done.returncode, f"run `make readme` and commit: {done.stdout}{done.stderr}"


@pytest.mark.parametrize('path', [page(p) for p in REPORTS])
def test_report_names_files_outside_the_project_too(path):
    "Results may stand on another disk, where `relative_to` raises at the end of a report of hours."
    source = ''.join(cells(path,'code'))
    assert source.count('.relative_to(s.root)')==source.count('.is_relative_to(s.root)')


@pytest.mark.parametrize('path', [page(p) for p in REPORTS])
def test_report_has_parameters_and_a_language(path):
    "papermill puts values behind the cell tagged `parameters`, and needs to know the kernel's language."
    nb = json.loads(path.read_text(encoding='utf-8'))
    tagged = [c for c in nb['cells'] if 'parameters' in c['metadata'].get('tags',[])]
    assert len(tagged)==1, f"{path.name}: one cell tagged `parameters`"
    assert nb['metadata']['kernelspec']['language']=='python'
    names = []
    for node in ast.parse(''.join(tagged[0]['source'])).body:
        assert isinstance(node, ast.AnnAssign), f"{path.name}: `{ast.unparse(node)}` should be `name: type = literal  # what it is`"
        ast.literal_eval(node.value)
        names.append(node.target.id)
    assert list(inspect_notebook(str(path)))==names, f"{path.name}: papermill skips a line with a second `=`, be it in the comment"
