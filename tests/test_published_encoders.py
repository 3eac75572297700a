"Presets of published encoders: what they set, that mistakes in them are named, and that each architecture goes through training, saving, loading and scoring with random weights."
import json
from dataclasses import replace

import pytest

from ipbes_classifier.config import label_names, load_config, model_training
from ipbes_classifier.models import check_model_names, known_model, model_name
from ipbes_classifier.project import init_project

SMALL = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64)
KINDS = ['google-bert/bert-base-uncased','FacebookAI/roberta-base','answerdotai/ModernBERT-base']


@pytest.fixture(scope='module')
def encoders(root):
    "The script as a module."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root/'benchmarks'))
        yield pytest.importorskip('encoders')


@pytest.fixture(scope='module')
def work(tmp_path_factory): return tmp_path_factory.mktemp('dry')


@pytest.fixture
def project(tmp_path): return init_project(tmp_path/'p')


@pytest.mark.parametrize('preset', ['gpu12','gpu24','gpu80'])
def test_a_preset_trains_all_alike_and_changes_nothing_else(encoders, project, preset):
    assert (project/'configs/encoders.yaml').is_file()
    s,plain = load_config(root=project, env=preset),load_config(root=project, env='')
    models = s.ensemble.models
    assert [known_model(m) for m in check_model_names(models)]==models==list(encoders.SHAPES) and set(map(model_name,models))==set(s.models)-set(plain.models)
    for m in models:
        t = model_training(s, m)
        assert t.per_device_train_batch_size*t.gradient_accumulation_steps==140 and t.precision=='bf16', m
        assert replace(t, **{k:getattr(plain.training,k) for k in s.models[model_name(m)]})==plain.training, m
    assert label_names(s)==label_names(plain) and model_training(s,'minilm')==model_training(plain,'minilm') and s.training==plain.training
    assert replace(s, ensemble=plain.ensemble, models=plain.models)==plain


def test_what_a_person_says_outranks_a_preset(project):
    (project/'mine.yaml').write_text('models: {roberta-base: {per_device_train_batch_size: 5}}')
    s = load_config(project/'mine.yaml', root=project, env='gpu24')
    assert [model_training(s,m).per_device_train_batch_size for m in ('FacebookAI/roberta-base','/models/bert-base-uncased')]==[5,20]
    s = load_config(root=project, env='gpu24', overrides=['training.precision=fp16'])
    assert {model_training(s,m).precision for m in s.ensemble.models}=={'fp16'}


@pytest.mark.parametrize('old,new,says', [
    ('gradient_accumulation_steps: 7','gradient_acumulation_steps: 7',r'encoders\.yaml \[gpu24\], line \d+: unknown key `models\.bert-base-uncased\.gradient_acumulation_steps`; nearest known: `models\.bert-base-uncased\.gradient_accumulation_steps`'),
    ('per_device_train_batch_size: 20','per_device_train_batch_size: many','`models.bert-base-uncased.per_device_train_batch_size`'),
    ('per_device_train_batch_size: 20','per_device_train_batch_size: 0','`models.bert-base-uncased.per_device_train_batch_size` is 0'),
    ('precision: bf16','precision: bf15','`models.bert-base-uncased.precision` is .bf15.; one of auto, float32, bf16, fp16'),
    ('gpu24:\n  input: {max_length: 512}','gpu24:\n  input: {max_lenght: 512}',r'encoders\.yaml \[gpu24\], line \d+: unknown key `input\.max_lenght`; nearest known: `input\.max_length`'),
    ('gpu24:','gpu24: 5\nother:','`gpu24` is .5.; should be a section'), ('gpu24:','gpu20:','no section `gpu24`.*sections: dev, prod, test; sections of encoders.yaml: gpu12, gpu20, gpu80')])
def test_a_mistake_names_file_and_key(project, old, new, says):
    path = project/'configs/encoders.yaml'
    path.write_text(path.read_text().replace(old,new))
    with pytest.raises(ValueError, match=says): load_config(root=project, env='gpu24')


@pytest.mark.parametrize('model', KINDS)
def test_each_architecture_goes_the_whole_way(encoders, work, model):
    "Two layers, narrow, with as many words as published: trained for two steps in bf16, saved, loaded, scored; every array of weights is trained."
    r = encoders.dry_run(model, work, 16, **SMALL)
    assert r['steps']==2 and r['arrays_trained']>12 and r['difference_after_loading']<1e-6 and r['vocabulary']==encoders.shape(model).vocab_size


@pytest.mark.long
@pytest.mark.parametrize('model', KINDS)
def test_each_architecture_goes_the_whole_way_in_full_size(encoders, work, model):
    r = encoders.dry_run(model, work, 16)
    assert r['parameters']>100e6 and r['layers']>=12


def test_a_dry_run_says_what_is_wrong(encoders, work, monkeypatch):
    monkeypatch.setattr(encoders, 'changed', lambda a,b: iter([True,False]))
    with pytest.raises(RuntimeError, match='1 of 2 arrays of weights were not trained'): encoders.dry_run(KINDS[0], work, 16, **SMALL)


def test_memory_is_counted_in_parameters_and_tokens(encoders):
    m = encoders.memory_gb
    assert m(110_000_000,1e6,1e5,12,768,0,512,False)==1.98
    assert m(0,1e6,1e5,12,768,10,100,False)==1. and m(0,1e6,1e5,12,768,10,100,True)==round(1000*(4*768*12+1e5)/1e9,2)
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_config(encoders.shape(KINDS[0],**SMALL))
    one,two,four = (encoders.saved_bytes(model,n,32) for n in (1,2,4))
    assert one>32*32*4*2 and four-two==pytest.approx(2*(two-one),rel=.01)


def test_committed_figures_are_of_full_size_and_fit(root, encoders):
    "Estimates are those of the presets as they are, and leave a quarter of the memory free."
    path = root/'benchmarks/results/encoders.json'
    if not path.exists(): pytest.skip('not made yet')
    q = json.loads(path.read_text())
    assert not q['quick'] and q['weights']=='random' and q['device']=='cpu' and '--quick' not in q['command']
    for r in q['rows']:
        assert r['layers']==encoders.shape(r['model']).num_hidden_layers and r['parameters']>100e6 and r['steps']==2
        for p,gb in encoders.PRESETS.items():
            assert encoders.estimate(r['model'],r['parameters'],r['bytes_per_token'],r['bytes_per_token_of_a_layer'],p)==pytest.approx(r['estimate_gb'][p],abs=.01)
            assert r['estimate_gb'][p]<.8*gb, (r['model'],p)
