"""Test records reach nothing that learns or decides, whichever way a model is made.

Here: a data set whose test cells raise when they are read too early, through trainings, a search, an ensemble and a final model; checkpoints that are the
same to the byte whatever the test rows hold; copies planted across splits; labels that say nothing.

What stands elsewhere is not repeated:

- planted duplicates are one cluster, folds never share one, files that break that are refused by name: nbs/13_folds, test_folds; and found by preprocessing: test_preprocess
- permuted test labels change no threshold or calibration: nbs/20a_thresholds, nbs/22_train, test_training; nor the source-only classifier: test_compare
- a real search over poisoned test rows runs the same trials, and no file of it holds their words: test_hpo
- titles of records are no further titles of a final model, and the labels of a part are not needed to score it: test_final
- tags, notes and collections of a library reach no model: test_preprocess, test_commands
- a first pass is not fitted on the records that it is judged by: test_cascade
- intervals are drawn over clusters of near-duplicates: test_metrics, test_properties
"""
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ipbes_classifier.cascade import make_cascade
from ipbes_classifier.compare import Comparison, with_source_only
from ipbes_classifier.config import label_names, load_config, project_path
from ipbes_classifier.ensemble import METHODS, ensemble
from ipbes_classifier.files import file_hash, read_json
from ipbes_classifier.final import read_final_data, train_final
from ipbes_classifier.folds import SPLITS, fold_file, read_clusters, read_fold, write_folds
from ipbes_classifier.hpo import plan_search, run_trial
from ipbes_classifier.metrics import average_precision
from ipbes_classifier.models import input_texts, make_model
from ipbes_classifier.project import sample_project, split_project
from ipbes_classifier.search_space import trial_settings
from ipbes_classifier.train import read_dataset, train

TEXTS = ['title','abstract','keywords']
MARK = 'zqxunseen'  # a word of the test rows alone
OVERRIDES = ['folds.n_folds=2','folds.test_size=0.3','folds.dev_size=0.3','logging.progress=false','logging.tensorboard=false','input.max_length=16',
             'models={minilm: &one {num_train_epochs: 1, optional_negatives: 8, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}, bert-base-uncased: *one}']
MEMBERS = ['tfidf-logreg','tfidf-svm']


class Leak(BaseException):
    "No `except Exception` on the way may hide it."


class Cell:
    "What a test record holds in a column; whoever reads it while its door is shut has read too early. It cannot be sent to another process either."
    def __init__(self, value, door): self.value,self.door = value,door
    def read(self):
        if not self.door.is_open: raise Leak(f'{self.door.name} of a test record: {self.value!r:.60}')
        self.door.read += 1
        return self.value
    def __str__(self): return str(self.read())
    def __int__(self): return int(self.read())
    def __float__(self): return float(self.read())
    def __bool__(self): return bool(self.read())
    def __len__(self): return len(self.read())
    def __eq__(self, other): return self.read()==other
    def __ne__(self, other): return self.read()!=other
    def __lt__(self, other): return self.read()<other
    def __gt__(self, other): return self.read()>other
    def __add__(self, other): return self.read()+other
    def __radd__(self, other): return other+self.read()
    def __hash__(self): return hash(self.read())
    def __reduce__(self): return type(self.read()),(self.value,)
    __repr__,__index__ = __str__,__int__


class Door:
    "Whether test cells may be read just now, and how often they were."
    def __init__(self, name): self.name,self.is_open,self.read = name,False,0

    @contextmanager
    def opened(self):
        before,self.is_open = self.is_open,True
        try: yield
        finally: self.is_open = before

    def inside(self, f):
        "`f`, with the door open while it runs."
        def open_f(*args, **kwargs):
            with self.opened(): return f(*args, **kwargs)
        return open_f


