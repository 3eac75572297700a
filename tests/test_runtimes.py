"Runtimes of encoders from the outside: what is measured, refused, kept and gone on with, by functions and by commands."
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ipbes_classifier import agreement, runtimes
from ipbes_classifier.agreement import Agreement, choose_runtime, measure_runtimes, read_agreements
from ipbes_classifier.config import Baseline, Input
from ipbes_classifier.files import write_json
from ipbes_classifier.models import load_model
from ipbes_classifier.records import write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.runtimes import Runtime, compiled, encoders_of, runtime_folder, small_encoder
from ipbes_classifier.screen import Screener, measure_on, predict
from ipbes_classifier.screen_corpus import runtimes_for, screen
from ipbes_classifier.screen_folder import read_manifest
from ipbes_classifier.thresholds import Calibration
from ipbes_classifier.vectors import Embedder, VectorsModel

pytest.importorskip('openvino')
pytest.importorskip('nncf')
IPBES = Path(sys.executable).with_name('ipbes')
WORDS = 'invasive alien ants forest values fishery galaxy dust bone spread study river crayfish nature people'.split()


def papers(n, seed=0):
    "Made-up records of several lengths."
    rng = np.random.default_rng(seed)
    return pd.DataFrame([dict(id=f'p{i}', title=' '.join(rng.choice(WORDS,4)), abstract=' '.join(rng.choice(WORDS,rng.integers(1,60)))) for i in range(n)])


def checkpoint(folder, seed=0):
    "A small encoder that decides."
    folder.mkdir(parents=True, exist_ok=True)
    small_encoder(seed=seed).save(folder)
    write_decisions(folder, dict(A=.5,B=.5), {l:Calibration(1.,0.,'logit') for l in 'AB'})
    return folder


def plant(folder, *found):
    "Note measurements as if they had been made."
    write_json(agreement._path(folder), dict(runtimes=[asdict(a) for a in found]))


FAST = Agreement('openvino','',512, 100.,10., 500,1000, selected=100)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A checkpoint with OpenVINO's form of it."
    folder = checkpoint(tmp_path_factory.mktemp('runtimes')/'small')
    compiled(runtimes.Encoder.load(folder), folder, 'openvino')
    return folder


@pytest.fixture
def model(made, tmp_path):
    "A copy of it."
    return Path(shutil.copytree(made, tmp_path/'small'))


def test_predict_and_screen_give_the_same_rows_and_name_the_runtime(model, tmp_path):
    write_records([papers(45)], tmp_path/'lake.csv')
    plant(model, FAST)
    found = screen([tmp_path/'lake.csv'], [model], tmp_path/'out', batch_size=20, runtime='auto')
    predict(tmp_path/'lake.csv', [model], tmp_path/'p.parquet', batch_size=20, runtime='auto')
    rows = pd.concat([pq.read_table(p,partitioning=None).to_pandas() for p in sorted((tmp_path/'out/scores').glob('*'))], ignore_index=True)
    one,plain = pd.read_parquet(tmp_path/'p.parquet'),Screener.load(model).score(papers(45))
    for l in 'AB':
        assert rows[f'{l}_score'].tolist()==one[f'{l}_score'].tolist()
        np.testing.assert_allclose(rows[f'{l}_score'], plain[f'{l}_score'], atol=1e-5)
    assert found.rows==45 and read_manifest(tmp_path/'out')['settings']['runtime'].startswith('openvino@')


def test_a_screening_goes_on_in_the_runtime_it_began_in(model, tmp_path):
    "Nothing was measured when it began; something faster is known when it goes on; another runtime by name is refused."
    write_records([papers(10)], tmp_path/'a.csv')
    write_records([papers(10,1)], tmp_path/'b.csv')
    screen([tmp_path/'a.csv'], [model], tmp_path/'out', runtime='auto')
    plant(model, FAST)
    screen([tmp_path/'a.csv',tmp_path/'b.csv'], [model], tmp_path/'out', runtime='auto')
    assert read_manifest(tmp_path/'out')['settings']['runtime']==''
    with pytest.raises(ValueError, match='runtime was .. and is .openvino@'): screen([tmp_path/'a.csv',tmp_path/'b.csv'], [model], tmp_path/'out', runtime='openvino')


