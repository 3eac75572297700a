"""Scores of real records by models that have not seen them: what benchmarks of calibration and thresholds share.

A repeat deals the records of `corpus.parquet` into five folds, near-duplicates together. For each two folds a model is fitted without both and scores both; for each
fold one is fitted without it alone and scores it. So `scores[j]` of a repeat holds, for every record, the score of a model that knows neither fold `j` nor the record's
own: whatever is fitted on the other four folds of it can be tried on fold `j`. Each fitted model stays done in a working folder.
"""
import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import t as student

from ipbes_classifier.compare import draw_weights
from ipbes_classifier.files import atomic_path, file_hash, read_json, write_json
from ipbes_classifier.folds import make_folds

from small_cut import machine, real_data, results_file, small_cut
from tried import Counts, by_many, linear, nearest_titles, tfidf, title

K,REPEATS,SEED = 5,2,42
SHIPPED = 'tfidf-vectors' # what `ipbes train-final` fits
FILES = ('corpus','gold_titles','deployment_sample')


def kept(path: Path, make: Callable[[], dict]) -> dict[str,np.ndarray]:
    "Arrays of a file, which is made if it is missing."
    if not path.exists():
        arrays = make()
        with atomic_path(path) as tmp, open(tmp,'wb') as f: np.savez(f, **arrays)
    with np.load(path) as z: return {k:z[k] for k in z.files}


def log_odds(c: Counts, train: np.ndarray, test: np.ndarray) -> dict[str,np.ndarray]:
    "(n_test, n_labels) of `tfidf-logreg`, `tfidf-titles` and `tfidf-vectors`, with counts and vectors that were made once."
    a,b = tfidf(c.whole[train], c.whole[test])
    one,ten = (np.column_stack([linear(a,y,C).decision_function(b) for y in c.y[train].T]) for C in (1.,10.))
    titles = ten+.3*title(c,train,test,of=('title','abstract'))
    return {'tfidf-logreg':one, 'tfidf-titles':titles, 'tfidf-vectors':titles+16*nearest_titles(c,train,test,short=True)+by_many(c,train,test)}


@dataclass
class Unseen:
    "Labels, clusters and, by repeat, folds and scores."
    labels: list[str]
    y: np.ndarray                            # (n, L) 0/1
    clusters: np.ndarray                     # (n,) of near-duplicates
    folds: np.ndarray                        # (repeats, n) 0 to 4
    scores: list[dict[str,np.ndarray]]       # by repeat and model: (5, n, L), 0 to 1
    more: dict[str,np.ndarray]               # by model: (5, m, L) scores of papers without any label, by the models of the first repeat that miss one fold
    titles: int                              # of papers without abstract, in every training set


def _folder(data: Path, work: Path, quick: bool) -> Path:
    "The files to read: all, or a small cut of them."
    if not quick: return data
    cut = work/'data'
    if not cut.exists():
        small_cut(data/'corpus.parquet', cut/'corpus.parquet', 2500)
        for name,n in (('gold_titles',400),('deployment_sample',600)): pd.read_parquet(data/f'{name}.parquet').head(n).to_parquet(cut/f'{name}.parquet')
    return cut


def unseen(data: Path, work: Path, quick: bool = False, say: Callable = print) -> Unseen:
    "Fit what is not there yet, and read all."
    work.mkdir(parents=True, exist_ok=True)
    made_from = dict(quick=quick, code=[file_hash(Path(__file__).with_name(f'{n}.py')) for n in ('tried','unseen')], **{n:file_hash(data/f'{n}.parquet') for n in FILES})
    if not (work/'made_from.json').exists(): write_json(work/'made_from.json', made_from)
    if read_json(work/'made_from.json')!=made_from: sys.exit(f'{work} was made from other files, or by other code; choose another --work')
    folder,c,n_repeats = _folder(data,work,quick),None,1 if quick else REPEATS
    def counts() -> Counts:
        nonlocal c
        if not c: c,c.work = Counts(folder, pd.read_parquet(folder/'deployment_sample.parquet')),work
        return c
    def fit(fold: np.ndarray, i: int, j: int, test: np.ndarray, deployed: bool) -> dict:
        c = counts()
        s = log_odds(c, np.flatnonzero((fold!=i)&(fold!=j)), np.r_[test,c.more] if deployed else test)
        say(f'scored folds {i} and {j}', flush=True)
        return s
    def base() -> dict:
        c = counts()
        y = c.y[:c.n]
        folds = [make_folds(y, c.clusters, K, 1/K, 1/(2*K), SEED+r, labels=c.labels) for r in range(n_repeats)]
        return dict(y=y, clusters=c.clusters, labels=np.array(c.labels), titles=len(c.extra), folds=np.array([sum(k*np.isin(np.arange(c.n),f.test) for k,f in enumerate(fs)) for fs in folds]))
    b = kept(work/'records.npz', base)
    n,L = b['y'].shape
    scores,more = [],{}
    for r,fold in enumerate(b['folds'][:n_repeats]):
        by: dict[str,np.ndarray] = {}
        for i in range(K):
            for j in range(i,K):
                test = np.flatnonzero((fold==i)|(fold==j))
                deployed = r==0 and i==j
                for m,s in kept(work/f'repeat-{r}-{i}-{j}.npz', partial(fit,fold,i,j,test,deployed)).items():
                    a,s = by.setdefault(m,np.full((K,n,L),np.nan)),expit(s.astype(float))
                    for k in {i,j}: a[k,test[fold[test]==(i+j-k)]] = s[:len(test)][fold[test]==(i+j-k)]
                    if deployed: more.setdefault(m,[]).append(s[len(test):])
        assert not any(np.isnan(a).any() for a in by.values())
        scores.append(by)
    return Unseen(b['labels'].tolist(), b['y'], b['clusters'], b['folds'][:n_repeats], scores, {m:np.array(s) for m,s in more.items()}, int(b['titles']))


