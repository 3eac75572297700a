"""What does stopping poor trials save? Run: IPBES_REAL_DATA=../shared/data python benchmarks/search.py

Searches the settings of an encoder on a small cut of `corpus.parquet` as `ipbes hpo` does: HyperOpt proposes, ASHA stops, records are tokenised once. Then
trains the same settings again as a search without early reports would: every trial to its last epoch, its records tokenised anew. It spends
nothing on Ray or on starting processes, which is in its favour, and gives each trial the settings that HyperOpt proposed in the first search: it measures
what stopping saves, not what another search would have proposed.

Since a trial is repeated to the last digit on a CPU, the epochs that both trained must have equal measures; `max_difference` is the largest
difference. From the full curves follows also what early stopping alone (patience of the configuration, no ASHA) would have spent.
Figures go to `benchmarks/results/search.json`: measures and counts only, no title, no abstract.
"""
import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ipbes_classifier.cluster import local_cpus
from ipbes_classifier.config import label_names, model_training, project_path
from ipbes_classifier.files import file_hash, write_json
from ipbes_classifier.folds import read_fold
from ipbes_classifier.hpo import Search, run_trial, search, trial_data
from ipbes_classifier.models import label_matrix, make_model
from ipbes_classifier.search_space import trial_settings
from ipbes_classifier.train import read_dataset, sample_negatives

from small_cut import machine, make_project, real_data, results_file

SETTINGS = ['input.max_length=64','logging.progress=false','logging.tensorboard=false','folds.n_folds=2',
            'hpo={metric: eval_AP_macro, scheduler: {type: asha, grace_period: 1, reduction_factor: 3}}']


def settings(epochs:int, n_trials:int)->list[str]:
    "The settings of the search, as on the command line."
    return [*SETTINGS, f'hpo.n_trials={n_trials}',
            f'models={{minilm: {{num_train_epochs: {epochs}, learning_rate: 1e-4, per_device_train_batch_size: 8, gradient_accumulation_steps: 4}}}}']


def records(found:Search)->tuple[pd.DataFrame,pd.DataFrame]:
    "The train and dev records of a search."
    p = found.plan
    data = read_dataset(p.settings)
    rows = read_fold(project_path(p.settings,p.settings.paths.folds_dir), p.fold, p.run, project_path(p.settings,p.settings.paths.dataset), len(data))
    sampled = model_training(p.settings,p.model).optional_negatives
    return sample_negatives(data.iloc[rows.train], label_names(p.settings), sampled, p.settings.seed+p.run), data.iloc[rows.dev]


def train_fully(found:Search, trial:pd.Series, train:pd.DataFrame, dev:pd.DataFrame)->tuple[float,pd.DataFrame]:
    "Tokenise, and train one trial of a search to its last epoch; seconds of tokenising, and seconds and measure of each epoch."
    p,t0 = found.plan,time.perf_counter()
    values = {k:r.values[0] if r.kind=='fixed' else trial['.'.join(k)] for k,r in p.space.items()}
    s = trial_settings(p.settings, p.section, p.model, values)
    s = replace(s, models=s.models|{p.model:(s.models.get(p.model) or {})|dict(early_stopping_patience=0)})
    data = trial_data(make_model(p.model,s,p.loss_given,p.run), train, dev)
    tokenised,epochs = time.perf_counter()-t0,[]
    def report(measures, final): epochs.append(dict(trial=int(trial.trial), epoch=len(epochs)+1, seconds=time.perf_counter()-t0, value=measures[p.metric]))
    run_trial(s, p.model, p.loss_given, p.run, data, p.metric, report)
    return tokenised,pd.DataFrame(epochs)


def early_stop(values:list[float], patience:int)->int:
    "How many epochs a training with this patience would have trained, given the measures of all."
    best,waited = -np.inf,0
    for n,v in enumerate(values,1):
        best,waited = (v,0) if v>best else (best,waited+1)
        if patience and waited>=patience: return n
    return len(values)