def test_workers_run_what_was_chosen(model, tmp_path):
    from ipbes_classifier.screen_processes import engine_of
    write_records([papers(30)], tmp_path/'lake.csv')
    plant(model, FAST)
    for name,engine in dict(one=engine_of(1), two=engine_of(2)).items(): screen([tmp_path/'lake.csv'], [model], tmp_path/name, batch_size=10, runtime='auto', engine=engine)
    same = [(p.name,p.read_bytes()) for p in sorted((tmp_path/'one/scores').glob('*'))]
    assert len(same)==3 and same==[(p.name,p.read_bytes()) for p in sorted((tmp_path/'two/scores').glob('*'))]


@pytest.fixture(scope='module')
def words_and_vectors(tmp_path_factory):
    "A checkpoint of `tfidf-vectors` that asks a small encoder, and decides."
    folder,small,df = tmp_path_factory.mktemp('vectors')/'model',small_encoder(),papers(80).assign(A=lambda x: x.abstract.str.contains('alien').astype(int))
    model = VectorsModel('tfidf-vectors', ['A'], Input(), Baseline(min_df=1))
    model.embedder = Embedder(small.model.bert, small.tokenizer, 32, dict(model='small'))
    folder.mkdir()
    model.fit(df).save(folder)
    write_decisions(folder, dict(A=.5), dict(A=Calibration(1.,0.,'logit')))
    return folder


def test_a_model_of_words_and_vectors_is_measured_chosen_and_screens_alike(words_and_vectors, tmp_path, monkeypatch):
    "Measured before it screens, behind its own first pass, in one process and in two."
    from ipbes_classifier import screen_corpus
    from ipbes_classifier.cascade import cascade_folder, fit_cascade, save_cascade
    from ipbes_classifier.screen_processes import engine_of
    monkeypatch.setattr(agreement, 'LEAST_GAIN', 0.)
    monkeypatch.setattr(screen_corpus, '_MEASURED_FROM', 10)
    plain = Screener.load(words_and_vectors)
    save_cascade(fit_cascade(plain, None, papers(300,1)), cascade_folder(words_and_vectors,plain.version))
    write_records([papers(90,2)], tmp_path/'lake.csv')
    told:list[str] = []
    chosen = runtimes_for([words_and_vectors], tmp_path/'one', [str(tmp_path/'lake.csv')], 'auto', 1., told.append)
    found = next(a for a in read_agreements(words_and_vectors) if a.runtime=='openvino')
    assert not found.problem and found.content and found.n==90-agreement.n_fit(90) and found.flipped==0 and found.rate>0<found.torch_rate, found
    assert chosen and told[-1].endswith(f' runs in {chosen[str(words_and_vectors)].name}'), told
    plant(words_and_vectors, replace(FAST,content=found.content))
    for name,engine in dict(one=engine_of(1), two=engine_of(2)).items(): screen([tmp_path/'lake.csv'], [words_and_vectors], tmp_path/name, batch_size=20, runtime='auto', engine=engine)
    same = [(p.name,p.read_bytes()) for p in sorted((tmp_path/'one/scores').glob('*'))]
    assert same==[(p.name,p.read_bytes()) for p in sorted((tmp_path/'two/scores').glob('*'))] and read_manifest(tmp_path/'one')['settings']['runtime'].startswith('openvino@')
    rows = pd.concat([pq.read_table(p,partitioning=None).to_pandas() for p in sorted((tmp_path/'one/scores').glob('*'))], ignore_index=True)
    read = rows.A_score.notna().to_numpy()
    assert 0<read.sum()<90
    np.testing.assert_allclose(rows.A_score[read], plain.score(papers(90,2)).A_score[read], atol=1e-5)


@pytest.mark.parametrize('found,why', [
    (replace(FAST,flipped=1,selected=9), 'flips 1 decisions where PyTorch selects 9'), (replace(FAST,flipped=2), 'flips 2 of 1,000 decisions, and 0.001 of them may be'), (replace(FAST,mean_difference=.02), 'differ by 0.020 on average'),
    (replace(FAST,AP=dict(A=[.9,.7])), 'average precision of A falls from 0.900 to 0.700'), (replace(FAST,n=0,rate=9.), 'hardly faster than PyTorch here'), (None, 'was not measured here')])
