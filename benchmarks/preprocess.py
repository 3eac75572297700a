"""How long does it take to clean and de-duplicate a million records, and how much memory?

    python benchmarks/preprocess.py --n 1000000 --seed 42

Makes synthetic input (a parquet folder of `n` records of a title and about 1,500 characters of abstract, and a Zotero export of 6,000
positives, half of which also stand in the corpus), runs `preprocess` in a process of its own, samples the memory of the process tree
five times a second, and writes `benchmarks/results/preprocess.json`. `seconds` is wall-clock time, `cpu_seconds` the processor time of the tree (two
cores that have nothing else to do need little more than half of it), `load_average` says how busy the machine was (2 is this run alone).
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from ipbes_classifier.files import read_json, write_json

from small_cut import results_file

WORDS = 4000 # size of the made-up vocabulary


def vocabulary(rng:np.random.Generator)->np.ndarray:
    "Made-up words of two to five syllables."
    syllables = np.array([c+v for c in 'b d f g k l m n p r s t v z th st pr'.split() for v in 'a e i o u'.split()])
    return np.array([''.join(rng.choice(syllables, rng.integers(2,6))) for _ in range(WORDS)])


def texts(rng:np.random.Generator, words:np.ndarray, n:int, length:float)->list[str]:
    "`n` texts of about `length` words, common words more often, as a vocabulary of a language has them."
    rank = np.minimum((rng.pareto(0.6, (n,int(length*1.3)))*20).astype(int), WORDS-1)
    sizes = rng.integers(int(length*.7), int(length*1.3), n)
    return [' '.join(words[r[:k]]).capitalize()+'.' for r,k in zip(rank,sizes)]


def dirty(rng:np.random.Generator, abstracts:list[str])->list[str]:
    "The dirt of real abstracts in the shares found in Crossref and OpenAlex: JATS, entities, mojibake, accents, line breaks, headings."
    kinds = [lambda s: s]*10+[
        lambda s: f'<jats:title>Abstract</jats:title><jats:p>{s}</jats:p>', lambda s: s.replace(' ',' <i>',1).replace('.','</i>.',1),
        lambda s: s.replace(' ',' &amp; ',3), lambda s: s.replace('a','\u00c3\u00a9',2), lambda s: s.replace('e ','\u00e9 ',9), lambda s: s.replace(' ','\n ',4),
        lambda s: 'Abstract: '+s, lambda s: s.replace(' ',' \u2013 ',5), lambda s: '', lambda s: s.upper()]
    return [kinds[k](s) for k,s in zip(rng.integers(0,len(kinds),len(abstracts)),abstracts)]


def write_input(folder:Path, n:int, n_positives:int, seed:int, form:str)->None:
    "The corpus in parts of 50,000 records and a Zotero export; 3 % of the corpus repeats an earlier record in another spelling."
    rng = np.random.default_rng(seed)
    words = vocabulary(rng)
    (folder/'corpus').mkdir(parents=True)
    first = None
    for a in range(0,n,50_000):
        m = min(50_000,n-a)
        df = pd.DataFrame(dict(id=[f'W{a+i}' for i in range(m)], doi=[f'10.5555/{a+i}' if x>.3 else '' for i,x in enumerate(rng.random(m))],
                               title=texts(rng,words,m,11), abstract=dirty(rng,texts(rng,words,m,183)), year=rng.integers(1980,2026,m)))
        if first is None: first = df.iloc[:max(1,n_positives//2)].copy()
        again = np.arange(10,m,33)
        df.loc[again,'title'],df.loc[again,'doi'] = df.title[again-1].str.upper().to_numpy(),''
        if form=='parquet': df.to_parquet(folder/'corpus'/f'part-{a//50_000:04d}.parquet', index=False)
        else: df.to_csv(folder/'corpus.csv', mode='a', header=not a, index=False)
    m = n_positives-len(first)
    own = pd.DataFrame(dict(id=[f'Z{i}' for i in range(m)], doi='', title=texts(rng,words,m,11), abstract=texts(rng,words,m,183), year=2001))
    zotero = pd.concat([first.assign(doi='', abstract=''),own])
    pd.DataFrame({'Key':[f'K{i}' for i in range(len(zotero))], 'Item Type':'journalArticle', 'Title':zotero.title.to_numpy(), 'DOI':zotero.doi.to_numpy(),
                  'Abstract Note':zotero.abstract.to_numpy(), 'Publication Year':zotero.year.to_numpy()}).to_csv(folder/'library.csv', index=False)


def tree_bytes(pid:int)->int:
    "Memory of a process and all its children: proportional set size, where pages shared between them count once."
    import psutil
    total = 0
    try: processes = [psutil.Process(pid),*psutil.Process(pid).children(recursive=True)]
    except psutil.Error: return 0
    for p in processes:
        try: total += p.memory_full_info().pss
        except psutil.Error: pass
    return total


def measure(command:list[str])->tuple[float,float,float]:
    "Run a command; seconds, processor seconds and peak GB of its process tree."
    cpu = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    start,before,peak = time.perf_counter(),cpu(),0
    child = subprocess.Popen(command)
    while child.poll() is None:
        peak = max(peak, tree_bytes(child.pid))
        time.sleep(.2)
    if child.returncode: raise SystemExit(f"preprocess failed with code {child.returncode}")
    return time.perf_counter()-start, cpu()-before, peak/1e9


def main()->None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=1_000_000, help='records of the corpus')
    p.add_argument('--positives', type=int, default=6000, help='records of the library')
    p.add_argument('--seed', type=int, default=42)
    p.add_argument('--form', choices=['parquet','csv'], default='parquet', help='form of the corpus')
    p.add_argument('--out', choices=['parquet','csv'], default='parquet', help='form of the result')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--folder', help='where to put the input, which takes 2 GB (default: a temporary folder)')
    p.add_argument('--results', help='default: preprocess.json in benchmarks/results, or in results/benchmarks for fewer than a million records')
    a = p.parse_args()
    with tempfile.TemporaryDirectory(dir=a.folder) as tmp:
        tmp = Path(tmp)
        write_input(tmp, a.n, a.positives, a.seed, a.form)
        corpus = tmp/('corpus' if a.form=='parquet' else 'corpus.csv')
        code = (f"from ipbes_classifier.preprocess import preprocess; preprocess({{'positive':[{str(tmp/'library.csv')!r}]}}, [{str(corpus)!r}], "
                f"{str(tmp/f'cleaned.{a.out}')!r}, ['positive'], workers={a.workers}, progress=False)")
        seconds,cpu,peak = measure([sys.executable,'-c',code])
        account = read_json(tmp/'cleaned_account.json')
    result = dict(n=a.n, positives=a.positives, seed=a.seed, input=a.form, output=a.out, seconds=round(seconds,1), cpu_seconds=round(cpu,1), load_average=round(os.getloadavg()[1],1), peak_gb=round(peak,2), workers=a.workers,
        cores=len(os.sched_getaffinity(0)), n_kept=account['n_kept'], reasons=account['reasons'], python=platform.python_version(),
        versions={m: version(m) for m in ('numpy','pandas','pyarrow','scipy','ftfy','selectolax')},
        command=f'python benchmarks/preprocess.py --n {a.n} --positives {a.positives} --seed {a.seed} --form {a.form} --out {a.out} --workers {a.workers}')
    path = results_file('preprocess', a.n<1_000_000, a.results and Path(a.results))
    results = read_json(path) if path.exists() else {}
    write_json(path, results|{f'{a.form}_{a.n}': result})
    print(json.dumps(result, indent=1))


if __name__=='__main__': main()
