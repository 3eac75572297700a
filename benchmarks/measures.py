"What the benchmark of quality measures: each figure with an interval over clusters of near-duplicates, from one draw for all models."
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ipbes_classifier.compare import (MEASURES, PREVALENCES, Comparison, _ap, _counts, _difference, _Draws, _draws, _holm, _mean, _ratio, _wss, plain_rows)
from ipbes_classifier.config import Settings
from ipbes_classifier.metrics import Predictions, percentile_interval, reading_order
from ipbes_classifier.thresholds import apply_thresholds, calibrate, fit_thresholds
from ipbes_classifier.train import decide

MORE = ('recall95','selected95','TNR95','read95','read99','brier','ECE',*(f'precision_at_{p:g}' for p in PREVALENCES))
ALL = (*MEASURES,*MORE)
BINS = 15 # of the calibration error, as in `metrics.calibration_error`


@dataclass
class Tested(Predictions):
    "Predictions of test, and what is selected at thresholds that found 95 % on dev."
    wide: np.ndarray # (n,L) 0/1


def tested(s: Settings, ids: Sequence[str], y: np.ndarray, scores: np.ndarray, dev_y: np.ndarray, dev_scores: np.ndarray, labels: list[str]) -> Tested:
    "Decisions and probabilities of test; thresholds and calibration come from dev alone."
    thresholds,calibrations = decide(s, dev_y, dev_scores, labels)
    wide = fit_thresholds(dev_y, dev_scores, labels, method='recall', recall=.95)
    return Tested(labels, y, apply_thresholds(scores,thresholds,labels), scores, calibrate(scores,calibrations,labels), pd.DataFrame(dict(id=list(ids))),
                  apply_thresholds(scores,wide,labels))


def restrict(c: Comparison, keep: Callable[[pd.Series],pd.Series]) -> Comparison:
    "The same comparison of the records whose id `keep` says yes to; a fold without any is left out."
    def part(p: Predictions) -> Predictions:
        rows = keep(p.frame['id']).to_numpy(dtype=bool)
        return replace(p, frame=p.frame[rows].reset_index(drop=True), **{k:v[rows] for k in ('y','preds','scores','probs','wide') if (v := getattr(p,k,None)) is not None})
    models = {m:{k:q for k,p in by.items() if len((q:=part(p)).y)} for m,by in c.models.items()}
    return replace(c, models=models, parts=sorted(next(iter(models.values()))))


def _thresholds(y: np.ndarray, s: np.ndarray) -> np.ndarray:
    "Positions in reading order up to which one more relevant record is read than before, and the last: all that average precision depends on."
    ends = np.flatnonzero(np.append(np.diff(s)!=0, True))
    more = np.diff(y.cumsum()[ends], prepend=0)>0
    return ends[np.append(more[:-1],True)]


def label_draws(y: np.ndarray, s: np.ndarray, pred: np.ndarray, wide: np.ndarray, p: np.ndarray, w: np.ndarray) -> np.ndarray:
    "(len(ALL), draws) of one label; `w` is (draws, n), how often each record was drawn."
    order = reading_order(y,s)
    ordered,at = w[:,order],_thresholds(y[order],s[order])
    wy = ordered*y[order]
    tp = wy.cumsum(1, dtype=np.int32)
    fp = ordered.cumsum(1, dtype=np.int32)-tp
    pos,neg = tp[:,-1],fp[:,-1]
    n,read = pos+neg,{r:r-_wss(tp,fp,r) for r in (.95,.99)}
    tnr = 1-_ratio(read[.95]*n-np.ceil(.95*pos-1e-9), neg)
    off = np.zeros((len(y),BINS))
    off[np.arange(len(y)),np.minimum((p*BINS).astype(int),BINS-1)] = p-y
    sums = w.astype(float)@np.column_stack([y*pred, (1-y)*pred, y*wide, wide, (p-y)**2, off])
    hit,false = sums[:,0],sums[:,1]
    tpr,fpr = _ratio(hit,pos),_ratio(false,neg)
    return np.array([*[_ap(tp[:,at],fp[:,at],x) for x in (None,*PREVALENCES)], _ratio(2*hit,hit+false+pos), _ratio(hit,hit+false), tpr, .95-read[.95],
                     _ratio(sums[:,2],pos), _ratio(sums[:,3],n), tnr, read[.95], read[.99], _ratio(sums[:,4],n), _ratio(np.abs(sums[:,5:]).sum(1),n), *[_ratio(x*tpr,x*tpr+(1-x)*fpr) for x in PREVALENCES]])


