"""How often do rules for stopping keep their promise on real records, and what reading do they save?

    IPBES_REAL_DATA=../shared/data nice -n 10 python benchmarks/stopping.py [--quick]

Ranks the records of `corpus.parquet` by `tfidf-logreg`, each by a model that saw neither it nor a near-duplicate (5 folds of clusters), once per label. Then
draws reviews from this ranking: a number of relevant records and so many others that there are `--size` in all, in the order of their scores, without
replacement. Each rule reads each review from the top and stops. Finished folds and scenarios stay in `--work`, so that a call that was killed goes on.

Three orders: by the scores; at random, where nothing but chance can help; and a made-up bad one, in which a fifth of the relevant records stand anywhere in the
second half of the list, as papers of a kind that no model was shown. `read` counts what people judge, the random sample included. A rule that never lets
one stop reads all.
"""
import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ipbes_classifier.config import load_config
from ipbes_classifier.estimates import share
from ipbes_classifier.files import atomic_path, file_hash, read_json, write_json
from ipbes_classifier.folds import make_folds, near_duplicate_clusters
from ipbes_classifier.models import make_model
from ipbes_classifier.records import read_records
from ipbes_classifier.screen import as_records
from ipbes_classifier.stopping import depth, fixed_stop, hypergeometric_stop, irrelevant_stop, remainder_p

from small_cut import machine, real_data, results_file

LABELS = ['IAS','SUA','VA']
TARGETS,CONFIDENCE = (.8,.95),.95
SCENARIOS = [('IAS',1000,'score'),('IAS',200,'score'),('IAS',50,'score'),('SUA',100,'score'),('SUA',25,'score'),('VA',100,'score'),('VA',25,'score'),
             ('IAS',200,'random'),('IAS',50,'random'),('IAS',200,'bad'),('IAS',50,'bad')]


def rank(data: Path, work: Path, n: int, seed: int = 42) -> tuple[np.ndarray,np.ndarray]:
    "Labels and out-of-fold scores, both (n, n_labels)."
    df = read_records(data/'corpus.parquet', labels=LABELS)
    if n: df = df.sample(n, random_state=seed).reset_index(drop=True)
    y = (df[LABELS]==1).to_numpy()
    done = [work/f'fold-{k}.npz' for k in range(5)]
    scores = np.full(y.shape, np.nan)
    if not all(p.exists() for p in done):
        records = as_records(df).assign(**{l:y[:,j].astype(int) for j,l in enumerate(LABELS)})
        s = load_config(env='', overrides=[f'labels=[{",".join(f"{{name: {l}}}" for l in LABELS)}]','models={}'])
        for f,path in zip(make_folds(y, near_duplicate_clusters(records), 5, .2, .1, seed=seed, labels=LABELS), done):
            if path.exists(): continue
            model = make_model('tfidf-logreg',s).fit(records.iloc[np.r_[f.train,f.dev]])
            with atomic_path(path) as tmp: np.savez(tmp, rows=f.test, scores=model.scores(records.iloc[f.test]))
            print(f'fold {f.fold}', flush=True)
    for p in done:
        with np.load(p) as z: scores[z['rows']] = z['scores']
    return y,scores


