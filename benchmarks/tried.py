"""What raises the average precision of a linear model on real records? Run: IPBES_REAL_DATA=../shared/data python benchmarks/tried.py

Five folds of `corpus.parquet`, near-duplicates together. Candidates are compared on dev: fitted on three folds, scored on a fourth. The fifth is scored
once, by finalists fitted on the other four. Titles of `gold_titles.parquet` that belong to no record are in every training set of the candidates that use them.
Figures go to `benchmarks/results/tried.json`: means over the folds, no title, no abstract. Each finished step stays done in `--work`.
"""
import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from ipbes_classifier.config import label_names, load_config
from ipbes_classifier.files import file_hash, read_json, write_json
from ipbes_classifier.final import final_parts, read_final_data

from small_cut import machine, real_data, results_file


class Counts:
    "Counts of words and word pairs of records and, below them, of titles without abstract and of further papers; labels and folds."
    def __init__(self, folder: Path, more: pd.DataFrame | None = None):
        s = load_config(env='')
        self.labels, d = label_names(s), read_final_data(folder, s)
        both = pd.concat([d.records, d.titles, *([] if more is None else [more])], ignore_index=True)
        self.n, self.y, self.clusters = len(d.records), both[self.labels].to_numpy(), d.clusters
        self.fold = np.empty(self.n, int)
        for k,rows in enumerate(final_parts(d, s)): self.fold[rows] = k
        self.extra = np.arange(self.n, self.n+len(d.titles))
        self.more = np.arange(self.n+len(d.titles), len(both))
        self.suspect = pd.read_parquet(folder/'corpus.parquet', columns=['suspect'])['suspect'].to_numpy()!=''
        words = CountVectorizer(ngram_range=(1,2), strip_accents='unicode', dtype=np.float32)
        whole = words.fit_transform(both['title']+' '+both['abstract'])
        kept = np.flatnonzero(np.bincount(whole.indices, minlength=whole.shape[1])>=2)
        self.whole, self.title, self.abstract = whole[:,kept], words.transform(both['title'])[:,kept], words.transform(both['abstract'])[:,kept]
        self.terms = words.get_feature_names_out()[kept]


def tfidf(learn: sp.csr_matrix, *apply: sp.csr_matrix) -> list:
    "Terms in two or more rows of `learn`, their inverse frequency from there, for each matrix."
    df = np.bincount(learn.indices, minlength=learn.shape[1])
    kept = np.flatnonzero(df>=2)
    idf = sp.diags((np.log((1+learn.shape[0])/(1+df[kept]))+1).astype(np.float32))
    def one(x: sp.csr_matrix) -> sp.csr_matrix:
        x = x[:,kept].copy()
        x.data = 1+np.log(x.data)
        return normalize(x@idf).astype(np.float32).tocsr()
    return [one(x) for x in (learn,*apply)]


def linear(x, y, C: float, weight='balanced', hinge: bool = False):
    "A fitted linear classifier of one label."
    if hinge: return LinearSVC(C=C, class_weight=weight, tol=1e-2, max_iter=300, random_state=0).fit(x, y)
    return LogisticRegression(C=C, class_weight=weight, solver='liblinear', dual=True, tol=1e-2, max_iter=300, random_state=0).fit(x, y)


def whole(c: Counts, train, test, C=10., weight='balanced', hinge=False, drop_suspects=False, stem=0, titles_among=False) -> np.ndarray:
    "One classifier of title and abstract as one text."
    x = c.whole
    if stem:
        _,to = np.unique([' '.join(w[:stem] for w in t.split()) for t in c.terms], return_inverse=True)
        x = (x@sp.csr_matrix((np.ones(len(to),np.float32),(np.arange(len(to)),to)))).tocsr()
    if drop_suspects: train = train[~(c.suspect[train]&(c.y[train].sum(1)==0))]
    if titles_among: train = np.r_[train,c.extra]
    a,b = tfidf(x[train], x[test])
    return np.column_stack([linear(a,y,C,weight,hinge).decision_function(b) for y in c.y[train].T])


