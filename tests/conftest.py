"What several test modules share: the project's root, the real data if there is any, and quiet, offline libraries."
import os
import shutil
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# hundreds of small grids start no Ray; tests of Ray ask for it
os.environ.setdefault('IPBES_ENGINE','here')

# tests run without a screen and never reach out for a model; threads of tokenizers do not survive a fork
for name,value in dict(MPLBACKEND='Agg', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false').items(): os.environ.setdefault(name,value)

# two processes of tests on two cores: each library's threads would wait for those of the other process
if os.environ.get('PYTEST_XDIST_WORKER'): os.environ.setdefault('OMP_NUM_THREADS','1')

# who starts the tests in the background of a shell gives them a deaf ear to Ctrl-C, which processes of the tests would inherit
if signal.getsignal(signal.SIGINT)==signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

# a page runs in nbs/, where a relative path would mean another folder
if os.environ.get('IPBES_REAL_DATA'): os.environ['IPBES_REAL_DATA'] = str(Path(os.environ['IPBES_REAL_DATA']).resolve())


# two processes take a file at a time, in this order: one runs the pages while the other runs all that starts Ray, which would disturb itself; then what takes minutes,
# so that neither waits long for the other at the end
FIRST = ('trials','pages','cluster','screen_ray','hpo','grid','grid_faults','docs','commands','assess','training','fill','bad_input','screen_corpus','zotero','formats','identity')

def pytest_collection_modifyitems(items):
    "Sort by file; tests of a file stay in their order."
    rank = {f'test_{n}':i for i,n in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem,len(rank)))


@pytest.fixture(scope='session')
def root()->Path:
    "The folder that holds settings.ini."
    return ROOT


@pytest.fixture(scope='session')
def real_data()->Path:
    "The folder of real data that `IPBES_REAL_DATA` names; skips where it is not set."
    folder = os.environ.get('IPBES_REAL_DATA')
    if not folder: pytest.skip('IPBES_REAL_DATA is not set')
    return Path(folder)


def copy_tree(out:Path)->Path:
    "Copy what the package is built from, as it stands in the working tree; returns `out`."
    left = shutil.ignore_patterns('__pycache__','.ipynb_checkpoints','.*-*')
    for name in ('nbs','ipbes_classifier','configs','app','examples','benchmarks'): shutil.copytree(ROOT/name, out/name, ignore=left)
    for p in ROOT.iterdir():
        if p.is_file() and not p.name.startswith('.'): shutil.copy(p, out)
    return out


@pytest.fixture
def tree(tmp_path)->Path:
    "A copy of the project, free to be written to."
    return copy_tree(tmp_path/'tree')


@pytest.fixture(scope='session')
def package_tree(tmp_path_factory)->Path:
    "A copy of the project for building packages."
    return copy_tree(tmp_path_factory.mktemp('package')/'tree')