def folds_interval(d: np.ndarray, level: float = .95) -> tuple[float,float]:
    """Interval of a mean difference over test folds, (repeats, folds).

    Folds share training records, so that they vary too little: the variance is raised by the share of test to training records. Nadeau and Bengio (2003), Inference for
    the generalization error, Machine Learning 52.
    """
    n,mean = d.size,float(d.mean())
    half = student.ppf((1+level)/2,n-1)*np.sqrt(d.var(ddof=1)*(1/n+1/(K-1)))
    return mean-float(half),mean+float(half)


def dealt(y: np.ndarray, clusters: np.ndarray, k: int) -> np.ndarray:
    "(n,) part of each record, 0 to k-1: near-duplicates together, positives spread evenly."
    code = np.unique(clusters, return_inverse=True)[1]
    has = np.bincount(code,y)>0
    part = np.empty(len(has),int)
    part[np.lexsort((np.random.default_rng(SEED).random(len(has)),has))] = np.arange(len(has))%k
    return part[code]


def cluster_draws(u: Unseen, n_boot: int = 1000) -> np.ndarray:
    "(n, n_boot+1) how often each record is drawn with its near-duplicates; the first column is all ones."
    return np.ascontiguousarray(draw_weights(u.clusters, n_boot, SEED).astype(np.float32).T)


def draws_interval(d: np.ndarray, level: float = .95) -> tuple[float,float]:
    "Percentile interval of all draws but the first."
    low,high = np.quantile(d[1:], ((1-level)/2,(1+level)/2))
    return float(low),float(high)


def compared(folds: np.ndarray, draws: np.ndarray) -> dict:
    "A mean difference with both intervals: over test folds, and over clusters of test records."
    return dict(difference=float(folds.mean()), folds=folds_interval(folds), clusters=draws_interval(draws))


def rounded(x, digits: int = 5):
    "Numbers of nested lists and dicts, rounded."
    if isinstance(x,dict): return {k:rounded(v,digits) for k,v in x.items()}
    if isinstance(x,(list,tuple)): return [rounded(v,digits) for v in x]
    return round(float(x),digits) if isinstance(x,(float,np.floating)) else x


def benchmark(doc: str, name: str, figures: Callable[[Unseen,bool],dict], *packages: str) -> None:
    "A command that writes the figures of these scores; `figures` gets the scores, and whether they are of a small cut."
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet, gold_titles.parquet and deployment_sample.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='keeps the scores; default: results/unseen, or results/unseen_quick')
    a.add_argument('--quick', action='store_true', help='a small cut: shows that it works, not how good anything is')
    a.add_argument('--results', type=Path, help=f'default: {name}.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    data = real_data(o.data)
    u = unseen(data, o.work or Path('results/unseen_quick' if o.quick else 'results/unseen'), o.quick)
    t0 = time.process_time()
    found = figures(u, o.quick)
    results = results_file(name, o.quick, o.results)
    write_json(results, rounded(dict(
        command=f"python benchmarks/{name}.py"+(' --quick' if o.quick else ''), quick=o.quick, data_sha256={f:file_hash(data/f'{f}.parquet') for f in FILES}, n=len(u.y),
        positives=dict(zip(u.labels,u.y.sum(0).tolist())), repeats=len(u.folds), folds=K, **found, cpu_seconds_after_scores=time.process_time()-t0, **machine(*packages)), 6))
    print(results)
