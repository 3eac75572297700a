"""How good are the models on real records? Run: IPBES_REAL_DATA=../shared/data python benchmarks/quality.py

Takes `corpus.parquet` through preprocess, folds, training and ensemble as any project would, in a folder of its own (`--work`), where each finished
step stays done. Figures go to `benchmarks/results/quality.json`: measures and counts only, no title, no abstract.
"""
import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ipbes_classifier.compare import Comparison, find_predictions, leaderboard, paired_difference, read_comparison, with_source_only
from ipbes_classifier.config import project_path
from ipbes_classifier.files import file_hash, write_json
from ipbes_classifier.folds import read_clusters
from ipbes_classifier.metrics import Predictions
from ipbes_classifier.pipeline import run_grid
from ipbes_classifier.records import read_records

from small_cut import machine, make_project, real_data, results_file

MODELS = ['tfidf-logreg','minilm']
SETTINGS = ['paths.dataset=data/cleaned_dataset.parquet','input.max_length=128','ensemble.method=weights','logging.progress=false',
            'models={minilm: {num_train_epochs: 3, learning_rate: 1e-4, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, '
            'metric_for_best_model: eval_AP_macro, pos_weight: {IAS: 2, SUA: 8, VA: 8}, optional_negatives: 4000, early_stopping_patience: 0}}']
QUICK = ['input.max_length=64','baseline.max_features=20000','folds.n_folds=2',
         'models={minilm: {num_train_epochs: 1, learning_rate: 1e-4, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, optional_negatives: 200}}']


def restrict(c: Comparison, drop: set[str]) -> Comparison:
    "The same comparison without the records whose id is in `drop`."
    def part(p: Predictions) -> Predictions:
        rows = ~p.frame['id'].isin(drop).to_numpy()
        probs = None if p.probs is None else p.probs[rows]
        return replace(p, y=p.y[rows], preds=p.preds[rows], scores=p.scores[rows], probs=probs, frame=p.frame[rows].reset_index(drop=True))
    return replace(c, models={m:{k:part(p) for k,p in by.items()} for m,by in c.models.items()})


def measure(s, c: Comparison, n_boot: int) -> dict:
    "Leaderboard, and the paired difference of the ensemble and the linear baseline."
    clusters,_ = read_clusters(project_path(s,s.paths.folds_dir))
    by_id = dict(zip(read_records(project_path(s,s.paths.dataset))['id'], clusters.tolist()))
    table = leaderboard(c, by_id, n_boot=n_boot)
    return dict(table=table.astype(object).where(table.notna(), None).to_dict('records'),
                ensemble_minus_tfidf=paired_difference(c.models['Ensemble'], c.models['tfidf-logreg'], by_id, n_boot=n_boot))


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='project folder of the benchmark; default: results/quality, or results/quality_quick')
    a.add_argument('--folds', type=int, nargs='+', default=[0,1])
    a.add_argument('--quick', action='store_true', help='a small sample and one epoch: shows that it works, not how good anything is')
    a.add_argument('--results', type=Path, help='default: quality.json in benchmarks/results, or in results/benchmarks for --quick')
    a.add_argument('--n-boot', type=int, default=1000)
    o = a.parse_args()
    data = real_data(o.data)
    work = (o.work or Path('results/quality_quick' if o.quick else 'results/quality')).resolve()
    results = results_file('quality', o.quick, o.results)
    os.environ.pop('IPBES_ENV', None)
    overrides = SETTINGS+(QUICK if o.quick else [])
    s,t0 = make_project(work, data, overrides, 900 if o.quick else 0), time.perf_counter()
    grid = run_grid(s, MODELS, o.folds, experiment='quality', with_compare=False, parameters=dict(overrides=overrides), say=lambda x: print(x,flush=True))
    if grid.failed: sys.exit(f'failed: {grid.failed}')
    seconds,corpus = time.perf_counter()-t0, pd.read_parquet(data/'corpus.parquet', columns=['id','suspect'])
    c = with_source_only(read_comparison(find_predictions(s, models=[*MODELS,'Ensemble'], folds=o.folds, runs=[0])), s)
    suspects = set(corpus['id'][corpus['suspect']!=''])
    command = 'python benchmarks/quality.py --folds '+' '.join(map(str,o.folds))+(' --quick' if o.quick else '')
    write_json(results, dict(
        command=command, data='corpus.parquet', data_sha256=file_hash(data/'corpus.parquet'), quick=o.quick, folds=o.folds, settings=overrides,
        all=measure(s, c, o.n_boot), without_suspects=measure(s, restrict(c,suspects), o.n_boot),
        seconds_of_this_call=round(seconds,1), executed=grid.done, skipped=grid.skipped,
        **machine()))
    print(results)


if __name__=='__main__': main()
