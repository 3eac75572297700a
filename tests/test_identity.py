"""A changed setting runs what it touches and nothing else, and the dry run knows beforehand."""
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ipbes_classifier.config import load_config
from ipbes_classifier.identity import report_code, save_state, state_path, task_inputs, why
from ipbes_classifier.pipeline import grid_tasks, plan_tasks, run_grid
from ipbes_classifier.project import sample_project
from ipbes_classifier.tasks import train_tasks

MADE = ['folds.n_folds=2','logging.progress=false','baseline.n_estimators=10']
MODELS = ['tfidf-logreg','tfidf-random-forest']
LINEAR,FOREST,ENSEMBLE,COMPARE = ('train__tfidf-logreg__logloss__fold-0__run-0','train__tfidf-random-forest__gini__fold-0__run-0',
                                  'ensemble__Ensemble__BCE__fold-0__run-0','compare__all__all__fold-all__run-0')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A project on the sample, once for all tests."
    return Path(sample_project(tmp_path_factory.mktemp('identity')/'p', n=300, overrides=MADE).root)


def planned(root, *overrides, models=MODELS, **more):
    "Name to reason of what would be executed, with the states of a finished grid standing."
    s,given = load_config(overrides=[*MADE,*overrides], root=root, env=''), dict(overrides=[*MADE,*overrides])
    tasks = grid_tasks(s, models, [0], experiment='x', parameters=given, **more)
    return {p.task.name:p.why for p in plan_tasks(s, tasks, 'x') if p.why}


@pytest.fixture(scope='module')
def finished(root):
    "The grid, executed for real."
    s = load_config(overrides=MADE, root=root, env='')
    grid = run_grid(s, MODELS, [0], experiment='x', parameters=dict(overrides=MADE), say=lambda line: None)
    assert not grid.failed
    return grid


def test_nothing_remains(root, finished):
    assert planned(root)=={}


@pytest.mark.parametrize('setting', ['grid.retries=0','ray.num_cpus=1','api.timeout=1','hpo.n_trials=2','training.learning_rate=1e-3','models.minilm.weight_decay=0.5',
                                     'folds.dev_size=0.2','data.keep_title_only=true','ensemble.models=[minilm]','paths.papermill_dir=papermill_runs/../papermill_runs'])
def test_a_setting_that_no_report_reads(root, finished, setting):
    assert planned(root, setting)=={}


@pytest.mark.parametrize('setting,changed,words', [
    ('baseline.C=2', [LINEAR,ENSEMBLE,COMPARE], 'baseline.C 1.0 -> 2.0'),
    ('baseline.n_estimators=20', [FOREST,ENSEMBLE,COMPARE], 'baseline.n_estimators 10 -> 20'),
    ('ensemble.scale=logit', [ENSEMBLE,COMPARE], 'ensemble.scale score -> logit'),
    ('card.licence=mit', [LINEAR,FOREST,ENSEMBLE,COMPARE], 'card.licence unknown -> mit'),
    ('seed=7', [LINEAR,FOREST,ENSEMBLE,COMPARE], 'seed 42 -> 7')])
def test_a_setting_that_some_read(root, finished, setting, changed, words):
    found = planned(root, setting)
    assert list(found)==changed
    assert found[changed[0]]==words


def test_a_lost_or_changed_prediction_runs_its_training_alone(root, finished):
    lost = next((root/'results/test_preds/bert').glob('fold-0_tfidf-logreg_*'))
    kept = lost.read_bytes()
    try:
        for spoil in (lost.unlink, lambda: lost.write_bytes(kept+b'0')):
            spoil()
            assert planned(root)=={LINEAR:f'test_preds/{lost.name} missing or changed'}
    finally: lost.write_bytes(kept)


def test_a_dry_run_writes_nothing(root, finished):
    def files(): return {p:(p.stat().st_mtime_ns,p.stat().st_size) for p in root.rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    before = files()
    planned(root, 'seed=7')
    assert files()==before


def test_a_search_comes_before_its_training(root, finished):
    found = planned(root, search=True)
    assert found['hpo__tfidf-logreg__logloss__fold-0__run-0']=='not run yet'
    assert found[LINEAR]=='builds on hpo__tfidf-logreg__logloss__fold-0__run-0'


def test_code_of_the_command_line_and_of_sources_is_no_input(root):
    for name in ('train','ensemble','compare'):
        code = report_code(root/f'nbs/reports/{name}.ipynb')
        assert not {'cli','fetch','openalex','crossref','zotero','ris','bibtex','pipeline','engines'}&code.keys()
        assert {'metrics','folds','config'}<=code.keys()


def test_words_for_what_changed(root, tmp_path):
    s = load_config(overrides=MADE, root=root, env='')
    t = train_tasks(['tfidf-logreg'],[0],['BCE'],[0])[0]
    old = task_inputs(s, t)
    assert why(old, old|dict(report='0', code=old['code']|dict(train='0',metrics='0')))=='report notebook changed; code of metrics, train changed'
    assert why(old, task_inputs(s, replace(t,parameters={**t.parameters,'note':'x'})))=='parameter note none -> x'
    save_state(s, t, tmp_path, old)
    assert json.loads(state_path(tmp_path,t).read_text())['inputs']==old


@pytest.mark.parametrize('setting,n', [('hpo.n_trials=2',0), pytest.param('ensemble.scale=logit', 2, marks=pytest.mark.long), pytest.param('baseline.n_estimators=20', 3, marks=pytest.mark.long)])
def test_the_grid_executes_what_the_dry_run_names(root, finished, setting, n):
    "The last test here, for it changes what is done: the third setting finds the second one's reports, and no `ensemble.scale`."
    before = planned(root, setting)
    s = load_config(overrides=[*MADE,setting], root=root, env='')
    grid = run_grid(s, MODELS, [0], experiment='x', parameters=dict(overrides=[*MADE,setting]), say=lambda line: None)
    assert (sorted(grid.done),grid.failed)==(sorted(before),{})
    assert len(grid.done)==n
    assert planned(root, setting)=={}
