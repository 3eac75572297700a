"""Which way from scores to probabilities holds on records that were not seen? Run: IPBES_REAL_DATA=../shared/data python benchmarks/calibration.py

Three models, five folds dealt twice (`unseen.py`). Each way is fitted on dev alone and measured on test: with one fold as dev, as `ipbes train` has it, and with
the four folds that are not test, scored by models that had not seen them, as `ipbes train-final` has it. Then how many positives each way needs, whether a choice between
them by dev is worth while, and what a correction for another prevalence does. Venn-Abers predictors are those of PyPI: pip install -c constraints.txt venn-abers

A choice, that of the package among them, or another way is called better than the sigmoid of the package if the difference in log loss is below 0 with both intervals: over test folds, and over clusters.
Figures go to `benchmarks/results/calibration.json`: no title, no abstract.
"""
import sys
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from ipbes_classifier.metrics import calibration_error, prevalence_weights
from ipbes_classifier.prior_shift import estimate_prior, shift_prior
from ipbes_classifier.thresholds import Steps, fit_label, fit_sigmoid

from unseen import K, SEED, SHIPPED, Unseen, benchmark, cluster_draws, compared, dealt, folds_interval

Fitted = Callable[[np.ndarray],np.ndarray]
EDGES = (0,.001,.003,.01,.03,.1,.3,1.)  # of bins of probabilities
POSITIVES = (3,5,10,20,50,100)          # in dev
ENOUGH = 20                             # positives in dev, for a choice
PREVALENCES = (.01,.001)


def none(y: np.ndarray, s: np.ndarray) -> Fitted: return lambda x: x


def level(y: np.ndarray, s: np.ndarray) -> Fitted:
    "A sigmoid of slope 1: only its level is fitted, to Platt's targets."
    x,pos = _logit(s),y.sum()
    target = (pos*(pos+1)/(pos+2)+(len(y)-pos)/(len(y)-pos+2))/len(y)
    b = brentq(lambda b: expit(x+b).mean()-target, -40, 40)
    return lambda s: expit(_logit(s)+b)


def sigmoid(y: np.ndarray, s: np.ndarray) -> Fitted: return fit_sigmoid(y,s).probability


def temperature(y: np.ndarray, s: np.ndarray) -> Fitted:
    "A sigmoid without level: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML."
    x = _logit(s)
    slope = np.exp(minimize_scalar(lambda a: (np.logaddexp(0,np.exp(a)*x)-y*np.exp(a)*x).mean(), bounds=(-6,6), method='bounded', options=dict(xatol=1e-6)).x)
    return lambda s: expit(slope*_logit(s))


def isotonic(y: np.ndarray, s: np.ndarray) -> Fitted:
    "Steps: Zadrozny and Elkan (2002), Transforming classifier scores into accurate multiclass probability estimates, KDD; 1/(n+2) away from 0 and 1, or one surprise would cost without limit."
    return IsotonicRegression(y_min=1/(len(y)+2), y_max=(len(y)+1)/(len(y)+2), out_of_bounds='clip').fit(s,y).predict


def venn_abers(y: np.ndarray, s: np.ndarray) -> Fitted:
    "Two isotonic fits for each score, one with it as relevant and one without: Vovk and Petej (2014), Venn-Abers predictors, UAI. Scores rounded to four decimals."
    from venn_abers import VennAbers
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # of slices without a number
        v = VennAbers().fit(np.c_[1-s,s], y, precision=4)
    return lambda s: v.predict_proba(np.c_[1-s,s])[0][:,1]


WAYS: dict[str,Callable[[np.ndarray,np.ndarray],Fitted]] = {
    'none':none, 'level alone':level, 'sigmoid':sigmoid, 'temperature':temperature, 'isotonic':isotonic, 'Venn-Abers':venn_abers}
PACKAGE = 'as the package chooses'  # the sigmoid, or isotonic where it is better on dev
CHOICES = {'chosen: lowest':0., 'chosen: lower by two standard errors':2.}


def _logit(s: np.ndarray) -> np.ndarray: return logit(np.clip(s,1e-7,1-1e-7))