def _fold_draws(t: Tested, w: np.ndarray, cells: int = 2_000_000) -> np.ndarray:
    "(measures, labels, draws) of a model on a fold, a block of draws at a time to bound memory."
    blocks = np.array_split(w, min(len(w),w.size//cells+1))
    def label(j: int) -> np.ndarray: return np.concatenate([label_draws(*(a[:,j] for a in (t.y,t.scores,t.preds,t.wide,t.probs)),b) for b in blocks], axis=1)
    return np.stack([label(j) for j in range(len(t.labels))], axis=1)


def model_draws(by: Mapping, draws: _Draws) -> np.ndarray:
    "(measures, labels + macro, draws) of a model: each fold by itself, then the mean over folds, then over labels."
    labels = _mean(np.stack([_fold_draws(by[k],draws.weights(k)) for k in sorted(by)]), 0)
    return np.concatenate([labels,_mean(labels,1)[:,None]], axis=1)


def figures(c: Comparison, first: str, clusters: Mapping[str,int], n_boot: int, seed: int = 42, level: float = .95) -> dict[str,list[dict]]:
    "`table`: a row per model and label, and macro, with n, positives, prevalence, and each of `ALL` with `_low` and `_high`, None where undefined; `differences` in AP of the model `first` to the others, on the same draws."
    draws,counts,rows = _draws(next(iter(c.models.values())),clusters,n_boot,seed),_counts(c),[]
    found = {m:model_draws(by,draws) for m,by in c.models.items()}
    for name,d in found.items():
        for j,l in enumerate([*c.labels,'macro']):
            row = {k:v for i,m in enumerate(ALL) for k,v in zip((m,f'{m}_low',f'{m}_high'), (float(d[i,j,0]),*percentile_interval(d[i,j,1:],level,d[i,j,0])))}
            rows.append(dict(model=name,label=l)|counts[j]|{k:None if np.isnan(v) else v for k,v in row.items()})
    pairs = pd.DataFrame([dict(a=first,b=m)|_difference((found[first]-d)[:len(MEASURES)],c.labels,'AP',l,level) for m,d in found.items() if m!=first for l in (*c.labels,'macro')])
    return dict(table=rows, differences=plain_rows(pairs.assign(p_holm=pairs.groupby('label')['p'].transform(_holm))))


def flagged(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(n,L) negatives that cleanlab takes for mislabelled, from out-of-sample probabilities (n,L): Northcutt, Jiang and Chuang (2021), Confident learning: estimating uncertainty in dataset labels, JAIR 70.

    It was made for labels that are wrong at random; a paper that nobody cited is no such thing, so that this ranks doubts and proves nothing.
    """
    from cleanlab.filter import find_label_issues
    def label(j: int) -> np.ndarray: return find_label_issues(y[:,j].astype(int), np.column_stack([1-p[:,j],p[:,j]]), filter_by='prune_by_noise_rate', n_jobs=1)
    return np.column_stack([label(j)&(y[:,j]==0) for j in range(y.shape[1])])


def overlap(a: np.ndarray, b: np.ndarray) -> dict:
    "How far two sets of rows (n,) agree, beside what chance would give; shares are None of nothing."
    both,n = int((a&b).sum()),len(a)
    share = lambda k,m: k/m if m else None
    return dict(n=n, flagged=int(a.sum()), suspects=int(b.sum()), both=both, share_of_flagged=share(both,int(a.sum())), share_of_suspects=share(both,int(b.sum())), share_of_all=share(int(b.sum()),n))
