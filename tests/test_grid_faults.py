"Processes that are killed, a full disk and too little memory in the middle of a grid: the next `ipbes run` completes, and its files are those of an undisturbed one."
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ipbes_classifier.config import load_config, project_path
from ipbes_classifier.folds import make_folds, write_folds

pytestmark = pytest.mark.skipif(sys.platform!='linux', reason='kills processes, and looks at them, as Linux does')
LONG = pytest.mark.long

CONFIG = '''
labels: [{name: A}, {name: B}]
logging: {progress: false, tensorboard: false}
ray: {num_cpus: 2, object_store_mb: 80}
grid: {own: {cpus: 1, gpus: 0}, encoder: {cpus: 1, gpus: 0}}
models: {minilm: {num_train_epochs: 1, per_device_train_batch_size: 8, gradient_accumulation_steps: 1, precision: float32}}
input: {max_length: 16}
'''

# What happens in its training, a file says that is no input of it, so that the report is the same with and without.
MODEL = '''
import json, os, time
from pathlib import Path
import numpy as np
HERE = Path(__file__).parent
class Short:
    loss = 'none'
    def __init__(self, labels): self.labels = labels
    def fit(self, train, dev):
        fault = HERE/'fault'
        if not fault.exists(): return
        if (kind:=fault.read_text())=='memory': np.empty(2**58)
        if kind=='once' and (HERE/'begun').exists(): return
        (HERE/'begun.tmp').write_text(json.dumps(dict(kernel=os.getpid(), parent=os.getppid())))
        os.replace(HERE/'begun.tmp', HERE/'begun')
        while fault.exists(): time.sleep(.05)
    def scores(self, records): return np.tile((records.abstract.str.len().to_numpy()%7/8)[:,None], (1,len(self.labels)))
    def save(self, folder): pass
    @classmethod
    def load(cls, folder, labels): return cls(labels)
'''
ENVIRONMENT = dict(OMP_NUM_THREADS='1', COLUMNS='200', IPBES_ENV='', GIT_DIR='/nowhere')  # a report names the commit, which may change meanwhile
ARGS = ('run','-m','my_short:Short','-m','tfidf-svm','-f','0','--no-compare')  # whose report tells how long trainings took