def test_what_does_not_agree_is_refused(model, found, why):
    if found: plant(model, found)
    with pytest.raises(ValueError, match=why): Screener.load(model, runtime='openvino')
    assert choose_runtime(model,'auto')==Runtime()


def test_a_tolerance_of_ones_own(model):
    plant(model, replace(FAST,flipped=2))
    assert Screener.load(model, runtime='openvino', tolerance=.002).runtime.startswith('openvino@')


def test_int8_is_measured_on_other_records_than_it_was_fitted_on(model, monkeypatch):
    "A runtime that is called faster is compared, on all records but those of the fit; this one differs, and is refused."
    monkeypatch.setattr(agreement, 'LEAST_GAIN', 0.)
    df = papers(90).assign(A=lambda x: np.arange(len(x))%2, B=0)
    (folder,found), = measure_on(df, [model], runtimes=['openvino-int8']).items()
    a, = found
    assert folder==str(model) and a.n==58-58//4 and a.decisions==2*a.n and list(a.AP)==['A'] and a.content
    assert a==read_agreements(model)[0] and agreement.refusal(a,.001)


def test_int8_reads_again_what_lies_near_a_threshold(model):
    "Those records have the scores of the form that is not rounded, in any order; the others have those of int8; thresholds for titles count as well."
    df,encoder = papers(60),load_model(model)
    def scores(runtime, records=df):
        runtimes.use_runtime(encoder, model, runtime, papers(32,1))
        return encoder.scores(records)
    bf16 = 'openvino-bf16' if not runtimes.why_not('openvino-bf16') else 'openvino'
    rough,exact = scores(Runtime('openvino-int8',512)),scores(Runtime(bf16,512))
    write_decisions(model, dict(A=float(np.median(rough[:,0])),B=1.), {l:Calibration(1.,0.,'logit') for l in 'AB'})
    twice = scores(Runtime('openvino-int8',512,near=.3))
    near = runtimes.log_odds_apart(rough[:,0],np.median(rough[:,0]))<=.3
    assert 3<near.sum()<57 and np.abs(exact-rough)[near].min()>1e-4
    np.testing.assert_allclose(twice, np.where(near[:,None],exact,rough), atol=5e-3)
    np.testing.assert_allclose(scores(Runtime('openvino-int8',512,near=.3),df[::-1])[::-1], twice, atol=5e-3)
    write_decisions(model, dict(A=1.), {}, of='title')
    assert scores(Runtime('openvino-int8',512,near=.3)).shape==twice.shape and encoder.runtime.thresholds.tolist()==[[np.median(rough[:,0]),1.],[1.,1.]]


def test_records_without_abstract_are_compared_where_they_are_decided(model):
    write_decisions(model, dict(A=.2), {}, of='title')
    df = papers(3).assign(abstract=['one','','three'])
    assert agreement._thresholds(load_model(model), model, df).tolist()==[[.5,.5],[.2,.5],[.5,.5]]


