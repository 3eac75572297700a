"What benchmarks share: a project of their own on real records, and the facts of the machine that they ran on."
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ipbes_classifier.config import Settings, load_config, project_path
from ipbes_classifier.files import file_hash, read_json, write_json
from ipbes_classifier.project import init_project, preprocess_project, split_project
from ipbes_classifier.provenance import PACKAGES, device_name, git_commit, versions


def small_cut(corpus:Path, out:Path, n:int)->Path:
    "All positives of rare labels, and a sample of `n` others: small enough for a test, with every label in each split."
    df = pd.read_parquet(corpus)
    rare = df[(df[['SUA','VA']]==1).any(axis=1)]
    rest = df.drop(rare.index)
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([rare,rest.sample(min(n,len(rest)), random_state=42)]).sort_index().to_parquet(out)
    return out


def make_project(work:Path, data:Path, overrides:Sequence[str]=(), n:int=0)->Settings:
    "Data set and folds of `corpus.parquet` in `data`, or of a cut with `n` others than rare positives; what stands already is kept."
    if not (work/'configs').exists(): init_project(work)
    made_from = dict(corpus=file_hash(data/'corpus.parquet'), n=n, settings=list(overrides))
    if not (work/'made_from.json').exists(): write_json(work/'made_from.json', made_from)
    if read_json(work/'made_from.json')!=made_from: sys.exit(f'{work} was made from another corpus, from another part of it or with other settings; choose another --work')
    s = load_config(root=work, overrides=overrides, env='')
    corpus = small_cut(data/'corpus.parquet', work/'data/small.parquet', n) if n else data/'corpus.parquet'
    if not project_path(s,s.paths.dataset).exists(): print(preprocess_project(s, {}, [corpus]), flush=True)
    if not (project_path(s,s.paths.folds_dir)/'clusters.parquet').exists(): split_project(s)
    return s


def real_data(given:Path|None)->Path:
    "The folder of `corpus.parquet`: as given, or named by IPBES_REAL_DATA."
    folder = given or os.environ.get('IPBES_REAL_DATA')
    if not folder: sys.exit('name the folder of corpus.parquet by --data or IPBES_REAL_DATA')
    return Path(folder).resolve()


def results_file(name:str, quick:bool, given:Path|None=None)->Path:
    "Where figures go: those of full size into git, others must not replace them."
    return given or (Path('results/benchmarks') if quick else Path(__file__).parent/'results')/f'{name}.json'


def machine(*packages:str)->dict:
    "Where figures were measured; a load well above the number of cores says that others used the machine too."
    return dict(cores=len(os.sched_getaffinity(0)), load_average=round(os.getloadavg()[1],1), device=device_name(), versions=versions((*PACKAGES,*packages)),
                git_commit=git_commit(Path(__file__).parent))
