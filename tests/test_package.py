"What is installed: the wheel holds all it needs, starts quickly, and declares what it imports."
import ast
import json
import re
import runpy
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(p for p in (ROOT/'ipbes_classifier').glob('*.py') if not p.name.startswith('_'))
HEAVY = 'torch transformers ray datasketch iterstrat matplotlib seaborn papermill nbconvert'.split()


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
    extras = stated['extras_require']
    assert extras.keys()=={k.removesuffix('_requirements') for k in settings if k.endswith('_requirements')}|{'all'}
    for name,requirements in extras.items(): assert names(requirements), name
    assert names(extras['all'])==set().union(*(names(o) for o in extras.values()))
    for name in ('train','minilm'): assert names(extras[name])<=names(extras['dev'])


def test_pins_satisfy_what_is_required(stated, pins):
    required = [Requirement(o) for o in (*stated['install_requires'],*stated['extras_require']['dev'])]
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
    of = packages_distributions()
    found = {o for o in imports(path) if o not in sys.stdlib_module_names and o!='ipbes_classifier'}
    undeclared = sorted(o for o in found if not {canonicalize_name(d) for d in of.get(o,[o])}&declared)
    assert not undeclared, f"{path.name} imports what no requirement in settings.ini brings"


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
    for folder,inside,kind in (('ipbes_classifier','','*.py'),('configs','configs/','*.yaml'),('nbs/reports','reports/','*.ipynb')):
        files = sorted((ROOT/folder).glob(kind))
        missing = [p.name for p in files if f'ipbes_classifier/{inside}{p.name}' not in held]
        assert not missing, f"{folder} in the wheel: {missing}"
    assert not [o for o in held if o.startswith(('tests/','nbs/','benchmarks/','configs/'))]


@pytest.mark.long
def test_installed_wheel_finds_its_own_files(wheel, tmp_path):
    "Without the checkout: put the wheel alone on the path and ask it."
    zipfile.ZipFile(wheel).extractall(tmp_path/'site')
    code = "import ipbes_classifier; from importlib.resources import files; print(*sorted(o.name for o in (files('ipbes_classifier')/'configs').iterdir()))"
    done = subprocess.run([sys.executable,'-c',code], cwd=tmp_path/'site', capture_output=True, text=True, check=True)
    assert 'config.yaml' in done.stdout.split()
