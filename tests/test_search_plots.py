"What the page on pictures of a search cannot show: odd searches, one setting, names of labels, plots of equal bytes."
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('ray')
pytest.importorskip('matplotlib')

from ipbes_classifier.best_settings import Best
from ipbes_classifier.config import load_config
from ipbes_classifier.hpo import Plan, Search
from ipbes_classifier.search_plots import (epochs_plot, epochs_spent, importance, importance_plot, importance_warning, parallel_plot, save_search_plots,
                                           search_figures, settings_plot, trials_plot)
from ipbes_classifier.search_space import parse_range


def made(root, ranges, values, more=True, kind='baseline', **columns):
    "A search of made-up trials: dotted setting -> (range, values of trials)."
    s = load_config(root=root, env='', overrides=['training.num_train_epochs=4'])
    section = 'training' if kind=='encoder' else 'baseline'
    space = {tuple(k.split('.',1)):parse_range(r) for k,(r,_) in ranges.items()}
    plan = Plan(settings=s, model='m', name='m', kind=kind, loss='l', loss_given='l', fold=1, run=0, metric='eval_x', more=more, section=section, space=space,
                data_hash='', rows='', data={})
    n = len(values)
    trials = pd.DataFrame(dict(trial=np.arange(1,n+1), status='done', value=values, epochs=1, seconds=2.)|columns|{k:v for k,(_,v) in ranges.items()}|dict(error=''))
    epochs = pd.DataFrame([dict(trial=t,epoch=e,eval_x=.1*e) for t,k in zip(trials.trial,trials.epochs) for e in range(1,k+1)])
    return Search(plan=plan, best=Best('m','l',1,0,{},'eval_x',value=.5,n_trials=n), trials=trials, epochs=epochs, folder=root, file=root/'best.yaml')


def texts(fig): return [t.get_text() for ax in fig.axes for t in ax.texts]


def ringed(fig, axes):
    "Where the ring of the best trial is: x, y."
    ring = next(c for c in fig.axes[axes].collections if c.get_label()=='best')
    return ring.get_offsets()[0].tolist()


@pytest.mark.parametrize('values', [[.5], [.5,.5], [math.nan,.5,math.nan]])
def test_few_equal_and_failed_trials_are_drawn(tmp_path, values):
    status = ['failed' if math.isnan(v) else 'done' for v in values]
    found = made(tmp_path, dict(C=('loguniform(0.01, 100)',[.1]*len(values))), values, status=status, epochs=[int(x=='done') for x in status])
    for fig in search_figures(found).values(): fig.canvas.draw()
    assert 'too few' in importance_warning(importance(found))


@pytest.mark.parametrize('more,best', [(True,3), (False,2)])
def test_less_can_be_better(tmp_path, more, best):
    found = made(tmp_path, dict(C=('loguniform(0.01, 100)',[1.,2.,3.])), [.5,.2,.9], more=more)
    assert ringed(trials_plot(found),0)==[best,found.trials.value[best-1]]
    assert ringed(settings_plot(found),0)==[found.trials.C[best-1],found.trials.value[best-1]]
    top = parallel_plot(found).axes[0].lines[-1]
    assert top.get_label()=='best' and top.get_ydata()[-1]==1
    assert trials_plot(found).axes[0].lines[0].get_ydata().tolist()==([.5,.5,.9] if more else [.5,.2,.2])


def test_choices_read_from_a_file_are_those_of_the_range(tmp_path):
    "A table that was written and read holds words where truth values and numbers were."
    ranges = dict(ngram_max=('choice(3, 1, 2)',['1','3','2']), sublinear=('choice(true, false)',['True','False','True']), how=('choice(b, a)',['a','b','b']))
    found = made(tmp_path, ranges, [.1,.2,.3])
    axes = settings_plot(found).axes
    assert [[t.get_text() for t in ax.get_xticklabels()] for ax in axes]==[['1','2','3'],['True','False'],['b','a']]
    assert [ringed(settings_plot(found),k)[0] for k in range(3)]==[1,0,0]
    assert {'ngram_max','sublinear','how'}<=set(texts(parallel_plot(found)))


