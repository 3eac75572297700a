"""How fast does an encoder screen real abstracts, against what one would do otherwise?

    IPBES_REAL_DATA=DIR python benchmarks/screening.py [--quick]

A project of its own below `--work`, whose steps (all but the timing) stay done: data set and folds of `corpus.parquet`, `minilm` fine-tuned on fold 0, the runtimes of
this machine measured on dev, a first pass (as `ipbes cascade` makes it) with 3,000 records of `deployment_sample.parquet` as unlabelled ones. Then, in
one process and in rounds, all ways score other records of it, with the same checkpoint:

- loop: the quick start of transformers, one record after the other, float32; `loop_short` is the same with inputs cut as the model was trained (128 tokens), the
  others read up to 512 tokens
- pipeline: `pipeline("text-classification", batch_size=32)` of transformers, which pads each batch to its longest record
- torch: `Screener.score`, PyTorch in float32
- chosen: the same in the runtime that `auto` chooses here; `chosen_short` is the same on inputs cut as the model was trained, its ratio is to `loop_short`
- cascade: the runtime behind the first pass, inputs as the model was trained, on 1,000 records of the test fold (at the prevalence of the corpus) and on 1,000
  of the deployment sample (none is relevant); its ratio is to `loop_short`

Rates are records a second, the median of the rounds; ratios are of these. What the first pass loses is measured on all labelled test records of the fold. So is, with
`flipped_of_test`, how many decisions the chosen runtime flips on them. The machine's peak is the best of five square matrix products, in the same run; `share_of_peak` is the rate of
operations that a way reaches of the peak of its numbers: float32, for the chosen runtime perhaps bf16 or int8. `time_of_chosen` is where the time of the chosen runtime goes on whole abstracts, by
OpenVINO's own count: tokenising, products with weights (and the share of the peak that they reach), attention, the rest.
Figures go to `benchmarks/results/screening.json`.
"""
import argparse
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ipbes_classifier.agreement import in_words, read_agreements
from ipbes_classifier.cascade import cascade_folder, fit_cascade, load_cascade, measure_cascade, save_cascade
from ipbes_classifier.config import Settings, project_path
from ipbes_classifier.encoders import Encoder, length_batches
from ipbes_classifier.files import file_hash, write_json
from ipbes_classifier.folds import read_fold
from ipbes_classifier.results import Run, checkpoint_path
from ipbes_classifier.runtimes import OpenVinoScorer, network
from ipbes_classifier.screen import Screener, as_records, measure_on
from ipbes_classifier.screen_corpus import Scorer
from ipbes_classifier.train import read_dataset, train

from small_cut import machine, make_project, real_data, results_file
from training import matrix_product

SETTINGS = ['paths.dataset=data/cleaned_dataset.parquet','logging.progress=false','logging.tensorboard=false','input.max_length=128',
            'models={minilm: {num_train_epochs: 3, learning_rate: 1e-4, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, '
            'metric_for_best_model: eval_AP_macro, pos_weight: {IAS: 2, SUA: 8, VA: 8}, optional_negatives: 4000, early_stopping_patience: 0}}']
QUICK = ['folds.n_folds=2','input.max_length=64','models={minilm: {num_train_epochs: 1, optional_negatives: 100}}']
WHOLE = 512 # tokens that are read of whole abstracts


def trained(s: Settings) -> Path:
    "The checkpoint of fold 0, trained if it is not there."
    folder = checkpoint_path(s, Run('minilm','BCE',0))
    return folder if (folder/'thresholds.json').exists() else Path(train('minilm', settings=s).files['checkpoint'])


