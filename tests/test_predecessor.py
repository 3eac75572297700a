"What people have from IPBES-Classifier goes on working: its commands, settings, checkpoints, data, folds and figures."
import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ipbes_classifier.cli import main
from ipbes_classifier.config import label_names, load_config
from ipbes_classifier.convert import convert, convert_checkpoint
from ipbes_classifier.folds import read_fold
from ipbes_classifier.metrics import evaluate, read_predictions
from ipbes_classifier.models import load_model
from ipbes_classifier.renamed import OldSetting
from ipbes_classifier.results import read_results
from ipbes_classifier.sample import write_sample
from ipbes_classifier.screen import Screener
from ipbes_classifier.train import read_dataset

QUIET = dict(COLUMNS='100', FORCE_COLOR='', PY_COLORS='', TERM='dumb', IPBES_ENV='', OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false')
LABELS = ['IAS','SUA','VA']
WORDS = ('[PAD] [UNK] [CLS] [SEP] [MASK] invasive alien species use harvest of wild values nature people forests fish birds in the and a to for '
         'we management change local study data model population').split()


def process(*args, cwd, code=0, **env):
    "Run a command as a process of its own; its output and its errors. The exit code must be `code`."
    p = subprocess.run([Path(sys.executable).with_name('ipbes'),*map(str,args)], cwd=cwd, capture_output=True, text=True, env=os.environ|QUIET|env, timeout=600)
    assert p.returncode==code, f'{args}\n{p.stdout}\n{p.stderr}'
    assert 'Traceback' not in p.stderr
    return p.stdout,p.stderr


def ipbes(*args, cwd, code=0, **env):
    "The same in this process, which is quicker."
    out,err,found = io.StringIO(),io.StringIO(),0
    with pytest.MonkeyPatch.context() as m, redirect_stdout(out), redirect_stderr(err):
        m.chdir(cwd)
        m.setattr(sys, 'argv', ['ipbes',*map(str,args)])
        for k,v in (QUIET|env).items(): m.setenv(k, v)
        try: main()
        except SystemExit as e: found = e.code or 0
    assert found==code, f'{args}\n{out.getvalue()}\n{err.getvalue()}'
    return out.getvalue(),err.getvalue()


def tiny(folder:Path, head:bool):
    "A BERT of a few thousand weights: with a head and pickled weights as its training left it, or pretrained."
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer
    folder.mkdir(parents=True)
    (folder/'vocab.txt').write_text('\n'.join(WORDS))
    BertTokenizer(str(folder/'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=len(LABELS))
    if not head: return BertModel(config).save_pretrained(folder)
    model = BertForSequenceClassification(config).eval()
    model.classifier.weight.data *= 30
    config.to_json_file(folder/'config.json')
    torch.save(model.state_dict(), folder/'pytorch_model.bin')
    return model


# ---- commands, as its README writes them

README = '''
preprocess_ipbes.py -nf 5 -nr 1 -fm
hpo.py --config configs/hpo.yaml --fold 0 --run 0 --n_trials 30 --hpo_metric eval_AP_weighted --model_name google-bert/bert-base-uncased --loss BCE --with_title
train.py --config configs/train.yaml --hp_config configs/best_hpo.yaml --fold 0 --run 0 -m google-bert/bert-base-uncased -bm eval_AP_weighted --loss BCE -t
ensemble.py --config configs/ensemble.yaml --fold 0 --run 0 --loss BCE -t
'''.strip().splitlines()
COMMANDS = {'preprocess_ipbes.py':'preprocess','hpo.py':'hpo','train.py':'train','ensemble.py':'ensemble'}

TRAIN = '''
model:
  training:
    learning_rate: 2e-5
    num_train_epochs: 1
    per_device_train_batch_size: 35
    gradient_accumulation_steps: 4
    warmup_steps: 500
    weight_decay: 0.01
    evaluation_strategy: epoch
    save_strategy: epoch
    load_best_model_at_end: true
    metric_for_best_model: eval_AP_weighted
'''
HPO = 'hpo: {n_trials: 30, metric: eval_AP_weighted, mode: max, scheduler: {type: ASHA, max_t: 10, grace_period: 1, reduction_factor: 2}}\n'
ENSEMBLE = 'models:\n  - google-bert/bert-base-uncased\n  - dmis-lab/biobert-v1.1\n'
PATHS = '''
paths:
  data_dir: data
  results_dir: results
  final_model_dir: results/final_model
  metrics_dir: results/metrics
  test_preds_dir: results/test_preds
  plots_dir: plots
'''


def hub_cache(folder:Path, *ids):
    "A cache of the hub that holds tiny models under the names of large ones."
    for i in ids:
        place = folder/f'models--{i.replace("/","--")}'
        tiny(place/'snapshots/0', head=False)
        (place/'refs').mkdir()
        (place/'refs/main').write_text('0')
    return dict(HF_HUB_CACHE=str(folder))


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A project with the predecessor's settings files, and the environment of its commands."
    root = tmp_path_factory.mktemp('lab')/'project'
    raw = write_sample(root/'data/raw', n=400)
    libraries = ''.join(f'  - {{name: {l}, positives: [data/raw/{Path(p).name}]}}\n' for l,p in raw['positives'].items())
    (root/'configs').mkdir()
    (root/'configs/config.yaml').write_text(f'labels:\n{libraries}data: {{corpus: [data/raw/{Path(raw["corpus"]).name}]}}\nlogging: {{progress: false}}\ninput: {{max_length: 32}}{PATHS}')
    for name,text in dict(train=TRAIN, hpo=HPO, ensemble=ENSEMBLE).items(): (root/f'configs/{name}.yaml').write_text(text)
    return root, hub_cache(root.parent/'hub', 'google-bert/bert-base-uncased', 'dmis-lab/biobert-v1.1')


def readme(script, *replaced):
    "The arguments of our command for a line of its README, some of them replaced: (old, new) pairs."
    line = next(l for l in README if l.startswith(script))
    for old,new in replaced:
        assert old in line, old
        line = line.replace(old,new)
    script,*args = shlex.split(line)
    return COMMANDS[script],*args


def test_preprocess_also_makes_folds(lab):
    root,env = lab
    from test_fetch import Server
    from moods import serving
    with serving(server=Server([])) as crossref:
        out,_ = ipbes(*readme('preprocess'), f'api.crossref_url={crossref.url}', 'api.sources=[crossref]', 'api.batch_size=100', cwd=root, PYALEX_EMAIL='a@example.org')
    assert 'Crossref' in out and crossref.seen
    assert len(list((root/'data/folds').glob('*_run-0.csv')))==15 and not list((root/'data/folds').glob('*_run-1.csv'))
    assert read_fold(root/'data/folds', 4, 0, root/'data/cleaned_dataset.csv').fold==4


def test_folds_are_of_the_data_set_that_was_just_written(lab, tmp_path):
    root = tmp_path/'project'
    shutil.copytree(lab[0]/'data/raw', root/'data/raw')
    shutil.copytree(lab[0]/'configs', root/'configs', ignore=shutil.ignore_patterns('best_hpo.yaml'))
    (root/'sub').mkdir()
    for n in (0,1):
        _,err = ipbes('preprocess', '-nf', n, cwd=root/'sub', code=1)
        assert f'`folds.n_folds` is {n}; it should be above 1' in err.splitlines()[-1] and not list(root.rglob('cleaned_dataset*'))
    out,_ = ipbes('preprocess', '-o', 'data #1: ${x}.csv', '-nf', 2, cwd=root/'sub')
    assert f'{root}/sub/data #1: ${{x}}.csv' in out and len(list((root/'data/folds').glob('*_run-0.csv')))==6
    assert read_fold(root/'data/folds', 1, 0, root/'sub/data #1: ${x}.csv').fold==1


def test_train_line(lab):
    root,env = lab
    (root/'configs/best_hpo.yaml').write_text('direction: max\nfold: 0\nhpo_metric: eval_AP_weighted\nlearning_rate: 7.3e-05\nloss_type: BCE\n'
        'model_name: google-bert/bert-base-uncased\nnum_trials: 20\npos_weight: 3.9\nrun_idx: 0\nweight_decay: 0.0001\nwith_keywords: false\nwith_title: true\n')
    _,err = process(*readme('train'), cwd=root, **env)
    assert '`model.training` is `training` here' in err and f'{root}/configs/train.yaml, line' in err
    folder = root/'results/final_model/best_model_cross_val_BCE_bert-base-uncased_fold-0'
    used = json.loads((folder/'provenance.json').read_text())['settings']
    assert (folder/'model.safetensors').exists() and used['input']['with_title']
    row = read_results(root/'results/metrics/results.csv').iloc[0]
    assert (row.model_name,row.fold,row.run,row.num_trials,row.hpo_metric)==('bert-base-uncased',0,0,20,'eval_AP_weighted')


def test_ensemble_line(lab):
    root,env = lab
    process(*readme('train', (' -m google-bert/bert-base-uncased',' -m dmis-lab/biobert-v1.1'), (' --hp_config configs/best_hpo.yaml','')), cwd=root, **env)
    out,_ = process(*readme('ensemble'), cwd=root, **env)
    assert out.startswith('mean of ') and all(m in out.splitlines()[0] for m in ('google-bert/bert-base-uncased','dmis-lab/biobert-v1.1'))
    found = list((root/'results/test_preds/bert').glob('fold-0_Ensemble_BCE_with_title_run-0_opt_neg-*.csv'))
    assert len(found)==1 and read_predictions(found[0]).labels==LABELS


@pytest.mark.long
def test_search_line(lab):
    root,env = lab
    (root/'configs/best_hpo.yaml').unlink(missing_ok=True)
    process(*readme('hpo',('--n_trials 30','--n_trials 2')), cwd=root, **env)
    assert 'bert-base-uncased__BCE__fold-0__run-0' in yaml.safe_load((root/'configs/best_hpo.yaml').read_text())
    process(*readme('train'), cwd=root, **env)
    assert read_results(root/'results/metrics/results.csv').set_index('model_name').loc['bert-base-uncased','num_trials']==2


FLAGS = dict(preprocess='-nf -nr -fm --config', folds='-nf -nr --config', train='--config --hp_config --fold --run -f -r -m --model_name -bm --best_metric --loss -l -t --with_title -k --with_keywords',
             ensemble='--config --fold --run -m --model_name --loss -t --with_title -k --with_keywords',
             hpo='--config --fold --run --n_trials --hpo_metric -m --model_name --loss -t --with_title -k --with_keywords')


@pytest.mark.parametrize('command,flag', [(c,f) for c,flags in FLAGS.items() for f in flags.split()])
def test_every_flag_is_an_option(command, flag):
    import typer
    from ipbes_classifier.cli import app
    options = {o for p in typer.main.get_command(app).commands[command].params for o in p.opts}
    assert flag in options


def test_flags_do_what_they_say(lab):
    "Those that no line of its README has, on the quickest models."
    root,_ = lab
    if not (root/'data/cleaned_dataset.csv').exists(): ipbes('preprocess', cwd=root)
    here = ['paths.folds_dir=data/two','paths.results_dir=flags',*(f'paths.{n}_dir=flags/{n}' for n in ('final_model','metrics','test_preds')),'baseline.max_features=500','baseline.n_estimators=5']
    ipbes('folds', '-nf', 2, '-nr', 2, *here, cwd=root)
    ipbes('train', '--model_name', 'tfidf-logreg', '-f', 1, '-r', 1, '-k', '-t', '-l', 'BCE', '--best_metric', 'eval_AP_macro', *here, cwd=root)
    ipbes('train', '--model_name', 'tfidf-svm', '--fold', 1, '--run', 1, '--with_keywords', '--with_title', '--loss', 'BCE', *here, cwd=root)
    table = read_results(root/'flags/metrics/results.csv').set_index('model_name')
    assert set(table.index)=={'tfidf-logreg','tfidf-svm'}
    assert (table[['fold','run','with_keywords','with_title']]==[1,1,True,True]).all(axis=None)
    folders = sorted((root/'flags/final_model').glob('best_model_*_fold-1_run-1'))
    assert len(folders)==2 and all(json.loads((f/'recipe.json').read_text())['input']['with_keywords'] for f in folders)
    used = {json.loads((f/'provenance.json').read_text())['settings']['models']['tfidf-logreg']['metric_for_best_model'] for f in folders if 'logreg' in f.name}
    assert used=={'eval_AP_macro'}
    out,_ = ipbes('ensemble', '--model_name', 'tfidf-logreg', '-m', 'tfidf-svm', '--fold', 1, '--run', 1, '--loss', 'BCE', '--with_title', '--with_keywords', *here, cwd=root)
    assert out.startswith('mean of tfidf-logreg, tfidf-svm')
    assert len(list((root/'flags/test_preds/bert').glob('fold-1_*_with_title_with_keywords_run-1_opt_neg-*.csv')))==3


# ---- settings

CONFIG = '''
seed: 42
num_labels: 3
environment: development
paths: {data_dir: data, logs_dir: logs, raw_data_dir: data/Raw, corpus_dir: data/Raw/Corpus, positives_dir: data/Raw/Positives, folds_dir: data/folds,
  corpus_output_dir: data/corpus, cleaned_dataset_path: data/cleaned_dataset.csv, models_dir: results/models, ray_results_dir: results/ray_results,
  archives_dir: results/archives, checkpoints_dir: outputs/checkpoints}
api:
  pyalex: {email: "${PYALEX_EMAIL:-}", max_retries: 1, retry_backoff_factor: 0.1}
  crossref: {base_url: https://api.crossref.org/works/, rate_limit: 50, rate_limit_window: 1.0}
datasets: {ipbes_ias: IPBES IAS_2352922, label_names: [IAS, SUA, VA]}
model:
  default_model_name: bert-base-uncased
  num_labels: 3
  training: {save_total_limit: 1, learning_rate: 3e-5, gradient_accumulation_steps: 8, num_train_epochs: 7, per_device_train_batch_size: 16, per_device_eval_batch_size: 17,
    warmup_steps: 500, weight_decay: 0.02, fp16: true, gradient_checkpointing: true, dataloader_num_workers: 4, logging_strategy: epoch, evaluation_strategy: epoch, save_strategy: epoch,
    load_best_model_at_end: true, report_to: tensorboard}
  loss: {default_type: BCE, bce: {pos_weight: [5.0, 4.0, 3.0]}, focal: {alpha: 0.3, gamma: 3.0}}
hpo: {num_samples: 10, metric: eval_f1_macro, mode: max, scheduler: {type: ASHA, max_t: 9, grace_period: 2, reduction_factor: 3}}
data_processing: {with_title: true, with_keywords: true, batch_size: 100, num_proc: 30, max_length: 384,
  cross_validation: {n_folds: 4, n_runs: 2, test_size: 0.3, balance_coeff: null}}
logging: {level: INFO, format: "%(asctime)s", log_file: logs/x.log}
output_files: {results_csv: results.csv, multi_labels_metrics_csv: m.csv, test_folds_csv: t.csv}
ensemble: {aggregation_method: mean, voting_threshold: 0.5}
'''
FLAT = dict(train='model_name: bert-base-uncased\nfold: 0\nrun: 0\noutput_dir: outputs/checkpoints\nbest_metric: eval_kappa_weighted\nloss_type: BCE\nnb_optional_negs: 100\n'
                  'with_title: True\nwith_keywords: False\ndefault_hyperparameters: {learning_rate: None, num_train_epochs: None}\n',
            hpo='model_name: x/y\nnum_trials: 20\nfold: 0\nhpo_metric: eval_AP_macro\ndirection: max\nloss_type: BCE\nwith_title: True\n',
            ensemble='model_names: [FacebookAI/roberta-base, dmis-lab/biobert-v1.1]\nfold: 0\nrun: 0\nloss_type: BCE\n')
ENVIRONMENT = '''
development: {data_dir: ./data, log_level: INFO}
production: {data_dir: "${IPBES_DATA_DIR:-/data/ipbes}", pyalex: {email: a@example.org, max_retries: 3}, models: {default_learning_rate: 1e-5, default_batch_size: 32, max_epochs: 20}}
testing: {results_dir: ./test_results}
common: {seed: 42, num_labels: 1}
'''


def settings(root:Path, env='', **files):
    "Settings of a project with these files, and what was told of them."
    (root/'configs').mkdir(exist_ok=True)
    for name,text in files.items(): (root/f'configs/{name}.yaml').write_text(text)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        s = load_config(root=root, env=env)
    return s,[str(w.message) for w in told if issubclass(w.category,OldSetting)]


def test_its_settings_mean_the_same(tmp_path):
    s,told = settings(tmp_path, config=CONFIG)
    t = s.training
    assert label_names(s)==LABELS and t.pos_weight==dict(IAS=5,SUA=4,VA=3)
    assert (t.learning_rate,t.gradient_accumulation_steps,t.num_train_epochs,t.per_device_train_batch_size,t.per_device_eval_batch_size)==(3e-5,8,7,16,17)
    assert (t.warmup_ratio,t.weight_decay,t.precision,t.activation_checkpointing,t.dataloader_num_workers)==(500,.02,'fp16',True,4)
    assert (t.focal_alpha,t.focal_gamma,s.folds.n_folds,s.folds.n_runs,s.folds.test_size)==(.3,3,4,2,.15)
    h = s.hpo
    assert (h.n_trials,h.metric,h.mode,h.scheduler.type,h.scheduler.max_t,h.scheduler.grace_period,h.scheduler.reduction_factor)==(10,'eval_f1_macro','max','asha',9,2,3)
    assert (s.input.with_title,s.input.with_keywords,s.input.max_length,s.paths.dataset)==(True,True,384,'data/cleaned_dataset.csv')
    assert all('\n' not in m and f'{tmp_path}/configs/config.yaml, line ' in m for m in told) and len(told)==len(set(told))
    for old,new in {'hpo.num_samples':'hpo.n_trials','model.training':'training','model.training.warmup_steps':'training.warmup_ratio','paths.cleaned_dataset_path':'paths.dataset',
                    'model.training.gradient_checkpointing':'training.activation_checkpointing'}.items():
        assert any(m.endswith(f'`{old}` is `{new}` here') for m in told), old
    line = 1+CONFIG[:CONFIG.index('evaluation_strategy')].count('\n')
    assert any(f'line {line}: `model.training.evaluation_strategy` is no setting here: ' in m for m in told)


def test_its_files_beside_config_yaml(tmp_path):
    s,told = settings(tmp_path, config=CONFIG.replace('hpo: {num_samples: 10, metric: eval_f1_macro,','hpo: {'), **FLAT)
    assert s.training.metric_for_best_model=='eval_kappa_weighted' and s.ensemble.models==['FacebookAI/roberta-base','dmis-lab/biobert-v1.1']
    assert (s.hpo.n_trials,s.hpo.metric,s.hpo.mode)==(20,'eval_AP_macro','max') and not s.input.with_keywords
    assert [m for m in told if 'train.yaml, line 1' in m and 'option -m' in m]


def test_the_blocks_of_its_readme(tmp_path):
    s,told = settings(tmp_path, config='labels: [{name: A}]\n'+PATHS, train=TRAIN, hpo=HPO, ensemble=ENSEMBLE)
    assert s.hpo.scheduler.type=='asha' and s.paths.test_preds_dir=='results/test_preds' and len(s.ensemble.models)==2
    assert [m.split(': ')[0][len(str(tmp_path))+9:] for m in told]==['train.yaml, line 3','train.yaml, line 8','train.yaml, line 10','train.yaml, line 11','train.yaml, line 12','ensemble.yaml, line 1']
    more,_ = settings(tmp_path, train='per_device_train_batch_size: 16\ngradient_accumulation_steps: 8\ngradient_checkpointing: true\nfp16: true\ndataloader_num_workers: 4\n')
    t = more.training
    assert (t.per_device_train_batch_size,t.gradient_accumulation_steps,t.activation_checkpointing,t.precision,t.dataloader_num_workers)==(16,8,True,'fp16',4)


@pytest.mark.parametrize('key', 'logging_steps save_steps eval_steps greater_is_better max_grad_norm optim logging_dir overwrite_output_dir save_total_limit '
                         'lr_scheduler_type dataloader_pin_memory remove_unused_columns'.split())
@pytest.mark.parametrize('form', ['{}: 2\n','training: {{{}: 2}}\n','model: {{training: {{{}: 2}}}}\n'])
def test_arguments_of_the_trainer_are_known(tmp_path, key, form):
    s,told = settings(tmp_path, config='labels: [{name: A}]', train=form.format(key))
    if key in ('save_total_limit','lr_scheduler_type'): assert str(getattr(s.training,key))=='2' and len(told)==(not form.startswith('training'))
    else: assert len(told)==1 and f'{key}` is no setting here: ' in told[0] and 'train.yaml, line 1' in told[0]


@pytest.mark.parametrize('flags,precision', [('fp16: false, bf16: true','bf16'),('fp16: true, bf16: false','fp16'),('fp16: false, bf16: false, report_to: null','auto')])
def test_a_flag_that_is_off_chooses_nothing(tmp_path, flags, precision):
    assert settings(tmp_path, config='labels: [{name: A}]', train=f'model: {{training: {{{flags}}}}}')[0].training.precision==precision


def test_advice_on_memory_is_taken_without_a_word(tmp_path):
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs/config.yaml').write_text('labels: [{name: A}]')
    _,err = ipbes('config', *'training.per_device_train_batch_size=6 training.gradient_accumulation_steps=24 training.activation_checkpointing=true input.max_length=256'.split(), cwd=tmp_path)
    assert err==''


@pytest.mark.parametrize('given,section', [(a,b) for pair in (('dev','development'),('prod','production'),('test','testing')) for a in pair for b in pair])
def test_long_and_short_environments_are_one(tmp_path, given, section):
    s,_ = settings(tmp_path, env=given, config='labels: [{name: A}]', environment=f'{section}: {{seed: 7}}')
    assert s.seed==7


def test_its_environments(tmp_path, monkeypatch):
    s,told = settings(tmp_path, env='prod', config='labels: [{name: A}]', environment=ENVIRONMENT)
    assert (s.paths.data_dir,s.training.learning_rate,s.training.per_device_train_batch_size,s.training.num_train_epochs,s.api.email)==('/data/ipbes',1e-5,32,20,'a@example.org')
    assert len(told)==6
    monkeypatch.setenv('IPBES_DATA_DIR','/elsewhere')
    assert settings(tmp_path, env='production')[0].paths.data_dir=='/elsewhere'
    with pytest.raises(ValueError, match='no section `staging`'): settings(tmp_path, env='staging')


@pytest.mark.parametrize('text,says', [
    ('model: {training: {learnig_rate: 1}}', 'line 1: unknown key `model.training.learnig_rate`; nearest known: `training.learning_rate`'),
    ('hpo: {n_trials: 3, num_samples: 4}', '`hpo.n_trials` is set twice, to 3 and to 4'),
    ('modle: 1', 'unknown key `modle`'),
    ('model: {loss: {bce: {pos_weight: [1,2]}}}', '2 weights for 1 labels (A)'),
    ('models: {minilm: {lr: 1}}', 'unknown key `models.minilm.lr`; nearest known: `models.minilm.learning_rate`'),
    ('model: {training: {num_train_epochs: many}}', 'line 1: `training.num_train_epochs`'),
])
def test_what_neither_project_knows_is_an_error(tmp_path, text, says):
    with pytest.raises(ValueError) as e: settings(tmp_path, config='labels: [{name: A}]', train=text)
    assert says in str(e.value) and ('train.yaml' in str(e.value) or str(e.value).startswith('configuration: '))


def test_the_command_line_tells_of_old_keys_in_a_line_each(tmp_path):
    settings(tmp_path, config='labels: [{name: A}]\n', train=TRAIN)
    out,err = ipbes('config', cwd=tmp_path)
    lines = err.strip().splitlines()
    assert len(lines)==5 and all(l.startswith('ipbes: ') and 'train.yaml, line ' in l for l in lines)
    assert yaml.safe_load(out)['training']['warmup_ratio']==500
    settings(tmp_path, config=CONFIG)
    _,err = ipbes('config', cwd=tmp_path)
    assert len(err.strip().splitlines())==13 and '`ipbes convert .`' in err.splitlines()[-1]
    ipbes('convert', '.', cwd=tmp_path)
    again,err = ipbes('config', cwd=tmp_path)
    assert err=='' and yaml.safe_load(again)['training']['pos_weight']==dict(IAS=5,SUA=4,VA=3)
    assert (tmp_path/'configs/config.yaml.before').read_text()==CONFIG


# ---- checkpoints

@pytest.fixture
def checkpoint(tmp_path):
    "A checkpoint as it left it, with its model; and settings that name its outputs."
    folder = tmp_path/'results/final_model/best_model_cross_val_focal_bert-base-uncased_fold-3'
    model = tiny(folder, head=True)
    return folder, model, load_config(root=tmp_path, overrides=['labels='+json.dumps([dict(name=l) for l in LABELS])], env='')


RECORDS = pd.DataFrame(dict(title=['Invasive alien species','Use of wild species','Values'], abstract=['we study birds','harvest of fish','people and nature']))


def expected(folder, model):
    "Scores of the old model on title and abstract as a pair."
    from transformers import AutoTokenizer
    x = AutoTokenizer.from_pretrained(folder)(RECORDS['title'].tolist(), RECORDS['abstract'].tolist(), return_tensors='pt', padding=True)
    return model(**x).logits.sigmoid().detach().numpy()


def test_a_checkpoint_is_refused_until_it_is_converted(checkpoint):
    folder,model,s = checkpoint
    scores = expected(folder,model)
    with pytest.raises(ValueError, match='ipbes convert'): load_model(folder)
    (folder.parents[2]/'in.csv').write_text(RECORDS.to_csv(index=False))
    _,err = ipbes('predict', 'in.csv', '-m', folder, '-o', 'out.csv', cwd=folder.parents[2], code=1)
    assert f'`ipbes convert {folder}`' in err and not (folder.parents[2]/'out.csv').exists()
    ipbes('convert', folder, '--labels', ','.join(LABELS), cwd=folder.parents[2])
    out,_ = ipbes('predict', 'in.csv', '-m', folder, '-o', 'out.csv', cwd=folder.parents[2])
    assert out.startswith('3 records scored by ')
    table = pd.read_csv(folder.parents[2]/'out.csv')
    np.testing.assert_allclose(table[[f'{l}_score' for l in LABELS]], scores, rtol=1e-5)
    assert table['title'].tolist()==RECORDS['title'].tolist()
    recipe = json.loads((folder/'recipe.json').read_text())
    assert (recipe['name'],recipe['loss'],recipe['labels'],recipe['input']['encoding'])==('bert-base-uncased','focal',LABELS,'pair')


def test_sharded_weights(checkpoint):
    import torch
    folder,model,s = checkpoint
    state,scores = torch.load(folder/'pytorch_model.bin', weights_only=True),expected(folder,model)
    (folder/'pytorch_model.bin').unlink()
    names = sorted(state)
    where = {k:f'pytorch_model-0000{1+i%2}-of-00002.bin' for i,k in enumerate(names)}
    for f in set(where.values()): torch.save({k:state[k] for k in names if where[k]==f}, folder/f)
    (folder/'pytorch_model.bin.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))
    new,_ = convert_checkpoint(folder, settings=s, out=folder.parent/'new')
    np.testing.assert_allclose(load_model(new).scores(RECORDS), scores, rtol=1e-5)
    (folder/'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map=dict.fromkeys(names,'../outside.bin'))))
    with pytest.raises(FileNotFoundError, match='holds no weights'): convert_checkpoint(folder, settings=s, out=folder.parent/'other')


def test_what_a_stock_pipeline_needs_is_there(checkpoint):
    from transformers import pipeline
    folder,model,s = checkpoint
    scores = expected(folder,model)
    new,_ = convert_checkpoint(folder, settings=s)
    found = pipeline('text-classification', str(new), top_k=None)([dict(text=t,text_pair=a) for t,a in zip(RECORDS['title'],RECORDS['abstract'])])
    by_label = [{d['label']:d['score'] for d in f} for f in found]
    np.testing.assert_allclose([[b[l] for l in LABELS] for b in by_label], scores, rtol=1e-4)


class Runs:
    "A pickle that leaves a mark when it is opened without care."
    def __init__(self, call, args): self.call,self.args = call,args
    def __reduce__(self): return self.call,self.args


@pytest.mark.parametrize('make', [
    lambda mark: Runs(os.system, (f'touch {mark}',)), lambda mark: Runs(eval, (f'open({str(mark)!r},"w")',)), lambda mark: {'a':Runs(exec, (f'open({str(mark)!r},"w")',))},
    lambda mark: Runs(subprocess.check_call, (['touch',str(mark)],)), lambda mark: [Runs(Path.touch, (mark,))],
], ids=['system','eval','exec in a state dict','subprocess','method'])
@pytest.mark.parametrize('zipped', [False,True])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_pickle_with_code_is_refused_and_does_not_run(checkpoint, tmp_path, make, zipped):
    import torch
    folder,_,s = checkpoint
    mark = tmp_path/'it-ran'
    if zipped: torch.save(make(mark), folder/'pytorch_model.bin')
    else: (folder/'pytorch_model.bin').write_bytes(pickle.dumps(make(mark), protocol=2))
    before = {p.name:p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match='pytorch_model.bin is refused'): convert_checkpoint(folder, settings=s)
    assert not mark.exists()
    assert {p.name:p.read_bytes() for p in folder.iterdir()}==before and not list(folder.parent.glob('*.before'))


def test_damaged_weights_are_refused(checkpoint):
    folder,_,s = checkpoint
    whole,rng = (folder/'pytorch_model.bin').read_bytes(),np.random.default_rng(0)
    for broken in (b'', b'\x80', whole[:100], whole[:-200], b'text', *(rng.bytes(200) for _ in range(20)), *(b'\x80\x02'+rng.bytes(50) for _ in range(50))):
        (folder/'pytorch_model.bin').write_bytes(broken)
        with pytest.raises(ValueError, match='is refused'): convert_checkpoint(folder, settings=s)
    assert sorted(p.name for p in folder.parent.glob('[!.]*'))==[folder.name]


def test_a_failure_leaves_the_folder_as_it_was(checkpoint, monkeypatch):
    folder,_,s = checkpoint
    before = {p.name:p.read_bytes() for p in folder.iterdir()}
    def full(*args, **kwargs): raise OSError(28,'No space left on device')
    for name in ('write_decisions','write_provenance'):
        with monkeypatch.context() as m:
            m.setattr(f'ipbes_classifier.convert.{name}', full)
            with pytest.raises(OSError): convert_checkpoint(folder, settings=s)
        assert {p.name:p.read_bytes() for p in folder.iterdir()}==before
    replace,calls = os.replace,[]
    def second_fails(a,b):
        calls.append(a)
        if len(calls)==2: raise OSError(28,'No space left on device')
        return replace(a,b)
    with monkeypatch.context() as m:
        m.setattr(os,'replace',second_fails)
        with pytest.raises(OSError): convert_checkpoint(folder, settings=s)
    assert {p.name:p.read_bytes() for p in folder.iterdir()}==before and sorted(p.name for p in folder.parent.glob('[!.]*'))==[folder.name]


def test_thresholds_from_dev_predictions(checkpoint, tmp_path):
    folder,_,s = checkpoint
    rng = np.random.default_rng(0)
    y = rng.integers(0,2,(60,3))
    table = pd.DataFrame({f'{l}_label':y[:,j] for j,l in enumerate(LABELS)}|{f'{l}_pred':0 for l in LABELS}|{f'{l}_score':np.clip(.3*y[:,j]+rng.random(60)*.5,0,1) for j,l in enumerate(LABELS)})
    table.to_csv(tmp_path/'dev.csv', index=False)
    new,told = convert_checkpoint(folder, settings=s, dev=tmp_path/'dev.csv')
    assert told=='fitted on dev.csv' and 'fitted on dev.csv' in (new/'README.md').read_text()
    t = json.loads((new/'thresholds.json').read_text())
    assert all(.2<v<.6 for v in t.values()) and set(json.loads((new/'calibration.json').read_text()))==set(LABELS)
    assert f'{LABELS[0]}_probability' in Screener.load(new).score(RECORDS)


# ---- data, folds, figures

def old_project(root:Path):
    "A project as it left it: settings, data, overlapping folds, a checkpoint per fold numbered from 1, figures."
    (root/'configs').mkdir(parents=True)
    (root/'configs/config.yaml').write_text(CONFIG)
    (root/'configs/environment.yaml').write_text(ENVIRONMENT)
    (root/'configs/best_hpo.yaml').write_text('learning_rate: 7.3e-05\nloss_type: BCE\nmodel_name: FacebookAI/roberta-base\nfold: 3\nrun_idx: 0\nhpo_metric: eval_AP\n')
    raw,rng = write_sample(root/'raw', n=300),np.random.default_rng(0)
    papers = pd.read_parquet(raw['corpus']) if str(raw['corpus']).endswith('.parquet') else pd.read_csv(raw['corpus'])
    papers = papers.drop_duplicates('title').head(120).reset_index(drop=True)
    table = pd.DataFrame({'doi':[f'10.1234/{i}' for i in range(len(papers))],'title':papers['title'],'abstract':[f'{a} {i}' for i,a in enumerate(papers['abstract'].fillna(''))],
        'Publication Year':[f'{2000+i%20}.0' for i in range(len(papers))],'author':'Doe, Jane','topics':'fish; birds','Manual Tags':'Chapter 3; cited'}|
        {l:(np.arange(len(papers))%(5+j)==0).astype(int) for j,l in enumerate(LABELS)})
    (root/'data/folds').mkdir(parents=True)
    table.to_csv(root/'data/cleaned_dataset.csv')
    for k in range(2):
        test = np.arange(k*24,k*24+24)
        for name,rows in dict(train=np.arange(70),dev=np.arange(70,96),test=test).items(): pd.DataFrame(dict(index=rows)).to_csv(root/f'data/folds/{name}{k}_run-0.csv', index=False)
        tiny(root/f'results/final_model/best_model_cross_val_BCE_bert-base-uncased_fold-{k+1}', head=True)
        scores = rng.random((24,3))
        old = pd.DataFrame({f'{l}_label':table[l][test].to_numpy() for l in LABELS}|{f'{l}_pred':(scores[:,j]>.25*(j+1)).astype(int) for j,l in enumerate(LABELS)}|
                           {f'{l}_score':scores[:,j] for j,l in enumerate(LABELS)}|dict(fold=k,title=table['title'][test].to_numpy()))
        (root/'results/test_preds/bert').mkdir(parents=True, exist_ok=True)
        old.to_csv(root/f'results/test_preds/bert/fold_{k}_bert-base-uncased_BCE_with_title_run-0_opt_neg-100.csv')
    (root/'results/metrics').mkdir()
    pd.DataFrame([dict(model_name='bert-base',loss_type='BCE',fold=1,run=1,with_title=True,with_keywords=False,num_trials=20,hpo_metric='eval_AP',AP_macro=.9)]).to_csv(root/'results/metrics/results.csv', index=False)
    return root


@pytest.fixture
def project(tmp_path): return old_project(tmp_path/'project')


def test_its_data_set_is_read(project):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data = read_dataset(load_config(root=project, env=''))
    assert data['year'].tolist()[:2]==[2000,2001] and data['keywords'][0]=='fish; birds' and data['author'][0]=='Doe, Jane'
    assert 'Manual Tags' not in data and data['IAS'].sum()>10 and data['id'].is_unique


def test_its_folds_are_refused_and_kept(project):
    theirs = {p.name:p.read_bytes() for p in (project/'data/folds').iterdir()}
    _,err = ipbes('train', '-f', 0, cwd=project, code=1)
    assert 'train0_run-0.csv and test0_run-0.csv share 24 rows, 100% of test' in err and '`ipbes folds`' in err
    _,err = ipbes('folds', '-nf', 2, 'folds.n_runs=1', cwd=project)
    assert f'6 fold files that were made without looking for near-duplicates are kept in {project}/data/folds/before' in err
    assert {p.name:p.read_bytes() for p in (project/'data/folds/before').iterdir()}==theirs
    ipbes('folds', '-nf', 2, 'folds.n_runs=1', cwd=project)
    assert [p.name for p in (project/'data/folds').iterdir() if p.is_dir() and not p.name.startswith('.')]==['before']
    read_fold(project/'data/folds', 0, 0, project/'data/cleaned_dataset.csv')


def test_a_project_is_converted(project):
    every = {p.relative_to(project):p.read_bytes() for p in project.rglob('*') if p.is_file()}
    out,err = ipbes('convert', project, cwd=project, code=1)
    assert 'configs/best_hpo.yaml: ' in out and 'data/cleaned_dataset.csv: ' in out and ' IAS, ' in out and '2 of 2 folds are refused for training, and kept' in err and '100% of test' in err
    for k in range(2):
        folder = project/f'results/final_model/best_model_cross_val_BCE_bert-base-uncased_fold-{k+1}'
        t = json.loads((folder/'thresholds.json').read_text())
        assert [abs(t[l]-.25*(j+1))<.1 for j,l in enumerate(LABELS)]==[True]*3
        assert f'fold_{k}_bert' in (folder/'README.md').read_text()
        assert Screener.load(folder).score(RECORDS)[[f'{l}_score' for l in LABELS]].notna().all(axis=None)
    left = [p.read_bytes() for p in project.rglob('*') if p.is_file()]
    assert [name for name,content in every.items() if content not in left]==[]
    out,err = ipbes('convert', project, cwd=project, code=1)
    assert len(out.splitlines())==1 and len(err.splitlines())==1
    out,_ = ipbes('metrics', 'results/before/metrics/results.csv', cwd=project)
    assert 'bert-base' in out


def test_its_predictions_are_measured_and_compared(project):
    from ipbes_classifier.compare import find_predictions, leaderboard
    convert(project)
    place = project/'results/before/test_preds/bert'
    out,_ = ipbes('metrics', place/'fold_0_bert-base-uncased_BCE_with_title_run-0_opt_neg-100.csv', '--json', cwd=project)
    p = read_predictions(place/'fold_0_bert-base-uncased_BCE_with_title_run-0_opt_neg-100.csv')
    assert json.loads(out)['AP_macro']==pytest.approx(evaluate(p.y,p.scores,p.preds,p.labels)['AP_macro'])
    board = leaderboard(find_predictions(None, folder=place), n_boot=20)
    assert set(board['label'])=={*LABELS,'macro'} and board['AP'].between(0,1).all()


def test_new_training_goes_on_in_a_converted_project(project):
    convert(project)
    ipbes('folds', '-nf', 2, '-nr', 1, cwd=project)
    ipbes('train', '-f', 0, '-t', cwd=project)
    table = read_results(project/'results/metrics/results.csv')
    assert table.model_name.tolist()==['tfidf-logreg'] and table.fold.tolist()==[0]


def test_published_figures_follow_from_published_predictions(real_data):
    table = read_results(real_data/'published_predictions/results.csv').set_index(['model_name','fold'])
    for short,name in {'bert-base':'bert-base-uncased','biobert-v1':'biobert-v1.1','roberta-base':'roberta-base'}.items():
        p = read_predictions(real_data/f'published_predictions/fold-0_{name}_BCE_with_title_run-0_opt_neg-100.csv')
        found = evaluate(p.y, p.scores, p.preds, p.labels)
        for k in ('f1_IAS','AP_macro','roc_auc_weighted','MCC','precision_VA'): assert found[k]==pytest.approx(table.loc[(short,1),k]), (short,k)


def test_convert_runs_no_code_of_the_folder(project):
    mark = project/'it-ran'
    (project/'evil.py').write_text(f'open({str(mark)!r},"w")')
    with (project/'configs/config.yaml').open('a') as f: f.write('modules: [evil]\n')
    folder = project/'results/final_model/best_model_cross_val_BCE_bert-base-uncased_fold-1'
    (folder/'evil.py').write_text((project/'evil.py').read_text())
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config|dict(auto_map=dict(AutoConfig='evil.Config', AutoModelForSequenceClassification='evil.Model'))))
    ipbes('convert', folder, cwd=project)
    ipbes('convert', '.', cwd=project, code=1)
    assert (folder/'recipe.json').exists() and not mark.exists()
    ipbes('config', cwd=project)
    assert mark.exists(), 'the trap works'


@pytest.mark.parametrize('given,says', [('../../evil,a,b',"label name '../../evil'"),('a|b,c,d',"label name 'a|b'"),('a,a,b','stands twice'),('a,,b',"label name ''")])
def test_names_of_outputs_are_those_of_labels(checkpoint, given, says):
    folder,_,s = checkpoint
    _,err = ipbes('convert', folder, '--labels', given, cwd=folder, code=1)
    assert err.startswith('ipbes: --labels: ') and says in err
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config|dict(id2label=dict(enumerate(given.split(','))))))
    _,err = ipbes('convert', folder, cwd=folder, code=1)
    assert err.startswith(f'ipbes: {folder}/config.json: ') and says in err and not list(folder.parent.glob('*.before'))


def test_a_checkpoint_is_converted_from_inside(checkpoint):
    folder,_,s = checkpoint
    out,_ = process('convert', '.', '--labels', ' IAS, SUA,VA ', cwd=folder)
    assert 'outputs IAS, SUA, VA' in out
    assert json.loads((folder/'recipe.json').read_text())['labels']==LABELS and (folder.parent/f'{folder.name}.before/pytorch_model.bin').exists()


@pytest.mark.parametrize('name,text', [('config.json','[]'),('config.json','{"model_type": "bert", "id2label": [1]}'),('pytorch_model.bin.index.json','[]'),
    ('pytorch_model.bin.index.json','{}'),('pytorch_model.bin.index.json','{"weight_map": {"a": 1}}')])
def test_odd_json_is_refused_by_name(checkpoint, name, text):
    folder,_,s = checkpoint
    (folder/name).write_text(text)
    with pytest.raises(ValueError, match=name): convert_checkpoint(folder, LABELS, settings=s)


@pytest.mark.parametrize('name,text', [('best_hpo.yaml','a: ['),('best_hpo.yaml','- 1'),('environment.yaml','dev: 5'),('train.yaml','modle: 1')])
def test_nothing_is_changed_before_all_settings_can_be_read(project, name, text):
    (project/'configs'/name).write_text(text)
    before = {p:p.read_bytes() for p in project.rglob('*') if p.is_file()}
    _,err = ipbes('convert', '.', cwd=project, code=1)
    assert name in err.splitlines()[-1]
    assert {p:p.read_bytes() for p in project.rglob('*') if p.is_file()}==before


def test_a_file_of_figures_that_is_no_text_is_told(project):
    (project/'results/latin.csv').write_bytes('é_label,é_pred,é_score\n1,1,0.5\n'.encode('latin-1'))
    _,err = ipbes('convert', '.', cwd=project, code=1)
    assert len([l for l in err.splitlines() if l.startswith('results/latin.csv: ')])==1
    assert (project/'results/before/metrics/results.csv').exists()


def test_convert_says_what_it_cannot_do(tmp_path):
    for args,says in ((['nowhere'],'is neither a checkpoint'),(['.'],'is neither a checkpoint')):
        _,err = ipbes('convert', *args, cwd=tmp_path, code=1)
        assert says in err and len(err.strip().splitlines())==1