def review(rng: np.random.Generator, y: np.ndarray, s: np.ndarray, relevant: int, size: int, order: str) -> np.ndarray:
    "The labels (size,) of one review in reading order."
    rows = np.r_[rng.choice(np.flatnonzero(y),relevant,replace=False), rng.choice(np.flatnonzero(~y),size-relevant,replace=False)]
    if order=='random': return y[rng.permutation(rows)].astype(int)
    ranked = y[rows[np.lexsort((rng.uniform(size=size),-s[rows]))]].astype(int)
    if order=='score': return ranked
    hidden = rng.choice(np.flatnonzero(ranked), relevant//5, replace=False)
    rest = np.delete(ranked, hidden)
    return np.insert(rest, rng.integers(size//2,len(rest)+1,len(hidden)), 1)


def with_sample(y: np.ndarray, drawn: np.ndarray, stop: int) -> int:
    "How many records are judged if the first `stop` are read, and a sample was judged before."
    return int(stop+(drawn>=stop).sum())


def quantile(y: np.ndarray, drawn: np.ndarray, target: float) -> tuple[int,float]:
    "Judged records, and recall of what is read in the list, by the quantile rule."
    stop = depth(drawn[y[drawn]==1]+1, target, CONFIDENCE)
    k = len(y) if np.isinf(stop) else int(stop)
    return with_sample(y,drawn,k), y[:k].sum()/y.sum()


def remainder(y: np.ndarray, drawn: np.ndarray, target: float, every: int) -> tuple[int,float]:
    "The same by the test on the sample's records among those left, looked at after every batch; the sample's relevant records count as found."
    before = np.cumsum(np.r_[0,y])
    for k in range(0,len(y),every):
        left = drawn[drawn>=k]
        found,relevant = int(before[k]),int(y[left].sum())
        if len(left)*((found+relevant)/target-found+1)/(len(y)-k)<max(2,relevant): continue # no chance of a small p
        if remainder_p(found, len(y)-k, len(left), relevant, target)<1-CONFIDENCE: return with_sample(y,drawn,k), (found+relevant)/y.sum()
    return len(y),1.


def rules(size: int, n_sample: int, every: int) -> dict[str,Callable]:
    "Each rule: labels of a review, numbers of the sampled records, target -> judged records, recall."
    def prefix(f: Callable) -> Callable:
        def run(y: np.ndarray, drawn: np.ndarray, target: float) -> tuple[int,float]:
            k = f(y,target)
            return k, y[:k].sum()/y.sum()
        return run
    out: dict[str,Callable] = {'hypergeometric, ranks': prefix(lambda y,t: hypergeometric_stop(y,t,CONFIDENCE,every)),
        f'quantile, sample of {n_sample:,}': quantile,
        f'hypergeometric, sample of {n_sample:,}': lambda y,d,t: remainder(y,d,t,every)}
    out |= {f'first {s:.0%}': prefix(lambda y,t,s=s: fixed_stop(size,s)) for s in (.1,.25,.5)}
    return out | {f'{n:,} irrelevant in a row': prefix(lambda y,t,n=n: irrelevant_stop(y,n)) for n in (50,200,1000)}


def simulate(y: np.ndarray, s: np.ndarray, relevant: int, order: str, o: argparse.Namespace, seed: int) -> list[dict]:
    "A row per rule and target: how often the target is reached, what is read, over all reviews."
    rng,found = np.random.default_rng([o.seed,seed]),{}
    for _ in range(o.reviews):
        labels,drawn = review(rng,y,s,relevant,o.size,order),np.sort(rng.choice(o.size,o.sample,replace=False))
        for name,rule in rules(o.size,o.sample,o.every).items():
            for t in TARGETS: found.setdefault((name,t),[]).append(rule(labels,drawn,t))
    return [row(name,t,np.array(x),o.size) for (name,t),x in found.items()]


def row(name: str, target: float, x: np.ndarray, size: int) -> dict:
    "Figures of one rule from (n, 2) judged records and recalls."
    reached = x[:,1]>=target-1e-9
    e = share(int(reached.sum()), len(x))
    return dict(rule=name, target=target, reached=e.value, low=e.low, high=e.high, recall=float(x[:,1].mean()), recall_5=float(np.quantile(x[:,1],.05)),
                read=float(x[:,0].mean()/size), stopped=float((x[:,0]<size).mean()), reviews=len(x))


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='where finished folds and scenarios stay; default: results/stopping, or results/stopping_quick')
    a.add_argument('--quick', action='store_true', help='few records and reviews: shows that it works, not how good any rule is')
    a.add_argument('--results', type=Path, help='default: stopping.json in benchmarks/results, or in results/benchmarks for --quick')
    a.add_argument('--reviews', type=int, default=200, help='per scenario')
    a.add_argument('--size', type=int, default=20_000, help='records of a review')
    a.add_argument('--sample', type=int, default=2_000, help='records of the random sample that some rules need')
    a.add_argument('--every', type=int, default=100, help='records read between two looks')
    a.add_argument('--seed', type=int, default=42)
    o = a.parse_args()
    if o.quick: o.reviews,o.size,o.sample = 20,2_000,300
    data,work = real_data(o.data),(o.work or Path('results/stopping_quick' if o.quick else 'results/stopping')).resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.pop('IPBES_ENV', None)
    settings = dict(data=file_hash(data/'corpus.parquet'), seed=o.seed, quick=o.quick)
    if not (work/'made_from.json').exists(): write_json(work/'made_from.json', settings)
    if read_json(work/'made_from.json')!=settings: sys.exit(f'{work} was made from another corpus or seed; choose another --work')
    y,scores = rank(data, work, 3_000 if o.quick else 0, o.seed)
    out,settings = [],dict(reviews=o.reviews, size=o.size, sample=o.sample, every=o.every, confidence=CONFIDENCE)
    for i,(label,relevant,order) in enumerate([(l,min(r,100),k) for l,r,k in SCENARIOS if not o.quick or (l=='IAS' and r==200)] if o.quick else SCENARIOS):
        path,j,t0 = work/f'{label}-{relevant}-{order}.json',LABELS.index(label),time.process_time()
        if not path.exists() or read_json(path)['settings']!=settings:
            rows = simulate(y[:,j], scores[:,j], relevant, order, o, i)
            write_json(path, dict(settings=settings, rows=[dict(label=label, relevant=relevant, order=order)|r for r in rows], seconds=round(time.process_time()-t0,1)))
        out.append(read_json(path))
        print(f"{label}, {relevant} relevant, order {order}: {out[-1]['seconds']} s", flush=True)
    write_json(o.results or results_file('stopping',o.quick), dict(
        command='python benchmarks/stopping.py'+' --quick'*o.quick, quick=o.quick, data='corpus.parquet', data_sha256=file_hash(data/'corpus.parquet'), settings=settings, seed=o.seed,
        n={l:dict(records=len(y),relevant=int(y[:,j].sum())) for j,l in enumerate(LABELS)}, rows=[r for x in out for r in x['rows']],
        cpu_seconds=sum(x['seconds'] for x in out), **machine()))
    print(o.results or results_file('stopping',o.quick))


if __name__=='__main__': main()
