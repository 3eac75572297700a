"The grid on Ray: the same bytes as here, lost workers, Ctrl-C, writers at the same time, nothing to do."
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from ipbes_classifier.best_settings import Best, read_best, write_best
from ipbes_classifier.config import label_names, load_config, project_path
from ipbes_classifier.pipeline import run_grid
from ipbes_classifier.project import sample_project
from ipbes_classifier.results import add_result, read_results

ray = pytest.importorskip('ray')
OVERRIDES = ['folds.n_folds=2','logging.progress=false','ray.object_store_mb=100','ray.num_cpus=2']


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    "A small project."
    root = tmp_path_factory.mktemp('grid')/'p'
    sample_project(root, n=300, overrides=OVERRIDES)
    return root


@pytest.fixture
def project(template, tmp_path):
    "A copy of it, free to be written to."
    import shutil
    return shutil.copytree(template, tmp_path/'p')


def settings(root, *more): return load_config(root=root, overrides=[*OVERRIDES,*more])


def grid(root, models=('tfidf-logreg',), folds=(0,), engine='ray', more=(), **options):
    "Run a grid and return what became of it, with the lines that it told."
    said = []
    found = run_grid(settings(root,f'grid.engine={engine}',*more), models, folds, parameters=dict(overrides=[*OVERRIDES,*more]), say=said.append, **options)  # reports know nothing of engines
    return found,said


def files(root, *folders):
    "Bytes of what runs leave, without what tells when and where."
    skip = ('provenance.json','.lock')
    return {str(p.relative_to(root)):p.read_bytes() for f in folders for p in sorted((root/f).rglob('*')) if p.is_file() and not p.name.endswith(skip)}


@pytest.mark.long  # test_grid_faults compares what Ray leaves with what it leaves here, after a kill
def test_ray_and_here_leave_the_same_bytes(project, tmp_path):
    import shutil
    other = Path(shutil.copytree(project, tmp_path/'other'))
    one,said = grid(project, ['tfidf-logreg','tfidf-svm'], with_compare=False)
    two,_ = grid(other, ['tfidf-logreg','tfidf-svm'], engine='here', with_compare=False)
    assert not one.failed and one.done==two.done and len(one.done)==3
    a,b = (files(x,'results','plots') for x in (project,other))
    assert a.keys()==b.keys() and [k for k in a if a[k]!=b[k]]==[]
    assert said[-1].startswith('[3/3] ensemble') and not ray.is_initialized()


@pytest.mark.long
def test_nothing_to_do_starts_no_ray(project, monkeypatch):
    grid(project, engine='here', with_compare=False)
    monkeypatch.setattr(ray, 'init', lambda *a,**k: pytest.fail('Ray was started'))
    again,said = grid(project, with_compare=False)
    assert again.skipped and said==[f'[1/1] {again.skipped[0]}: done before, unchanged']


@pytest.mark.long
def test_a_failure_is_told_in_a_sentence_and_the_others_go_on(project):
    (project/'data/folds/test1_run-0.csv').write_text('index\n1\n2\n')
    found,said = grid(project, ['tfidf-logreg'], [0,1], with_compare=False)
    (name,error), = found.failed.items()
    assert 'fold-1' in name and 'test1_run-0.csv' in error and '\n' not in error and len(found.done)==1
    assert f'[2/2] {name}: failed: {error}' in said
    assert (found.folder/f'{name}.failed.ipynb').exists()


RUN = """
import sys
from ipbes_classifier.cli import main
if __name__=='__main__':
    sys.argv = ['ipbes','run','-m','tfidf-logreg','-f','0','-f','1','--engine',{engine!r},'--no-compare',*{overrides!r}]
    main()
"""


