"""Does a record cost the same among ten thousand as among a million, in time and in memory, and what would 250 million cost?

    python benchmarks/screening_growth.py --data ../shared/data [--quick] [--workers 2] [--cores 2000]

Trains a linear model (tfidf-logreg) on records of `corpus.parquet`; writes lakes of 10,000, 100,000 and 1,000,000 records that are perturbed copies
of those in `deployment_sample.parquet` (a tenth of the words replaced by words of other abstracts, the rest starting elsewhere in the text: no text
stands twice); and screens each with `ipbes screen` in a process of its own. Seconds are wall-clock time of the whole command, from its start to the
ranked lists; `seconds_after_loading` leaves the start of Python and the loading of the model out; `cpu_seconds` is the processor time of all its
processes, which others on the machine hardly change. The memory of all processes is added up five times a second; pages that they share count for
each, and ten thousand records are a single batch, so that only the larger sizes show what all workers hold. `load_average` says how busy the machine
was.

What another record costs, in seconds and in processor seconds, is read from the slope between the last two sizes. From the latter follow the hours
for 250 million works on `--cores` processors (see `estimate`); if another model reads what the first leaves, `--kept` is its share of the records and
`--second-rate` how many of them a core scores a second, both as measured elsewhere.

With `--checkpoint` another model is measured in place of the linear one, behind the first pass that stands beside it (as `benchmarks/screening.py` and `screening_vectors.py`
leave one below `results/`); `read` is the share of the records that it reads. Such figures go to `screening_growth_cascade.json`.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

LABELS = ['IAS','SUA','VA']
PART = 50_000 # records of a file of the lake
WORKS = 250_000_000


def train(data: Path, n: int, out: Path) -> None:
    "A linear checkpoint from `n` records, that decides at 0.5; only its speed counts here."
    from ipbes_classifier.config import load_config
    from ipbes_classifier.models import make_model
    from ipbes_classifier.records import read_records
    from ipbes_classifier.results import write_decisions
    from ipbes_classifier.thresholds import Calibration
    df = read_records(data/'corpus.parquet', labels=LABELS)
    df = df.assign(**{l:(df[l]==1).astype(int) for l in LABELS})
    has = df[df[LABELS].any(axis=1)]
    df = pd.concat([has.sample(min(len(has),n//4), random_state=1), df.drop(has.index).sample(n-min(len(has),n//4), random_state=1)]).sample(frac=1, random_state=2)
    s = load_config(env='', overrides=[f'labels=[{",".join(f"{{name: {l}}}" for l in LABELS)}]', 'models={}'])
    out.mkdir(parents=True)
    make_model('tfidf-logreg', s).fit(df).save(out)
    write_decisions(out, dict.fromkeys(LABELS,.5), {l:Calibration(1.,0.,'logit') for l in LABELS})


def perturbed(words: list[np.ndarray], rng: np.random.Generator, pool: np.ndarray) -> list[str]:
    "Each text, turned to start elsewhere, with a tenth of its words replaced."
    out = []
    for w in words:
        w = np.roll(w, int(rng.integers(len(w))))
        k = max(1,len(w)//10)
        w[rng.integers(0,len(w),k)] = pool[rng.integers(0,len(pool),k)]
        out.append(' '.join(w))
    return out


def write_lake(data: Path, n: int, out: Path, seed: int = 0) -> None:
    "`n` records in parquet files of `PART`."
    rng = np.random.default_rng([seed,n])
    df = pd.read_parquet(data/'deployment_sample.parquet', columns=['title','abstract'])
    titles,abstracts = ([np.array(t.split() or ['none'], dtype=object) for t in df[c].fillna('')] for c in ('title','abstract'))
    pool = np.concatenate(abstracts)
    out.mkdir(parents=True)
    for a in range(0,n,PART):
        which = rng.integers(0,len(df),min(PART,n-a))
        pd.DataFrame(dict(id=[f'c{a+i}' for i in range(len(which))], title=perturbed([titles[i] for i in which],rng,pool),
                          abstract=perturbed([abstracts[i] for i in which],rng,pool))).to_parquet(out/f'{a//PART:05}.parquet', index=False)


def resident(p) -> int:
    "Bytes that a process and its children hold."
    import psutil
    total = 0
    for q in [p,*p.children(recursive=True)]:
        try: total += q.memory_info().rss
        except psutil.Error: pass
    return total


def processor_seconds() -> float:
    "Of all processes that this one has started and that have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime+used.ru_stime


def screen(lake: Path, model: Path, out: Path, workers: int) -> dict:
    "Run the command; time and memory."
    import psutil
    from ipbes_classifier.files import read_json
    from ipbes_classifier.screen_corpus import PUT_ASIDE
    command = [Path(sys.executable).with_name('ipbes'),'screen',lake,'-m',model,'-o',out,'-j',workers]
    t0,cpu0,peak = time.perf_counter(),processor_seconds(),0
    child = psutil.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None:
        try: peak = max(peak,resident(child))
        except psutil.Error: pass
        time.sleep(.2)
    seconds,cpu = time.perf_counter()-t0,processor_seconds()-cpu0
    if child.returncode: sys.exit(f'ipbes screen ended with {child.returncode}: {child.stderr.read()}')
    found = read_json(out/'_manifest.json', ['complete','rows','notes','settings'])
    aside = sum(n for note,n in found['notes'].items() if note==PUT_ASIDE)
    within = read_json(out/'provenance.json', ['seconds'])['seconds']
    size = sum(p.stat().st_size for p in out.rglob('*.parquet'))
    return dict(records=found['rows'], seconds=round(seconds,1), seconds_after_loading=round(within,1), cpu_seconds=round(cpu,1), records_per_second=round(found['rows']/seconds,1),
                ms_per_record=round(1000*seconds/found['rows'],4), peak_mb=round(peak/1e6,1), output_bytes_per_record=round(size/found['rows'],1), read=round(1-aside/found['rows'],4), runtime=found['settings']['runtime'], load_average=round(os.getloadavg()[0],1))


def first_pass(model: Path) -> dict:
    "What the first pass beside a checkpoint promises."
    from ipbes_classifier.cascade import find_cascade
    found = find_cascade([model])
    if found is None: sys.exit(f'{model} has no first pass that puts anything aside')
    return dict(vars(found.cut))


def slope(small: dict, large: dict, of: str = 'seconds') -> float:
    "Seconds that another record costs, without the cost of starting."
    return (large[of]-small[of])/(large['records']-small['records'])


def estimate(works: int, first_rate: float, cores: int, kept: float = 0., second_rate: float = 1.) -> float:
    "Hours: works / cores * (1 / first_rate + kept / second_rate) / 3600, rates in records a second and core."
    return works/cores*(1/first_rate+kept/second_rate)/3600


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, default=os.environ.get('IPBES_REAL_DATA'), help='folder of corpus.parquet and deployment_sample.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--sizes', type=int, nargs='+', help='records; default 10000 100000 1000000, or 1000 5000 for --quick')
    a.add_argument('--workers', type=int, default=os.cpu_count(), help='processes that score; default: the processors of this machine')
    a.add_argument('--cores', type=int, default=2000, help='processors of the cluster of the estimate')
    a.add_argument('--kept', type=float, default=0., help='share of the records that a second model reads')
    a.add_argument('--second-rate', type=float, default=1., help='records that a core scores a second with the second model')
    a.add_argument('--checkpoint', type=Path, help='a model with a first pass beside it, in place of the linear one')
    a.add_argument('--quick', action='store_true', help='shows that it works, not how fast anything is')
    a.add_argument('--results', type=Path, help='default: screening_growth.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    if not o.data: sys.exit('name the folder of corpus.parquet by --data or IPBES_REAL_DATA')
    sizes = o.sizes or ([1000,5000] if o.quick else [10_000,100_000,1_000_000])
    if len(sizes)<2 or sorted(set(sizes))!=sizes: sys.exit(f'--sizes are two or more numbers, each larger than the last; got {sizes}')
    from ipbes_classifier.files import file_hash, write_json
    from ipbes_classifier.provenance import device_name, git_commit, versions
    found = []
    with tempfile.TemporaryDirectory() as work:
        model = o.checkpoint or Path(work)/'model'
        if not o.checkpoint: train(o.data, 1000 if o.quick else 8000, model)
        for n in sizes:
            lake,out = Path(work)/f'lake-{n}',Path(work)/f'out-{n}'
            write_lake(o.data, n, lake)
            found.append(screen(lake, model, out, o.workers))
            print(json.dumps(found[-1]), flush=True)
            for p in (lake,out): subprocess.run(['rm','-r',str(p)], check=True)
    per = slope(*found[-2:])
    rate = 1/slope(*found[-2:],'cpu_seconds')
    hours = estimate(WORKS, rate, o.cores, o.kept, o.second_rate)
    results = o.results or (Path('results/benchmarks') if o.quick else Path(__file__).parent/'results')/f'screening_growth{"_cascade"*bool(o.checkpoint)}.json'
    command = 'python benchmarks/screening_growth.py'+f' --checkpoint CHECKPOINT --workers {o.workers} --sizes {" ".join(map(str,sizes))}'*bool(o.checkpoint)+' --quick'*o.quick
    write_json(results, dict(command=command, quick=o.quick, model=model.name if o.checkpoint else 'tfidf-logreg', cut=first_pass(model) if o.checkpoint else None, workers=o.workers, sizes=found,
        ms_of_another_record=round(1000*per,4), records_per_cpu_second=round(rate,1), memory_of_last_to_one_before=round(found[-1]['peak_mb']/found[-2]['peak_mb'],2),
        estimate=dict(works=WORKS, cores=o.cores, kept=o.kept, second_rate=o.second_rate, hours=round(hours,2), core_hours=round(hours*o.cores,1)),
        data_sha256={f:file_hash(o.data/f) for f in ('corpus.parquet','deployment_sample.parquet')}, versions=versions(), device=device_name(), git_commit=git_commit(Path(__file__).parent)))
    print(results, f'{1000*per:.3f} ms another record; {WORKS:,} works on {o.cores} cores: {hours:.2g} hours')


if __name__=='__main__': main()
