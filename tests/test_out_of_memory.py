"Too little memory: one sentence that names what to change; and what it names helps."
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ipbes_classifier.config import Training, load_config
from ipbes_classifier.encoders import Encoder
from ipbes_classifier.memory import OutOfMemory, smaller_batch
from ipbes_classifier.pipeline import run_grid
from ipbes_classifier.project import sample_project

SAYS = ('per_device_train_batch_size is 24','gradient_accumulation_steps 1','activation_checkpointing false','training.per_device_train_batch_size=6',
        'training.gradient_accumulation_steps=4','training.activation_checkpointing=true')
TINY = dict(num_train_epochs=1, per_device_train_batch_size=24, gradient_accumulation_steps=1, early_stopping_patience=0, precision='float32', warmup_ratio=0.)


def toy(n):
    "Made-up records with two labels."
    topics = ['invasive ants spread','forest values change','dust in a galaxy']
    return pd.DataFrame([dict(title=f'{topics[i%3]} {i}', abstract=f'We report how {topics[i%3]} in region {i*7919%1000}.', A=int(i%3==0), B=int(i%3==1)) for i in range(n)])


def small_encoder(dropout=0., **training):
    "A BERT of two layers with random weights and the vocabulary of minilm; the same at each call."
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
    from ipbes_classifier.config import Input
    from ipbes_classifier.encoders import encoder_source
    torch.manual_seed(1)
    config = BertConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, num_labels=2, problem_type='multi_label_classification',
                        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return Encoder('small', ['A','B'], Input(max_length=64), BertForSequenceClassification(config), AutoTokenizer.from_pretrained(encoder_source('minilm')),
                   training=replace(Training(**TINY),**training))


RUN_OUT = '''
import resource, sys
import torch
sys.path.insert(0, sys.argv[1])
from test_out_of_memory import small_encoder, toy
from transformers import Trainer
import ipbes_classifier.encoders
ipbes_classifier.encoders._gives_terms = lambda *args: False  # as for a loss that gives a mean: no pieces, in which 5,000 records fit
encoder,records = small_encoder(per_device_train_batch_size=5000), toy(5000).assign(abstract='ants on islands '*40)
step = Trainer.training_step
def short_of_memory(self, *args, **kwargs):
    pages = int(open('/proc/self/statm').read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages*resource.getpagesize()+100*2**20, resource.RLIM_INFINITY))
    return step(self, *args, **kwargs)
Trainer.training_step = short_of_memory
try: encoder.fit(records, toy(12), progress=False)
except OSError as e:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,)*2)
    print(type(e).__name__, '|', e, '|', type(e.__cause__).__name__, '|', str(e.__cause__).splitlines()[0])
'''


@pytest.mark.skipif(sys.platform!='linux', reason='limits the address space')
def test_memory_that_really_runs_out():
    "The allocator of PyTorch fails inside the first step: the address space is limited there to 100 MiB more."
    done = subprocess.run([sys.executable,'-c',RUN_OUT,os.path.dirname(__file__)], capture_output=True, text=True, timeout=300, env=os.environ|dict(OMP_NUM_THREADS='1'))
    kind,said,cause,original = [x.strip() for x in done.stdout.strip().split('|')] if done.stdout.count('|')==3 else (done.stdout,done.stderr,'','')
    assert kind=='OutOfMemory', said
    assert 'per_device_train_batch_size is 5000' in said and 'training.per_device_train_batch_size=1250' in said and 'training.activation_checkpointing=true' in said
    assert cause in ('RuntimeError','MemoryError') and '\n' not in said


