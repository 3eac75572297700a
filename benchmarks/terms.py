"""How much sooner are terms counted than scikit-learn counts them? Run: IPBES_REAL_DATA=../shared/data python benchmarks/terms.py

Vocabularies as `tfidf-titles` learns them from `corpus.parquet`: of title and abstract, and of titles. Each round has both ways turn records of `deployment_sample.parquet` into the three matrices that
the model reads: title and abstract as one, title, abstract. The matrices are the same to the last digit, or the run ends. Ratios are of processor seconds, the median of the rounds.
Figures go to `benchmarks/results/terms.json`.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from ipbes_classifier.config import Baseline
from ipbes_classifier.files import file_hash, write_json
from ipbes_classifier.models import _tfidf
from ipbes_classifier.terms import Terms

from small_cut import machine, real_data, results_file


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and deployment_sample.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--rounds', type=int, default=5)
    a.add_argument('--quick', action='store_true', help='shows that it works, not how fast anything is')
    a.add_argument('--results', type=Path, help='default: terms.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    data,results = real_data(o.data),results_file('terms', o.quick, o.results)
    learn,asked = (pd.read_parquet(data/f'{n}.parquet', columns=['title','abstract']).fillna('').head(500 if o.quick else k) for n,k in (('corpus',30_000),('deployment_sample',5_000)))
    join = lambda df: (df['title']+' '+df['abstract']).tolist()
    whole,titles = (_tfidf(Baseline(), len(learn), None)[0].fit(texts) for texts in (join(learn),learn['title'].tolist()))
    texts,(t,b) = join(asked),(asked['title'].tolist(),asked['abstract'].tolist())
    t0 = time.process_time()
    terms = Terms(whole,titles)
    made = time.process_time()-t0
    def ours() -> list:
        first,second = terms.words(t),terms.words(b)
        return [terms.tfidf(first+second), terms.tfidf(first,1), terms.tfidf(second,1)]
    def theirs() -> list: return [whole.transform(texts), titles.transform(t), titles.transform(b)]
    took = dict(ours=[], theirs=[])
    for _ in range(o.rounds+1): # the first is not counted
        for name,way in dict(ours=ours,theirs=theirs).items():
            t0 = time.process_time()
            found = way()
            took[name].append(time.process_time()-t0)
            if name=='ours': mine = found
        for x,y in zip(mine,found):
            if not all(np.array_equal(getattr(x,k),getattr(y,k)) for k in ('indptr','indices','data')): raise SystemExit('the matrices differ')
    ratios = np.array(took['theirs'][1:])/np.array(took['ours'][1:])
    write_json(results, dict(command='python benchmarks/terms.py'+' --quick'*o.quick, quick=o.quick, data_sha256={f:file_hash(data/f) for f in ('corpus.parquet','deployment_sample.parquet')}, n=len(asked),
        terms=[len(v.vocabulary_) for v in (whole,titles)], ratio=round(float(np.median(ratios)),2), ratios=[round(float(r),2) for r in ratios],
        ms_per_record={n:round(1000*float(np.median(s[1:]))/len(asked),3) for n,s in took.items()}, seconds_to_prepare=round(made,2), **machine()))
    print(results)


if __name__=='__main__': main()