class Guarded:
    "A data set whose test rows can be read only while a door is open: `texts` or `labels`."
    def __init__(self, data, rows, labels):
        self.texts,self.labels,self.fitted = Door('text'),Door('label'),[]
        self.data = data.astype(dict.fromkeys([*TEXTS,*labels],object))
        for door,columns in ((self.texts,TEXTS),(self.labels,labels)):
            for c in columns:
                values = self.data[c].to_numpy().copy()
                for i in rows: values[i] = Cell(values[i],door)
                self.data[c] = values

    def model(self, make):
        "`make`, of a model that may read test texts when it is asked for scores after it was fitted."
        def made(*args, **kwargs):
            m = make(*args, **kwargs)
            fit,scores = m.fit,m.scores
            def fit_(*a, **k):
                out = fit(*a, **k)
                self.fitted.append(m)
                return out
            def scores_(records):
                if m not in self.fitted: return scores(records)
                with self.texts.opened(): return scores(records)
            m.fit,m.scores = fit_,scores_
            return m
        return made

    def watch(self, monkeypatch, module):
        "Let a module read this data set: test texts when a fitted model is asked for scores, test labels when decisions are compared with them, both to be written down."
        m = import_module(module)
        monkeypatch.setattr(m, 'read_dataset', lambda s: self.data)
        if hasattr(m,'make_model'): monkeypatch.setattr(m, 'make_model', self.model(m.make_model))
        if hasattr(m,'make_split'): monkeypatch.setattr(m, 'make_split', self.labels.inside(m.make_split))
        if hasattr(m,'save_trained'): monkeypatch.setattr(m, 'save_trained', self.texts.inside(self.labels.inside(m.save_trained)))


@pytest.fixture(scope='session')
def sample(tmp_path_factory):
    "The synthetic sample in two folds; a word stands in all texts of the test rows of fold 0 and nowhere else."
    s = sample_project(tmp_path_factory.mktemp('leakage')/'p', n=300, overrides=OVERRIDES)
    data,fold = read_dataset(s),read_fold(project_path(s,s.paths.folds_dir),0)
    for c in TEXTS: data.loc[fold.test,c] = data.loc[fold.test,c]+f' {MARK}'
    write(s, data)
    return s


def write(s, data):
    "Another data set in place of that of a project, with the same folds."
    folder = project_path(s,s.paths.folds_dir)
    folds,clusters = [read_fold(folder,k) for k in range(s.folds.n_folds)],read_clusters(folder)[0]
    data.to_csv(project_path(s,s.paths.dataset), index=False)
    write_folds(folds, folder, clusters, project_path(s,s.paths.dataset))


def copied(s, folder):
    "A project like another, free to be written to."
    shutil.copytree(s.root, folder)
    return load_config(root=folder, env='', overrides=OVERRIDES)


@pytest.fixture
def project(sample, tmp_path): return copied(sample, tmp_path/'p')


def guarded(s, monkeypatch, *modules):
    data,fold = read_dataset(s),read_fold(project_path(s,s.paths.folds_dir),0)
    g = Guarded(data, fold.test, label_names(s))
    for m in modules: g.watch(monkeypatch, m)
    with pytest.raises(Leak): input_texts(g.data.iloc[fold.test[:1]], s.input)
    with pytest.raises(Leak): g.data.iloc[fold.test[:1]][label_names(s)].to_numpy(dtype=np.int8)
    return g,fold


@pytest.fixture(scope='session')
def encoder(tmp_path_factory):
    "An encoder that costs little: a BERT of one narrow layer and random weights. Its tokenizer must not have seen the test records either."
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]/'benchmarks'))
        from encoders import random_encoder
    return str(random_encoder('google-bert/bert-base-uncased', tmp_path_factory.mktemp('encoder'), ['Birds of rivers and what they eat.']*3, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64))


def named(model, request): return request.getfixturevalue('encoder') if model=='encoder' else model


def holding(folder): return [p for p in folder.rglob('*') if p.is_file() and MARK.encode() in p.read_bytes()]


@pytest.mark.parametrize('model', ['tfidf-logreg','tfidf-titles','tfidf-vectors','encoder',pytest.param('minilm',marks=pytest.mark.long)])
def test_a_training_reads_no_test_record_before_it_scores(project, monkeypatch, request, model):
    g,fold = guarded(project, monkeypatch, 'ipbes_classifier.train')
    t = train(named(model,request), settings=project)
    assert len(t.test.y)==len(fold.test) and g.texts.read>=2*len(fold.test) and g.labels.read>=len(fold.test)
    assert t.test.y.sum()>0 and not holding(t.files['checkpoint']), 'scored, measured, and not learnt'