def fields(c: Counts, train, test, share=.7, C=10.) -> np.ndarray:
    "Title and abstract as separate fields, each with weights of its own."
    a,b = (tfidf(m[train],m[test]) for m in (c.title,c.abstract))
    left,right = (sp.hstack([share*p,q]).tocsr() for p,q in zip(a,b))
    return np.column_stack([linear(left,y,C).decision_function(right) for y in c.y[train].T])


def title(c: Counts, train, test, C=1., extra=True, of=('title',)) -> np.ndarray:
    "A classifier of titles, asked of title or abstract or the sum of both."
    rows = np.r_[train,c.extra] if extra else train
    a,*b = tfidf(c.title[rows], *(getattr(c,f)[test] for f in of))
    fitted = [linear(a,y,C) for y in c.y[rows].T]
    return np.column_stack([sum(m.decision_function(x) for x in b) for m in fitted])


def both(c: Counts, train, test, weight=.3) -> np.ndarray:
    "The log-odds of a classifier of whole records, and of one of titles asked of title and abstract: `tfidf-titles`."
    return whole(c,train,test)+weight*title(c,train,test,of=('title','abstract'))


CANDIDATES: dict[str,Callable] = {
    'whole, C=1': partial(whole,C=1.), 'whole, C=10': whole, 'whole, C=10, no class weights': partial(whole,weight=None), 'whole, hinge, C=0.3': partial(whole,C=.3,hinge=True),
    'whole, words cut to 6 letters': partial(whole,stem=6), 'whole, suspect negatives left out of training': partial(whole,drop_suspects=True),
    'whole, titles among the records': partial(whole,titles_among=True), 'title and abstract as two fields': fields,
    'titles of records alone': partial(title,extra=False), 'titles': title, 'titles, asked of abstracts': partial(title,of=('abstract',)),
    'whole + 0.1 titles': partial(both,weight=.1), 'whole + 0.3 titles': both, 'whole + 0.5 titles': partial(both,weight=.5)}
FINALISTS = ['whole, C=1','whole, C=10','whole + 0.3 titles']


def measure(c: Counts, score: Callable, part: str) -> dict:
    "Mean AP over the folds, with and without suspect negatives."
    t0,ap = time.process_time(),{'all':[],'without suspects':[]}
    for k in range(5):
        dev = c.fold==(k+1)%5
        train,test = (np.flatnonzero((c.fold!=k)&~dev),np.flatnonzero(dev)) if part=='dev' else (np.flatnonzero(c.fold!=k),np.flatnonzero(c.fold==k))
        s = score(c, train, test)
        for name,rows in (('all',np.ones(len(test),bool)),('without suspects',~c.suspect[test])):
            ap[name].append([average_precision_score(y,x) for y,x in zip(c.y[test][rows].T,s[rows].T)])
    return {n:dict(zip(c.labels,np.mean(v,0).round(4).tolist()))|dict(macro=round(float(np.mean(v)),4)) for n,v in ap.items()}|dict(cpu_seconds=round(time.process_time()-t0,1))


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and gold_titles.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, default=Path('results/tried'), help='keeps what is done')
    a.add_argument('--results', type=Path, help='default: benchmarks/results/tried.json')
    o = a.parse_args()
    data,c,rows = real_data(o.data),None,[]
    for part,name in [*(('test',n) for n in FINALISTS),*(('dev',n) for n in CANDIDATES)]:
        path = o.work/f"{part}-{list(CANDIDATES).index(name)}.json"
        if not path.exists():
            c = c or Counts(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, dict(candidate=name, part=part, n=c.n, titles=len(c.extra), positives=dict(zip(c.labels,c.y[:c.n].sum(0).tolist())),
                                  suspects=int(c.suspect.sum()))|measure(c,CANDIDATES[name],part))
        rows.append(read_json(path))
        print(rows[-1]['part'], name, rows[-1]['all']['macro'], rows[-1]['without suspects']['macro'], flush=True)
    results = results_file('tried', False, o.results)
    write_json(results, dict(command='python benchmarks/tried.py', data_sha256={f:file_hash(data/f'{f}.parquet') for f in ('corpus','gold_titles')}, rows=rows, **machine()))
    print(results)


if __name__=='__main__': main()
