"""What does a first pass save before the model that `ipbes train-final` fits, and what does it lose?

    IPBES_REAL_DATA=DIR python benchmarks/screening_vectors.py [--quick]

A project of its own below `--work`, whose steps (all but the timing) stay done: data set and folds of `corpus.parquet`, `tfidf-vectors` fitted on fold 0, a first pass as
`ipbes cascade` makes it, with 3,000 records of `deployment_sample.parquet` as unlabelled ones. Then, in one process and in rounds, all ways score other records with the same checkpoint:

- loop: one record after the other, its encoder in PyTorch
- model: all at once, without the first pass
- fast: the same, its encoder in the runtime that `ipbes runtimes` measures to agree and to be fastest here
- cascade: the same behind the first pass, on records of the test fold, at the prevalence of the corpus
- cascade_irrelevant: the same on the deployment sample, where no record is relevant

Rates are records a second, the median of the rounds, and ratios are of these. What the first pass loses is measured on all test records of the fold.
Figures go to `benchmarks/results/screening_vectors.json`. `screening_growth.py --checkpoint` takes the checkpoint that this leaves.
"""
import argparse
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from ipbes_classifier.cascade import cascade_folder, fit_cascade, load_cascade, measure_cascade, save_cascade
from ipbes_classifier.config import Settings, project_path
from ipbes_classifier.files import file_hash, write_json
from ipbes_classifier.folds import read_fold
from ipbes_classifier.metrics import average_precision, read_predictions
from ipbes_classifier.results import Run, checkpoint_path
from ipbes_classifier.screen import Screener, as_records, measure_on
from ipbes_classifier.screen_corpus import Scorer
from ipbes_classifier.train import read_dataset, train

from screening import halves, measure, scores, with_cascade
from small_cut import machine, make_project, real_data, results_file

SETTINGS = ['paths.dataset=data/cleaned_dataset.parquet','logging.progress=false']
MODEL,RUN = 'tfidf-vectors',Run('tfidf-vectors','logloss',0)


def trained(s: Settings) -> Path:
    "The checkpoint of fold 0, fitted if it is not there."
    folder = checkpoint_path(s, RUN)
    return folder if (folder/'thresholds.json').exists() else Path(train(MODEL, settings=s).files['checkpoint'])


def test_ap(s: Settings) -> dict:
    "Average precision on test, from the predictions that training wrote."
    p = read_predictions(next(project_path(s,s.paths.test_preds_dir).rglob(f'fold-0_{MODEL}_*.csv')))
    return {l:round(float(average_precision(p.y[:,j],p.scores[:,j])),4) for j,l in enumerate(p.labels)}


def one_by_one(screener: Screener, records: pd.DataFrame) -> np.ndarray:
    return np.concatenate([scores(screener,records.iloc[[i]]) for i in range(len(records))])


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and deployment_sample.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='project folder of the benchmark; default: results/screening_vectors, or results/screening_vectors_quick')
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--quick', action='store_true', help='shows that it works, not how fast anything is')
    a.add_argument('--results', type=Path, help='default: screening_vectors.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    import torch
    data,results = real_data(o.data),results_file('screening_vectors', o.quick, o.results)
    work = (o.work or Path('results/screening_vectors'+'_quick'*o.quick)).resolve()
    os.environ.pop('IPBES_ENV', None)
    s = make_project(work, data, SETTINGS+['folds.n_folds=2']*o.quick, 500 if o.quick else 0)
    folder,df = trained(s),read_dataset(s)
    fold = read_fold(project_path(s,s.paths.folds_dir), 0, 0, project_path(s,s.paths.dataset), len(df))
    n = 300 if o.quick else 3_000
    fit_on,fresh = halves(data, n)
    screener = Screener.load(folder)
    place = cascade_folder(folder, screener.version)
    if not place.exists(): save_cascade(fit_cascade(screener, None, df.iloc[fold.dev], fit_on[:n], s.screen.share, s.screen.confidence), place)
    measured, = measure_on(df.iloc[fold.dev], [folder], 100 if o.quick else 1000, say=print).values()
    fast = Screener.load(folder, runtime='auto', tolerance=s.screen.tolerance)
    cascade = load_cascade(place, fast.version, fast)
    print(cascade.cut, fast.runtime, flush=True)
    test,scorer = df.iloc[fold.test].reset_index(drop=True),Scorer(fast,cascade)
    few,some,many = (20,40,100) if o.quick else (100,400,2000)
    for x in (screener,fast): scores(x,fresh[:8])
    rates,found = measure(dict(loop=(lambda r: one_by_one(screener,r),fresh[:few]), model=(lambda r: scores(screener,r),fresh[:some]), fast=(lambda r: scores(fast,r),fresh[:some]),
                               cascade=(lambda r: with_cascade(scorer,r),test[:many]), cascade_irrelevant=(lambda r: with_cascade(scorer,r),fresh[:many])), o.rounds)
    loss = measure_cascade(cascade, fast, test)
    ratio = lambda a,b: round(rates[a]['rate']/rates[b]['rate'],2)
    write_json(results, dict(command='python benchmarks/screening_vectors.py'+f' --rounds {o.rounds}'*(o.rounds!=3)+' --quick'*o.quick, quick=o.quick, model=MODEL,
        data_sha256={f:file_hash(data/f) for f in ('corpus.parquet','deployment_sample.parquet')}, test_AP=test_ap(s), rates=rates,
        ratios={f'{w}_to_loop':ratio(w,'loop') for w in ('model','fast','cascade','cascade_irrelevant')}|dict(fast_to_model=ratio('fast','model')),
        runtime=fast.runtime or 'torch', runtimes=[asdict(m) for m in measured],
        largest_difference_of_scores={w:float(np.abs(found['loop']-found[w][:few]).max()) for w in ('model','fast')},
        cascade=dict(cut=asdict(cascade.cut), read_of_test=round(float(loss.attrs['read']),4), read_of_irrelevant=round(float(cascade.keep(as_records(fresh)).mean()),4), test=loss.astype(object).where(loss.notna(),None).to_dict('records')),
        prevalence={l:round(float(test[l].mean()),4) for l in screener.labels}, n_test=len(test), threads=torch.get_num_threads(), **machine()))
    print(results)


if __name__=='__main__': main()
