"""What do reports, papermill and Ray add to a run? Run: python benchmarks/grid.py

Trains the same baselines on the same folds of the synthetic sample in three ways, each from an empty project: `train` called in a loop, `ipbes run` with
the engine `here`, and `ipbes run` with the engine `ray`. Each is a process of its own, measured from its start to its end, for one run and for all.

`cold` is what one run takes, with all that has to start; `warm` what each further run takes. `overhead` is either less that of the loop: what a
person pays for an executed report, its figures, its HTML page, and being able to go on after a kill. With `ray` as many reports run at a time as there are
processors, so that a further run may take less than in the loop: its overhead is then negative. `seconds_of_one_report` says where the time goes. Figures
go to `benchmarks/results/grid.json`.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ipbes_classifier.config import Settings
from ipbes_classifier.execution import execute_notebook
from ipbes_classifier.files import write_json
from ipbes_classifier.project import sample_project
from ipbes_classifier.report_html import notebook_to_html
from ipbes_classifier.tasks import report_path

from small_cut import machine, results_file

MODELS = ['tfidf-logreg','tfidf-svm']
SETTINGS = ['logging.progress=false','logging.tensorboard=false']
LOOP = f'''
import sys
from ipbes_classifier.train import train
for run in sys.argv[1:]:
    model,fold = run.split(':')
    train(model, fold=int(fold), overrides={SETTINGS!r})
'''


def in_a_loop(runs:list[tuple[str,int]])->list[str]:
    "The command that trains without reports."
    return [sys.executable,'-c',LOOP,*(f'{m}:{k}' for m,k in runs)]


def with_engine(engine:str, runs:list[tuple[str,int]])->list[str]:
    "The command that executes a report for each run: all models on all folds that occur, no ensemble and no comparison."
    flags = [x for m in dict.fromkeys(m for m,_ in runs) for x in ('-m',m)]+[x for k in dict.fromkeys(k for _,k in runs) for x in ('-f',str(k))]
    return [sys.executable,'-c','from ipbes_classifier.cli import main; main()','run',*flags,'--no-ensemble','--no-compare',f'grid.engine={engine}',*SETTINGS]


def seconds_of(command:list[str], root:Path)->float:
    "Run a command in a project and take its time; it ends the benchmark if it fails."
    t0 = time.perf_counter()
    p = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ|dict(IPBES_ENV=''))
    if p.returncode: sys.exit(f"{' '.join(command[:4])} ... failed:\n{p.stdout}{p.stderr}")
    return time.perf_counter()-t0


def measure(command:Callable[[list],list[str]], tasks:list[tuple[str,int]], s:Settings, folder:Path)->dict[str,float]:
    "Seconds of the first task alone, and of each further one; both from a project without results."
    took = []
    for n in (1,len(tasks)):
        root = Path(shutil.copytree(s.root, folder/f'{n}'))
        took.append(seconds_of(command(tasks[:n]), root))
    return dict(cold=round(took[0],2), warm=round((took[1]-took[0])/(len(tasks)-1),2), all=round(took[1],2))


def part(source:str)->str:
    "To which part of a training report a cell belongs."
    for name,word in (('imports','import plots'),('training and its files','t = train('),('tables and figures','')):
        if word in source: return name
    raise AssertionError


def one_report(s:Settings)->dict[str,float]:
    "Seconds of the parts of one report, executed in this process as an engine executes it."
    import nbformat
    out,t0 = Path(s.root)/'report.ipynb',time.perf_counter()
    execute_notebook(report_path(s,'train'), out, dict(root='',overrides=SETTINGS), s.root)
    took = time.perf_counter()-t0
    parts:dict[str,float] = {}
    for c in nbformat.read(out,4).cells:
        if c.cell_type=='code': parts[part(c.source)] = parts.get(part(c.source),0)+(c.metadata.papermill.duration or 0)
    t0 = time.perf_counter()
    notebook_to_html(out, out.with_suffix('.html'))
    return {'kernel':round(took-sum(parts.values()),2)} | {k:round(v,2) for k,v in parts.items()} | {'HTML':round(time.perf_counter()-t0,2)}


def main()->None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--n', type=int, help='records of the sample; default: 1500, or 300 for --quick')
    a.add_argument('--folds', type=int, help='folds on which each of the two baselines is trained; default: 4, or 2 for --quick')
    a.add_argument('--engines', nargs='+', default=['here','ray'], choices=['here','ray'])
    a.add_argument('--quick', action='store_true', help='few records and runs')
    a.add_argument('--results', type=Path, help='default: grid.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    n,k = o.n or (300 if o.quick else 1500), o.folds or (2 if o.quick else 4)
    os.environ.pop('IPBES_ENV', None)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        s = sample_project(folder/'sample', n, [*SETTINGS,f'folds.n_folds={k}'])
        tasks = [(m,f) for m in MODELS for f in range(k)]
        ways = dict(loop=measure(in_a_loop, tasks, s, folder/'loop'))
        for e in o.engines: ways[e] = measure(partial(with_engine,e), tasks, s, folder/e)
        parts = one_report(s)
    overhead = {e:{x:round(ways[e][x]-ways['loop'][x],2) for x in ('cold','warm')} for e in o.engines}
    for e in o.engines: overhead[e]['per_run'] = round((ways[e]['all']-ways['loop']['all'])/len(tasks),2)
    write_json(results_file('grid',o.quick,o.results), dict(
        command=f'python benchmarks/grid.py --n {n} --folds {k}'+' --quick'*o.quick, data='synthetic sample', n=n, models=MODELS, runs=len(tasks), quick=o.quick,
        seconds=ways, overhead=overhead, seconds_of_one_report=parts, **machine('ray','papermill','nbconvert')))
    print(results_file('grid',o.quick,o.results))


if __name__=='__main__': main()
