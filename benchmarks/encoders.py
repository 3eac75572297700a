"""Do the published encoders go through training, saving, loading and scoring? And what would the presets of configs/encoders.yaml take of a GPU's memory?

    python benchmarks/encoders.py [--model bert-base-uncased] [--quick]

Nothing is downloaded. Each encoder is made with random weights in the shape that is published, with a tokenizer of its kind that is trained here on the synthetic sample and filled up to the
published size. It is then trained for two steps of the optimiser on a few short records by `train`, in the precision of the presets, saved, loaded and asked for scores, in a process of its own.
What random weights learn says nothing, so no measure of quality is kept; nor is time. Models that are in the file already, made in the same way with the same versions, are not run again.

Memory: `peak_mb` is the resident memory of that process, measured. `estimate_gb` is computed, of parameters and of bytes that are counted here: see `memory_gb`.
Figures go to `benchmarks/results/encoders.json`; `--quick` makes models of two layers and writes to `results/benchmarks/`.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

# The shapes as published in each config.json; what is not said here is the default of the class, which is that of the base size.
SHAPES: dict[str, tuple[str, dict]] = {
    'google-bert/bert-base-uncased': ('Bert', dict(vocab_size=30522)),
    'dmis-lab/biobert-v1.1': ('Bert', dict(vocab_size=28996)),
    'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract': ('Bert', dict(vocab_size=30522)),
    'microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext': ('Bert', dict(vocab_size=30522)),
    'FacebookAI/roberta-base': ('Roberta', dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)),
    'allenai/scibert_scivocab_uncased': ('Bert', dict(vocab_size=31090)),
    'NoYo25/BiodivBERT': ('Bert', dict(vocab_size=28996)),  # goes on from bert-base-cased
    'answerdotai/ModernBERT-base': ('ModernBert', {}),
}
PRESETS = dict(gpu12=12, gpu24=24, gpu80=80)  # sections of configs/encoders.yaml, GB of memory
SPECIAL = dict(Bert=['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]'], Roberta=['<s>','<pad>','</s>','<unk>','<mask>'], ModernBert=['[PAD]','[UNK]','[CLS]','[SEP]','[MASK]'])


def shape(model: str, **smaller):
    "The configuration of a published encoder; `smaller` says what is to be less, e.g. `num_hidden_layers`."
    import transformers
    kind,own = SHAPES[model]
    return getattr(transformers,f'{kind}Config')(**own|smaller)


def vocabulary(kind: str, texts: list[str], size: int) -> tuple[dict, list]:
    "Words of a WordPiece model, or words and merges of a byte-level BPE, learnt from texts and filled up to `size` with words that do not occur."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    few = min(2000,size//2)
    if kind=='Bert':
        t = Tokenizer(models.WordPiece(unk_token='[UNK]'))
        t.normalizer,t.pre_tokenizer = normalizers.BertNormalizer(),pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=few, special_tokens=SPECIAL[kind], show_progress=False)
    else:
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=few, special_tokens=SPECIAL[kind], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(texts, trainer)
    model = json.loads(t.to_str())['model']
    words = dict(sorted(model['vocab'].items(), key=lambda x: x[1]))
    return words|{f'[unused{i}]':i for i in range(len(words),size)}, [tuple(m) for m in model.get('merges',[])]


def tokenizer(model: str, texts: list[str]):
    "A tokenizer of the kind that the encoder has, with as many words."
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    kind,size = SHAPES[model][0],shape(model).vocab_size
    words,merges = vocabulary(kind, texts, size)
    longest = dict(Roberta=512, ModernBert=8192).get(kind,512)
    if kind=='Bert': return transformers.BertTokenizer(vocab=words, model_max_length=longest)
    if kind=='Roberta': return transformers.RobertaTokenizer(vocab=words, merges=merges, model_max_length=longest)
    # ModernBERT: a byte-level BPE between [CLS] and [SEP]; the special words stand at the end, where its config.json says they do
    c = shape(model)
    moved = {'[CLS]':c.cls_token_id,'[SEP]':c.sep_token_id,'[PAD]':c.pad_token_id,'[UNK]':c.pad_token_id-3,'[MASK]':c.pad_token_id+1}
    at = {i:w for w,i in words.items()}
    for w,i in moved.items():
        other,j = at[i],words[w]
        words[w],words[other],at[i],at[j] = i,j,w,other
    t = Tokenizer(models.BPE(vocab=words, merges=merges, unk_token='[UNK]'))
    t.pre_tokenizer,t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    t.post_processor = processors.TemplateProcessing(single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B [SEP]', special_tokens=[(w,words[w]) for w in ('[CLS]','[SEP]')])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, model_max_length=longest, model_input_names=['input_ids','attention_mask'],
        **{f'{n}_token':f'[{n.upper()}]' for n in ('cls','sep','pad','unk','mask')})


def random_encoder(model: str, folder: Path, texts: list[str], seed: int = 0, **smaller) -> Path:
    "A folder named as the model, as a download would be: weights drawn at random, config.json, tokenizer."
    import torch
    from transformers import AutoModel
    torch.manual_seed(seed)
    out = Path(folder)/model.split('/')[-1]
    AutoModel.from_config(shape(model,**smaller)).save_pretrained(out)
    tokenizer(model, texts).save_pretrained(out)
    return out


def saved_bytes(model, batch: int, length: int) -> int:
    "Bytes that a forward pass in bf16 keeps for the backward pass: different storages, those of parameters left out."
    import torch
    own,kept = {p.untyped_storage().data_ptr() for p in model.parameters()},{}
    def pack(x):
        kept.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage())  # held, so that its address stays its own
        return x
    ids = torch.randint(10, 1000, (batch,length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:,-1] = 0  # padding, as in most batches
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast('cpu',torch.bfloat16):
        loss = model(input_ids=ids, attention_mask=mask).logits.float().sum()
    out = sum(s.nbytes() for p,s in kept.items() if p not in own)
    del loss
    return out


def bytes_per_token(model: str, length: int = 512) -> tuple[float, float]:
    """Bytes kept for a further token of inputs of `length` tokens: of the whole model, and of one layer. Counted on models of one and of two layers, whose layers are as wide as published.

    With dropout in its attention, a CPU keeps the attention of all pairs of tokens; the kernels of a GPU keep less, so that this is the most it should be.
    """
    from transformers import AutoModelForSequenceClassification
    def kept(layers: int) -> float:
        m = AutoModelForSequenceClassification.from_config(shape(model,num_hidden_layers=layers))
        return (saved_bytes(m,2,length)-saved_bytes(m,1,length))/length
    one,two = kept(1),kept(2)
    return one+(two-one)*(shape(model).num_hidden_layers-1), two-one


def memory_gb(parameters: int, per_token: float, per_layer: float, layers: int, hidden: int, batch: int, length: int, checkpointing: bool) -> float:
    """GB of 10**9 bytes that a training step takes of a GPU, computed.

    18 bytes a parameter: weights, gradients and two moments of AdamW in float32, and a copy in bf16. Then, for each token of a batch in which all inputs have `length` tokens, what the forward
    pass keeps; with activation checkpointing that is the input of each layer in float32, and one layer's own. What CUDA, its libraries and fragmentation take comes on top.
    """
    kept = 4*hidden*layers+per_layer if checkpointing else per_token
    return round((18*parameters+batch*length*kept)/1e9, 2)


def estimate(model: str, parameters: int, per_token: float, per_layer: float, preset: str) -> float:
    "`memory_gb` of a preset of the shipped settings."
    from ipbes_classifier.config import load_config, model_training, resource_dir
    s,c = load_config(root=resource_dir('configs').parent, env=preset),shape(model)
    t = model_training(s, model)
    return memory_gb(parameters, per_token, per_layer, c.num_hidden_layers, c.hidden_size, t.per_device_train_batch_size, s.input.max_length, t.activation_checkpointing)


def few_records(folder: Path):
    "A project of the synthetic sample with one fold of a few records, in which each label stands in each split; made if it is not there."
    from ipbes_classifier.config import label_names, load_config, project_path
    from ipbes_classifier.folds import read_clusters, read_fold, write_folds
    from ipbes_classifier.project import sample_project
    from ipbes_classifier.train import read_dataset
    if folder.exists(): return load_config(root=folder, env='')
    s = sample_project(folder, n=300, overrides=['folds.n_folds=2'])
    data,place = read_dataset(s),project_path(s,s.paths.folds_dir)
    y = data[label_names(s)].to_numpy()
    def few(rows): return np.unique(np.concatenate([*(rows[y[rows][:,j]==1][:4] for j in range(y.shape[1])), rows[~y[rows].any(1)][:4]]))
    f = read_fold(place, 0)
    write_folds([replace(f,train=few(f.train),dev=few(f.dev),test=few(f.test))], place, read_clusters(place)[0], project_path(s,s.paths.dataset))
    return s


def changed(before: Path, after: Path) -> Iterator[bool]:
    "Whether each array of weights that two checkpoints share was changed."
    from safetensors import safe_open
    with safe_open(before/'model.safetensors','pt') as a, safe_open(after/'model.safetensors','pt') as b:
        names = {k.split('.',1)[-1]:k for k in b.keys()}
        for k in a.keys():
            if (same := k if k in b.keys() else names.get(k)): yield not (a.get_tensor(k)==b.get_tensor(same)).all()


def check(model: str, problems: dict[str, bool]) -> None:
    "Raise `RuntimeError` with the problems that there are."
    if found := [k for k,v in problems.items() if v]: raise RuntimeError(f"{model}: {'; '.join(found)}")


def dry_run(model: str, work: Path, length: int, **smaller) -> dict:
    "Train, save, load and score one encoder of random weights; `RuntimeError` says what went wrong."
    from ipbes_classifier.config import label_names, load_config
    from ipbes_classifier.memory import peak_memory
    from ipbes_classifier.models import load_model
    from ipbes_classifier.train import read_dataset, train
    root,step = few_records(work/'project').root,dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    s = load_config(root=root, env='gpu24', overrides=['training.num_train_epochs=1',*(f'training.{k}={v}' for k,v in step.items()),'logging.progress=false','logging.tensorboard=false',f'input.max_length={length}'])
    data = read_dataset(s)
    folder = random_encoder(model, work, (data.title+' '+data.abstract).tolist(), **smaller)
    with peak_memory() as memory: t = train(str(folder), settings=s)
    again = load_model(t.files['checkpoint'])
    scores,losses,trained = again.scores(t.test.records),[e['loss'] for e in t.log if 'loss' in e],list(changed(folder,t.files['checkpoint']))
    off = float(np.abs(scores-t.test.scores).max())
    check(model, {f'losses are {losses}':not losses or not all(map(math.isfinite,losses)), f'the loaded checkpoint scores otherwise, by {off}':not off<1e-6,
                  f'{trained.count(False)} of {len(trained)} arrays of weights were not trained':not trained or not all(trained),
                  f'scores have shape {scores.shape}':scores.shape!=(len(t.test.y),len(label_names(s)))})
    c = again.model.config
    return dict(model=model, architecture=type(again.model).__name__, layers=c.num_hidden_layers, hidden=c.hidden_size, vocabulary=c.vocab_size, parameters=t.cost['parameters'],
                tokenizer='WordPiece' if SHAPES[model][0]=='Bert' else 'byte-level BPE', precision=s.models[folder.name]['precision'], records=dict(train=len(t.train),dev=len(t.dev.y),test=len(t.test.y)),
                steps=math.ceil(len(t.train)/math.prod(step.values())), arrays_trained=len(trained), difference_after_loading=off, peak_mb=memory['peak_mb'],
                checkpoint_mb=round(sum(p.stat().st_size for p in t.files['checkpoint'].iterdir())/1e6,1))


def measure(model: str, work: Path, length: int, **smaller) -> dict:
    "`dry_run`, and what the presets would take."
    out = dry_run(model, work, length, **smaller)
    per_token,per_layer = bytes_per_token(model)
    return out|dict(bytes_per_token=round(per_token), bytes_per_token_of_a_layer=round(per_layer), estimate_gb={p:estimate(model,out['parameters'],per_token,per_layer,p) for p in PRESETS})


def child(model: str, quick: bool, length: int) -> dict:
    "`dry_run` in a process of its own, in a temporary folder."
    with tempfile.TemporaryDirectory(prefix='ipbes-dry-') as work:
        code = f'import json, sys; from pathlib import Path; import encoders; print(json.dumps(encoders.measure({model!r},Path({work!r}),{length}{",num_hidden_layers=2" if quick else ""})))'
        env = os.environ|dict(HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', TQDM_DISABLE='1', IPBES_ENV='', PYTHONPATH=os.pathsep.join(filter(None,[str(Path(__file__).parent),os.environ.get('PYTHONPATH')])))
        p = subprocess.run([sys.executable,'-W','ignore','-c',code], capture_output=True, text=True, env=env)
    if p.returncode: raise SystemExit(f'{model}: '+(p.stderr.strip() or f'its process ended with {p.returncode}: killed, perhaps for memory').splitlines()[-1])
    return json.loads(p.stdout.strip().splitlines()[-1])


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('--model', action='append', help='last part of a hub id; default: all')
    a.add_argument('--quick', action='store_true', help='two layers')
    a.add_argument('--length', type=int, default=64, help='tokens of an input')
    a.add_argument('--results', type=Path)
    o = a.parse_args()
    from ipbes_classifier.files import write_json
    from ipbes_classifier.provenance import versions
    from small_cut import machine, results_file
    out = results_file('encoders', o.quick, o.results)
    command = 'python benchmarks/encoders.py'+' --quick'*o.quick+(f' --length {o.length}' if o.length!=64 else '')
    made = dict(command=command, quick=o.quick, weights='random', device='cpu', length=o.length, estimate_length=512, presets_gb=PRESETS, versions=versions())
    before = json.loads(out.read_text()) if out.exists() else {}
    rows = before['rows'] if {k:before.get(k) for k in made}==json.loads(json.dumps(made)) else []
    out.parent.mkdir(parents=True, exist_ok=True)
    for m in SHAPES:
        if o.model and m.split('/')[-1] not in o.model or m in [r['model'] for r in rows]: continue
        rows.append(r := child(m, o.quick, o.length))
        write_json(out, machine()|made|dict(rows=sorted(rows, key=lambda r: list(SHAPES).index(r['model']))))
        print(f"{m}: {r['parameters']/1e6:.1f} M parameters, {r['steps']} steps, peak {r['peak_mb']:.0f} MB; estimated {r['estimate_gb']} GB", flush=True)
    print(out)


if __name__=='__main__': main()
