"""Which rule for a threshold holds on records that were not seen, above all for rare labels? Run: IPBES_REAL_DATA=../shared/data python benchmarks/thresholds.py

Three models, five folds dealt twice (`unseen.py`). Each rule sees dev alone and is measured on test: with one fold as dev, as `ipbes train` has it (each of the
four in turn), and with the four folds that are not test, scored by models that had not seen them, as `ipbes train-final` has it.

A rule is called better than the threshold of the highest F1 on dev if the difference of the mean F1 of rare labels, those on less than 1 % of the records, is above 0 with
both intervals: over test folds, and over clusters. Figures go to `benchmarks/results/thresholds.json`: no title, no abstract.
"""
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csc_matrix
from scipy.special import expit, logit
from scipy.stats import beta

from ipbes_classifier.compare import draw_weights
from ipbes_classifier.thresholds import cuts, f1_threshold, recall_threshold

from unseen import K, SEED, SHIPPED, Unseen, benchmark, cluster_draws, compared, dealt, draws_interval, folds_interval

RARE = .01             # a label on fewer of the records
TARGETS = (.8,.9,.95)  # of recall
SURE = .95             # of the bound on recall
NAIVE = 'highest F1'


def _logit(s) -> np.ndarray: return logit(np.clip(s,1e-7,1-1e-7))


def lowest_best(t: np.ndarray, f: np.ndarray) -> float: return float(t[np.flatnonzero(f==f.max())[-1]])


def pseudo_counts(y: np.ndarray, s: np.ndarray) -> float:
    "F1 smoothed by a count of 1 above and below: after Lin and Lin (2023), On the thresholding strategy for infrequent labels in multi-label classification, CIKM."
    t,chosen = cuts(s)
    found = np.cumsum(y[np.argsort(-s,kind='stable')])[chosen-1]
    return lowest_best(t, (2*found+1)/(chosen+y.sum()+1))


def fold_mean(y: np.ndarray, s: np.ndarray, clusters: np.ndarray, parts: int = 4) -> float:
    "Mean, in log-odds, of the best thresholds of parts of dev: Fan and Lin (2007), A study on threshold selection for multi-label classification."
    part = dealt(y, clusters, parts)
    return float(expit(np.mean([_logit(f1_threshold(y[part==k],s[part==k])) for k in range(parts) if y[part==k].any()])))


def bagged(y: np.ndarray, s: np.ndarray, clusters: np.ndarray, draws: int = 50) -> float:
    "The best threshold for the mean F1 of bootstrap draws of dev's clusters."
    t,chosen = cuts(s)
    order = np.argsort(-s,kind='stable')
    w = draw_weights(clusters, draws, SEED)[1:,order].astype(np.float32)
    found = np.cumsum(w*y[order],1)
    return lowest_best(t, (2*found[:,chosen-1]/(np.cumsum(w,1)[:,chosen-1]+found[:,-1:])).mean(0))


RULES: dict[str,Callable] = {
    NAIVE: lambda y,s,c: f1_threshold(y,s), 'smoothed by a sigmoid, as 20 positives': lambda y,s,c: f1_threshold(y,s,20), 'smoothed by a sigmoid, as 100 positives': lambda y,s,c: f1_threshold(y,s,100),
    'half the F1 expected of a sigmoid': lambda y,s,c: f1_threshold(y,s,np.inf), 'F1 with a pseudo-count': lambda y,s,c: pseudo_counts(y,s), 'mean threshold of 4 parts': fold_mean,
    'mean F1 of bootstrap draws': bagged}


def bounded_recall(y: np.ndarray, s: np.ndarray, target: float) -> float:
    "The highest threshold at which the lower Clopper-Pearson bound of recall on dev is the target or more; the lowest score where none is."
    n = int(y.sum())
    k = np.arange(1,n+1)
    enough = np.flatnonzero(beta.ppf(1-SURE,k,n-k+1)>=target)
    return recall_threshold(y,s,k[enough[0]]/n) if len(enough) else float(s.min())


def one_more(y: np.ndarray, s: np.ndarray, target: float) -> float:
    "The threshold that finds ceil(target*(n+1)) of n: on average, test reaches the target. Vovk, Gammerman and Shafer (2005), Algorithmic learning in a random world. The lowest score where n are not enough."
    n = int(y.sum())
    k = int(np.ceil(target*(n+1)-1e-9))
    return recall_threshold(y,s,k/n) if k<=n else float(s.min())


RECALL: dict[str,Callable] = {'as on dev':recall_threshold, 'one positive more':one_more, f'lower bound, {SURE:.0%}':bounded_recall}


def settings(u: Unseen, model: str, r: int, j: int) -> Iterator[tuple[str,np.ndarray,np.ndarray,np.ndarray,np.ndarray]]:
    "Name, rows and scores of dev, rows and scores of test."
    fold,s = u.folds[r],u.scores[r][model]
    test,rest = np.flatnonzero(fold==j),np.flatnonzero(fold!=j)
    i = (j+1)%K # each two folds once: with dev and test exchanged, one model would reach a recall on the one just where it misses it on the other
    dev = np.flatnonzero(fold==i)
    yield 'one fold',dev,s[j,dev],test,s[i,test]
    yield 'four folds',rest,s[j,rest],test,s[j,test]
    for i in range(K):
        dev = np.flatnonzero(fold==i)
        if i!=j: yield 'one of the four folds',dev,s[j,dev],test,s[j,test]


