"""How fast does an encoder learn, against the script that one would write with a plain `Trainer`?

    python benchmarks/training.py --data ../shared/data [--quick]

Both train the same model (minilm) on the same real titles and abstracts for the same epochs, each in a process of its own:

- plain: float32, random batches padded to the longest, batch 35, accumulation 4
- ours: `fine_tune` with the same effective batch and the settings that it has by itself

A third process looks at where the time of a step goes (share by kind of operation, share of padding, GFLOP/s against a matrix product), both ways. Others
may use the machine: processor seconds stand beside wall-clock seconds, and `load_average` says how busy it was. Figures go to `benchmarks/results/training.json`.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

LABELS = ['IAS','SUA','VA']
BATCH,ACCUMULATION,RATE = 35,4,1e-4


def sample(data: Path, n_train: int, n_dev: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Train and dev records: half of each carry a label, so that a small cut has something to learn."
    from ipbes_classifier.records import read_records
    df = read_records(data/'corpus.parquet', labels=LABELS)
    df = df[df['abstract'].fillna('')!=''].drop_duplicates('title')
    n = n_train+n_dev
    any_label = (df[LABELS]==1).any(axis=1)
    rare = df[(df[LABELS[1:]]==1).any(axis=1)]
    rare = rare.sample(min(len(rare),n//4), random_state=1)
    more = df[any_label].drop(rare.index).sample(n//2-len(rare), random_state=1)
    chosen = pd.concat([rare,more,df[~any_label].sample(n-n//2, random_state=1)]).sample(frac=1, random_state=2)
    chosen = chosen.assign(**{l:(chosen[l]==1).astype(int) for l in LABELS})
    return chosen.iloc[n_dev:],chosen.iloc[:n_dev]


def encoder(epochs: int, max_length: int):
    "minilm with a new head, the rates that both ways share, and the epoch of the lowest dev loss, as the plain way keeps it; all else as it is by itself."
    from ipbes_classifier.config import load_config
    from ipbes_classifier.encoders import Encoder
    s = load_config(env='', overrides=[f'labels=[{",".join(f"{{name: {l}}}" for l in LABELS)}]', 'models={}', f'input.max_length={max_length}', f'training.learning_rate={RATE}',
        f'training.num_train_epochs={epochs}', f'training.per_device_train_batch_size={BATCH}', f'training.gradient_accumulation_steps={ACCUMULATION}', 'training.early_stopping_patience=0',
        'training.metric_for_best_model=eval_loss'])
    return Encoder.pretrained('minilm', s, seed=42)


def dev_ap(e, dev: pd.DataFrame) -> float:
    from ipbes_classifier.metrics import average_precision
    y,p = dev[LABELS].to_numpy(),e.scores(dev)
    return float(np.average([average_precision(y[:,j],p[:,j]) for j in range(len(LABELS))], weights=y.sum(0)))


def plain(e, train: pd.DataFrame, dev: pd.DataFrame) -> None:
    "What a tutorial of transformers does."
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
    from ipbes_classifier.encoders import encode
    def rows(df): return [x|dict(labels=y) for x,y in zip(encode(e.tokenizer,df,e.recipe), df[LABELS].to_numpy(np.float32))]
    with tempfile.TemporaryDirectory() as work:
        a = TrainingArguments(work, learning_rate=RATE, num_train_epochs=e.training.num_train_epochs, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
                              per_device_eval_batch_size=32, weight_decay=e.training.weight_decay, warmup_steps=e.training.warmup_ratio, eval_strategy='epoch', save_strategy='epoch',
                              load_best_model_at_end=True, metric_for_best_model='loss', use_cpu=True, seed=42, report_to='none', disable_tqdm=True, save_total_limit=1)
        Trainer(e.model, a, train_dataset=rows(train), eval_dataset=rows(dev), data_collator=DataCollatorWithPadding(e.tokenizer)).train()


def child(way: str, o: argparse.Namespace) -> dict:
    "Train one way in this process; seconds are of training and its evaluations, without imports and loading."
    from ipbes_classifier.memory import peak_memory
    train,dev = sample(o.data, o.n, o.n_dev)
    e = encoder(o.epochs, o.max_length)
    with peak_memory() as memory:
        t0,cpu0 = time.perf_counter(),time.process_time()
        if way=='plain': plain(e, train, dev)
        else: e.fit(train, dev, progress=False)
        seconds,cpu = time.perf_counter()-t0,time.process_time()-cpu0
    return dict(seconds=round(seconds,1), cpu_seconds=round(cpu,1), samples_per_second=round(o.epochs*len(train)/seconds,2),
                samples_per_cpu_second=round(o.epochs*len(train)/cpu,2), peak_mb=memory['peak_mb'], dev_AP_weighted=round(dev_ap(e,dev),4))


def step(e, batches: list[dict], n_cells: int, bf16: bool) -> None:
    "Forward and backward of one step of the optimiser."
    import torch
    for b in batches:
        x = {k:v for k,v in b.items() if k!='labels'}
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16): z = e.model(**x).logits
        (torch.nn.functional.binary_cross_entropy_with_logits(z.float(), b['labels'], reduction='sum')/n_cells).backward()


KINDS = {'matrix products':('addmm','::mm','bmm','linear','mkldnn'), 'attention':('attention','softmax'), 'activations, norms, dropout':('gelu','layer_norm','dropout','bernoulli','tanh'),
         'memory, copies, casts':('copy','fill','zero','cat','empty','to_copy','contiguous'), 'embeddings':('embedding','index')}


def flop(e, batches: list[dict]) -> float:
    "Floating-point operations of forward and backward: 6 for each weight of a matrix and token, and attention's products of tokens."
    c = e.model.config
    weights = c.num_hidden_layers*(4*c.hidden_size**2+2*c.hidden_size*c.intermediate_size)
    return sum(b['input_ids'].numel()*(6*weights+12*c.num_hidden_layers*c.hidden_size*b['input_ids'].shape[1]) for b in batches)


def profile(o: argparse.Namespace) -> dict:
    "Where the time of one step goes, both ways, in processor seconds."
    import torch
    from torch.profiler import ProfilerActivity, profile as profiler
    from ipbes_classifier.encoders import choose_precision, encode, pieces, step_order
    train,_ = sample(o.data, o.n, o.n_dev)
    e,n = encoder(1, o.max_length),min(o.profiled,len(train))
    rows = [x|dict(labels=y) for x,y in zip(encode(e.tokenizer,train[:n],e.recipe), train[LABELS][:n].to_numpy(np.float32))]
    lengths = [len(r['input_ids']) for r in rows]
    def padded(order): return [dict(e.tokenizer.pad([rows[i] for i in order[a:a+BATCH]], return_tensors='pt')) for a in range(0,n,BATCH)]
    bf16 = choose_precision('auto')=='bf16'
    ways = dict(plain=(padded(range(n)),False), ours=([p for b in padded(step_order(lengths,BATCH*ACCUMULATION,42)) for p in pieces(b)],bf16))
    out = {}
    e.model.train()
    for name,(batches,half) in ways.items():
        step(e, batches[-1:], n*len(LABELS), half)
        t0,cpu0 = time.perf_counter(),time.process_time()
        with profiler(activities=[ProfilerActivity.CPU]) as p: step(e, batches, n*len(LABELS), half)
        seconds,cpu = time.perf_counter()-t0,time.process_time()-cpu0
        share = dict.fromkeys([*KINDS,'other'], 0.)
        for x in p.key_averages(): share[next((k for k,words in KINDS.items() if any(w in x.key for w in words)),'other')] += x.self_cpu_time_total
        tokens = sum(b['input_ids'].numel() for b in batches)
        out[name] = dict(records=n, batches=len(batches), bf16=half, seconds=round(seconds,2), cpu_seconds=round(cpu,2), padding=round(1-sum(lengths)/tokens,3),
                         share={k:round(v/sum(share.values()),3) for k,v in share.items()}, gflop_per_second=round(flop(e,batches)/seconds/1e9,1))
    return out|dict(matrix_product_gflop_per_second={k:matrix_product(d) for k,d in dict(float32=torch.float32,bf16=torch.bfloat16).items()})


def matrix_product(dtype, n: int = 1536) -> float:
    "The most that this machine reaches now: the best of five products of square matrices."
    import torch
    a,took = torch.randn(n,n).to(dtype),[]
    for _ in range(5):
        t0 = time.perf_counter()
        a@a
        took.append(time.perf_counter()-t0)
    return round(2*n**3/min(took)/1e9, 1)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, default=os.environ.get('IPBES_REAL_DATA'), help='folder of corpus.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--n', type=int, help='training records; default 700, or 35 for --quick')
    a.add_argument('--n-dev', type=int, help='dev records; default 240, or 20 for --quick')
    a.add_argument('--epochs', type=int, help='default 2, or 1 for --quick')
    a.add_argument('--max-length', type=int, help='tokens of an input; default 512, or 256 for --quick')
    a.add_argument('--profiled', type=int, help='records of the profiled step; default 70, or 14 for --quick')
    a.add_argument('--threads', type=int, default=os.cpu_count())
    a.add_argument('--quick', action='store_true', help='shows that it works, not how fast anything is')
    a.add_argument('--results', type=Path, help='default: training.json in benchmarks/results, or in results/benchmarks for --quick')
    a.add_argument('--child', choices=['plain','ours','profile'], help=argparse.SUPPRESS)
    o = a.parse_args()
    if not o.data: sys.exit('name the folder of corpus.parquet by --data or IPBES_REAL_DATA')
    for k,(full,quick) in dict(n=(700,35), n_dev=(240,20), epochs=(2,1), max_length=(512,256), profiled=(70,14)).items():
        if getattr(o,k) is None: setattr(o, k, quick if o.quick else full)
    if o.child:
        import torch
        torch.set_num_threads(o.threads)
        print('RESULT '+json.dumps(profile(o) if o.child=='profile' else child(o.child,o)))
        return
    from ipbes_classifier.files import file_hash, write_json
    from ipbes_classifier.provenance import device_name, git_commit, versions
    found = {}
    for way in ('ours','plain','profile'):
        done = subprocess.run([sys.executable,__file__,*sys.argv[1:],'--child',way], stdout=subprocess.PIPE, text=True, env=os.environ|dict(OMP_NUM_THREADS=str(o.threads)))
        if done.returncode: sys.exit(f'{way} failed')
        found[way] = json.loads([l for l in done.stdout.splitlines() if l.startswith('RESULT ')][-1].removeprefix('RESULT '))
        print(way, found[way], flush=True)
    _,dev = sample(o.data, o.n, o.n_dev)
    results = o.results or (Path('results/benchmarks') if o.quick else Path(__file__).parent/'results')/'training.json'
    ratio = {k:round(found['ours'][k]/found['plain'][k],2) for k in ('samples_per_second','samples_per_cpu_second','peak_mb')}
    write_json(results, dict(command=f'python benchmarks/training.py --n {o.n} --n-dev {o.n_dev} --epochs {o.epochs} --max-length {o.max_length}'+' --quick'*o.quick, quick=o.quick, data='corpus.parquet', data_sha256=file_hash(o.data/'corpus.parquet'), n=o.n, n_dev=o.n_dev,
        dev_positives={l:int(dev[l].sum()) for l in LABELS}, epochs=o.epochs, max_length=o.max_length, batch=BATCH, accumulation=ACCUMULATION, threads=o.threads, ours_to_plain=ratio,
        load_average=round(os.getloadavg()[0],1), versions=versions(), device=device_name(), git_commit=git_commit(Path(__file__).parent))|found)
    print(results, ratio)


if __name__=='__main__': main()