def test_a_planted_setting_is_found_and_noise_is_not(tmp_path):
    rng = np.random.default_rng(0)
    C,depth,word = 10**rng.uniform(-2,2,40),rng.choice([1,2,3],40),rng.choice(['a','b'],40)
    ranges = dict(C=('loguniform(0.01, 100)',C), min_df=('choice(1, 2, 3)',depth), word=('choice(a, b)',word))
    planted = importance(made(tmp_path, ranges, np.where(word=='a',.8,.3)+rng.normal(0,.01,40)))
    assert planted.table.setting[0]=='word' and planted.r2>.8 and not importance_warning(planted)
    assert planted.table.importance[1:].abs().max()<.05
    warned = [importance_warning(importance(made(tmp_path, ranges, np.random.default_rng(seed).random(40)))) for seed in range(4)]
    assert sum('do not tell' in w for w in warned)>=3


def test_a_warning_greys_the_bars(tmp_path):
    rng = np.random.default_rng(0)
    found = made(tmp_path, dict(C=('loguniform(0.01, 100)',10**rng.uniform(-2,2,20))), rng.random(20))
    colours = [{p.get_facecolor() for p in importance_plot(importance(x)).axes[0].patches} for x in (found, replace(found,trials=found.trials.assign(value=found.trials.C)))]
    assert colours[0]!=colours[1] and len({c[:3] for c in colours[0]})==1


def test_epochs_of_stopped_trials_alone_are_saved(tmp_path):
    "Done early by itself, stopped, failed: of 4 epochs."
    found = made(tmp_path, dict(learning_rate=('loguniform(0.01, 100)',[1.]*4)), [.5,.4,math.nan,.3], kind='encoder', status=['done','stopped','failed','stopped'],
                 epochs=[3,1,0,2], seconds=[30.,11.,5.,21.])
    assert epochs_spent(found).to_dict('index')=={'this search':dict(trials=4,epochs=6,seconds=67.), 'without stopping':dict(trials=4,epochs=11,seconds=117.)}
    assert epochs_plot(found).axes[0].get_title()=='6 epochs of 11'
    assert set(search_figures(found))=={'trials','settings','parallel','importance','epochs','curves'}


def test_all_stopped_by_a_time_budget(tmp_path):
    found = made(tmp_path, dict(learning_rate=('loguniform(0.01, 100)',[1.,2.])), [.5,.4], kind='encoder', status='stopped', epochs=[2,1], seconds=[20.,10.])
    assert epochs_spent(found).seconds.tolist()==[30.,80.]
    for fig in search_figures(found).values(): fig.canvas.draw()


def test_many_settings_and_long_names(tmp_path):
    "One positive weight for each of a dozen labels of odd names."
    rng = np.random.default_rng(0)
    names = [f'pos_weight.label {k} $x_{{{k} and a very long name' for k in range(12)]
    found = made(tmp_path, {n:('loguniform(0.5, 50)',10**rng.uniform(-.3,1.6,12)) for n in names}, rng.random(12), kind='encoder')
    for fig in search_figures(found).values(): fig.canvas.draw()


def test_equal_searches_give_equal_files(tmp_path):
    rng = np.random.default_rng(0)
    found = made(tmp_path, dict(C=('loguniform(0.01, 100)',10**rng.uniform(-2,2,12))), rng.random(12))
    first = {k:(p.name,p.read_bytes()) for k,p in save_search_plots(found).items()}
    assert {k:(p.name,p.read_bytes()) for k,p in save_search_plots(found).items()}==first
    assert first['trials'][0]=='m__l__fold-1__run-0.png' and first['parallel'][0]=='m__l__fold-1__run-0_parallel.png'
