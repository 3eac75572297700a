"""What raises the average precision of a linear model on real records? Run: IPBES_REAL_DATA=../shared/data python benchmarks/tried.py

Five folds of `corpus.parquet`, near-duplicates together. Candidates are compared on dev: fitted on three folds, scored on a fourth. The fifth is scored
once by each finalist, fitted on the other four. Titles of `gold_titles.parquet` that belong to no record are in every training set of the candidates that use them.
Figures go to `benchmarks/results/tried.json`: means over the folds, no title, no abstract. Each finished step stays done in `--work`; vectors of the packaged encoder take three quarters of an hour of two processors.
"""
import argparse
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from ipbes_classifier.compare import Comparison, check_comparison, differences_to_others, fold_measures
from ipbes_classifier.config import label_names, load_config
from ipbes_classifier.files import atomic_path, file_hash, obj_hash, write_json
from ipbes_classifier.final import final_parts, read_final_data
from ipbes_classifier.metrics import Predictions
from ipbes_classifier.vectors import Embedder, kept_vectors, vectors_of

from measures import restrict
from small_cut import machine, real_data, results_file


class Counts:
    "Counts of words and word pairs of records and, below them, of titles without abstract and of further papers; labels and folds."
    work = Path('results/tried') # keeps vectors
    def __init__(self, folder: Path, more: pd.DataFrame | None = None):
        s = load_config(env='')
        self.labels, d = label_names(s), read_final_data(folder, s)
        both = pd.concat([d.records, d.titles, *([] if more is None else [more])], ignore_index=True)
        self.n, self.y, self.clusters = len(d.records), both[self.labels].to_numpy(), d.clusters
        self.fold = np.empty(self.n, int)
        for k,rows in enumerate(final_parts(d, s)): self.fold[rows] = k
        self.extra = np.arange(self.n, self.n+len(d.titles))
        self.more = np.arange(self.n+len(d.titles), len(both))
        self.suspect = (d.records['suspect'].fillna('')!='').to_numpy() if 'suspect' in d.records else np.zeros(self.n,bool)
        words = CountVectorizer(ngram_range=(1,2), strip_accents='unicode', dtype=np.float32)
        whole = words.fit_transform(both['title']+' '+both['abstract'])
        kept = np.flatnonzero(np.bincount(whole.indices, minlength=whole.shape[1])>=2)
        self.whole, self.title, self.abstract = whole[:,kept], words.transform(both['title'])[:,kept], words.transform(both['abstract'])[:,kept]
        self.terms = words.get_feature_names_out()[kept]
        self.text = both[['title','abstract']]

    @cached_property
    def characters(self) -> sp.csr_matrix:
        "Counts of three to five characters within words, of records."
        return HashingVectorizer(analyzer='char_wb', ngram_range=(3,5), n_features=2**20, alternate_sign=False, norm=None, dtype=np.float32).transform((self.text['title']+' '+self.text['abstract'])[:self.n])

    @cached_property
    def title_vectors(self) -> np.ndarray: return self.embedded(self.text['title'].tolist(), 64)

    @cached_property
    def vectors(self) -> np.ndarray:
        "Of title and abstract as one text, its first 128 tokens."
        return self.vectors_of(128)

    @cached_property
    def short_vectors(self) -> np.ndarray:
        "The same of its first 64 tokens."
        return self.vectors_of(64)

    def vectors_of(self, tokens: int) -> np.ndarray:
        "Of records and further papers; zeros for titles without abstract."
        rows = np.r_[:self.n,self.more]
        made = self.embedded((self.text['title']+'. '+self.text['abstract']).iloc[rows].tolist(), tokens)
        out = np.zeros((len(self.text),made.shape[1]), made.dtype)
        out[rows] = made
        return out

    def embedded(self, texts: list[str], tokens: int) -> np.ndarray:
        "Of the packaged encoder, as it was published."
        with kept_vectors(self.work/'vectors'): return vectors_of(Embedder.pretrained('minilm',tokens), texts)


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


def characters(c: Counts, train, test, C=10.) -> np.ndarray:
    "A classifier of three to five characters in place of words."
    a,b = tfidf(c.characters[train], c.characters[test])
    return np.column_stack([linear(a,y,C).decision_function(b) for y in c.y[train].T])


