"""How good are the models on real records? Run: IPBES_REAL_DATA=../shared/data python benchmarks/quality.py

Five folds of `corpus.parquet`, near-duplicates together, each record tested once; thresholds, calibration and the ensemble's weights come from dev. Papers of `gold_titles.parquet` that are no record
(`final.read_final_data` leaves out all with the DOI or title of one) are further training rows of `tfidf-titles` and `tfidf-vectors`, and of no other model; folds of a project hold records alone, so that
models are fitted here and not by `ipbes run`. A classifier of source traits and an ensemble of the models stand beside them. A further row learns from before `--year` and is tested from then on.

Each finished step stays done in `--work`, which also gets `negatives_to_judge.csv`, for people, and the report `benchmark.html`. Figures go to `benchmarks/results/benchmark.json`: measures and counts, no
title, no abstract. An encoder takes an hour or more: `--models tfidf-titles minilm --results FILE`.
"""
import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ipbes_classifier import compare, encoders, ensemble, final, folds, metrics, models, ratios, records, thresholds, titles, train, vectors
from ipbes_classifier.compare import SOURCE_ONLY, Comparison, check_comparison, source_predictions
from ipbes_classifier.config import Settings, label_names, load_config, model_training, resource_dir
from ipbes_classifier.ensemble import fit_combination
from ipbes_classifier.files import atomic_path, file_hash, obj_hash, read_json, write_json
from ipbes_classifier.final import FinalData, read_final_data
from ipbes_classifier.folds import Fold, check_fold, make_folds
from ipbes_classifier.lists import without_formulas
from ipbes_classifier.models import loss_of, make_model
from ipbes_classifier.provenance import seed_everything, versions
from ipbes_classifier.single_report import execute_single
from ipbes_classifier.train import sample_negatives

import measures
from measures import ALL, Tested, figures, flagged, overlap, restrict, tested
from small_cut import machine, real_data, results_file, small_cut

MODELS = ['tfidf-logreg','tfidf-titles','tfidf-vectors']
READS_TITLES = ['tfidf-titles','tfidf-vectors'] # what learns from titles without abstract
SETTINGS = ['folds.n_folds=5','folds.test_size=0.2','ensemble.method=weights','logging.progress=false','input.max_length=128',
            'models={minilm: {num_train_epochs: 3, learning_rate: 1e-4, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, '
            'metric_for_best_model: eval_AP_macro, pos_weight: {IAS: 2, SUA: 8, VA: 8}, optional_negatives: 4000, early_stopping_patience: 0}}']
QUICK = ['folds.n_folds=2','folds.test_size=0.4','baseline.max_features=20000','input.max_length=64',
         'models={minilm: {num_train_epochs: 1, learning_rate: 1e-4, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, optional_negatives: 200}}']
EXPORT = 'GabrielNakamura/Decolonizing_expertise' # positives and negatives of one export
ENSEMBLE = 'Ensemble'


@dataclass
class Steps:
    "Work that stays done: each step is a JSON file below a folder that is named by what the work depends on."
    folder: Path
    took: dict[str,dict] = field(default_factory=dict) # seconds of each step, by the clock and of the processor, when it was done
    def do(self, name: str, make: Callable[[],Any]) -> Any:
        "What `make` returned, now or earlier: something that JSON can hold."
        path = self.folder/f'{name}.json'
        if not path.exists():
            t0,cpu0 = time.perf_counter(),time.process_time()
            value = make()
            took = dict(seconds=round(time.perf_counter()-t0,1), cpu_seconds=round(time.process_time()-cpu0,1))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, dict(value=value, **took))
            print(f"{name}: {took['seconds']:.0f} s, {took['cpu_seconds']:.0f} s of a processor", flush=True)
        done = read_json(path, ['value','seconds','cpu_seconds'])
        value = done.pop('value')
        self.took[name] = done
        return value


