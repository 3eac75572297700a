"Searches and grids on a Ray cluster of several nodes, all on this machine: nodes that see something else are named, one that goes away costs nothing but time."
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import pytest

pytest.importorskip('ray')
pytestmark = pytest.mark.skipif(sys.platform!='linux', reason='nodes of a cluster on one machine are tried on Linux')

from test_grid_faults import files, finish, gone, make, said, start, wait_until

from ipbes_classifier.cluster import cluster_nodes, ray_session
from ipbes_classifier.config import Ray, Settings, load_config

os.environ.setdefault('RAY_worker_niceness', '0')
SMALL = dict(num_cpus=1, object_store_memory=80*2**20)
LONG = pytest.mark.long


def patiently(add, **options):
    "Ray gives a node half a minute to start, which is short on a busy machine; so three chances."
    for attempt in range(3):
        try: return add(**options)
        except Exception as e:
            if attempt==2 or 'timed out' not in str(e): raise


@pytest.fixture(scope='module')
def cluster():
    "A head with one processor; nodes come and go."
    from ray.cluster_utils import Cluster
    folder = tempfile.mkdtemp(prefix='ipbes-c', dir='/tmp')
    os.makedirs('/tmp/ray', exist_ok=True) # Ray notes its address there, and makes the folder only where it is not told another
    c = Cluster()
    os.environ['GIT_DIR'] = '/nowhere'  # for its workers too
    try:
        patiently(c.add_node, **SMALL, include_dashboard=False, temp_dir=folder)
        yield c
    finally:
        del os.environ['GIT_DIR']
        c.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def second(cluster):
    "A second node of the cluster, gone after the test."
    node = patiently(cluster.add_node, **SMALL)
    yield node
    cluster.remove_node(node)


def joined(root, cluster): return load_config(root=root, env='', overrides=[f'ray.address={cluster.address}'])