def make(root, n=80):
    "A project of two labels and two folds in which a model can be stopped in its training; returns its folder."
    (root/'configs').mkdir(parents=True)
    (root/'configs/config.yaml').write_text(CONFIG)
    (root/'my_short.py').write_text(MODEL)
    s = load_config(root=root, env='')
    rng = np.random.default_rng(0)
    words = np.array(['ants','islands','forest','values','galaxy','dust','spread','survey','river','people'])
    texts = [' '.join(rng.choice(words, 12, p=np.where(np.arange(10)//2==i%3, 2, 1)/12)) for i in range(n)]
    data = pd.DataFrame(dict(id=[f'r{i}' for i in range(n)], doi='', title='a record', abstract=texts, year=2020, keywords=''))
    data['A'],data['B'] = (np.arange(n)%3==0).astype(int),(np.arange(n)%3==1).astype(int)
    path = project_path(s, s.paths.dataset)
    path.parent.mkdir(parents=True)
    data.to_csv(path, index=False)
    write_folds(make_folds(data[['A','B']].to_numpy(), np.arange(n), n_folds=2, dev_size=.3), root/'data/folds', np.arange(n), path)
    return root


def start(root, *args, engine='here'):
    "The command `ipbes` in a session of its own, its output in a file."
    with open(root.parent/f'{root.name}.log','w') as log:
        return subprocess.Popen([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*args], cwd=root, stdout=log, stderr=subprocess.STDOUT,
                                start_new_session=True, env=os.environ|dict(IPBES_ENGINE=engine, **ENVIRONMENT))


def finish(root, *args, engine='here', timeout=200):
    "Exit code and output of the command."
    job = start(root, *args, engine=engine)
    try: return job.wait(timeout), said(root)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise AssertionError(f'no end after {timeout} s: {said(root)}') from None


def said(root): return (root.parent/f'{root.name}.log').read_text()


def files(root):
    "What a grid leaves: every file but locks, times of reports and provenance, which tells of one execution."
    kept = [p for folder in ('results','papermill_runs','plots','configs') for p in (root/folder).rglob('*') if p.is_file()]
    kept = [p for p in kept if p.name!='provenance.json' and not {'.locks','.state','tensorboard','ray_results'}&set(p.relative_to(root).parts)]
    return {str(p.relative_to(root)):p.read_bytes() for p in kept}


def same(a, b):
    "Fail with the names of what differs."
    a,b = files(a),files(b)
    assert sorted(a)==sorted(b)
    assert not [k for k in a if a[k]!=b[k]]
    assert len(a)>8 and any(k.endswith('results.csv') for k in a) and any(k.endswith('.html') for k in a)


def wait_until(found, job, root, seconds=90):
    "Wait for a condition while the command runs."
    until = time.monotonic()+seconds
    while not found():
        assert job.poll() is None and time.monotonic()<until, said(root)
        time.sleep(.05)


def gone(pid):
    "Is this process no more, or but a name in the table?"
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')',1)[1].split()[0]=='Z'
    except OSError: return True


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    "A project whose grid went through in one piece."
    root = make(tmp_path_factory.mktemp('undisturbed')/'p')
    code,out = finish(root, *ARGS)
    assert not code and '3 executed' in out, out
    return root


def begin(root, engine, fault='hold'):
    "Start a grid and wait until a training is in its middle: the job, and the processes of its report."
    (root/'fault').write_text(fault)
    job = start(root, *ARGS, engine=engine)
    wait_until((root/'begun').exists, job, root)
    return job, json.loads((root/'begun').read_text())


@pytest.mark.long
@pytest.mark.parametrize('engine,victim', [('ray','driver'),('here','kernel'),('here','driver'),('ray','kernel')])
def test_a_killed_process_costs_no_more_than_its_report(undisturbed, tmp_path, engine, victim):
    root = make(tmp_path/'p')
    job,pids = begin(root, engine)
    os.kill(job.pid if victim=='driver' else pids['kernel'], signal.SIGKILL)
    code = job.wait(120)
    if victim=='kernel': assert code==1 and 'the kernel died' in said(root), said(root)
    until = time.monotonic()+60
    while not all(map(gone,pids.values())) and time.monotonic()<until: time.sleep(.1)
    assert all(map(gone,pids.values())), 'the kernel of a grid that was killed trains no further'
    (root/'fault').unlink()
    code,out = finish(root, *ARGS, engine=engine)
    assert not code, out
    same(root, undisturbed)
    code,out = finish(root, *ARGS, engine=engine)
    assert not code and '0 executed, 3 done before' in out, out


@LONG
def test_a_killed_ray_worker_is_replaced_in_the_same_command(undisturbed, tmp_path):
    "The report that it executed is executed again; what the first attempt left half-written goes with the next command."
    root = make(tmp_path/'p')
    job,pids = begin(root, 'ray', 'once')
    assert pids['parent']!=job.pid, 'a worker of Ray executes the report'
    os.kill(pids['parent'], signal.SIGKILL)
    assert not job.wait(180), said(root)
    assert gone(pids['kernel'])
    code,out = finish(root, *ARGS, engine='ray')
    assert not code and '0 executed, 3 done before' in out, out
    same(root, undisturbed)


@pytest.mark.long
@pytest.mark.parametrize('engine', ['here','ray'])
def test_a_report_without_memory_fails_alone(undisturbed, tmp_path, engine):
    "An allocation of 2**58 numbers really fails."
    root = make(tmp_path/'p')
    (root/'fault').write_text('memory')
    code,out = finish(root, *ARGS, engine=engine)
    assert code==1 and 'out of memory while training Short' in out and 'Traceback' not in out, out
    assert (root/'papermill_runs/main/train__tfidf-svm__hinge__fold-0__run-0.html').exists(), 'the others go on'
    (root/'fault').unlink()
    code,out = finish(root, *ARGS, engine=engine)
    assert not code and 'train__tfidf-svm' in out, out
    same(root, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 8 MB; skips where none can be mounted."
    (tmp_path/'disk').mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=8m','tmpfs',tmp_path/'disk'], capture_output=True).returncode: pytest.skip('no right to mount a disk')
    yield tmp_path/'disk'
    subprocess.run(['umount','-l',tmp_path/'disk'], check=True)


@LONG
@pytest.mark.parametrize('engine,left', [('here',0),('here',60_000),('ray',60_000)])
def test_a_full_disk_ends_in_sentences_and_the_next_grid_completes(undisturbed, small_disk, tmp_path, engine, left):
    root = make(small_disk/'p')
    with open(small_disk/'filler','wb',buffering=0) as f:
        with contextlib.suppress(OSError):
            for size in (65536,4096):
                while f.write(bytes(size)): pass
        if left: f.truncate(f.tell()-left)
    job = subprocess.run([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*ARGS], cwd=root, capture_output=True, text=True, timeout=200,
                         env=os.environ|dict(IPBES_ENGINE=engine, **ENVIRONMENT))
    assert job.returncode==1 and 'disk is full' in job.stdout+job.stderr and 'Traceback' not in job.stdout+job.stderr, job.stdout+job.stderr
    (small_disk/'filler').unlink()
    moved = shutil.copytree(root, tmp_path/'p')
    code,out = finish(moved, *ARGS, engine=engine)
    assert not code, out
    same(moved, undisturbed)