@pytest.mark.parametrize('model,tried', [('tfidf-logreg',[dict(C=.1,min_df=1),dict(C=10.,min_df=2)]), ('encoder',[dict(learning_rate=1e-4)])])
def test_trials_of_a_search_read_no_test_record(project, monkeypatch, request, model, tried):
    model = named(model, request)
    g,fold = guarded(project, monkeypatch, 'ipbes_classifier.hpo')
    with g.texts.opened(): unseen = set(g.data['id'].iloc[fold.test])
    p,reports = plan_search(project, model, 0, 0, 'BCE'),[]
    if p.kind=='baseline': assert not unseen&{i for x in p.data.values() for i in x['id']}
    for values in tried:
        s = trial_settings(project, p.section, model, {(k,):v for k,v in values.items()})
        run_trial(s, model, 'BCE', 0, p.data, p.metric, lambda measures,final: reports.append(measures[p.metric]))
    assert len(reports)==len(tried) and 0<min(reports) and not (g.texts.read or g.labels.read)


def learnt(folder):
    "Hashes of all that a checkpoint has learnt or decided; left out are figures on test, and where it came from."
    hashes = {p.name:file_hash(p) for p in folder.iterdir() if p.name not in ('README.md','provenance.json','predictions.json')}
    return hashes|{'recipe.json':{k:v for k,v in read_json(folder/'recipe.json').items() if k!='versions'}}


