"What the page on trials cannot show: killed processes, a killed search, a full disk, shared data. The trials are toys, so that a search takes seconds."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('ray')
pytest.importorskip('hyperopt')

from ipbes_classifier.cluster import ray_session
from ipbes_classifier.config import Ray, Settings
from ipbes_classifier.trials import finished_trials, run_trials

os.environ.setdefault('RAY_worker_niceness', '0')  # trials at the priority of any other test

MODULE = '''
import os, signal, sys, time
from pathlib import Path
from ipbes_classifier.config import Ray, Settings
from ipbes_classifier.cluster import ray_session
from ipbes_classifier.search_space import ray_tune
from ipbes_classifier.trials import Trials, run_trials

def climb(values, data, report):
    "Nine epochs, each closer to a height that depends on x."
    if values['x']<.1: raise ValueError('x is too small')
    for epoch in range(1,10):
        time.sleep(data.get('pause',0))
        report(dict(objective=1-(values['x']-.3)**2-1/epoch, final=epoch==9))

def mortal(values, data, report):
    "The process dies once in each trial that gets to its fourth epoch."
    mark = Path(data['marks'])/f"{values['x']}"
    def told(r):
        if r['objective']>.5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        report(r)
    climb(values, data, told)

def doomed(values, data, report):
    "The process dies whenever x is large."
    if values['x']>.5: os.kill(os.getpid(), signal.SIGKILL)
    climb(values, data, report)

def greedy(values, data, report):
    "A trial for which the memory does not suffice, and one for which it does."
    (Path(data['marks'])/f"{values['x']}-{time.time()}").touch()
    if values['x']>.5: bytearray(2**62)
    climb(values, data, report)

def trials(folder, trial=climb, **data): return Trials(Path(folder)/'climb', trial, dict(x=ray_tune().uniform(0,1)), data, max_epochs=9, first=[dict(x=.9)], reuse=True)

if __name__=='__main__':
    with ray_session(Settings(ray=Ray(num_cpus=1))): run_trials(trials(sys.argv[1],pause=float(sys.argv[2])), 8, lambda line: print(line,flush=True))
'''


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
    "A module of toy trials, and Ray, whose processes find it."
    folder = tmp_path_factory.mktemp('toys')
    (folder/'toy_trials.py').write_text(MODULE)
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join([str(folder),*filter(None,[before])])
    sys.path.insert(0, str(folder))
    import toy_trials
    with ray_session(Settings(ray=Ray(num_cpus=1))): yield toy_trials
    sys.path.remove(str(folder))
    if before is None: del os.environ['PYTHONPATH']
    else: os.environ['PYTHONPATH'] = before


def table(results): return [(r.config['x'], r.metrics['training_iteration'], r.metrics.get('error') or r.metrics['objective']) for r in results]


@pytest.fixture(scope='module')
def undisturbed(toys, tmp_path_factory): return table(run_trials(toys.trials(tmp_path_factory.mktemp('undisturbed')), 8, str))


def test_poor_trials_are_stopped_and_failing_ones_are_results(undisturbed):
    assert len(undisturbed)==8
    assert {n for _,n,v in undisturbed if not isinstance(v,str)}>={1,9}, 'some end before max_t, some do not'
    assert {v for *_,v in undisturbed if isinstance(v,str)}=={'ValueError: x is too small'}


@pytest.mark.long
def test_a_killed_process_costs_its_trial_nothing(toys, undisturbed, tmp_path):
    lines,marks = [],tmp_path/'marks'
    marks.mkdir()
    assert table(run_trials(toys.trials(tmp_path,toys.mortal,marks=str(marks)), 8, lines.append))==undisturbed
    died = len(list(marks.iterdir()))
    assert died and sum('its process died, again' in line for line in lines)==died


@pytest.mark.long
def test_a_process_that_always_dies_is_a_failed_trial(toys, tmp_path):
    lines = []
    results = run_trials(toys.trials(tmp_path,toys.doomed), 2, lines.append)
    assert [bool(r.error) for r in results]==[True,False], lines
    assert [line.split(': x')[0] for line in lines[:3]]==['[1/2] its process died, again']*2+['[1/2] failed, its process died too often']


def test_memory_that_does_not_suffice_is_a_result_that_is_not_tried_again(toys, undisturbed, tmp_path):
    marks = tmp_path/'marks'
    marks.mkdir()
    results = table(run_trials(toys.trials(tmp_path,toys.greedy,marks=str(marks)), 3, str))
    assert [r[2].split(':')[0] if isinstance(r[2],str) else 'done' for r in results]==['MemoryError' if r[0]>.5 else 'done' for r in undisturbed[:3]]
    assert len(list(marks.iterdir()))==3


@pytest.mark.long
@pytest.mark.parametrize('after', [1,4])
def test_a_killed_search_goes_on_to_the_same_result(toys, undisturbed, tmp_path, after):
    def start(pause): return subprocess.Popen([sys.executable,toys.__file__,str(tmp_path),str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job = start(.1)
    for _ in range(after): assert job.stdout.readline(), job.stderr.read()
    while len(finished_trials(tmp_path/'climb') or [])<after and job.poll() is None: time.sleep(.1)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    known = len(finished_trials(tmp_path/'climb'))
    assert after<=known<8
    out,err = start(0).communicate(timeout=300)
    assert len(out.splitlines())==8-known, out+err
    assert table(finished_trials(tmp_path/'climb'))==undisturbed


@pytest.mark.long
def test_a_state_that_cannot_be_read_begins_the_search_anew(toys, undisturbed, tmp_path):
    t = toys.trials(tmp_path)
    run_trials(t, 2, str)
    for p in t.folder.glob('experiment_state-*.json'): p.write_text(p.read_text()[:100])
    assert finished_trials(t.folder) is None
    assert table(run_trials(t,8,str))==undisturbed


def test_data_lie_once_in_shared_memory(toys, tmp_path, monkeypatch):
    import ray
    put,sizes = ray.put,[]
    def counted(value, *args, **kwargs):
        sizes.append(len(value['rows']) if isinstance(value,dict) and 'rows' in value else 0)
        return put(value, *args, **kwargs)
    monkeypatch.setattr(ray, 'put', counted)
    run_trials(toys.trials(tmp_path,rows=b'x'*1_000_000), 4, str)
    assert sizes.count(1_000_000)==1
    assert not [p for p in (tmp_path/'climb').rglob('*') if p.is_file() and p.stat().st_size>300_000], 'no copy in any file'


@pytest.mark.long
def test_a_full_disk_is_one_sentence_and_the_same_search_goes_on(toys, undisturbed, tmp_path):
    code = f'''
import resource, sys
sys.path.insert(0, {str(Path(toys.__file__).parent)!r})
from toy_trials import *
with ray_session(Settings(ray=Ray(num_cpus=1))):
    def say(line):
        print(line, flush=True)
        if line.startswith('[3/'): resource.setrlimit(resource.RLIMIT_FSIZE, (3000,resource.RLIM_INFINITY))
    try: run_trials(trials({str(tmp_path)!r}), 8, say)
    except OSError as e: print(type(e).__name__, e, flush=True)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,)*2)
'''
    done = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, timeout=120)
    last = done.stdout.splitlines()[-1]
    assert 'cannot be written: the disk is full' in last, done.stdout+done.stderr
    assert table(run_trials(toys.trials(tmp_path),8,str))==undisturbed