def ratios(c: Counts, train, test, C=10.) -> np.ndarray:
    "Words weighted by the log ratio of their counts in positives and negatives: Wang and Manning (2012), Baselines and bigrams, ACL."
    (a,b),out = tfidf(c.whole[train], c.whole[test]),[]
    for y in c.y[train].T:
        has,lacks = (1+np.asarray((a[y==v]>0).sum(0)).ravel() for v in (1,0))
        r = sp.diags(np.log((has/has.sum())/(lacks/lacks.sum())).astype(np.float32))
        out.append(linear(normalize(a@r).tocsr(),y,C).decision_function(normalize(b@r).tocsr()))
    return np.column_stack(out)


def which(c: Counts, train, test, C=1.) -> np.ndarray:
    "Which assessment cites a paper that one of them cites: a classifier of titles of positives, asked of title and abstract."
    rows = np.r_[train[c.y[train].any(1)],c.extra]
    a,*b = tfidf(c.title[rows], c.title[test], c.abstract[test])
    return np.column_stack([sum(m.decision_function(x) for x in b) for m in (linear(a,y,C) for y in c.y[rows].T)])


def together(c: Counts, train, test, share=.1) -> np.ndarray:
    "`tfidf-titles`, to whose rare labels the log-odds of a classifier of all rare labels as one are added."
    rare = c.y[:c.n].mean(0)<.01
    any_rare = Counts.__new__(Counts)
    any_rare.__dict__ |= c.__dict__|dict(y=c.y[:,rare].any(1)[:,None].astype(int))
    return both(c,train,test)+share*rare*both(any_rare,train,test)


def vectors(c: Counts, train, test, C=.001, titles=False, short=False) -> np.ndarray:
    "A classifier of vectors: of records, or of titles."
    x,rows = (c.title_vectors,np.r_[train,c.extra]) if titles else (c.short_vectors if short else c.vectors,train)
    scale = x[rows].std(0)+1e-6
    return np.column_stack([LogisticRegression(C=C,class_weight='balanced',max_iter=300).fit(x[rows]/scale,y).decision_function(x[test]/scale) for y in c.y[rows].T])


def neighbours(c: Counts, train, test, k=10, short=False) -> np.ndarray:
    "Mean cosine of the vectors of the `k` nearest positives, less that of the `k` nearest negatives."
    v = c.short_vectors if short else c.vectors
    near = v[test]@v[train].T
    def mean(rows): return np.partition(near[:,rows],-k,axis=1)[:,-k:].mean(1)
    return np.column_stack([mean(y==1)-mean(y==0) for y in c.y[train].T])


def nearest_titles(c: Counts, train, test, k=10, short=False, asks='whole', others=False) -> np.ndarray:
    "The same among titles, those without abstract too; a paper asks by title and abstract, or by its title. `others`: positives of other labels are no negatives."
    rows = np.r_[train,c.extra]
    near = (c.title_vectors if asks=='title' else c.short_vectors if short else c.vectors)[test]@c.title_vectors[rows].T
    def mean(of): return np.partition(near[:,of],-k,axis=1)[:,-k:].mean(1)
    return np.column_stack([mean(y==1)-mean(c.y[rows].sum(1)==0 if others else y==0) for y in c.y[rows].T])


def with_vectors(c: Counts, train, test, weight=16., plane=.3, short=False, **how) -> np.ndarray:
    "`tfidf-titles`, the nearest titles, and a classifier of vectors."
    return both(c,train,test)+weight*nearest_titles(c,train,test,short=short,**how)+(plane*vectors(c,train,test,short=short) if plane else 0)


def by_many(c: Counts, train, test, word_ratios=1., records=24., spelling=0., many=2000, weight=2.) -> np.ndarray:
    "What a label with n positives has n/(n+many) of: ratios of words, nearest records, characters."
    n = c.y[train].sum(0)
    more = sum(w*f(c,train,test) for w,f in ((word_ratios,ratios),(records,partial(neighbours,k=3,short=True)),(spelling,characters)) if w)
    return weight*n/(n+many)*more


def for_many(c: Counts, train, test, **how) -> np.ndarray:
    "`tfidf-titles`, the nearest titles, and `by_many`: `tfidf-vectors`."
    return with_vectors(c,train,test,plane=0.,short=True)+by_many(c,train,test,**how)