class Decisions:
    "Rows that a rule chose, by test fold; several a fold where each of four folds was dev."
    def __init__(self): self.rows,self.part = [],[]

    def add(self, part: int, rows: np.ndarray) -> None:
        self.rows.append(rows)
        self.part.append(part)

    def counts(self, u: Unseen, l: int, weights: np.ndarray) -> tuple[np.ndarray,np.ndarray,np.ndarray]:
        "(draws, decisions) found, chosen and relevant."
        ends = np.cumsum([0,*map(len,self.rows)])
        m = csc_matrix((np.ones(ends[-1],np.float32),np.concatenate(self.rows),ends), shape=(len(u.y),len(self.rows)))
        y = u.y[:,l].astype(np.float32)
        relevant = {p:(y*(u.folds[p//K]==p%K))@weights for p in set(self.part)}
        return (m.multiply(y[:,None]).tocsc().T@weights).T,(m.T@weights).T,np.stack([relevant[p] for p in self.part],1)

    def by_part(self, x: np.ndarray) -> np.ndarray:
        "(draws, test folds) means."
        parts = np.array(self.part)
        return np.stack([x[:,parts==p].mean(1) for p in sorted(set(self.part))],1)


def decide(u: Unseen, model: str, rules: dict[str,Callable]) -> dict[tuple,Decisions]:
    "Decisions by setting, rule and label; and, below None, those that would be best on test."
    out: dict = {}
    for r in range(len(u.folds)):
        for j in range(K):
            for setting,dev,s,test,t in settings(u,model,r,j):
                for l in range(len(u.labels)):
                    y = u.y[dev,l]
                    for name,rule in rules.items():
                        if setting!='one of the four folds' or name==NAIVE:
                            out.setdefault((setting,name,l),Decisions()).add(r*K+j, test[t[:,l]>=rule(y,s[:,l],u.clusters[dev])])
                    if setting!='one of the four folds' and NAIVE in rules: out.setdefault((setting,'best on test',l),Decisions()).add(r*K+j, test[t[:,l]>=f1_threshold(u.y[test,l],t[:,l])])
            print(f'{model}: repeat {r+1}, fold {j}', flush=True)
    return out


def f1_rows(u: Unseen, model: str, weights: np.ndarray, rare: list[int]) -> list[dict]:
    "A row per setting, rule and label, and for the mean of rare labels."
    f1,rows = {},[]
    for (setting,name,l),d in decide(u,model,RULES).items():
        found,chosen,relevant = d.counts(u,l,weights)
        with np.errstate(all='ignore'): f1[setting,name,l] = d.by_part(2*found/(chosen+relevant))
        rows.append(dict(dev=setting, rule=name, label=u.labels[l], recall=(found/relevant)[0].mean(), precision=np.nanmean(np.divide(found[0],chosen[0],where=chosen[0]>0,out=np.full(len(found[0]),np.nan))),
                         share_chosen=chosen[0].sum()/(len(u.y)/K*len(chosen[0]))))
    for setting,name in dict.fromkeys(k[:2] for k in f1):
        f1[setting,name,'rare'] = np.mean([f1[setting,name,l] for l in rare],0)
        rows.append(dict(dev=setting, rule=name, label='rare'))
    at = {label:l for l,label in enumerate(u.labels)}|{'rare':'rare'}
    for row in rows:
        l,x = at[row['label']],f1[row['dev'],row['rule'],at[row['label']]]
        of = x[0].reshape(-1,K)
        row |= dict(model=model, f1=of.mean(), f1_worst=of.min())
        if (row['dev'],row['rule'])!=('one of the four folds',NAIVE) and row['rule']==NAIVE: continue
        naive = f1['four folds' if row['dev']=='one of the four folds' else row['dev'],NAIVE,l]
        d = compared((x-naive)[0].reshape(-1,K), (x-naive).mean(1))
        row |= dict(minus_naive=d, better=row['rule']!='best on test' and d['folds'][0]>0 and d['clusters'][0]>0)
    return rows


def recall_rows(u: Unseen, model: str, weights: np.ndarray) -> list[dict]:
    "A row per target, setting, rule and label: recall reached, how often the target was, and the share chosen."
    rows = []
    for target in TARGETS:
        rules = {k:(lambda y,s,c,f=f,x=target: f(y,s,x)) for k,f in RECALL.items()}
        for (setting,name,l),d in decide(u,model,rules).items():
            found,chosen,relevant = d.counts(u,l,weights)
            recall = d.by_part(found/relevant)
            rows.append(dict(model=model, target=target, dev=setting, rule=name, label=u.labels[l], recall=recall[0].mean(), folds=folds_interval(recall[0].reshape(-1,K)), clusters=draws_interval(recall.mean(1)),
                             reached=(found/relevant>=target)[0].mean(), worst=(found/relevant)[0].min(), share_chosen=chosen[0].sum()/(len(u.y)/K*len(chosen[0]))))
    return rows


def figures(u: Unseen, quick: bool) -> dict:
    "All figures of this benchmark."
    weights = cluster_draws(u)
    rare = [l for l,p in enumerate(u.y.mean(0)) if p<(.06 if quick else RARE)]
    f1 = [r for m in u.scores[0] for r in f1_rows(u,m,weights,rare)]
    return dict(rare=[u.labels[l] for l in rare], sure=SURE, f1=f1, recall=recall_rows(u,SHIPPED,np.ascontiguousarray(weights[:,:201])))


def main() -> None: benchmark(__doc__, 'thresholds', figures)


if __name__=='__main__': main()