@pytest.fixture(scope='session')
def before_and_after(sample, tmp_path_factory):
    "Checkpoints and dev predictions of two members and three ensembles, and the same once the test rows have texts and labels of others."
    module = import_module('ipbes_classifier.ensemble')
    def made(s):
        out = {m:train(m,settings=s) for m in MEMBERS}
        for method in METHODS:
            e = ensemble(MEMBERS, settings=s, method=method)
            out[method] = e,learnt(e.files['checkpoint']),e.files['dev'].read_bytes()
        return {k:v if isinstance(v,tuple) else (v,learnt(v.files['checkpoint']),v.files['dev'].read_bytes()) for k,v in out.items()}
    a,b = (copied(sample,tmp_path_factory.mktemp(n)/'p') for n in 'ab')
    data,rng = read_dataset(b),np.random.default_rng(7)
    rows = read_fold(project_path(b,b.paths.folds_dir),0).test
    for columns in (TEXTS,label_names(b)): data.loc[rows,columns] = data.loc[rng.permutation(rows),columns].to_numpy()
    write(b, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_plateau', partial(module._plateau,n_boot=5))  # of 50
        return made(a),made(b)


@pytest.mark.parametrize('name', [*MEMBERS,*METHODS])
def test_whatever_test_rows_hold_the_checkpoint_is_the_same(before_and_after, name):
    "Weights, vocabulary, thresholds, calibration, those for titles, and what is said of dev: equal to the byte. Figures on test are others."
    (a,files,dev),(b,files_b,dev_b) = (x[name] for x in before_and_after)
    assert {'thresholds.json','calibration.json','thresholds_title.json'}<set(files) and files==files_b and dev==dev_b
    assert (a.test.scores!=b.test.scores).any() and a.measures['AP_macro']!=b.measures['AP_macro']


def test_an_ensemble_reads_no_test_label_before_it_has_decided(project, monkeypatch):
    for m in MEMBERS: train(m, settings=project)
    g,fold = guarded(project, monkeypatch, 'ipbes_classifier.ensemble')
    e = ensemble(MEMBERS, settings=project, method='stacking')
    assert g.labels.read>=len(fold.test)==len(e.test.y) and not holding(e.files['checkpoint'])


def reworded(text):
    "A text with its middle word replaced: a near-duplicate, as of a preprint."
    words = text.split()
    return ' '.join([*words[:len(words)//2],'however',*words[len(words)//2+1:]])


def final_folder(s, folder, n):
    "Records for a final model, without the word of the test rows; the last `n` are reworded copies of `n` records."
    data = read_dataset(s)[['doi','title','abstract',*label_names(s)]]
    data[['title','abstract']] = data[['title','abstract']].apply(lambda x: x.str.replace(f' {MARK}',''))
    copies = data.head(n).assign(doi='', title=lambda d: d.title+' (preprint)', abstract=lambda d: d.abstract.map(reworded))
    folder.mkdir()
    pd.concat([data,copies], ignore_index=True).to_parquet(folder/'corpus.parquet')
    return len(data)


def test_a_final_model_is_judged_by_models_that_had_seen_no_copy(sample, tmp_path, monkeypatch):
    "Each part is scored, and thresholds fitted on that, by models that had neither its records nor reworded copies of them; its own labels are shut away meanwhile."
    n,copies = final_folder(sample, tmp_path/'data', 60),60
    s = replace(sample, folds=replace(sample.folds,n_folds=3))
    known = read_final_data(tmp_path/'data', s).records
    assert len(known)==n+copies
    final,judged = import_module('ipbes_classifier.final'),[]
    real,row = final._score_part,{t:i for i,t in enumerate(known.title)}
    assert len(row)==n+copies

    def watched(s, model, data, part):
        g,seen = Guarded(data.records, part, label_names(s)),[]
        def noted(*args):
            m = g.model(make_model)(*args)
            fit = m.fit
            def fit_(train, dev):
                seen.extend(row[t] for t in map(str,train.title) if t in row)
                return fit(train, dev)
            m.fit = fit_
            return m
        with monkeypatch.context() as patch:
            patch.setattr(final, 'make_model', noted)
            out = real(s, model, replace(data,records=g.data), part)
        assert not g.labels.read and not set(seen)&set(part)
        twins = {i+n for i in part if i<copies}|{i-n for i in part if i>=n}
        assert not set(seen)&twins, f'{len(set(seen)&twins)} copies'
        judged.extend(part)
        return out
    monkeypatch.setattr(final, '_score_part', watched)
    train_final(tmp_path/'data', tmp_path/'m', s, model='tfidf-logreg', say=lambda _: None)
    assert sorted(judged)==list(range(n+copies))


def test_reworded_copies_of_test_records_are_tested_too(project):
    "Another DOI, another title, another word: a copy goes where its original is, in each fold."
    data = read_dataset(project)
    data[TEXTS] = data[TEXTS].apply(lambda x: x.str.replace(f' {MARK}',''))
    some = data.iloc[::10]
    copies = some.assign(id='copy of '+some.id, doi=[f'10.1234/copy.{i}' for i in range(len(some))], title=some.title+' (preprint)', abstract=some.abstract.map(reworded))
    assert (copies.abstract!=some.abstract).all()
    pd.concat([data,copies]).to_csv(project_path(project,project.paths.dataset), index=False)
    for f in split_project(project):
        split = np.concatenate([np.full(len(f.splits[k]),k,dtype=object)[np.argsort(f.splits[k])] for k in SPLITS])[np.argsort(np.concatenate([np.sort(f.splits[k]) for k in SPLITS]))]
        assert (split[len(data):]==split[:len(data):10]).all() and set(split[len(data):])=={*SPLITS}


def move_a_copy(s, split):
    "A data set with a copy of a test record, and fold files that were edited so that the copy stands in another split; rows of both."
    folder = project_path(s,s.paths.folds_dir)
    data,clusters,f = read_dataset(s),read_clusters(folder)[0],read_fold(folder,0)
    row,new = int(f.test[0]),len(data)
    pd.concat([data,data.iloc[[row]].assign(id='copy',doi='')]).to_csv(project_path(s,s.paths.dataset), index=False)
    write_folds([replace(f,test=np.append(f.test,new))], folder, np.append(clusters,clusters[row]), project_path(s,s.paths.dataset))
    pd.DataFrame({'index':f.test}).to_csv(folder/fold_file('test',0,0), index=False)
    pd.DataFrame({'index':np.append(f.splits[split],new)}).to_csv(folder/fold_file(split,0,0), index=False)
    return row,new


READERS = dict(train=lambda s: train('tfidf-logreg',settings=s), search=lambda s: plan_search(s,'tfidf-logreg',0,0,'BCE'),
               ensemble=lambda s: ensemble(MEMBERS,settings=s), cascade=lambda s: make_cascade([trained_folder(s)],settings=s),
               compare=lambda s: with_source_only(Comparison(label_names(s),[(0,0)],{}),s))

def trained_folder(s): return project_path(s,s.paths.final_model_dir)/'best_model_cross_val_logloss_tfidf-logreg_fold-0'


@pytest.fixture(scope='session')
def trained(sample, tmp_path_factory):
    "The project with two trained members."
    s = copied(sample, tmp_path_factory.mktemp('trained')/'p')
    for m in MEMBERS: train(m, settings=s)
    return s


@pytest.fixture(scope='session', params=['train','dev'])
def broken(request, trained, tmp_path_factory):
    "That project after a copy was moved to another split: settings, split, row in test, row of the copy."
    s = copied(trained, tmp_path_factory.mktemp('broken')/'p')
    return s,request.param,*move_a_copy(s, request.param)


def results(s): return {p:p.stat().st_mtime_ns for p in project_path(s,s.paths.results_dir).rglob('*') if p.suffix!='.lock'}


@pytest.mark.parametrize('reader', READERS)
def test_a_copy_across_splits_is_refused_by_all_that_read_folds(broken, monkeypatch, reader):
    "Both rows and both files are named, before anything is fitted or written."
    s,split,row,new = broken
    monkeypatch.setattr(import_module('ipbes_classifier.cascade'), 'fold_of', lambda *_: (0,0))  # made for another data set, as it would say first
    before = results(s)
    with pytest.raises(ValueError, match=rf'{split}0_run-0\.csv and test0_run-0\.csv share 1 clusters .*rows {new} in {split}, {row} in test'): READERS[reader](s)
    assert results(s)==before


def ap_of(y, scores):
    "(...,) average precision of 0/1 labels (..., n) under scores (n,) without ties."
    y = y[...,np.argsort(-scores)]
    return (np.cumsum(y,-1)/np.arange(1,y.shape[-1]+1)*y).sum(-1)/y.sum(-1)


def chance(y, scores, n=999, seed=0):
    "Mean AP over labels, and (n,) what permutations of the records' labels give."
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(len(y)),(n,1)), axis=1)
    return tuple(np.mean([ap_of(x[...,j],scores[:,j]) for j in range(y.shape[1])], axis=0) for x in (y,y[orders]))


def test_labels_that_say_nothing_are_learnt_as_nothing(project, monkeypatch):
    """All labels are shuffled over all records, three times; whatever of the test labels reaches the model shows as more than chance.

    Chance is what permutations of the test labels reach under the same scores: about the prevalence. Between the lowest and the highest half percent of them is no news.
    """
    data,labels,found = read_dataset(project),label_names(project),[]
    for seed in range(3):
        wrong = data.copy()
        wrong[labels] = np.random.default_rng(seed).permutation(data[labels].to_numpy())
        monkeypatch.setattr(import_module('ipbes_classifier.train'), 'read_dataset', lambda s, wrong=wrong: wrong)
        t = train('tfidf-logreg', settings=project)
        found.append((t.measures['AP_macro'],*chance(t.test.y,t.test.scores,seed=seed)))
        assert (t.test.y==wrong[labels].iloc[t.fold.test]).all(axis=None)
    measured,ap,null = (np.mean(x,axis=0) for x in zip(*found))
    p = (1+(null>=ap).sum())/(1+len(null))
    assert .005<p<.995, f'AP {ap:.3f}, {null.mean():.3f} by chance, p {p}'
    assert ap==pytest.approx(measured) and abs(null.mean()-t.test.y.mean())<.05


def test_labels_that_say_something_are_learnt(trained):
    "The same measure tells: no permutation comes near."
    path = project_path(trained,trained.paths.test_preds_dir)/'bert/fold-0_tfidf-logreg_logloss_with_title_run-0_opt_neg-0.csv'
    table,labels = pd.read_csv(path),label_names(trained)
    y,scores = (table[[f'{l}_{x}' for l in labels]].to_numpy() for x in ('label','score'))
    ap,null = chance(y, scores)
    assert ap==pytest.approx(np.mean([average_precision(y[:,j],scores[:,j]) for j in range(len(labels))]))
    assert ap>2*null.max()