def stopped(full:pd.DataFrame, patience:int)->pd.DataFrame:
    "The epochs of each trial that early stopping would have left."
    return pd.concat([t.iloc[:early_stop(t.value.tolist(),patience)] for _,t in full.groupby('trial')])


def figures(epochs:pd.DataFrame, seconds:float, value:str)->dict:
    "What a scheme spent and found."
    best = epochs.iloc[int(epochs[value].argmax())]
    return dict(epochs=len(epochs), seconds=round(seconds,1), best=float(best[value]), best_trial=int(best.trial), best_epoch=int(best.epoch))


def main()->None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='project folder of the benchmark; default: results/search, or results/search_quick')
    a.add_argument('--trials', type=int, help='default: 12, or 3 for --quick')
    a.add_argument('--epochs', type=int, help='of a trial that is not stopped; default: 9, or 3 for --quick')
    a.add_argument('--n', type=int, help='records beside the positives of rare labels; default: 900, or 150 for --quick')
    a.add_argument('--quick', action='store_true', help='few trials on few records: shows that it works, not what is saved')
    a.add_argument('--results', type=Path, help='default: search.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    trials,epochs,n = o.trials or (3 if o.quick else 12), o.epochs or (3 if o.quick else 9), o.n or (150 if o.quick else 900)
    data,work = real_data(o.data),(o.work or Path('results/search_quick' if o.quick else 'results/search')).resolve()
    os.environ.pop('IPBES_ENV', None)
    overrides = settings(epochs, trials)
    s = make_project(work, data, overrides, n)
    import torch
    torch.set_num_threads(local_cpus(s))
    t0 = time.perf_counter()
    found = search('minilm', settings=s, resume=False, say=lambda x: print(x,flush=True))
    seconds = time.perf_counter()-t0
    train,dev = records(found)
    full,tokenised = [],0.
    t0 = time.perf_counter()
    for _,trial in found.trials.iterrows():
        took,curve = train_fully(found, trial, train, dev)
        full.append(curve)
        tokenised += took
        print(f'[{trial.trial}/{trials}] to the end: {curve.value.max():.4f} after {curve.seconds.iloc[-1]:.0f} s', flush=True)
    without = time.perf_counter()-t0
    write_json(results_file('search',o.quick,o.results), result(found, seconds, pd.concat(full), without, tokenised, len(train), dev)|dict(
        command=f'python benchmarks/search.py --trials {trials} --epochs {epochs} --n {n}'+' --quick'*o.quick, data='corpus.parquet',
        data_sha256=file_hash(data/'corpus.parquet'), quick=o.quick, settings=overrides, **machine('ray','hyperopt')))
    print(results_file('search',o.quick,o.results))


def result(found:Search, seconds:float, full:pd.DataFrame, without:float, tokenised:float, n_train:int, dev:pd.DataFrame)->dict:
    "Both schemes side by side, and early stopping alone, which follows from the curves of the second."
    p,labels = found.plan,label_names(found.plan.settings)
    patience = model_training(p.settings,p.model).early_stopping_patience
    short = stopped(full, patience)
    alone = figures(short, float(short.groupby('trial').seconds.max().sum()), 'value')
    both = found.epochs.merge(full, on=['trial','epoch'])
    ours,theirs = figures(found.epochs, seconds, p.metric), figures(full, without, 'value')
    return dict(model=p.model, metric=p.metric, trials=len(found.trials), max_epochs=p.max_epochs, ended=found.trials.status.value_counts().to_dict(),
                n_train=n_train, n_dev=len(dev), prevalence_dev=dict(zip(labels,label_matrix(dev,labels).mean(0).round(4).tolist())),
                asha=ours, to_the_end=theirs|dict(seconds_tokenising=round(tokenised,1)), early_stopping_alone=alone|dict(patience=patience),
                share_of_epochs=round(ours['epochs']/theirs['epochs'],3), share_of_seconds=round(ours['seconds']/theirs['seconds'],3),
                share_of_seconds_of_early_stopping=round(ours['seconds']/alone['seconds'],3),
                max_difference=float((both[p.metric]-both.value).abs().max()), epochs_compared=len(both))


if __name__=='__main__': main()