def test_how_near_is_measured_chosen_and_noted_in_a_screening(model, tmp_path, monkeypatch):
    "The distance that 99 of 100 scores are moved less than; an encoder of small weights is hardly moved."
    import torch
    for name,value in dict(LEAST_GAIN=0.,MOST_DIFFERENCE=1.).items(): monkeypatch.setattr(agreement, name, value)
    encoder = load_model(model)
    with torch.no_grad():
        for p in encoder.model.parameters(): p.mul_(.3)
    encoder.save(model)
    a, = measure_runtimes(encoder, model, papers(90), ['openvino-int8'])
    runtimes.use_runtime(encoder, model, Runtime('openvino-int8',a.max_tokens))
    df,first = papers(90),slice(32,32+58//4)
    moved = runtimes.log_odds_apart(encoder.scores(df[first]), load_model(model).scores(df[first]))
    rough = encoder.scores(df[first.stop:])
    near = (runtimes.log_odds_apart(rough,.5)<=a.near).any(1).mean()
    assert a.n==len(rough) and moved.max()-1e-6<=a.near<=moved.max()+.0011 and np.isclose(a.again,near,atol=.03)
    plant(model, replace(a,rate=50.,torch_rate=10.,flipped=0,selected=50))
    write_records([papers(20)], tmp_path/'lake.csv')
    screen([tmp_path/'lake.csv'], [model], tmp_path/'out', runtime='auto')
    noted = read_manifest(tmp_path/'out')['settings']['runtime']
    assert noted==f'openvino-int8@{a.content}/{a.max_tokens}~{a.near}' and f'within {a.near:.2f} of a threshold' in agreement.in_words([a],.001)[0]
    screen([tmp_path/'lake.csv'], [model], tmp_path/'out', runtime='auto')


def test_a_model_trained_again_has_nothing_measured(model):
    plant(model, FAST)
    old = runtime_folder(model)
    checkpoint(model, seed=1)
    assert read_agreements(model)==[] and choose_runtime(model)==Runtime() and runtime_folder(model)!=old


def test_thresholds_of_another_fit_count_as_another_model(model):
    plant(model, FAST)
    write_decisions(model, dict(A=.6,B=.5), {})
    assert read_agreements(model)==[]


def test_a_checkpoint_that_may_not_be_written_to(made, monkeypatch, tmp_path):
    monkeypatch.setattr(os, 'access', lambda *a: False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert runtime_folder(made).is_relative_to(tmp_path) and '@' in runtime_folder(made).name


def test_what_was_compiled_and_changed_since_is_made_again(model):
    plant(model, FAST)
    path = compiled(Screener.load(model).models[0], model, 'openvino')
    whole = path.with_suffix('.bin').read_bytes()
    path.with_suffix('.bin').write_bytes(whole[:-8])
    Screener.load(model, runtime='openvino').score(papers(2))
    assert path.with_suffix('.bin').read_bytes()==whole


def test_members_of_an_ensemble_are_run_by_their_own_measurements(model, tmp_path):
    from ipbes_classifier.ensemble import Combination, EnsembleModel
    from ipbes_classifier.models import model_version
    both = {'one':model, 'two':checkpoint(tmp_path/'two',3)}
    combination = Combination(np.full((2,2),.5), np.zeros(2), 'score')
    e = EnsembleModel(['A','B'], runtimes.Input(), 'BCE', both, {n:model_version(p) for n,p in both.items()}, combination)
    (tmp_path/'mean').mkdir()
    e.save(tmp_path/'mean')
    write_decisions(tmp_path/'mean', dict(A=.5,B=.5), {})
    plant(model, FAST)
    fast,plain = Screener.load(tmp_path/'mean', runtime='auto'),Screener.load(tmp_path/'mean')
    assert fast.runtime.startswith('openvino@') and fast.runtime.endswith('/512 + torch') and plain.runtime=='' and len(encoders_of(load_model(tmp_path/'mean'),tmp_path/'mean'))==2
    np.testing.assert_allclose(fast.score(papers(9)).A_score, plain.score(papers(9)).A_score, atol=1e-5)


def test_auto_measures_where_there_is_much_to_score(model, tmp_path, monkeypatch):
    write_records([papers(120)], tmp_path/'lake.csv')
    said = []
    files = [str(tmp_path/'lake.csv')]
    assert runtimes_for([model], tmp_path/'out', files, 'auto', say=said.append)=={} and not read_agreements(model)
    monkeypatch.setattr('ipbes_classifier.screen_corpus._MEASURED_FROM', 50)
    for name in ('agreement','screen_corpus'): monkeypatch.setattr(f'ipbes_classifier.{name}.runtimes_here', lambda: ['torch','openvino'])
    runtimes_for([model], tmp_path/'out', files, 'auto', say=said.append)
    assert [a.runtime for a in read_agreements(model)]==['openvino']
    assert any('to compare with' in s for s in said) and any('runs in' in s for s in said)


def test_auto_does_without_what_cannot_be_measured(model, tmp_path, monkeypatch):
    "Records without text to measure on, or a place where nothing may be written, end no screening."
    write_records([papers(120).assign(title='', abstract='')], tmp_path/'lake.csv')
    monkeypatch.setattr('ipbes_classifier.screen_corpus._MEASURED_FROM', 50)
    said = []
    assert runtimes_for([model], tmp_path/'out', [str(tmp_path/'lake.csv')], 'auto', say=said.append)=={}
    assert 'runtimes were not measured: 0 records are too few to measure a runtime on' in said[0]
    def full(*args, **kwargs): raise OSError('no space left')
    monkeypatch.setattr('ipbes_classifier.screen_corpus.measure_on', full)
    assert runtimes_for([model], tmp_path/'out', [str(tmp_path/'lake.csv')], 'auto', say=said.append)=={} and 'no space left' in ''.join(said)


def test_nothing_is_measured_for_the_few_that_a_first_pass_leaves(model, tmp_path, monkeypatch):
    from ipbes_classifier.cascade import Cut
    write_records([papers(120)], tmp_path/'lake.csv')
    monkeypatch.setattr('ipbes_classifier.screen_corpus._MEASURED_FROM', 50)
    asked = []
    monkeypatch.setattr('ipbes_classifier.screen_corpus.measure_on', lambda *args, **kwargs: asked.append(args))
    for read,times in ((.1,0),(.9,1)):
        pass_ = SimpleNamespace(version='few@1', keep=None, cut=Cut(0.,.99,.95,300,0,read))
        assert runtimes_for([model], tmp_path/'out', [str(tmp_path/'lake.csv')], 'auto', first_pass=pass_)=={} and len(asked)==times


def test_a_runtime_that_fails_on_a_model_is_noted_and_the_others_are_measured(model, monkeypatch):
    use = agreement.use_runtime
    def fails(encoder, checkpoint, runtime, records=None):
        if runtime.name=='openvino-int8': raise RuntimeError('no such operation')
        return use(encoder, checkpoint, runtime, records)
    monkeypatch.setattr(agreement, 'use_runtime', fails)
    encoder = runtimes.Encoder.load(model)
    found = {a.runtime:a for a in measure_runtimes(encoder, model, papers(90), ['openvino-int8','openvino'])}
    assert found['openvino-int8'].problem=='no such operation' and found['openvino'].rate>0 and not found['openvino'].problem and encoder.runtime is None
    assert 'openvino-int8: fails here: no such operation' in agreement.in_words(list(found.values()),.001)
    with pytest.raises(ValueError, match='fails here: no such operation'): choose_runtime(model, 'openvino-int8')


@pytest.mark.parametrize('of', ['encoder','words_and_vectors'])
def test_scores_that_are_no_numbers_are_refused(model, words_and_vectors, tmp_path, monkeypatch, of):
    "On records of which none is selected, they flip nothing; words would hide what vectors say."
    folder = model if of=='encoder' else Path(shutil.copytree(words_and_vectors, tmp_path/'vectors'))
    asked = load_model(folder)
    monkeypatch.setattr(agreement, 'LEAST_GAIN', 0.)
    monkeypatch.setattr(runtimes.OpenVinoScorer, '__call__', lambda self, encoded: np.full((len(encoded),2 if of=='encoder' else 32),np.nan))
    write_decisions(folder, dict.fromkeys(asked.labels,1.), {})
    a, = measure_runtimes(asked, folder, papers(90), ['openvino'])
    assert a.problem=='58 of 58 records have a score that is no number' and agreement.refusal(a,.001) and choose_runtime(folder)==Runtime()


def test_a_screening_that_counted_encoders_otherwise_is_begun_anew(model, tmp_path):
    "An earlier version did not count that of `tfidf-vectors`."
    write_records([papers(10)], tmp_path/'a.csv')
    screen([tmp_path/'a.csv'], [model], tmp_path/'out')
    manifest = read_manifest(tmp_path/'out')
    write_json(tmp_path/'out/_manifest.json', manifest|dict(settings=manifest['settings']|dict(runtime='openvino@0123abcd + torch')))
    with pytest.raises(ValueError, match='knew 2 encoders in these models; this one knows 1: begin it anew'): runtimes_for([model], tmp_path/'out', [str(tmp_path/'a.csv')], 'auto')


def test_a_checkpoint_that_changes_while_it_is_measured(model, monkeypatch):
    def slow(encoder, checkpoint, *args):
        write_decisions(checkpoint, dict(A=.6,B=.5), {})
        return FAST
    monkeypatch.setattr(agreement, 'compare_runtime', slow)
    with pytest.raises(ValueError, match='small was changed while its runtimes were measured'): measure_runtimes(runtimes.Encoder.load(model), model, papers(90), ['openvino'])
    assert read_agreements(model)==[]


def test_another_model_is_refused_as_such(model, tmp_path):
    "Not because of the runtime in which the first one ran."
    write_records([papers(10)], tmp_path/'a.csv')
    plant(model, FAST)
    screen([tmp_path/'a.csv'], [model], tmp_path/'out', runtime='auto')
    checkpoint(model, seed=1)
    with pytest.raises(ValueError, match='model was .small@'): screen([tmp_path/'a.csv'], [model], tmp_path/'out', runtime='auto')


@pytest.mark.parametrize('most', [64,600])
def test_encoders_without_token_types_and_with_long_inputs(most, tmp_path):
    "RoBERTa's tokens have no types, and its positions come from the padding; some models take more than 512 tokens."
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification
    small = small_encoder()
    small.tokenizer.model_input_names,small.tokenizer.model_max_length = ['input_ids','attention_mask'],most
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(small.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=.3, pad_token_id=0,
                           max_position_embeddings=most+1, type_vocab_size=1, id2label={0:'A',1:'B'}, label2id=dict(A=0,B=1))
    encoder = runtimes.Encoder('roberta', ['A','B'], runtimes.Input(max_length=most), RobertaForSequenceClassification(config).eval(), small.tokenizer)
    (tmp_path/'roberta').mkdir()
    encoder.save(tmp_path/'roberta')
    records = papers(20).assign(abstract=lambda d: [a*(40 if i%5==0 else 1) for i,a in enumerate(d.abstract+' ')])
    plain = encoder.scores(records)
    runtimes.use_runtime(encoder, tmp_path/'roberta', Runtime('openvino',512))
    np.testing.assert_allclose(encoder.scores(records), plain, atol=1e-5)
    assert np.ptp(plain,0).min()>1e-3


def test_measuring_needs_thresholds_and_records(model):
    with pytest.raises(ValueError, match='9 records are too few'): measure_on(papers(9), [model])
    (model/'thresholds.json').unlink()
    with pytest.raises(ValueError, match='has no thresholds.json'): measure_runtimes(small_encoder(), model, papers(90), ['openvino'])


def ipbes(folder, *args):
    "Run a command there."
    return subprocess.run([str(IPBES),*map(str,args)], cwd=folder, env=os.environ|dict(OMP_NUM_THREADS='1', IPBES_ENV='', COLUMNS='200'), capture_output=True, text=True)


def test_a_runtime_that_was_not_measured_ends_in_a_sentence(model, tmp_path):
    write_records([papers(14)], tmp_path/'lake.csv')
    bad = ipbes(tmp_path, 'predict', 'lake.csv', '-m', 'small', '-o', 'p.csv', '--runtime', 'openvino')
    assert bad.returncode==1 and '`ipbes runtimes -m small INPUT` does that' in bad.stderr and not (tmp_path/'p.csv').exists()


@pytest.mark.long
def test_the_command_that_measures(model, tmp_path):
    write_records([papers(140)], tmp_path/'lake.csv')
    done = ipbes(tmp_path, 'runtimes', 'lake.csv', '-m', 'small', '-n', '100')
    assert done.returncode==0, done.stderr
    assert 'openvino: ' in done.stdout and 'times the r' in done.stdout and 'openvino-int8: ' in done.stdout


TOLD = """
import pandas as pd
from openvino_telemetry.utils.sender import TelemetrySender
from ipbes_classifier import runtimes
sent = []
TelemetrySender.send = lambda self, *what: sent.append(what)
{first}
encoder = runtimes.small_encoder()
runtimes._quantized(runtimes.to_openvino(encoder), encoder.tokenizer, runtimes.network(encoder).encoded(pd.DataFrame(dict(title=['Ants'], abstract=['They spread.']))))
print(len(sent))
"""

@pytest.mark.parametrize('first,told', [('',False), ('runtimes._UNTOLD = {}',True)])
def test_nobody_is_told_that_openvino_is_used(tmp_path, first, told):
    "Unless asked not to, it tells its makers over the network of each import and conversion, and NNCF of what it makes int8."
    pytest.importorskip('openvino_telemetry')
    env = {k:v for k,v in os.environ.items() if k not in ('CI','TF_BUILD','JENKINS_URL')}|dict(HOME=str(tmp_path))
    done = subprocess.run([sys.executable,'-c',TOLD.format(first=first)], env=env, capture_output=True, text=True)
    assert not done.returncode and (int(done.stdout)>0)==told, done.stderr
