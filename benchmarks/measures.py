"What the benchmark of quality measures: each figure with an interval over clusters of near-duplicates, from one draw for all models."
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ipbes_classifier.compare import MEASURES, PREVALENCES, Comparison, _counts, _Draws, _draws, _interval, _label_draws, _mean, _ratio, _wss
from ipbes_classifier.config import Settings
from ipbes_classifier.metrics import Predictions, reading_order
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
    def part(p: Tested) -> Tested:
        rows = keep(p.frame['id']).to_numpy(dtype=bool)
        return replace(p, frame=p.frame[rows].reset_index(drop=True), **{k:getattr(p,k)[rows] for k in ('y','preds','scores','probs','wide')})
    models = {m:{k:q for k,p in by.items() if len((q:=part(p)).y)} for m,by in c.models.items()}
    return replace(c, models=models, parts=sorted(next(iter(models.values()))))


def _more(y: np.ndarray, s: np.ndarray, pred: np.ndarray, wide: np.ndarray, p: np.ndarray, w: np.ndarray) -> np.ndarray:
    "(len(MORE), draws) of one label; `w` is (draws, n), how often each record was drawn."
    order = reading_order(y,s)
    wy = w[:,order]*y[order]
    tp,fp = wy.cumsum(1),(w[:,order]*(1-y[order])).cumsum(1)
    pos,neg = tp[:,-1],fp[:,-1]
    n,read = pos+neg,{r:r-_wss(tp,fp,wy,r) for r in (.95,.99)}
    found,chosen = w@(y*wide).astype(int),w@wide.astype(int)
    tnr = 1-_ratio(read[.95]*n-np.ceil(.95*pos-1e-9), neg)
    off = np.zeros((len(y),BINS))
    off[np.arange(len(y)),np.minimum((p*BINS).astype(int),BINS-1)] = p-y
    tpr,fpr = _ratio(w@(y*pred).astype(int),pos),_ratio(w@((1-y)*pred).astype(int),neg)
    at = [_ratio(x*tpr,x*tpr+(1-x)*fpr) for x in PREVALENCES]
    return np.array([_ratio(found,pos), _ratio(chosen,n), tnr, read[.95], read[.99], _ratio(w@(p-y)**2,n), _ratio(np.abs(w@off).sum(1),n), *at])


def _fold_draws(t: Tested, w: np.ndarray, cells: int = 2_000_000) -> np.ndarray:
    "(measures, labels, draws) of a model on a fold, a block of draws at a time to bound memory."
    def label(j: int, b: np.ndarray) -> np.ndarray:
        y,s,pred,wide,p = (a[:,j] for a in (t.y,t.scores,t.preds,t.wide,t.probs))
        return np.concatenate([_label_draws(y,s,pred,b), _more(y,s,pred,wide,p,b)])
    blocks = np.array_split(w, min(len(w),w.size//cells+1))
    return np.stack([np.concatenate([label(j,b) for b in blocks], axis=1) for j in range(len(t.labels))], axis=1)


def model_draws(by: Mapping, draws: _Draws) -> np.ndarray:
    "(measures, labels + macro, draws) of a model: each fold by itself, then the mean over folds, then over labels."
    labels = _mean(np.stack([_fold_draws(by[k],draws.weights(k)) for k in sorted(by)]), 0)
    return np.concatenate([labels,_mean(labels,1)[:,None]], axis=1)


def table(c: Comparison, clusters: Mapping[str,int], n_boot: int, seed: int = 42, level: float = .95) -> list[dict]:
    "A row per model and label, and macro: n, positives, prevalence, and each of `ALL` with `_low` and `_high`; None where undefined."
    draws,counts,rows = _draws(next(iter(c.models.values())),clusters,n_boot,seed),_counts(c),[]
    for name,by in c.models.items():
        d = model_draws(by, draws)
        for j,l in enumerate([*c.labels,'macro']):
            figures = {k:v for i,m in enumerate(ALL) for k,v in zip((m,f'{m}_low',f'{m}_high'), (float(d[i,j,0]),*_interval(d[i,j,1:],level)))}
            rows.append(dict(model=name,label=l)|counts[j]|{k:None if np.isnan(v) else v for k,v in figures.items()})
    return rows


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