def beside(c: Counts, train, test, weight: float, other: Callable) -> np.ndarray:
    "`tfidf-titles`, and the log-odds of another classifier."
    return both(c,train,test)+weight*other(c,train,test)


WITH_VECTORS = 'whole + 0.3 titles, + 16 nearest titles, + 0.3 vectors, 64 tokens'
NEAREST = 'whole + 0.3 titles, + 16 nearest titles, 64 tokens'
SHIPPED = f'{NEAREST}, + ratios and records for many' # `tfidf-vectors`
CANDIDATES: dict[str,Callable] = {
    'whole, C=1': partial(whole,C=1.), 'whole, C=10': whole, 'whole, C=10, no class weights': partial(whole,weight=None), 'whole, hinge, C=0.3': partial(whole,C=.3,hinge=True),
    'whole, words cut to 6 letters': partial(whole,stem=6), 'whole, suspect negatives left out of training': partial(whole,drop_suspects=True),
    'whole, titles among the records': partial(whole,titles_among=True), 'title and abstract as two fields': fields,
    'titles of records alone': partial(title,extra=False), 'titles': title, 'titles, asked of abstracts': partial(title,of=('abstract',)),
    'whole + 0.1 titles': partial(both,weight=.1), 'whole + 0.3 titles': both, 'whole + 0.5 titles': partial(both,weight=.5),
    'whole, characters': characters, 'whole, ratios of counts': ratios, 'vectors': vectors, 'vectors, C=0.01': partial(vectors,C=.01), 'vectors of titles': partial(vectors,titles=True), 'nearest vectors': neighbours,
    'whole + 0.3 titles, + 0.3 characters': partial(beside,weight=.3,other=characters), 'whole + 0.3 titles, + 0.3 ratios': partial(beside,weight=.3,other=ratios),
    'whole + 0.3 titles, + 0.1 which assessment': partial(beside,weight=.1,other=which), 'whole + 0.3 titles, + 0.1 rare labels as one': together,
    'whole + 0.3 titles, + 0.2 vectors of titles': partial(beside,weight=.2,other=partial(vectors,titles=True)),
    'whole + 0.3 titles, + 0.2 vectors': partial(beside,weight=.2,other=vectors), 'whole + 0.3 titles, + 0.5 vectors': partial(beside,weight=.5,other=vectors),
    'whole + 0.3 titles, + 5 nearest vectors': partial(beside,weight=5.,other=neighbours), 'nearest titles': nearest_titles, 'nearest titles, asked by title': partial(nearest_titles,asks='title'),
    'whole + 0.3 titles, + 8 nearest titles': partial(with_vectors,weight=8.,plane=0.), 'whole + 0.3 titles, + 16 nearest titles': partial(with_vectors,plane=0.),
    'whole + 0.3 titles, + 16 nearest titles, asked by title': partial(with_vectors,plane=0.,asks='title'), 'whole + 0.3 titles, + 16 nearest 3 titles': partial(with_vectors,plane=0.,k=3),
    'whole + 0.3 titles, + 16 nearest titles, + 0.3 vectors': with_vectors, 'whole + 0.3 titles, + 16 nearest titles, + 0.3 vectors, no positives of others': partial(with_vectors,others=True),
    NEAREST: partial(with_vectors,plane=0.,short=True), SHIPPED: for_many, f'{NEAREST}, + ratios for many': partial(for_many,records=0.), f'{NEAREST}, + records for many': partial(for_many,word_ratios=0.),
    f'{SHIPPED}, many=500': partial(for_many,many=500), f'{SHIPPED}, twice as much': partial(for_many,weight=4.), f'{SHIPPED}, + characters': partial(for_many,spelling=1.),
    f'{NEAREST}, + ratios and records for all alike': partial(for_many,many=0,weight=1.),
    WITH_VECTORS: partial(with_vectors,short=True), 'whole + 0.3 titles, + 24 nearest titles, + 0.3 vectors, 64 tokens': partial(with_vectors,weight=24.,short=True)}
BASE = 'whole + 0.3 titles'
FINALISTS = ['whole, C=1','whole, C=10',BASE,WITH_VECTORS,SHIPPED] # WITH_VECTORS was shipped before SHIPPED was thought of