@dataclass
class Bench:
    "Records, splits, and scores of models that had not seen what they score."
    s: Settings
    data: FinalData
    steps: Steps
    models: list[str]
    year: int # the time split tests records from it on

    @cached_property
    def labels(self) -> list[str]: return label_names(self.s)
    @cached_property
    def y(self) -> np.ndarray: return self.data.records[self.labels].to_numpy(dtype=np.int8)
    @cached_property
    def ids(self) -> np.ndarray: return self.data.records['id'].astype(str).to_numpy()
    @cached_property
    def years(self) -> np.ndarray: return pd.to_numeric(self.data.records['year'], errors='coerce').to_numpy(dtype=float, na_value=np.nan)
    @cached_property
    def clusters(self) -> dict[str,int]: return dict(zip(self.ids, self.data.clusters.tolist()))

    @cached_property
    def folds(self) -> list[Fold]:
        "Folds of all records."
        f = self.s.folds
        return [check_fold(x,self.data.clusters) for x in make_folds(self.y, self.data.clusters, f.n_folds, f.test_size, f.dev_size, self.s.seed, labels=self.labels)]

    @cached_property
    def time_fold(self) -> Fold:
        "Train and dev before the year, test from it on; without records of which no year is known, and without near-duplicates of earlier ones in test."
        early,late = (np.flatnonzero(m) for m in (self.years<self.year,self.years>=self.year))
        late = late[~np.isin(self.data.clusters[late],self.data.clusters[early])]
        f = make_folds(self.y[early], self.data.clusters[early], 2, .4, self.s.folds.dev_size, self.s.seed, labels=self.labels)[0]
        return check_fold(Fold(0, 0, early[np.sort(np.r_[f.train,f.test])], early[f.dev], late), self.data.clusters)

    def titles(self, before: float = np.inf) -> pd.DataFrame:
        "Papers of which only the title is known; if a year is given, those known to be older."
        t = self.data.titles
        return t if before==np.inf else t[(pd.to_numeric(t['year'],errors='coerce')<before).fillna(False).to_numpy(dtype=bool)]

    def scores(self, model: str, split: str, fold: Fold) -> dict[str,np.ndarray]:
        "(n, n_labels) scores of dev and of test."
        if model==ENSEMBLE: [self.scores(m,split,fold) for m in self.models]
        before = self.year if split=='time' else np.inf
        make = {SOURCE_ONLY:partial(self._source_scores,fold), ENSEMBLE:partial(self._combined,split,fold)}.get(model, partial(self._fitted_scores,model,split,fold,before))
        return {k:np.array(v) for k,v in self.steps.do(f"scores/{split}/{model.replace('/','_')}", make).items()}

    def _fitted_scores(self, model: str, split: str, fold: Fold, before: float) -> dict[str,list]:
        "Fit on train, score dev and test."
        seed_everything(self.s.seed)
        records,m,more = self.data.records,make_model(model,self.s),{}
        learn,dev,test = (records.iloc[rows] for rows in (fold.train,fold.dev,fold.test))
        if m.name in READS_TITLES: learn = pd.concat([learn,self.titles(before)], ignore_index=True)
        if m.kind=='encoder':
            learn,more = sample_negatives(learn, self.labels, model_training(self.s,model).optional_negatives, self.s.seed),dict(work_dir=self.steps.folder/'epochs'/split/m.name)
        with vectors.kept_vectors(self.steps.folder.parent/'vectors'):
            m.fit(learn, dev, **more)
            return dict(dev=m.scores(dev).tolist(), test=m.scores(test).tolist())

    def _source_scores(self, fold: Fold) -> dict[str,list]:
        "Of the source-only classifier, dev and test asked together."
        p = source_predictions(self.data.records, Fold(fold.fold,0,fold.train,fold.dev,np.r_[fold.dev,fold.test]), self.labels, self.s.seed).scores
        return dict(dev=p[:len(fold.dev)].tolist(), test=p[len(fold.dev):].tolist())

    def _combined(self, split: str, fold: Fold) -> dict[str,list]:
        "Of the ensemble of all models; its weights come from dev."
        members = [self.scores(m,split,fold) for m in self.models]
        f = fit_combination(self.y[fold.dev], [m['dev'] for m in members], self.s.ensemble.method, self.s.ensemble.scale, self.s.seed)
        return {k:f([m[k] for m in members]).tolist() for k in ('dev','test')}

    def tested(self, model: str, split: str, fold: Fold) -> Tested:
        "Test predictions, decided by dev."
        x = self.scores(model, split, fold)
        return tested(self.s, self.ids[fold.test], self.y[fold.test], x['test'], self.y[fold.dev], x['dev'], self.labels)

    def comparison(self, splits: dict[str,Fold]) -> Comparison:
        "All models, the ensemble of two or more, and the source-only classifier."
        names = [*([ENSEMBLE] if len(self.models)>1 else []),*self.models,SOURCE_ONLY]
        return check_comparison(Comparison(self.labels, [(0,f.fold) for f in splits.values()], {m:{(0,f.fold):self.tested(m,n,f) for n,f in splits.items()} for m in names}))


def one_by_one(by: Mapping, ids: np.ndarray) -> Tested:
    "Test predictions of a model in the order of `ids`, each record tested once; ones that were not tested are left out."
    p = compare.pooled(by)
    wide = np.concatenate([by[k].wide for k in sorted(by)])
    order = p.frame['id'].map({x:i for i,x in enumerate(ids)}).to_numpy().argsort(kind='stable')
    return Tested(p.labels, *(a[order] for a in (p.y,p.preds,p.scores,p.probs)), p.frame.iloc[order].reset_index(drop=True), wide[order])