def start(root, engine='ray'):
    "The command in a process of its own."
    return subprocess.Popen([sys.executable,'-c',RUN.format(engine=engine,overrides=OVERRIDES)], cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def children(p, what):
    "Processes below `p` whose command says so."
    found = []
    for c in psutil.Process(p.pid).children(recursive=True):
        try:
            if what in ' '.join(c.cmdline()): found.append(c)
        except psutil.Error: pass
    return found


def until(p, what, n=1, seconds=90):
    "Wait for so many processes of this kind."
    end = time.monotonic()+seconds
    while time.monotonic()<end:
        if len(found := children(p,what))>=n: return found
        assert p.poll() is None, p.communicate()[0]
        time.sleep(.1)
    raise AssertionError(f'no {what}')


def gone(processes, seconds=10):
    "Did all of these end?"
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.long
def test_a_killed_worker_is_replaced(project):
    p = start(project)
    kernel = until(p,'ipykernel_launcher')[0]
    kernel.parent().kill()
    out = p.communicate(timeout=150)[0]
    assert p.returncode==0 and '2 executed, 0 done before, 0 failed' in out
    assert gone([kernel])
    assert sorted(read_results(project_path(settings(project),'results/metrics/results.csv')).fold)==[0,1]


@pytest.mark.parametrize('engine', ['here',pytest.param('ray', marks=pytest.mark.long)])
def test_ctrl_c_ends_kernels_and_keeps_what_is_done(project, engine):
    p = start(project, engine)
    kernels = until(p,'ipykernel_launcher')
    os.kill(p.pid, signal.SIGINT)
    out = p.communicate(timeout=60)[0]
    assert p.returncode==130 and 'the same command goes on' in out and 'Traceback' not in out
    assert gone(kernels)
    left = [f.name for f in (project/'papermill_runs/main').rglob('*') if f.is_file() and f.suffix!='.lock']
    assert not [n for n in left if n.startswith('.') or 'failed' in n]


@pytest.mark.long
def test_a_killed_driver_leaves_no_kernel_and_the_same_command_completes(project):
    p = start(project)
    kernels = until(p,'ipykernel_launcher')
    p.kill()
    p.wait()
    found,said = grid(project, folds=[0,1], engine='here', with_compare=False)
    assert not found.failed and len(found.done)+len(found.skipped)==2
    assert gone(kernels)


@pytest.mark.long
def test_a_grid_whose_last_report_no_machine_can_hold_runs_none(project):
    with pytest.raises(ValueError, match='grid.compare: no machine has'): grid(project, more=['grid.compare.memory_gb=1000000'])
    assert not (project/'papermill_runs/main').exists() or not list((project/'papermill_runs/main').glob('*.ipynb'))
    assert not ray.is_initialized()


def _write(job):
    root,fold = job
    add_result(root/'results/metrics/results.csv', dict(model_name='m', loss_type='BCE', fold=fold, run=0, with_title=True, with_keywords=False, AP_macro=fold/100), ['a'])
    write_best(root/'configs/best_hpo.yaml', Best('m', 'BCE', fold, 0, dict(baseline=dict(C=fold+1.)), 'eval_AP_weighted'))


def test_shared_files_are_whole_after_writers_at_the_same_time(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context('spawn')) as pool: list(pool.map(_write, [(tmp_path,k) for k in range(30)]))
    table = read_results(tmp_path/'results/metrics/results.csv')
    assert table.fold.tolist()==list(range(30)) and table.AP_macro.tolist()==[k/100 for k in range(30)]
    assert [read_best(tmp_path/'configs/best_hpo.yaml','m','BCE',k,0,[]).settings['baseline']['C'] for k in range(30)]==[k+1. for k in range(30)]


@pytest.mark.long
def test_searches_and_trainings_of_an_encoder_and_a_baseline_share_one_ray(project):
    more = ['input.max_length=16','models.minilm.num_train_epochs=1','hpo.n_trials=2']
    found,_ = grid(project, ['tfidf-logreg','minilm'], more=more, search=True)
    assert not found.failed and [n.split('__')[0] for n in found.done]==['hpo','hpo','train','train','ensemble','compare']
    assert read_best(project/'configs/best_hpo.yaml','minilm','BCE',0,0,label_names(settings(project))).n_trials==2
    again,_ = grid(project, ['tfidf-logreg','minilm'], more=more, search=True)
    assert (again.done,again.skipped,again.failed)==([],found.done,{}) and not ray.is_initialized()
