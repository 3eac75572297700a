"What a page cannot show: a training that is killed, other label sets, labels that must not leak."
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ipbes_classifier.config import label_names, project_path
from ipbes_classifier.project import sample_project
from ipbes_classifier.results import read_decisions
from ipbes_classifier.screen import Screener
from ipbes_classifier.train import read_dataset, train

TRAIN = '''
import sys
from ipbes_classifier.config import load_config
from ipbes_classifier.train import train
if sys.argv[2]=='kill':
    import os, transformers
    save = transformers.Trainer._save_checkpoint
    def save_and_die(self, *a, **k):
        save(self, *a, **k)
        os.kill(os.getpid(), 9)
    transformers.Trainer._save_checkpoint = save_and_die
s = load_config(root=sys.argv[1], env='', overrides=['folds.n_folds=2','logging.progress=false','logging.tensorboard=false','input.max_length=24',
    'models={minilm: {num_train_epochs: 3, per_device_train_batch_size: 8, gradient_accumulation_steps: 2, optional_negatives: 30, early_stopping_patience: 0}}'])
train('minilm', settings=s)
'''


def fit(root, how):
    return subprocess.run([sys.executable,'-c',TRAIN,str(root),how], capture_output=True, text=True, timeout=600, env=os.environ|dict(OMP_NUM_THREADS='1'))


@pytest.fixture
def small(tmp_path):
    return sample_project(tmp_path/'p', n=300, overrides=['folds.n_folds=2','logging.progress=false','logging.tensorboard=false'])


@pytest.mark.long
def test_a_killed_training_goes_on_to_the_same_weights(small, tmp_path):
    other = sample_project(tmp_path/'q', n=300, overrides=['folds.n_folds=2','logging.progress=false'])
    name = 'results/final_model/best_model_cross_val_BCE_minilm_fold-0'
    assert fit(small.root,'kill').returncode==-9
    kept = project_path(small,'results/final_model/.training')
    assert len(list(kept.glob('best*/checkpoint-*')))==1 and not project_path(small,name).exists()
    assert fit(small.root,'go on').returncode==0, 'resume'
    assert fit(other.root,'undisturbed').returncode==0
    for file in ('model.safetensors','thresholds.json','calibration.json'):
        assert project_path(small,name).joinpath(file).read_bytes()==project_path(other,name).joinpath(file).read_bytes(), file
    a,b = (pd.read_csv(project_path(s,'results/metrics/results.csv')) for s in (small,other))
    pd.testing.assert_frame_equal(a, b)
    assert not list(kept.glob('best*'))


def test_a_training_that_had_stopped_early_has_nothing_left_to_do(small, monkeypatch):
    "Nothing improves, so it stops after epoch 2 of 5; killed at that epoch's save, it does not go on to epoch 3."
    import transformers
    tiny = dict(num_train_epochs=5, early_stopping_patience=1, learning_rate=1e-12, optional_negatives=20, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    s = replace(small, input=replace(small.input,max_length=16), models={'minilm':tiny})
    save,saves = transformers.Trainer._save_checkpoint,[]

    def save_and_stop(self, *a, **k):
        save(self, *a, **k)
        saves.append(1)
        if len(saves)==2: raise KeyboardInterrupt
    monkeypatch.setattr(transformers.Trainer, '_save_checkpoint', save_and_stop)
    with pytest.raises(KeyboardInterrupt): train('minilm', settings=s)
    epochs = [e['epoch'] for e in train('minilm', settings=s).log if 'eval_loss' in e]
    assert epochs==[1,2] and len(saves)==2


@pytest.mark.parametrize('names', [['POL'],['A','B','C-1','D_2']])
def test_any_number_of_labels(tmp_path, names):
    "The same job with one label and with four: preprocess, folds, baseline, encoder, scores."
    rng = np.random.default_rng(42)
    topics = ['pollination by wild bees','soil carbon under pasture','urban heat in cities','river fish migration','bone marrow cells']
    rows = []
    for i in range(200):
        k = i%5
        text = ' '.join(rng.permutation(f'{topics[k]} {topics[rng.integers(5)]} measured in plots of region {i} over {rng.integers(2,99)} years'.split()))
        rows.append(dict(id=f'r{i}', title=f'Paper {i} {topics[k]}', abstract=f'{text} with results that we discuss at length here.', **{n:int(k==j) for j,n in enumerate(names)}))
    pd.DataFrame(rows).to_csv(tmp_path/'corpus.csv', index=False)
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs/config.yaml').write_text('labels: ['+', '.join(f'{{name: {n}}}' for n in names)+f']\ndata: {{corpus: [{tmp_path}/corpus.csv]}}\n'
        'folds: {n_folds: 2, test_size: 0.25, dev_size: 0.25}\ninput: {max_length: 24}\nlogging: {progress: false, tensorboard: false}\n'
        'models: {minilm: {num_train_epochs: 1, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}}\n')
    from ipbes_classifier.config import load_config
    from ipbes_classifier.ensemble import ensemble
    from ipbes_classifier.project import preprocess_project, split_project
    s = load_config(root=tmp_path, env='')
    preprocess_project(s)
    split_project(s)
    for model in ('tfidf-logreg','minilm'): train(model, settings=s)
    e = ensemble(settings=s)
    assert list(e.thresholds)==names==label_names(s) and e.test.scores.shape[1]==len(names)
    scored = Screener.load(e.files['checkpoint']).score('Wild bees and pollination')
    assert [c for c in scored if c.endswith('_score')]==[f'{n}_score' for n in names]