def ray_start(cluster, before=(), **env):
    "A node that is started by Ray's own command, in surroundings of its own."
    command = [sys.executable,'-c','from ray.scripts.scripts import main; main()','start',f'--address={cluster.address}','--num-cpus=1','--object-store-memory=80000000','--block','--disable-usage-stats']
    return subprocess.Popen([*before,*command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ|env)


def refusal(root, cluster, seconds=180):
    """What a command says once a node has come that it refuses.

    In a process of its own, because Ray gives the import path of the program that joins to all nodes.
    """
    ask = f'from ipbes_classifier.cluster import ray_session; from ipbes_classifier.config import load_config\nwith ray_session(load_config(root=".",env="",overrides=["ray.address={cluster.address}"])): pass'
    until = time.monotonic()+seconds
    while time.monotonic()<until:
        p = subprocess.run([sys.executable,'-c',ask], cwd=root, capture_output=True, text=True)
        if p.returncode: return p.stderr
        time.sleep(1)
    raise AssertionError('no node has come, or none was refused')


def end(node):
    node.terminate()
    try: node.wait(20)
    except subprocess.TimeoutExpired: node.kill()


@LONG
def test_nodes_that_see_the_same_are_listed_and_nothing_is_left(cluster, second, tmp_path):
    "Asked again and again: a question that is over must not trip the next one."
    root = make(tmp_path/'p')
    for _ in range(4):
        with ray_session(joined(root,cluster)): assert [n.cpus for n in cluster_nodes()]==[1,1]
    assert not list(root.glob('.*')), 'the meeting place is gone'


@LONG
def test_a_node_that_does_not_see_the_folder_is_named(cluster, tmp_path):
    "It sees an empty disk there, in a mount namespace of its own."
    if subprocess.run(['unshare','-m','true'], capture_output=True).returncode: pytest.skip('no right to a namespace of mounts')
    root = make(tmp_path/'p')
    node = ray_start(cluster, ['unshare','-m','sh','-c',f'mount -t tmpfs tmpfs {root} && exec "$@"','sh'])
    try: said = refusal(root,cluster)
    finally: end(node)
    assert f'sees another folder at {root}; all machines need the same one there' in said and said.splitlines()[-1].count('sees another')==1, said


@LONG
def test_a_node_with_other_code_is_named(cluster, tmp_path, root):
    shutil.copytree(root/'ipbes_classifier', tmp_path/'other/ipbes_classifier')
    with open(tmp_path/'other/ipbes_classifier/train.py','a') as f: f.write('# changed\n')
    node = ray_start(cluster, PYTHONPATH=str(tmp_path/'other'))
    try: said = refusal(make(tmp_path/'p'),cluster)
    finally: end(node)
    assert 'the code of ipbes_classifier is another one there' in said, said


def test_a_data_set_that_only_this_machine_sees_is_missing_elsewhere(cluster, tmp_path, monkeypatch):
    "The data set stands outside of the project folder, and is not there when a node looks."
    root = make(tmp_path/'p')
    s = joined(root, cluster)
    import ipbes_classifier.cluster as module
    facts = module._facts
    monkeypatch.setattr(module, '_ask', lambda nodes,args,timeout: {n.id:facts(args[0],str(tmp_path/'gone.csv'),args[2],n.id) for n in nodes})
    with pytest.raises(OSError, match='the data set is missing there'), ray_session(s): pass


def test_an_address_of_ray_client_is_refused():
    with pytest.raises(ValueError, match='run the command on a machine of the cluster'), ray_session(Settings(ray=Ray(address='ray://10.0.0.1:10001'))): pass


def test_a_dead_cluster_is_told_at_once():
    with pytest.raises(OSError, match="no Ray cluster at '127.0.0.1:1'"), ray_session(Settings(ray=Ray(address='127.0.0.1:1'))): pass


@LONG
def test_a_search_joins_by_address(cluster, second, tmp_path):
    from ipbes_classifier.hpo import search
    s = joined(make(tmp_path/'p'), cluster)
    found = search('tfidf-svm', settings=replace(s,hpo=replace(s.hpo,n_trials=4)), say=str)
    assert found.trials.status.tolist()==['done']*4 and found.file.exists()


@LONG
def test_a_grid_joins_by_address_and_makes_the_same_files(cluster, second, tmp_path):
    a,b = make(tmp_path/'a'),make(tmp_path/'b')
    args = ('run','-m','tfidf-logreg','-m','tfidf-svm','-f','0','-f','1','--no-compare')
    code,out = finish(a, *args)
    assert not code, out
    code,out = finish(b, *args, '--address',cluster.address)
    assert not code, out
    x,y = files(a),files(b)
    assert sorted(x)==sorted(y) and not [k for k in x if x[k]!=y[k]]


@LONG
def test_a_node_that_goes_away_costs_no_report(cluster, tmp_path):
    "Two models wait in their training, one on each node; then one node is taken away, and another comes."
    root,node = make(tmp_path/'p'),patiently(cluster.add_node, **SMALL)
    (root/'my_short.py').write_text((root/'my_short.py').read_text().replace("'begun'","f'begun-{os.environ.get(\"RAY_RAYLET_PID\",\"\")}'"))
    (root/'fault').write_text('hold')
    job = start(root, 'run','-m','my_short:Short','-f','0','-f','1','--no-compare','--address',cluster.address)
    wait_until(lambda: len(list(root.glob('begun-*')))==2, job, root)
    raylet = node.all_processes['raylet'][0].process.pid
    lost = json.loads((root/f'begun-{raylet}').read_text())
    cluster.remove_node(node, allow_graceful=False)
    until = time.monotonic()+30
    while not gone(lost['kernel']) and time.monotonic()<until: time.sleep(.1)
    assert gone(lost['kernel']), 'no training goes on where Ray has gone'
    (root/'fault').unlink()
    assert not job.wait(180), said(root)
    assert '2 executed' in said(root)