def doubts(b: Bench, p: Tested, out: Path, most: int = 200) -> tuple[np.ndarray,dict]:
    "Negatives that cleanlab flags (n, n_labels), how far they are the known suspects; the top-scored negatives of each label go to a CSV file, for people."
    records = b.data.records.set_index('id').loc[p.frame['id']].reset_index()
    flags,suspect = flagged(p.y,p.probs),records['suspect'].fillna('').to_numpy()
    of_label = np.column_stack([[l in x.split('|') for x in suspect] for l in p.labels])
    none,report,rows = p.y.sum(1)==0,{},[]
    for j,l in enumerate(p.labels):
        negative = np.flatnonzero(p.y[:,j]==0)
        best = negative[np.lexsort((-p.scores[negative,j],-p.probs[negative,j]))]
        report[l] = overlap(flags[negative,j],of_label[negative,j])|{f'suspects_among_top_{k}':float(of_label[best[:k],j].mean()) for k in (50,200) if len(best)>=k}
        top = records.iloc[best[:most]]
        rows.append(pd.DataFrame(dict(label=l, rank=range(1,len(top)+1), probability=p.probs[best[:most],j].round(6), flagged=flags[best[:most],j].astype(int), suspect=suspect[best[:most]],
                                      cited_by=['|'.join(k for k,v in zip(p.labels,r) if v) for r in p.y[best[:most]]], judged='', title=top['title'].to_numpy(), abstract=top['abstract'].to_numpy(),
                                      year=top['year'].to_numpy(), doi=top['doi'].to_numpy(), source=top['source'].to_numpy(), id=top['id'].to_numpy())))
    with atomic_path(out) as tmp: without_formulas(pd.concat(rows, ignore_index=True)).to_csv(tmp, index=False, lineterminator='\n')
    anything = flags.any(1)&none
    return anything,dict(labels=report, any=overlap(anything[none],(suspect!='')[none]))


def in_parts(c: Comparison, ids: list[set]) -> Comparison:
    "A comparison on one test set as one on several parts of it, by ids: average precision of few positives depends on how many there are, so that it compares with a mean over such parts alone."
    parts = [restrict(c, lambda i, part=part: i.isin(part)) for part in ids]
    return replace(c, parts=[(0,k) for k in range(len(ids))], models={m:{(0,k):next(iter(p.models[m].values())) for k,p in enumerate(parts)} for m in c.models})


def slices(b: Bench, c: Comparison, drop: np.ndarray, tested_ids: np.ndarray) -> dict[str,tuple[str,Comparison]]:
    "Name of each part of the test records to what it is and the comparison on it."
    r,none = b.data.records,b.y.sum(1)==0
    suspects = set(b.ids[(r['suspect'].fillna('')!='').to_numpy()&none])
    export = set(b.ids[np.logical_or(*(r[k].fillna('').str.contains(EXPORT,regex=False).to_numpy() for k in ('source','notes')))])
    late = set(b.ids[b.time_fold.test])
    return dict(all=('all test records', c),
                without_suspects=('without negatives that look relevant by their words', restrict(c, lambda i: ~i.isin(suspects))),
                one_export=('records of one export of a database, positives and negatives', restrict(c, lambda i: i.isin(export))),
                without_flagged=('without negatives that cleanlab flags by scores of this benchmark: the other reading, and optimistic, as a score chose what is left out', restrict(c, lambda i: ~i.isin(set(tested_ids[drop])))),
                time_records=(f'the records that the time split tests ({b.year} and later), by the folds of all years', restrict(c, lambda i: i.isin(late))),
                time=(f'learnt from before {b.year}, tested on {b.year} and later; measured in the same five parts as `time_records`, and averaged', in_parts(b.comparison(dict(time=b.time_fold)),[set(b.ids[f.test]) for f in b.folds])))


def split_counts(b: Bench) -> dict:
    "What the splits hold: counts of records and of positives."
    def of(rows: np.ndarray) -> dict: return dict(n=len(rows))|dict(zip(b.labels,b.y[rows].sum(0).tolist()))
    t,no = b.time_fold,np.flatnonzero(np.isnan(b.years))
    late = int((b.years>=b.year).sum())
    return dict(records=of(np.arange(len(b.y))), titles_added_to_training=dict(n=len(b.data.titles))|b.data.titles[b.labels].sum().astype(int).to_dict(), titles_left_out_as_records=b.data.dropped,
                clusters=len(np.unique(b.data.clusters)), folds=[{k:of(v) for k,v in f.splits.items()} for f in b.folds], tested=int(sum(len(f.test) for f in b.folds)),
                time=dict(year=b.year, **{k:of(v) for k,v in t.splits.items()}, without_year=of(no), later_copies_of_earlier=late-len(t.test), titles=len(b.titles(b.year))))