def test_permuted_test_labels_change_no_decision(small):
    "Labels of the test records are permuted in the data set itself: thresholds and calibration stay."
    before = train('tfidf-logreg', settings=small)
    decided,scores = read_decisions(before.files['checkpoint']), before.test.scores
    data,rows,labels = read_dataset(small), before.fold.test, label_names(small)
    shuffled = data.copy()
    shuffled.loc[rows,labels] = np.random.default_rng(1).permutation(data.loc[rows,labels].to_numpy())
    shuffled.to_csv(project_path(small,small.paths.dataset), index=False)
    from ipbes_classifier.folds import read_clusters, write_folds
    folder = project_path(small,small.paths.folds_dir)
    clusters,_ = read_clusters(folder)
    write_folds([before.fold], folder, clusters, project_path(small,small.paths.dataset))
    after = train('tfidf-logreg', settings=small)
    assert read_decisions(after.files['checkpoint'])==decided
    np.testing.assert_array_equal(after.test.scores, scores)
    assert after.measures['AP_macro']!=before.measures['AP_macro']


def test_folds_of_another_data_set_are_refused(small):
    path = project_path(small,small.paths.dataset)
    path.write_text(path.read_text()+path.read_text().splitlines()[-1].replace('syn-','other-')+'\n')
    with pytest.raises(ValueError, match='clusters.parquet'): train('tfidf-logreg', settings=small)


def test_same_seed_same_bytes_other_run_other_model(small):
    a = train('tfidf-random-forest', settings=replace(small,baseline=replace(small.baseline,n_estimators=10)))
    first = a.files['test'].read_bytes()
    b = train('tfidf-random-forest', settings=replace(small,baseline=replace(small.baseline,n_estimators=10)))
    assert b.files['test'].read_bytes()==first


@pytest.mark.parametrize('setting', [dict(activation_checkpointing=True), dict(dataloader_num_workers=1), dict(gradient_accumulation_steps=3), dict(precision='bf16')])
def test_what_saves_memory_or_time_trains(small, setting):
    "Each way trains, and the checkpoint scores as the model in memory did."
    tiny = dict(num_train_epochs=1, optional_negatives=20, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    s = replace(small, input=replace(small.input,max_length=16), models={'minilm':tiny|setting})
    t = train('minilm', settings=s)
    again = Screener.load(t.files['checkpoint']).score(t.test.records)
    for j,l in enumerate(label_names(s)): np.testing.assert_allclose(again[f'{l}_score'], t.test.scores[:,j], atol=1e-6)


def test_focal_loss_trains(small):
    s = replace(small, input=replace(small.input,max_length=16), models={'minilm':dict(num_train_epochs=1,optional_negatives=20,per_device_train_batch_size=16)})
    t = train('minilm', loss='focal', settings=s)
    assert t.files['checkpoint'].name=='best_model_cross_val_focal_minilm_fold-0' and t.files['test'].name.startswith('fold-0_minilm_focal_with_title_run-0')


@pytest.mark.skipif(not os.environ.get('IPBES_REAL_DATA'), reason='needs IPBES_REAL_DATA')
@pytest.mark.parametrize('models', [['tfidf-logreg','tfidf-titles'],pytest.param(['tfidf-logreg','tfidf-titles','tfidf-vectors'],marks=pytest.mark.long)])
def test_real_records_in_short(tmp_path, models):
    "The benchmark on real records, on a small sample of them: figures exist and lie where figures can lie, and the report shows them."
    pytest.importorskip('cleanlab')
    from pathlib import Path
    script = Path(__file__).parents[1]/'benchmarks/quality.py'
    p = subprocess.run([sys.executable,str(script),'--quick','--work',str(tmp_path/'w'),'--results',str(tmp_path/'q.json'),'--n-boot','50','--models',*models],
                       capture_output=True, text=True, timeout=900)
    assert p.returncode==0, p.stdout+p.stderr
    import json
    q = json.loads((tmp_path/'q.json').read_text())
    rows = {(r['model'],r['label']):r for r in q['parts']['all']['table']}
    assert rows[('tfidf-logreg','macro')]['AP']>rows[('tfidf-logreg','macro')]['prevalence'] and {('Ensemble','macro'),*((m,'macro') for m in models)}<=set(rows)
    assert 'abstract' not in (tmp_path/'q.json').read_text().lower() and (tmp_path/'w/benchmark.html').exists()