def rows_of(c: Counts, part: str, k: int) -> tuple[np.ndarray,np.ndarray]:
    "Rows to learn from and to score, of dev or test of a fold."
    dev = c.fold==(k+1)%5
    return (np.flatnonzero((c.fold!=k)&~dev),np.flatnonzero(dev)) if part=='dev' else (np.flatnonzero(c.fold!=k),np.flatnonzero(c.fold==k))


def scored(c: Counts, name: str, part: str, folder: Path) -> tuple[list[np.ndarray],float]:
    "(n_k, n_labels) scores of a candidate by fold, and processor seconds; kept in a file."
    path = folder/f"{part}-{name.replace(' ','_')}.npz"
    if not path.exists():
        t0 = time.process_time()
        arrays = {str(k):CANDIDATES[name](c,*rows_of(c,part,k)) for k in range(5)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as tmp, open(tmp,'wb') as f: np.savez(f, **arrays, seconds=time.process_time()-t0)
        print(f'{part}: {name}', flush=True)
    with np.load(path) as z: return [z[str(k)] for k in range(5)],float(z['seconds'])


def comparison(c: Counts, scores: dict[str,list[np.ndarray]], part: str) -> Comparison:
    "Candidates as models whose predictions are compared; a record is named by its row."
    def predictions(s: np.ndarray, rows: np.ndarray) -> Predictions:
        return Predictions(c.labels, c.y[rows].astype(np.int8), np.zeros_like(c.y[rows]), s, None, pd.DataFrame(dict(id=rows.astype(str))))
    return check_comparison(Comparison(c.labels, [(0,k) for k in range(5)], {n:{(0,k):predictions(x,rows_of(c,part,k)[1]) for k,x in enumerate(s)} for n,s in scores.items()}))


def measured(c: Counts, scores: dict[str,list[np.ndarray]], part: str, n_boot: int) -> list[dict]:
    "Mean AP over the folds and the difference to `BASE`, paired over clusters of near-duplicates, with and without suspect negatives."
    clusters,whole,rows = {str(i):int(x) for i,x in enumerate(c.clusters)},comparison(c,scores,part),[dict(part=part, candidate=n) for n in scores]
    sure = {str(i) for i in np.flatnonzero(~c.suspect)}
    for name,found in (('all',whole),('without suspects',restrict(whole,lambda i: i.isin(sure)))):
        ap = fold_measures(found).groupby(['model','label'])['AP'].mean()
        other = differences_to_others(found, BASE, clusters, n_boot=n_boot).query("label=='macro'").set_index('b')
        for row in rows:
            n = row['candidate']
            row[name] = {l:round(ap[n,l],4) for l in c.labels}|dict(macro=round(ap[n].mean(),4))
            if n!=BASE: row[name]['minus_base'] = {k:round(float(v),4) for k,v in dict(difference=-other.difference[n], low=-other.high[n], high=-other.low[n], p_holm=other.p_holm[n]).items()}
    return rows


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and gold_titles.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, default=Path('results/tried'), help='keeps what is done')
    a.add_argument('--results', type=Path, help='default: benchmarks/results/tried.json')
    a.add_argument('--n-boot', type=int, default=1000)
    o = a.parse_args()
    data = real_data(o.data)
    hashes = {f:file_hash(data/f'{f}.parquet') for f in ('corpus','gold_titles')}
    c = Counts(data)
    c.work,folder,rows = o.work,o.work/obj_hash([hashes,file_hash(Path(__file__))])[:12],[]
    for made in ('characters','vectors','short_vectors','title_vectors'): getattr(c,made) # first, so that their seconds are no candidate's
    for part,names in (('test',FINALISTS),('dev',CANDIDATES)):
        done = {n:scored(c,n,part,folder) for n in names}
        rows += [r|dict(cpu_seconds=round(done[r['candidate']][1],1)) for r in measured(c,{n:s for n,(s,_) in done.items()},part,o.n_boot)]
    results = results_file('tried', False, o.results)
    write_json(results, dict(command='python benchmarks/tried.py', data_sha256=hashes, n=c.n, titles=len(c.extra), positives=dict(zip(c.labels,c.y[:c.n].sum(0).tolist())), suspects=int(c.suspect.sum()),
                             base=BASE, n_boot=o.n_boot, rows=rows, **machine()))
    print(results)


if __name__=='__main__': main()