def quick_data(data: Path, work: Path) -> Path:
    "A small cut of both files, in the working folder."
    folder = work/'data'
    small_cut(data/'corpus.parquet', folder/'corpus.parquet', 1500)
    pd.read_parquet(data/'gold_titles.parquet').sample(400, random_state=42).to_parquet(folder/'gold_titles.parquet')
    return folder


def open_bench(data: Path, work: Path, names: list[str], year: int, overrides: list[str]) -> Bench:
    "Records as they are scored, and the folder of steps for just these records, settings and versions."
    s = load_config(root=Path(__file__).parents[1], overrides=overrides, env='')
    d = read_final_data(data, s)
    code = [file_hash(Path(__file__)),*(file_hash(m.__file__) for m in (compare,encoders,ensemble,final,folds,metrics,models,ratios,records,thresholds,titles,train,vectors))]
    what = dict(data=[file_hash(p) for p in d.files], year=year, models=names, settings=[asdict(x) for x in (s.folds,s.input,s.baseline,s.ensemble,s.thresholds)], training=s.models, seed=s.seed, versions=versions(), code=code)
    return Bench(s, d, Steps(work/obj_hash(what)[:12]), names, year)


def measure(b: Bench, n_boot: int, work: Path) -> dict:
    "All figures of the benchmark."
    c = b.comparison({f'fold-{f.fold}':f for f in b.folds})
    judge = b.models[-1]
    p = one_by_one(c.models[judge], b.ids)
    drop,report = doubts(b, p, work/'negatives_to_judge.csv')
    code = obj_hash([file_hash(Path(m)) for m in (__file__,measures.__file__)])[:8]
    first,parts = ENSEMBLE if ENSEMBLE in c.models else judge,{}
    for name,(about,part) in slices(b, c, drop, p.frame['id'].to_numpy()).items():
        parts[name] = dict(about=about)|b.steps.do(f'figures-{code}-{n_boot}/{name}', partial(figures,part,first,b.clusters,n_boot,b.s.seed))
    return dict(parts=parts, doubts=dict(scores_of=judge, method="cleanlab find_label_issues, prune_by_noise_rate")|report)


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and gold_titles.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='keeps what is done; default: results/quality, or results/quality_quick')
    a.add_argument('--models', nargs='+', default=MODELS, help='the last one gives the scores by which negatives are doubted')
    a.add_argument('--year', type=int, default=2017, help='the time split tests records from this year on')
    a.add_argument('--quick', action='store_true', help='a small sample: shows that it works, not how good anything is')
    a.add_argument('--results', type=Path, help='default: benchmark.json in benchmarks/results, or in results/benchmarks for --quick; other models than the usual ones need a name')
    a.add_argument('--n-boot', type=int, default=1000)
    o = a.parse_args()
    if o.models!=MODELS and not o.results: sys.exit('name a file for the figures of other models by --results')
    if not find_spec('cleanlab'): sys.exit("this needs cleanlab: pip install -c constraints.txt -e '.[dev]'")
    t0,data = time.perf_counter(),real_data(o.data)
    work = (o.work or Path('results/quality_quick' if o.quick else 'results/quality')).resolve()
    overrides = SETTINGS+(QUICK if o.quick else [])
    b = open_bench(quick_data(data,work) if o.quick else data, work, o.models, o.year, overrides)
    found = measure(b, o.n_boot, work)
    command = ' '.join(['python benchmarks/quality.py',*(['--models',*o.models] if o.models!=MODELS else []),*(['--quick'] if o.quick else []),*([f'--n-boot {o.n_boot}'] if o.n_boot!=1000 else [])])
    results = results_file('benchmark', o.quick, o.results).resolve()
    write_json(results, dict(command=command, data_sha256={p.name:file_hash(p) for p in b.data.files}, quick=o.quick, models=o.models, losses={m:loss_of(m,'BCE',b.s.root) for m in o.models}, settings=overrides, n_boot=o.n_boot,
                             measures=ALL, counts=split_counts(b), **found, steps={k:b.steps.took[k] for k in sorted(b.steps.took)}, cpu_seconds_of_all_steps=round(sum(t['cpu_seconds'] for t in b.steps.took.values()),1), seconds_of_this_call=round(time.perf_counter()-t0,1),
                             **machine('cleanlab')))
    print(execute_single(resource_dir('reports')/'benchmark.ipynb', work/'benchmark.ipynb', dict(figures=str(results))))
    print(results)


if __name__=='__main__': main()
