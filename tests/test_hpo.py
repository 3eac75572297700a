"What the page on searches cannot show: repeated and killed searches, failing trials, poisoned test rows, the commands."
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('ray')
pytest.importorskip('hyperopt')

from ipbes_classifier.best_settings import Best, read_searches, write_best
from ipbes_classifier.cli import main
from ipbes_classifier.config import load_config, project_path
from ipbes_classifier.folds import make_folds, read_fold, write_folds
from ipbes_classifier.cluster import ray_session
from ipbes_classifier import trials
from ipbes_classifier.hpo import search
from ipbes_classifier.results import read_results

os.environ.setdefault('RAY_worker_niceness', '0')  # trials at the priority of any other test

CONFIG = '''
labels: [{name: A}, {name: B}]
logging: {progress: false, tensorboard: false}
input: {max_length: 24}
hpo: {n_trials: 4, scheduler: {reduction_factor: 2}}
models: {minilm: {num_train_epochs: 3, per_device_train_batch_size: 8, gradient_accumulation_steps: 1, early_stopping_patience: 0, precision: float32}}
'''


def project(root, poison=False, n=80):
    "Three topics in few words, two labels, two folds; with `poison`, texts and labels of the test rows of fold 0 are nonsense."
    (root/'configs').mkdir(parents=True)
    (root/'configs/config.yaml').write_text(CONFIG)
    s = load_config(root=root, env='')
    rng = np.random.default_rng(0)
    words = np.array(['ants','islands','forest','values','galaxy','dust','spread','survey','river','people'])
    texts = [' '.join(rng.choice(words, 12, p=np.where(np.arange(10)//2==i%3, 2, 1)/12)) for i in range(n)]
    data = pd.DataFrame(dict(id=[f'r{i}' for i in range(n)], doi='', title='a record', abstract=texts, year=2020, keywords=''))
    data['A'],data['B'] = (np.arange(n)%3==0).astype(int),(np.arange(n)%3==1).astype(int)
    folds = make_folds(data[['A','B']].to_numpy(), np.arange(n), n_folds=2, dev_size=.3)
    if poison:
        data.loc[folds[0].test,'abstract'] = 'poison '+data.abstract[folds[0].test]
        data.loc[folds[0].test,['A','B']] = 1-data.loc[folds[0].test,['A','B']]
    path = project_path(s, s.paths.dataset)
    path.parent.mkdir(parents=True)
    data.to_csv(path, index=False)
    write_folds(folds, root/'data/folds', np.arange(n), path)
    return s


def told(found): return found.trials.drop(columns='seconds')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A project, and Ray for all tests of this module that run in this process."
    s = project(tmp_path_factory.mktemp('hpo')/'p')
    with ray_session(s): yield s


@pytest.fixture(scope='module')
def found(small): return search('tfidf-logreg', settings=small, say=str)


def test_same_seed_same_trials_and_test_rows_are_never_read(small, found, tmp_path):
    poisoned = project(tmp_path/'q', poison=True)
    assert project_path(poisoned,poisoned.paths.dataset).read_text().count('poison')==len(read_fold(tmp_path/'q/data/folds',0).test)>0
    other = search('tfidf-logreg', settings=poisoned, say=str)
    pd.testing.assert_frame_equal(told(other), told(found))
    assert other.best.settings==found.best.settings and other.folder.name!=found.folder.name
    assert not [p for p in other.folder.rglob('*') if p.is_file() and b'poison' in p.read_bytes()]


@pytest.mark.long
def test_another_seed_tries_something_else(small, found):
    other = search('tfidf-logreg', settings=replace(small,seed=1), say=str)
    assert told(other).iloc[0].equals(told(found).iloc[0]), 'the first trial is the configuration'
    assert not told(other).iloc[1:].equals(told(found).iloc[1:])


@pytest.mark.long
def test_a_failing_trial_costs_one_trial(small):
    "Without titles, no word stands in all texts: a vocabulary of words that do is empty."
    s = replace(small, input=replace(small.input,with_title=False), hpo=replace(small.hpo, n_trials=3, space=dict(baseline=dict(min_df='choice(2, 1000)'))))
    lines = []
    found = search('tfidf-logreg', settings=s, say=lines.append)
    assert set(found.trials.status)=={'done','failed'} and len(lines)==4 and '`--restart`' in lines[3]
    assert found.best.settings==dict(baseline=dict(min_df=2))
    assert all('no terms remain' in e for e in found.trials.error[found.trials.status=='failed'])
    assert sum('] failed' in line for line in lines)==(found.trials.status=='failed').sum()
    alone = replace(s, hpo=replace(s.hpo, n_trials=1, space=dict(baseline=dict(min_df='choice(900, 1000)'))))
    for _ in range(2):
        lines = []
        with pytest.raises(ValueError, match='all 1 trials failed; .*no terms remain.*tries them again'): search('tfidf-logreg', settings=alone, say=lines.append)
        assert len(lines)==1 and lines[0].startswith('[1/1] failed'), 'tried again the second time'


def test_trials_keep_no_weights_and_write_tensorboard_events(found):
    names = {p.name.split('.')[0] for p in found.folder.rglob('trial-*/*')}
    assert 'events' in names and names<={'events','params','progress','result'}
    assert sum(p.stat().st_size for p in found.folder.rglob('*') if p.is_file())<2e6


def test_events_for_tensorboard_hold_the_measures(found):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for trial,value in zip(found.trials.trial,found.trials.value):
        events = EventAccumulator(str(next(found.folder.glob(f'trial-{trial}-*')))).Reload()
        assert events.Scalars('ray/tune/eval_AP_weighted')[-1].value==pytest.approx(value)


def test_more_trials_go_on_from_those_there_are(small, found):
    lines = []
    more = search('tfidf-logreg', settings=small, n_trials=6, say=lines.append)
    assert lines[0]=='4 trials were done before' and [line[:5] for line in lines[1:]]==['[5/6]','[6/6]']
    assert told(more).iloc[:4].equals(told(found)) and more.folder==found.folder and more.best.n_trials==6
    lines = []
    again = search('tfidf-logreg', settings=small, say=lines.append)
    assert lines==['all 4 trials were done before'] and again.best==found.best


@pytest.mark.long
def test_what_has_ended_when_the_time_is_up_is_the_result(small, tmp_path):
    s = project(tmp_path/'p')
    s = replace(s, hpo=replace(s.hpo, n_trials=8, time_budget='3h', space=dict(baseline=dict(n_estimators='choice(100, 150)', min_df='choice(1, 2, 3)'))))
    lines = []
    def say(line):
        lines.append(line)
        if line.startswith('[2/'):
            for running in trials._RUNNING.values(): running.deadline = time.monotonic()
    part = search('tfidf-random-forest', settings=s, say=say)
    n = len(part.trials)
    assert 2<=n<8 and lines[-1]==f'3h are over after {n} of 8 trials; the same command goes on'
    assert read_searches(part.file)[part.plan.key].n_trials==n
    whole = search('tfidf-random-forest', settings=replace(s,hpo=replace(s.hpo,time_budget='')), n_trials=n+2, say=lines.append)
    assert told(whole).iloc[:n].equals(told(part)) and whole.trials.trial.tolist()==list(range(1,n+3))
    fresh = project(tmp_path/'q')
    fresh = search('tfidf-random-forest', settings=replace(s,root=fresh.root,hpo=replace(s.hpo,time_budget='')), n_trials=n+2, say=lines.append)
    pd.testing.assert_frame_equal(told(whole), told(fresh))
    assert whole.file.read_bytes()==fresh.file.read_bytes()
    with pytest.raises(ValueError, match='no trial has ended within 1s .hpo.time_budget.; a longer time is needed'):
        search('tfidf-random-forest', settings=replace(s,seed=5,baseline=replace(s.baseline,max_features=9),hpo=replace(s.hpo,time_budget='1s',space=dict(
            baseline=dict(n_estimators='choice(20000, 30000)')))), say=str)


@pytest.mark.long
@pytest.mark.parametrize('mode,first', [('none',None), ('fold',[3.]), ('all',[5.,3.,6.])])
def test_first_trials_come_from_other_searches(small, tmp_path, mode, first):
    from ipbes_classifier.hpo import plan_search
    s = project(tmp_path/'p')
    s = replace(s, hpo=replace(s.hpo, warm_start=mode))
    file,p = project_path(s,s.paths.best_hpo),plan_search(s, 'tfidf-logreg', 0, 0, 'BCE')
    def add(model, fold, C, **more):
        write_best(file, replace(Best(model, 'x', fold, 0, dict(baseline=dict(C=C)), 'eval_AP_macro', data=p.data_hash, rows=p.rows), **more))
    add('tfidf-svm', 0, 3.)
    add('tfidf-other', 0, 4., rows='of folds that were cut otherwise')
    add('tfidf-old', 0, 4.5, data='another data set')
    add('tfidf-encoder', 0, 4.7, settings=dict(training=dict(learning_rate=1e-4)))
    add('tfidf-logreg', 1, 5., loss='logloss', rows='of fold 1')
    add('tfidf-warm', 0, 6., warm_start=['tfidf-svm__x__fold-2__run-0'])
    found = search('tfidf-logreg', settings=s, n_trials=1+len(first or [])+1, say=str)
    if mode=='none': assert not found.best.warm_start and found.plan.first==[dict(C=1.,min_df=2,ngram_max=2)]
    else:
        assert found.trials.C.tolist()[:len(first)+1]==[1.,*first]
        svm = 'tfidf-svm__x__fold-0__run-0'
        assert found.best.warm_start==([svm] if mode=='fold' else ['tfidf-logreg__logloss__fold-1__run-0',svm,
            'tfidf-warm__x__fold-0__run-0','tfidf-other__x__fold-0__run-0','tfidf-svm__x__fold-2__run-0']), 'with what those were from'
        other = plan_search(replace(s,hpo=replace(s.hpo,warm_start='none')), 'tfidf-logreg', 0, 0, 'BCE')
        from ipbes_classifier.hpo import _folder
        assert _folder(other)!=found.folder, 'first trials belong to what makes a search'


@pytest.mark.long
def test_two_trials_at_a_time(small):
    import ray
    from ipbes_classifier.hpo import _trials, plan_search
    s = replace(small, hpo=replace(small.hpo, trial_cpus=1))
    t = _trials(plan_search(s,'tfidf-svm',0,0,'BCE'), Path('anywhere'))
    assert (t.resources['cpu'],t.slots)==(1,int(ray.cluster_resources()['CPU']))
    found = search('tfidf-svm', settings=replace(s,seed=9), say=str)
    assert found.trials.trial.tolist()==[1,2,3,4] and found.trials.value.notna().all()


def test_any_measure_of_the_table_can_decide(small):
    from ipbes_classifier.hpo import _metric, dev_measures
    from ipbes_classifier.metrics import results_columns
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (200,2))
    scores = np.clip(.3*y+rng.random((200,2))*.7, 0, 1)
    columns = results_columns(['A','B'])
    assert {'f1_macro','AP_weighted','kappa_weighted','f1_A','roc_auc_B'}<=set(columns)
    for column in columns:
        name,_ = _metric(small, 'baseline', column)
        assert np.isfinite(dev_measures(y, scores, ['A','B'], name)[name]), column


def test_a_cluster_by_its_address(small, monkeypatch, capsys):
    "The program's own Ray is used where one runs; the address is what is passed on."
    from ipbes_classifier import hpo as module
    seen = []
    def stop(s, *args):
        seen.append((s.ray.address,s.hpo.time_budget,s.hpo.warm_start))
        raise ValueError('that will do')
    monkeypatch.setattr(module, 'ray_session', stop)
    out = fails(monkeypatch, capsys, small.root, 'hpo', '-m','tfidf-svm', '--n-trials','9', '--address','node1:6379', '--time-budget','30m', '--warm-start','fold')
    assert 'that will do' in out and seen==[('node1:6379','30m','fold')]


@pytest.mark.long
def test_entries_of_other_models_stay(small, found):
    other = search('tfidf-svm', settings=small, n_trials=1, say=str)
    assert other.file==found.file and set(read_searches(found.file))>={found.plan.key,other.plan.key}


MODULE = '''
import numpy as np
from ipbes_classifier.losses import register_loss
from ipbes_classifier.metrics import register_metric
from ipbes_classifier.models import register_model

@register_metric('hits')
def hits(y, preds): return float((y==preds).mean())

@register_loss('hinge-like')
def hinge_like(logits, y): return (1-(2*y-1)*logits).clamp(min=0)

@register_model('short-or-long')
class ShortOrLong:
    loss = 'none'
    def __init__(self, labels, words=12): self.labels,self.words = labels,words
    def fit(self, train, dev): pass
    def scores(self, records): return np.tile((records.abstract.str.split().str.len().to_numpy()>=self.words)[:,None]*.5, (1,len(self.labels)))
    def save(self, folder): pass
    @classmethod
    def load(cls, folder, labels): return cls(labels)
'''


@pytest.fixture
def named(small, tmp_path):
    "A project whose settings name a module with a measure, a loss and a model; forgotten afterwards."
    from ipbes_classifier import losses, metrics, models
    before = [(r,set(r)) for r in (losses.LOSSES,metrics.METRICS,models.MODELS)]
    s = project(tmp_path/'p')
    (tmp_path/'p/my_search.py').write_text(MODULE)
    (tmp_path/'p/configs/train.yaml').write_text('modules: [my_search]')
    yield s.root
    for r,names in before:
        for k in set(r)-names: del r[k]
    sys.modules.pop('my_search', None)


@pytest.mark.long
def test_trials_know_the_model_and_the_measure_of_a_named_module(named, monkeypatch):
    monkeypatch.chdir(named)
    found = search('short-or-long', n_trials=2, hpo_metric='eval_hits_macro', say=str,
                   overrides=['hpo.space={training: {model_settings: {words: "choice(3, 12, 20)"}}}'])
    assert found.best.metric=='eval_hits_macro' and (found.trials.status=='done').all(), found.trials.to_string()
    assert set(found.trials['model_settings.words'])<={3,12,20}


@pytest.mark.long
def test_trials_know_the_loss_of_a_named_module(named):
    s = load_config(root=named, env='', overrides=['models.minilm.num_train_epochs=1'])
    found = search('minilm', loss='hinge-like', n_trials=1, settings=s, say=str)
    assert found.trials.status.tolist()==['done'], found.trials.to_string()


def test_what_no_module_of_the_settings_registers_is_refused(named):
    s = load_config(root=named, env='')
    for args in (dict(model_name='short-or-long'),dict(model_name='tfidf-svm',hpo_metric='eval_hits_macro')):
        with pytest.raises(ValueError, match='was registered in my_search, which the processes of a search do not import'):
            search(**args, settings=replace(s,modules=[]), say=str)
    assert not (Path(s.root)/'results/ray_results').exists(), 'no trial has run'


def ipbes(root, *args, **env):
    return subprocess.run([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*args], cwd=root, capture_output=True, text=True,
                          timeout=600, env=os.environ|dict(OMP_NUM_THREADS='1', COLUMNS='200')|env)


def fails(monkeypatch, capsys, root, *args):
    "The sentence with which a command ends."
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, 'argv', ['ipbes',*args])
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code
    return ' '.join(capsys.readouterr().err.split())


@pytest.mark.parametrize('args,message', [
    (['--n_trials','0'], 'greater than or equal to 1'),
    (['--hpo_metric','eval_AP_weigthed'], 'nearest: eval_AP_weighted'),
    (['hpo.space={baseline: {C: "normal(0, 1)"}}'], 'would be right'),
    (['hpo.space={baseline: {c: 1}}'], '`hpo.space.baseline.c` is no setting'),
    (['hpo.scheduler.type=pbt'], 'one of asha, none'),
    (['-f','9'], 'train9_run-0.csv is missing'),
])
def test_a_mistake_is_one_sentence_before_the_first_trial(small, found, monkeypatch, capsys, args, message):
    before = sorted(found.folder.parent.iterdir())
    assert message in fails(monkeypatch, capsys, small.root, 'hpo', *args)
    assert sorted(found.folder.parent.iterdir())==before


@pytest.mark.parametrize('text,message', [
    ('', 'has no entry tfidf-logreg__logloss__fold-0__run-0'),
    ('a: [', 'not valid YAML'),
    ('tfidf-logreg__logloss__fold-0__run-0: {model: tfidf-logreg, loss: logloss, fold: 0, run: 0, metric: eval_AP_macro, settings: {baseline: {c: 1}}}',
     '`baseline.c` is no setting'),
])
def test_a_wrong_hp_config_is_one_sentence(small, tmp_path, monkeypatch, capsys, text, message):
    (tmp_path/'best.yaml').write_text(text)
    assert message in fails(monkeypatch, capsys, small.root, 'train', '--hp_config', str(tmp_path/'best.yaml'))


@pytest.mark.parametrize('error,times', [('The current node timed out during startup.',3), ('The requested object store memory size is greater than the memory.',1)])
def test_ray_is_given_three_chances_on_a_busy_machine(monkeypatch, error, times):
    import ray
    tried = []
    def init(**options):
        tried.append(options['_temp_dir'])
        raise RuntimeError(error)
    for name,f in (('is_initialized',lambda: False),('init',init),('shutdown',lambda: None)): monkeypatch.setattr(ray, name, f)
    with pytest.raises(OSError, match=f'Ray does not start: {error}'):
        with ray_session(load_config(env='')): pass
    assert len(tried)==times and [os.path.exists(p) for p in tried]==[False]*(times-1)+[True], 'the logs of the last one are kept'
    os.rmdir(tried[-1])


@pytest.mark.long
def test_commands_search_train_and_report(tmp_path):
    s = project(tmp_path/'p')
    home,temp = tmp_path/'home',Path(tempfile.mkdtemp(prefix='t'))
    home.mkdir()
    done = ipbes(s.root, 'hpo', '--n_trials','3', '--hpo_metric','eval_kappa_weighted', '-m','tfidf-svm', '-f','1', '-r','0', '-t', HOME=str(home), TMPDIR=str(temp))
    assert not done.returncode, done.stderr
    assert not done.stderr.strip(), 'Ray is quiet'
    assert len(re.findall(r'^\[\d/3\] eval_kappa_weighted', done.stdout, re.M))==3 and 'configs/best_hpo.yaml' in done.stdout
    assert not list(home.rglob('*ray_results*')) and not list(temp.glob('ray-*')), 'nothing is left behind'
    assert (tmp_path/'p/plots/hyperparams/tfidf-svm__hinge__fold-1__run-0.png').exists()
    done = ipbes(s.root, 'train', '-m','tfidf-svm', '-f','1', '--hp_config','configs/best_hpo.yaml')
    assert not done.returncode, done.stderr
    row = read_results(tmp_path/'p/results/metrics/results.csv').iloc[0]
    assert (row['num_trials'],row['hpo_metric'])==(3,'eval_kappa_weighted')

    run = ['run','-m','tfidf-svm','-f','1','--hp-config','configs/best_hpo.yaml','--no-compare','--no-ensemble']
    assert '1 executed' in ipbes(s.root, *run).stdout
    file = tmp_path/'p/configs/best_hpo.yaml'
    write_best(file, Best('other', 'BCE', 0, 0, {}, 'eval_AP_macro'))
    assert '0 executed, 1 done before' in ipbes(s.root, *run).stdout, 'another entry'
    own = read_searches(file)['tfidf-svm__hinge__fold-1__run-0']
    write_best(file, replace(own, settings=dict(baseline=dict(C=3.))))
    assert '1 executed' in ipbes(s.root, *run).stdout, 'its own entry'
    assert read_results(tmp_path/'p/results/metrics/results.csv').iloc[0]['num_trials']==3


SEARCH = '''
import sys
from ipbes_classifier.config import load_config
from ipbes_classifier.hpo import search
found = search(sys.argv[2], settings=load_config(root=sys.argv[1],env='',overrides=sys.argv[3:]), say=lambda line: print(line,flush=True))
'''


def start(root, *args): return subprocess.Popen([sys.executable,'-c',SEARCH,str(root),*args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def known_as_done(root):
    "Trials that Ray's saved state knows to be done; it is saved once a second."
    states = sorted(Path(root).glob('results/ray_results/*/experiment_state-*.json'))
    return len(re.findall(r'status\\*": *\\*"TERMINATED', states[-1].read_text())) if states else 0


@pytest.mark.long
def test_a_killed_search_goes_on_to_the_same_result(small, tmp_path):
    s = project(tmp_path/'p')
    args = [str(s.root),'tfidf-random-forest','hpo.n_trials=8','hpo.space={baseline: {n_estimators: "choice(200, 300, 400)", min_df: "choice(1, 2, 3)"}}']
    job = start(*args)
    assert job.stdout.readline().startswith('[1/8]'), job.stderr.read()
    while not known_as_done(s.root) and job.poll() is None: time.sleep(.05)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    known = known_as_done(s.root)
    assert 0<known<8
    job = start(*args)
    out,err = job.communicate(timeout=600)
    assert not job.returncode, err
    again = [line.split(']')[0] for line in out.splitlines() if line[0]=='[']
    assert len(again)==8-known and again[-1]=='[8/8', 'finished trials are not repeated'
    undisturbed = search('tfidf-random-forest', settings=load_config(root=project(tmp_path/'q').root, env='', overrides=args[2:]), say=str)
    resumed = search('tfidf-random-forest', settings=load_config(root=s.root, env='', overrides=args[2:]), say=str)
    pd.testing.assert_frame_equal(told(resumed), told(undisturbed))
    assert resumed.file.read_bytes()==undisturbed.file.read_bytes()


@pytest.mark.long
def test_a_poor_trial_of_an_encoder_is_stopped_early(small):
    s = load_config(root=small.root, env='', overrides=['hpo.space={training: {learning_rate: "loguniform(1e-6, 1e-3)"}}'])
    lines = []
    found = search('minilm', settings=s, say=lines.append)
    t = found.trials
    assert found.plan.max_epochs==3 and t.epochs.max()==3
    stopped = t[t.status=='stopped']
    assert len(stopped) and (stopped.epochs<3).all(), t.to_string()
    assert sum('stopped' in line for line in lines)==len(stopped)
    assert found.best.value==t.value.max()>stopped.value.max()
    assert (found.epochs.groupby('trial').size()==t.set_index('trial').epochs).all()
    assert not list(found.folder.rglob('*.safetensors')), 'trials keep no weights'


@pytest.mark.long
def test_the_report_says_first_what_was_found_and_what_the_time_budget_left(root, tmp_path):
    import papermill
    from ipbes_classifier.report_html import notebook_to_html
    parameters = dict(root='', model='tfidf-logreg', fold=1, n_trials=400, overrides=['hpo.time_budget=8s'])
    papermill.execute_notebook(str(root/'nbs/reports/hpo.ipynb'), str(tmp_path/'r.ipynb'), parameters=parameters, cwd=project(tmp_path/'p').root, kernel_name='python3', progress_bar=False, log_output=False)
    html = notebook_to_html(tmp_path/'r.ipynb').read_text(encoding='utf-8')
    text = re.sub(r'<[^>]+>', '', html)
    ended,left = map(int, re.search(r'Of (\d+) trials, .*The time budget of 8s was over before (\d+) of 400 trials had ended', text).groups())
    assert ended>0 and ended+left==400 and f'The best of {ended} trials' in text
    at = [re.search(p, html).start() for p in ('<h2[^>]*>What it found','<h2[^>]*>What it ran with','<summary>Parameters')]
    assert at==sorted(at), 'what was found stands first, parameters last'