ERRORS = [torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB'),
          RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes."), MemoryError()]


@pytest.mark.parametrize('error', ERRORS, ids=['cuda','cpu','python'])
def test_each_kind_of_error_becomes_one_sentence(monkeypatch, error):
    from transformers import Trainer
    def fails(*args, **kwargs): raise error
    monkeypatch.setattr(Trainer, 'compute_loss', fails)
    with pytest.raises(OutOfMemory) as e: small_encoder().fit(toy(48), toy(12), progress=False)
    assert all(x in str(e.value) for x in SAYS) and '\n' not in str(e.value), e.value


def test_scoring_dev_names_the_batch_of_scoring(monkeypatch):
    from transformers import Trainer
    def fails(*args, **kwargs): raise ERRORS[1]
    monkeypatch.setattr(Trainer, 'prediction_step', fails)
    with pytest.raises(OutOfMemory, match='scoring dev: per_device_eval_batch_size is 32; try training.per_device_eval_batch_size=8'):
        small_encoder().fit(toy(48), toy(12), progress=False)


def test_weights_that_do_not_fit_are_told_when_they_are_moved(monkeypatch, tmp_path):
    "The constructor of the Trainer moves the model to the GPU; no batch size helps there, and no working folder stays behind."
    from transformers import Trainer
    def fails(*args, **kwargs): raise ERRORS[0]
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(Trainer, '__init__', fails)
    with pytest.raises(OutOfMemory, match='placing small and its records: no setting makes the weights smaller'): small_encoder().fit(toy(48), toy(12), progress=False)
    assert not list(tmp_path.iterdir())


def test_a_temporary_working_folder_is_gone_after_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    encoder = small_encoder().fit(toy(48), toy(12), progress=False)
    assert not list(tmp_path.iterdir()) and np.isfinite(encoder.scores(toy(12))).all()


def test_scoring_after_the_training_says_that_the_training_is_kept(monkeypatch, tmp_path):
    "The same command then trains nothing again."
    from transformers import Trainer
    from ipbes_classifier.train import train
    s = sample_project(tmp_path/'p', n=300, overrides=['folds.n_folds=2','logging.progress=false','logging.tensorboard=false','input.max_length=16',
        'models={minilm: {num_train_epochs: 1, optional_negatives: 10, per_device_train_batch_size: 8, gradient_accumulation_steps: 1}}'])
    def fails(*args, **kwargs): raise ERRORS[0]
    with monkeypatch.context() as m:
        m.setattr(Encoder, 'scores', fails)
        with pytest.raises(OutOfMemory, match='scoring dev and test with minilm: input.max_length is 16; .* goes on from the last epoch, or train with a smaller input.max_length'):
            train('minilm', settings=s)
    monkeypatch.setattr(Trainer, 'training_step', fails)
    assert train('minilm', settings=s).files['checkpoint'].is_dir()


def test_scoring_with_a_checkpoint_is_explained_too(monkeypatch):
    from ipbes_classifier.screen import Screener
    encoder = small_encoder()
    def fails(*args, **kwargs): raise ERRORS[0]
    monkeypatch.setattr(encoder, 'scores', fails)
    screener = Screener([encoder], [dict(A=.5,B=.5)], [{}], 'small')
    with pytest.raises(OutOfMemory, match='scoring 1 records: end what else uses this memory'): screener.score(dict(title='Ants', abstract='They spread.'))


def test_another_error_stays_what_it_is(monkeypatch):
    from transformers import Trainer
    def fails(*args, **kwargs): raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')
    monkeypatch.setattr(Trainer, 'compute_loss', fails)
    with pytest.raises(RuntimeError, match='cannot be multiplied'): small_encoder().fit(toy(48), toy(12), progress=False)


def test_a_baseline_says_what_concerns_it(monkeypatch, tmp_path):
    from ipbes_classifier.models import TfidfModel
    from ipbes_classifier.train import train
    s = sample_project(tmp_path/'p', n=300, overrides=['folds.n_folds=2','logging.progress=false'])
    def fails(*args, **kwargs): raise MemoryError
    monkeypatch.setattr(TfidfModel, 'fit', fails)
    with pytest.raises(OutOfMemory, match='training tfidf-logreg: try baseline.max_features=75000'): train('tfidf-logreg', settings=s)


def weights(encoder): return {k:v.detach().clone() for k,v in encoder.model.named_parameters()}


def test_smaller_batches_with_accumulation_make_the_same_update():
    "24 records at once, or 4 times 6: the first update of the optimiser is the same to the precision of float32."
    batch,accumulation = smaller_batch(24,1)
    assert (batch,accumulation)==(6,4)
    before = weights(small_encoder())
    whole,parts = small_encoder(), small_encoder(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    for e in (whole,parts): e.fit(toy(24), toy(12), progress=False, keep_epochs=False)
    a,b = weights(whole),weights(parts)
    moved = max((a[k]-before[k]).abs().max() for k in a)
    assert moved>1e-5 and max((a[k]-b[k]).abs().max() for k in a)<1e-3*moved
    np.testing.assert_allclose(whole.scores(toy(12)), parts.scores(toy(12)), atol=1e-6)


def saved_bytes(encoder, x, y):
    "Bytes that the forward pass keeps for the backward pass, each storage once; the loss; the gradients."
    kept = {}
    def keep(t):
        if not isinstance(t,torch.nn.Parameter): kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    encoder.model.train()
    encoder.model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = encoder.model(**x, labels=y).loss
    n = sum(kept.values())
    loss.backward()
    return n, loss.item(), {k:v.grad.clone() for k,v in encoder.model.named_parameters() if v.grad is not None}


def test_activation_checkpointing_keeps_less_and_learns_the_same():
    plain,checkpointed = small_encoder(), small_encoder()
    checkpointed.model.activation_checkpointing_enable()
    records = toy(24).assign(abstract='ants on islands '*15)
    x = plain.tokenizer(list(records.title), list(records.abstract), padding=True, truncation=True, max_length=64, return_tensors='pt')
    y = torch.tensor(records[['A','B']].to_numpy(), dtype=torch.float32)
    (n,loss,g),(m,loss_c,g_c) = saved_bytes(plain,x,y),saved_bytes(checkpointed,x,y)
    assert loss==loss_c and g.keys()==g_c.keys()
    for k in g: torch.testing.assert_close(g[k], g_c[k], rtol=1e-5, atol=1e-7)
    assert m<n/3, (n,m)


def test_the_setting_switches_it_on_and_the_weights_are_the_same():
    plain,checkpointed = small_encoder(), small_encoder(activation_checkpointing=True)
    for e in (plain,checkpointed): e.fit(toy(48), toy(12), progress=False, keep_epochs=False)
    assert checkpointed.model.is_activation_checkpointing and not plain.model.is_activation_checkpointing
    np.testing.assert_allclose(plain.scores(toy(12)), checkpointed.scores(toy(12)), atol=1e-6)


OWN = '''
import os, signal
import torch
class Hungry:
    loss = 'none'
    def __init__(self, labels, recipe): self.labels = labels
    def fit(self, train, dev): {end}
    def scores(self, records): ...
    def save(self, folder): ...
    def load(self, folder): ...
'''


def test_a_report_that_ran_out_of_memory_says_so_in_the_grid(tmp_path, monkeypatch):
    "An allocation of 2**60 bytes really fails; and a kernel that the system kills cannot say anything itself."
    monkeypatch.setenv('IPBES_ENV', '')
    s = sample_project(tmp_path/'p', n=300, overrides=['folds.n_folds=2'])
    root = tmp_path/'p'
    (root/'configs/train.yaml').write_text('logging: {progress: false, tensorboard: false}\nfolds: {n_folds: 2}\n')
    (root/'my_hungry.py').write_text(OWN.format(end='torch.empty(2**58)')+OWN.format(end='os.kill(os.getpid(),signal.SIGKILL)').replace('Hungry','Killed'))
    s = load_config(root=root, env='')
    grid = run_grid(s, ['my_hungry:Hungry','my_hungry:Killed'], [0], with_ensemble=False, with_compare=False, say=lambda line: None)
    hungry,killed = grid.failed['train__Hungry__none__fold-0__run-0'], grid.failed['train__Killed__none__fold-0__run-0']
    assert hungry.startswith('OutOfMemory: out of memory while training Hungry'), hungry
    assert killed=='the kernel died, most likely killed for want of memory', killed


def test_a_killed_kernel_gives_the_advice_for_an_encoder(tmp_path):
    from nbclient.exceptions import DeadKernelError
    from ipbes_classifier.pipeline import Task, _last_line
    s = load_config(root=tmp_path, env='', overrides=['models={minilm: {per_device_train_batch_size: 24, gradient_accumulation_steps: 1}}'])
    said = _last_line(DeadKernelError('Kernel died'), s, Task('train','minilm','BCE',0,0))
    assert all(x in said for x in SAYS), said


def test_the_command_ends_in_one_sentence(tmp_path, monkeypatch, capsys):
    from transformers import Trainer
    from ipbes_classifier.cli import main
    def fails(*args, **kwargs): raise ERRORS[1]
    monkeypatch.setattr(Trainer, 'compute_loss', fails)
    sample_project(tmp_path/'p', n=300, overrides=['folds.n_folds=2','logging.progress=false'])
    monkeypatch.chdir(tmp_path/'p')
    monkeypatch.setattr(sys, 'argv', ['ipbes','train','-m','minilm','input.max_length=16','logging={progress: false, tensorboard: false}',
                                      'models={minilm: {per_device_train_batch_size: 24, gradient_accumulation_steps: 1}}'])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped: main()
    err = capsys.readouterr().err.strip()
    assert stopped.value.code==1 and err.startswith('ipbes: out of memory while training minilm: ') and all(x in err for x in SAYS) and '\n' not in err, err