def log_loss(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    "(n,) of each record."
    p = np.clip(p,1e-12,1-1e-12)
    return -np.where(y==1,np.log(p),np.log1p(-p))


def choose(y: np.ndarray, s: np.ndarray, clusters: np.ndarray) -> dict[str,str]:
    "The way of each choice, by log loss over five inner folds of dev; the sigmoid if positives are too few."
    if y.sum()<ENOUGH: return dict.fromkeys(CHOICES,'sigmoid')
    loss,part = {w:np.empty(len(y)) for w in WAYS},dealt(y,clusters,5)
    for k in range(5):
        a,b = part!=k,part==k
        for w,fit in WAYS.items(): loss[w][b] = log_loss(y[b], fit(y[a],s[a])(s[b]))
    best = min(WAYS, key=lambda w: loss[w].mean())
    less = loss['sigmoid']-loss[best]
    sure = less.mean()/(less.std()/np.sqrt(len(y)) or 1)
    return {name:best if sure>=least else 'sigmoid' for name,least in CHOICES.items()}


def parts(u: Unseen, model: str, r: int, j: int) -> dict[str,tuple]:
    "Of both settings: rows and scores of dev, rows and scores of test."
    fold,s,i = u.folds[r],u.scores[r][model],(j+1)%K
    one,rest,test = (np.flatnonzero(x) for x in (fold==i,fold!=j,fold==j))
    return {'one fold':(one,s[j,one],test,s[i,test]), 'four folds':(rest,s[j,rest],test,s[j,test])}


def probabilities(u: Unseen, model: str) -> tuple[dict,dict]:
    "By setting and way, (repeats, n, L) probabilities of records of test; how often each was chosen."
    R,(n,L) = len(u.folds),u.y.shape
    out: dict = {s:{w:np.empty((R,n,L)) for w in [*WAYS,*CHOICES,PACKAGE]} for s in ('one fold','four folds')}
    chosen: dict = {s:{l:{c:Counter() for c in [*CHOICES,PACKAGE]} for l in u.labels} for s in out}
    for r in range(R):
        for j in range(K):
            for setting,(dev,s,test,t) in parts(u,model,r,j).items():
                for l,label in enumerate(u.labels):
                    for w,fit in WAYS.items(): out[setting][w][r,test,l] = fit(u.y[dev,l],s[:,l])(t[:,l])
                    for c,w in choose(u.y[dev,l],s[:,l],u.clusters[dev]).items():
                        out[setting][c][r,test,l] = out[setting][w][r,test,l]
                        chosen[setting][label][c][w] += 1
                    fitted = fit_label(u.y[dev,l],s[:,l])
                    out[setting][PACKAGE][r,test,l] = fitted.probability(t[:,l])
                    chosen[setting][label][PACKAGE]['isotonic' if isinstance(fitted,Steps) else 'sigmoid'] += 1
            print(f'{model}: repeat {r+1}, fold {j}', flush=True)
    return out,chosen


def by_fold(u: Unseen, x: np.ndarray, f: Callable = np.mean) -> np.ndarray:
    "(repeats, folds) of a function of (repeats, n, ...) values."
    return np.array([[f(x[r,u.folds[r]==j]) for j in range(K)] for r in range(len(u.folds))])


def measures(u: Unseen, p: dict, l: int, weights: np.ndarray) -> list[dict]:
    "A row per way: means over folds, and the difference from the sigmoid."
    y,rows = u.y[:,l],[]
    losses = {w:dict(log_loss=np.array([log_loss(y,a) for a in v[:,:,l]]), brier=(v[:,:,l]-y)**2) for w,v in p.items()}
    pos = by_fold(u, np.tile(y,(len(u.folds),1)), np.sum)
    for w,v in p.items():
        total = by_fold(u, v[:,:,l], np.sum)/pos
        ece = np.array([[calibration_error(y[f==j],x[f==j]) for j in range(K)] for f,x in zip(u.folds,v[:,:,l])])
        row = dict(way=w, ECE=ece.mean(), expected_to_found=total.mean(), expected_to_found_least=total.min(), expected_to_found_most=total.max())
        for m,x in losses[w].items():
            row[m] = by_fold(u,x).mean()
            d = x-losses['sigmoid'][m]
            if w!='sigmoid': row[f'{m}_minus_sigmoid'] = compared(by_fold(u,d), d.mean(0)@weights/weights.sum(0))
        d = row.get('log_loss_minus_sigmoid')
        rows.append(row|dict(better=bool(d and d['folds'][1]<0 and d['clusters'][1]<0)))
    return rows


def bins(y: np.ndarray, p: np.ndarray, w: np.ndarray | None = None) -> list[dict]:
    "Records, their mean probability and the relevant among them, by bin; weighted."
    w = np.ones(len(y)) if w is None else w
    at = np.clip(np.searchsorted(EDGES,p,side='right')-1, 0, len(EDGES)-2)
    return [dict(bin=int(b), n=int((at==b).sum()), p=float(np.average(p[at==b],weights=w[at==b])), positives=int(y[at==b].sum()),
                 share=float(np.average(y[at==b],weights=w[at==b]))) for b in np.unique(at)]


def needed(u: Unseen, model: str, draws: int = 3) -> list[dict]:
    "Log loss on test of each way, by the number of positives in dev, negatives in proportion."
    rng,rows = np.random.default_rng(SEED),[]
    for l,label in enumerate(u.labels):
        loss = {(m,w):np.zeros((len(u.folds),K)) for m in POSITIVES for w in WAYS}
        for r in range(len(u.folds)):
            for j in range(K):
                dev,s,test,t = parts(u,model,r,j)['four folds']
                y,yt = u.y[dev,l],u.y[test,l]
                pos,neg = np.flatnonzero(y==1),np.flatnonzero(y==0)
                for m in POSITIVES:
                    for _ in range(draws):
                        some = np.r_[rng.choice(pos,m,replace=False),rng.choice(neg,m*len(neg)//len(pos),replace=False)]
                        for w,fit in WAYS.items(): loss[m,w][r,j] += log_loss(yt, fit(y[some],s[some,l])(t[:,l])).mean()/draws
        for (m,w),x in loss.items():
            d = x-loss[m,'sigmoid']
            rows.append(dict(label=label, positives=m, way=w, log_loss=x.mean(), minus_sigmoid=d.mean(), folds=folds_interval(d)))
    return rows


def shifted(u: Unseen, model: str) -> list[dict]:
    """Probabilities where relevant papers are rarer, before and after a correction, folds of the first repeat together.

    'reweighted': the negatives of test, counted more often or less. 'other papers': positives of test, and in place of its negatives a sample of papers from other searches.
    """
    rows = []
    for l,label in enumerate(u.labels):
        for new in PREVALENCES:
            for where in ('reweighted','other papers'):
                held: dict = {}
                for j in range(K):
                    dev,s,test,t = parts(u,model,0,j)['four folds']
                    y,x = u.y[test,l],t[:,l]
                    if where=='other papers':
                        more = u.more[model][j,:,l]
                        y,x = np.r_[np.ones(y.sum(),int),np.zeros(len(more),int)],np.r_[x[y==1],more]
                    w,old = prevalence_weights(y,new),u.y[dev,l].mean()
                    w,p,plain = w/w.sum(),fit_label(u.y[dev,l],s[:,l]).probability(x),sigmoid(u.y[dev,l],s[:,l])(x)
                    estimated = estimate_prior(p,old,w)
                    ways = {'as it is':p, 'corrected':shift_prior(p,old,new), 'corrected, prevalence estimated':shift_prior(p,old,estimated), 'sigmoid, corrected':shift_prior(plain,old,new)}
                    for k,v in ways.items(): held.setdefault(k,[]).append((y,v,w,estimated))
                for k,v in held.items():
                    y,p,w,e = (np.concatenate([np.atleast_1d(f[i]) for f in v]) for i in range(4))
                    rows.append(dict(label=label, prevalence=new, where=where, probabilities=k, expected_to_found=(w*p).sum()/(w*y).sum(), log_loss=(w*log_loss(y,p)).sum()/w.sum(),
                                     estimated=e.mean(), estimated_least=e.min(), estimated_most=e.max(), bins=bins(y,p,w)))
    return rows


def figures(u: Unseen, quick: bool) -> dict:
    "All figures of this benchmark."
    weights,rows,chosen,reliability = cluster_draws(u),[],{},[]
    for m in u.scores[0]:
        p,chosen[m] = probabilities(u,m)
        for setting,by in p.items():
            for l,label in enumerate(u.labels): rows += [dict(model=m,dev=setting,label=label)|r for r in measures(u,by,l,weights)]
        reliability += [dict(model=m, label=l, way=w, bins=bins(u.y[:,i],v[0,:,i])) for i,l in enumerate(u.labels) for w,v in p['four folds'].items() if w in WAYS]
    return dict(titles=u.titles, other_papers=len(next(iter(u.more.values()))[0]), edges=EDGES, enough=ENOUGH, rows=rows, chosen=chosen,
                needed=needed(u,SHIPPED), reliability=reliability, shifted=shifted(u,SHIPPED))


def main() -> None:
    try: import venn_abers  # noqa: F401
    except ImportError: sys.exit('Venn-Abers predictors are compared too: pip install -c constraints.txt venn-abers')
    benchmark(__doc__, 'calibration', figures, 'venn-abers')


if __name__=='__main__': main()