def halves(data: Path, n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "The deployment sample in two parts, drawn at random; the second with at most `n` records."
    df = pd.read_parquet(data/'deployment_sample.parquet', columns=['id','title','abstract']).assign(doi='').sample(frac=1, random_state=0).fillna('')
    return df[::2].reset_index(drop=True), df[1::2][:n].reset_index(drop=True)


def reading(screener: Screener, max_length: int) -> Screener:
    "The same screener, reading other lengths than its model was trained on."
    for m in screener.models: m.recipe,m.tokenizer.model_max_length = replace(m.recipe, max_length=max_length),max_length
    return screener


def test_ap(s: Settings) -> dict:
    "Average precision of the model on test, from the predictions that training wrote."
    from ipbes_classifier.metrics import average_precision
    from ipbes_classifier.metrics import read_predictions
    from ipbes_classifier.results import predictions_path
    p = read_predictions(next(q for q in predictions_path(s,Run('minilm','BCE',0,optional_negatives=0)).parent.glob('fold-0_minilm_BCE*.csv')))
    return {l:round(float(average_precision(p.y[:,j],p.scores[:,j])),4) for j,l in enumerate(p.labels)}


class Loop:
    "The quick start of transformers."
    def __init__(self, folder: Path, max_length: int):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        self.tokenizer,self.max_length = AutoTokenizer.from_pretrained(folder),max_length
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def __call__(self, records: pd.DataFrame) -> np.ndarray:
        import torch
        with torch.no_grad():
            out = [self.model(**self.tokenizer(r.title, r.abstract, truncation=True, max_length=self.max_length, return_tensors='pt')).logits.sigmoid()[0] for r in records.itertuples()]
        return torch.stack(out).numpy()


class Pipeline(Loop):
    "The stock pipeline of transformers, with the sigmoid that several labels need."
    def __init__(self, folder: Path, max_length: int):
        from transformers import pipeline
        super().__init__(folder, max_length)
        self.pipe = pipeline('text-classification', model=self.model, tokenizer=self.tokenizer, batch_size=32, function_to_apply='sigmoid', top_k=None)
        self.labels = list(self.model.config.id2label.values())

    def __call__(self, records: pd.DataFrame) -> np.ndarray:
        texts = [dict(text=r.title, text_pair=r.abstract) for r in records.itertuples()]
        found = self.pipe(texts, truncation=True, max_length=self.max_length, padding=True)
        return np.array([[s for l in self.labels for d in one if d['label']==l for s in [d['score']]] for one in found])


def scores(screener: Screener, records: pd.DataFrame) -> np.ndarray:
    return screener.score(records)[[f'{l}_score' for l in screener.labels]].to_numpy()


def with_cascade(scorer: Scorer, records: pd.DataFrame) -> np.ndarray:
    table = scorer.rows(records, 'records', 0)
    return np.column_stack([table[f'{l}_score'].to_numpy() for l in scorer.screener.labels])


def timed(way, records: pd.DataFrame) -> tuple[float, float, np.ndarray]:
    "Wall-clock and processor seconds, and the scores."
    t0,cpu0 = time.perf_counter(),time.process_time()
    out = way(records)
    return time.perf_counter()-t0,time.process_time()-cpu0,out


def gflop(e: Encoder, records: pd.DataFrame) -> float:
    "Floating-point operations of the forward passes: 2 for each weight of a matrix and token, and attention's products of tokens; without padding."
    from ipbes_classifier.encoders import encode
    c = e.model.config
    lengths = np.array([len(x['input_ids']) for x in encode(e.tokenizer, as_records(records), e.recipe)])
    return float((lengths*(gflop_of_weights(e)+4e-9*c.num_hidden_layers*c.hidden_size*lengths)).sum())


def gflop_of_weights(e: Encoder) -> float:
    "The same of one token, without attention's products."
    c = e.model.config
    return 2*c.num_hidden_layers*(4*c.hidden_size**2+2*c.hidden_size*c.intermediate_size)/1e9


KINDS = dict(matrices=('FullyConnected',), attention=('Subgraph','ScaledDotProduct','Softmax','MatMul')) # how names of OpenVINO's nodes begin

def where_time_goes(e: Encoder, records: pd.DataFrame, peak: float|None) -> dict|None:
    "Shares of the time of an encoder in OpenVINO: tokenising, products with weights, attention, the rest; and the share of a peak that the products with weights reach."
    import openvino as ov
    import torch
    if not isinstance(scorer := getattr(e.runtime,'fast',e.runtime), OpenVinoScorer): return None
    options = dict(INFERENCE_NUM_THREADS=torch.get_num_threads(), PERFORMANCE_HINT='LATENCY', INFERENCE_PRECISION_HINT='bf16' if scorer.bf16 else 'f32', PERF_COUNT=True)
    model = ov.Core().compile_model(scorer.path, 'CPU', options)
    request,names = model.create_infer_request(),[i.get_names() for i in model.inputs]
    took = dict(tokenising=0., **dict.fromkeys(KINDS,0.), rest=0.)
    for counted in (False,True): # the first pass allocates
        start = time.perf_counter()
        encoded = network(e).encoded(as_records(records))
        took['tokenising'] = time.perf_counter()-start
        for batch in length_batches([len(x['input_ids']) for x in encoded], scorer.max_tokens):
            x = e.tokenizer.pad([encoded[i] for i in batch], return_tensors='np')
            request.infer([x[n.intersection(x).pop()] for n in names])
            for node in request.profiling_info if counted else []:
                kind = next((k for k,starts in KINDS.items() if node.node_type.startswith(starts)), 'rest')
                took[kind] += node.real_time.total_seconds()
    reached = sum(len(x['input_ids']) for x in encoded)*gflop_of_weights(e)/took['matrices']
    return {k:round(t/sum(took.values()),3) for k,t in took.items()}|dict(matrices_of_peak=round(reached/peak,3) if peak else None)


def int8_product(n: int = 1536) -> float|None:
    "GFLOP/s of a matrix product of whole numbers, where PyTorch has it."
    import torch
    a,took = torch.randint(-100,100,(n,n),dtype=torch.int8),[]
    try:
        for _ in range(5):
            t0 = time.perf_counter()
            torch._int_mm(a,a)
            took.append(time.perf_counter()-t0)
    except (RuntimeError,AttributeError): return None
    return round(2*n**3/min(took)/1e9,1)


def measure(ways: dict, rounds: int) -> dict:
    "Rates of all ways in rounds, each on its own records, which are parts of the same; the scores of the last round."
    took = {name:[] for name in ways}
    found = {}
    for _ in range(rounds):
        for name,(way,records) in ways.items():
            wall,cpu,found[name] = timed(way, records)
            took[name].append((len(records)/wall,len(records)/cpu))
    return {name:dict(records=len(ways[name][1]), rate=round(float(np.median([r for r,_ in t])),2), rate_per_cpu_second=round(float(np.median([c for _,c in t])),2),
                      rates=[round(r,2) for r,_ in t]) for name,t in took.items()},found


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--data', type=Path, help='folder of corpus.parquet and deployment_sample.parquet; default: IPBES_REAL_DATA')
    a.add_argument('--work', type=Path, help='project folder of the benchmark; default: results/screening, or results/screening_quick')
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--quick', action='store_true', help='shows that it works, not how fast anything is')
    a.add_argument('--results', type=Path, help='default: screening.json in benchmarks/results, or in results/benchmarks for --quick')
    o = a.parse_args()
    import torch
    data,results = real_data(o.data),results_file('screening', o.quick, o.results)
    work = (o.work or Path('results/screening_quick' if o.quick else 'results/screening')).resolve()
    os.environ.pop('IPBES_ENV', None)
    s = make_project(work, data, SETTINGS+(QUICK if o.quick else []), 500 if o.quick else 0)
    folder,df = trained(s),read_dataset(s)
    fold = read_fold(project_path(s,s.paths.folds_dir), 0, 0, project_path(s,s.paths.dataset), len(df))
    fit_on,fresh = halves(data, 300 if o.quick else 3_000)
    fit_on = fit_on[:300 if o.quick else 3_000]
    plain = Screener.load(folder)
    measured = read_agreements(folder) or next(iter(measure_on(df.iloc[fold.dev], [folder], 100 if o.quick else 1000, say=lambda x: print(x,flush=True)).values()))
    print('\n'.join(in_words(measured, s.screen.tolerance)), flush=True)
    chosen = Screener.load(folder, runtime='auto', tolerance=s.screen.tolerance)
    place = cascade_folder(folder, chosen.version)
    if not place.exists(): save_cascade(fit_cascade(chosen, df.iloc[fold.train].sample(500 if o.quick else 1000, random_state=0), df.iloc[fold.dev], fit_on, s.screen.share, s.screen.confidence), place)
    cascade = load_cascade(place, chosen.version, chosen)
    print(cascade.cut, flush=True)
    test,scorer = df.iloc[fold.test].reset_index(drop=True),Scorer(chosen,cascade)
    n = 20 if o.quick else 100
    few,some = fresh[:n],fresh[:2*n]
    max_length = plain.models[0].recipe.max_length
    loop,short,stock = Loop(folder,WHOLE),Loop(folder,max_length),Pipeline(folder,WHOLE)
    whole,fast = (reading(Screener.load(folder, runtime=r, tolerance=s.screen.tolerance), WHOLE) for r in ('torch','auto'))
    for way in (loop,short,stock): way(few[:8])
    scores(fast,few[:8]), scores(chosen,few[:8])
    rates,found = measure(dict(loop=(loop,few), pipeline=(stock,few), torch=(lambda r: scores(whole,r),some), chosen=(lambda r: scores(fast,r),some), loop_short=(short,few), chosen_short=(lambda r: scores(chosen,r),some),
                               cascade=(lambda r: with_cascade(scorer,r),test[:100 if o.quick else 1000]), cascade_irrelevant=(lambda r: with_cascade(scorer,r),fresh[:1000])), o.rounds)
    thresholds = np.array([plain.thresholds[0][l] for l in plain.labels])
    flips = {a:int(((found[a][:n]>=thresholds)!=(found[b]>=thresholds)).sum()) for a,b in dict(pipeline='loop',torch='loop',chosen='loop',chosen_short='loop_short').items()}
    peak = dict(float32=matrix_product(torch.float32), bf16=matrix_product(torch.bfloat16), int8=int8_product())
    per = gflop(whole.models[0], few)/n
    loss = measure_cascade(cascade, chosen, test)
    on_test = {k:scores(x,test)>=thresholds for k,x in dict(torch=plain,chosen=chosen).items()}
    own = next((k for k in ('bf16','int8') if (chosen.runtime or '').partition('@')[0].endswith(k)), 'float32')
    goes = where_time_goes(fast.models[0], some, peak[own])
    ratio = lambda a,b: round(rates[a]['rate']/rates[b]['rate'],2)
    write_json(results, dict(command='python benchmarks/screening.py'+f' --rounds {o.rounds}'*(o.rounds!=3)+' --quick'*o.quick, quick=o.quick, data_sha256={f:file_hash(data/f) for f in ('corpus.parquet','deployment_sample.parquet')},
        settings=SETTINGS+(QUICK if o.quick else []), max_length=dict(whole=WHOLE,trained=max_length), test_AP=test_ap(s),
        runtimes=[asdict(m) for m in measured], chosen=chosen.runtime or 'torch', rates=rates, flipped_of=dict(decisions=n*len(plain.labels), **flips),
        ratios=dict(chosen_to_loop=ratio('chosen','loop'), chosen_to_pipeline=ratio('chosen','pipeline'), torch_to_loop=ratio('torch','loop'), chosen_short_to_loop=ratio('chosen_short','loop_short'), cascade_to_loop=ratio('cascade','loop_short'), cascade_irrelevant_to_loop=ratio('cascade_irrelevant','loop_short')),
        cascade=dict(cut=asdict(cascade.cut), read_of_test=loss.attrs['read'], read_of_irrelevant=round(float(cascade.keep(as_records(fresh)).mean()),4), test=loss.astype(object).where(loss.notna(),None).to_dict('records')),
        prevalence={l:round(float(test[l].mean()),4) for l in plain.labels}, n_test=len(test), peak_gflop_per_second=peak, gflop_per_record=round(per,2),
        flipped_of_test=dict(decisions=on_test['torch'].size, selected=int(on_test['torch'].sum()), chosen=int((on_test['torch']!=on_test['chosen']).sum())),
        share_of_peak={k:round(per*rates[k]['rate']/peak[own if k=='chosen' else 'float32'],3) for k in ('loop','pipeline','torch','chosen')}, numbers_of_chosen=own, time_of_chosen=goes, threads=torch.get_num_threads(), **machine('openvino','nncf')))
    print(results)


if __name__=='__main__': main()
