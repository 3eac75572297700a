"What a page cannot show of a final model: commands in an empty folder, an interruption, equal bytes, labels and titles that must not leak, exact explanations."
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from ipbes_classifier.config import load_config
from ipbes_classifier.explain import explain
from ipbes_classifier.files import file_hash, read_json
from ipbes_classifier.final import _learnable, _score_part, final_parts, read_final_data, train_final
from ipbes_classifier.models import load_model, make_model
from ipbes_classifier.screen import Screener
from ipbes_classifier.thresholds import apply_thresholds, calibrate
from ipbes_classifier.train import decide

WORDS = dict(OAK='acorn bark beetle canopy gall'.split(), EEL='river tide migration fishery weir'.split())
PLAIN = 'study method result area year sample model data survey test field analysis effect value number'.split()


def paper(rng, topic, abstract=True, words=WORDS):
    def text(n): return ' '.join(rng.choice([*PLAIN,*words.get(topic,[])*(3 if words is WORDS else 1)], n))
    return dict(title=f'{text(6)} {rng.integers(10**6)}', abstract=text(40) if abstract else '', OAK=int(topic=='OAK'), EEL=int(topic=='EEL'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Records and titles with two labels, and nothing else."
    rng,folder = np.random.default_rng(3),tmp_path_factory.mktemp('final')
    records = pd.DataFrame([paper(rng,t) for t in ['OAK']*15+['EEL']*15+['']*120])
    titles = pd.DataFrame([paper(rng,t,False) for t in ['OAK']*20+['EEL']*20]).drop(columns='abstract')
    records.to_parquet(folder/'corpus.parquet')
    pd.concat([titles,records.drop(columns='abstract').iloc[:3]]).to_parquet(folder/'gold_titles.parquet')
    return folder


@pytest.fixture(scope='module')
def settings():
    return load_config(env='', overrides=['labels=[{name: OAK},{name: EEL}]','folds.n_folds=3'])


@pytest.fixture(scope='module')
def made(folder, settings):
    return train_final(folder, folder/'model', settings, say=lambda _: None)


def test_commands_in_an_empty_folder(folder, tmp_path):
    labels,env = 'labels=[{name: OAK},{name: EEL}]',os.environ|dict(OMP_NUM_THREADS='1')
    def ipbes(*args):
        return subprocess.run([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*args],
                              cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    done = ipbes('train-final','--data',str(folder),'-o','m',labels,'folds.n_folds=2')
    assert done.returncode==0, done.stderr
    assert '3 titles are those of records' in done.stdout and 'part 2 of 2' in done.stdout
    pd.DataFrame(dict(title=['Acorn and gall of the canopy','Eel'],abstract=['Bark beetle and acorn. '*5,''])).to_csv(tmp_path/'new.csv', index=False)
    scored = ipbes('predict','new.csv','-m','m','-o','scored.csv')
    assert scored.returncode==0, scored.stderr
    table = pd.read_csv(tmp_path/'scored.csv')
    assert table.OAK_pred[0]==1 and table.note[1]=='no abstract' and table.OAK_score.between(0,1).all()


def test_same_work_same_bytes(folder, settings, made, tmp_path):
    again = train_final(folder, tmp_path/'model', settings, say=lambda _: None)
    names = sorted(p.name for p in made.path.iterdir() if p.name!='provenance.json')
    assert names==sorted(p.name for p in again.path.iterdir() if p.name!='provenance.json')
    for n in names: assert file_hash(made.path/n)==file_hash(again.path/n), n


def test_goes_on_after_an_interruption(folder, settings, made, tmp_path, monkeypatch):
    import ipbes_classifier.final as final
    real,parts = final._score_part,[]
    def stop_at_second(*args):
        if len(parts)==1: raise KeyboardInterrupt
        parts.append(args[-1])
        return real(*args)
    monkeypatch.setattr(final, '_score_part', stop_at_second)
    with pytest.raises(KeyboardInterrupt): train_final(folder, tmp_path/'m', settings, say=lambda _: None)
    assert not (tmp_path/'m').exists()
    rest = []
    monkeypatch.setattr(final, '_score_part', lambda *args: rest.append(args[-1]) or real(*args))
    again = train_final(folder, tmp_path/'m', settings, say=lambda _: None)
    assert len(rest)==2 and not any(np.array_equal(parts[0],r) for r in rest)
    assert (again.dev.scores==made.dev.scores).all()


def test_a_part_is_scored_without_its_labels(folder, settings):
    data = read_final_data(folder, settings)
    part = final_parts(data, settings)[0]
    before = _score_part(settings, 'tfidf-titles', data, part)
    data.records.loc[part,['OAK','EEL']] = 1-data.records.loc[part,['OAK','EEL']]
    after = _score_part(settings, 'tfidf-titles', data, part)
    for k in ('whole','title'): assert (before[k]==after[k]).all()


def test_titles_of_records_are_left_out(folder, settings):
    data = read_final_data(folder, settings)
    assert data.dropped==3 and len(data.titles)==40
    assert not set(data.titles.title)&set(data.records.title)


def test_titles_help_where_abstracts_are_few(settings):
    from sklearn.metrics import average_precision_score as ap
    rng,other = np.random.default_rng(5),[f'other{i}' for i in range(300)]
    many = {t:[f'{t.lower()}{i}' for i in range(60)]+other for t in WORDS}|{'':other}
    def papers(n, n_plain, abstract=True): return [paper(rng,t,abstract,many) for t in ['OAK']*n+['EEL']*n+['']*n_plain]
    train,test = pd.DataFrame(papers(2,100)+papers(60,0,False)),pd.DataFrame(papers(20,200))
    s = load_config(env='', overrides=['labels=[{name: OAK},{name: EEL}]','baseline.min_df=1'])
    plain = make_model('tfidf-logreg', s).fit(train[train.abstract!=''])
    titles = make_model('tfidf-titles', s).fit(train)
    y = test[['OAK','EEL']]
    assert ap(y,titles.scores(test),average='macro')>ap(y,plain.scores(test),average='macro')


def test_without_titles(folder, settings, tmp_path):
    pd.read_parquet(folder/'corpus.parquet').to_csv(tmp_path/'corpus.csv', index=False)
    final = train_final(tmp_path, tmp_path/'m', settings, say=lambda _: None)
    assert not len(final.data.titles) and 'titles without abstract' not in (tmp_path/'m/README.md').read_text()


def test_words_are_explained_exactly(folder, settings, tmp_path):
    records = pd.read_parquet(folder/'corpus.parquet').iloc[[0,20,60]]
    path = train_final(folder, tmp_path/'model', settings, 'tfidf-titles', say=lambda _: None).path
    model = Screener.load(path)
    for label in ('OAK','EEL'):
        found = explain(model, records, label)
        scores = load_model(path).scores(records.assign(keywords=''))[:,['OAK','EEL'].index(label)]
        assert {e.method for e in found}=={'exact'}
        assert np.ptp([e.rest for e in found])<1e-6  # the constant of the model, whatever the words
        assert np.allclose([e.words.contribution.sum()+e.rest for e in found], logit(scores), atol=1e-6)


def test_a_model_with_vectors_is_explained_by_leaving_words_out(made, folder):
    "Its log-odds are no sum over words, so that none of its explanations may claim to be exact."
    record = pd.read_parquet(folder/'corpus.parquet').iloc[[0]]
    found = explain(Screener.load(made.path), record, 'OAK', most=40)[0]
    assert found.method=='occlusion' and found.words.contribution.abs().max()>0
    with pytest.raises(ValueError, match='tfidf-vectors is no linear model'): explain(Screener.load(made.path), record, 'OAK', 'exact')


def test_a_label_that_is_no_column(folder, tmp_path):
    s = load_config(env='', overrides=['labels=[{name: ASH}]'])
    with pytest.raises(ValueError, match="corpus.parquet: no column 'ASH'"): train_final(folder, tmp_path/'m', s)
    assert not (tmp_path/'m').exists()


def test_all_of_it_is_learnt(folder, settings, made, tmp_path):
    data = read_final_data(folder, settings)
    titles = train_final(folder, tmp_path/'titles', settings, 'tfidf-titles', say=lambda _: None)
    alone = make_model('tfidf-titles', settings).fit(_learnable(data))
    assert (alone.scores(data.records)==load_model(titles.path).scores(data.records)).all()
    alone = make_model('tfidf-vectors', settings).fit(_learnable(data))
    assert np.allclose(alone.scores(data.records), load_model(made.path).scores(data.records), atol=1e-5)  # vectors of other batches differ in their last digits


def test_all_files_of_it_belong_to_a_checkpoint(made):
    "So that `ipbes push` takes them, and a download from the hub is complete."
    from ipbes_classifier.hub import checkpoint_files
    assert set(checkpoint_files(made.path))=={p.name for p in made.path.iterdir()}


def test_known_vectors_change_no_version(folder, settings, made, tmp_path):
    "A tokenizer keeps how its last texts were cut; one that was never asked must be written the same."
    from ipbes_classifier.models import model_version
    from ipbes_classifier.vectors import kept_vectors
    data,versions = _learnable(read_final_data(folder,settings)),[]
    with kept_vectors(tmp_path/'vectors'):
        for name in ('first','second'):
            (tmp_path/name).mkdir()
            make_model('tfidf-vectors',settings).fit(data).save(tmp_path/name)
            versions.append(model_version(tmp_path/name))
    assert versions[0]==versions[1]


def test_a_label_of_as_many_papers_as_parts_is_enough(folder, settings):
    "No dev is dealt, which would want one more."
    data = read_final_data(folder, settings)
    rare = np.flatnonzero(data.records.OAK)[3:]
    data.records.loc[rare,'OAK'] = 0
    assert [int(data.records.OAK.iloc[p].sum()) for p in final_parts(data, settings)]==[1,1,1]


def test_near_duplicates_are_as_near_as_the_settings_say(folder, settings, tmp_path):
    records = pd.read_parquet(folder/'corpus.parquet')
    words = records.abstract[0].split()
    records.loc[1,['title','abstract']] = [records.title[0]+' again',' '.join(['other',*words[1:16],'changed',*words[17:]])]
    records.to_parquet(tmp_path/'corpus.parquet')
    strict,wide = (read_final_data(tmp_path, load_config(env='', overrides=['labels=[{name: OAK},{name: EEL}]',f'folds.near_duplicate={t}'])).clusters for t in (.95,.5))
    assert strict[0]!=strict[1] and wide[0]==wide[1]


def test_provenance_says_how_frequent_labels_were_where_probabilities_were_fitted(folder, made):
    from ipbes_classifier.hub import public_provenance
    from ipbes_classifier.screen_report import dev_prevalence
    y = pd.read_parquet(folder/'corpus.parquet')[['OAK','EEL']].mean()
    assert dev_prevalence([made.path],['OAK','EEL'])==pytest.approx(y.to_dict())
    assert public_provenance(read_json(made.path/'provenance.json'))['dev_prevalence']==pytest.approx(y.to_dict())


def test_no_part_has_a_say_in_how_it_is_decided(folder, settings, made):
    "Measures are of thresholds and calibration of the other parts."
    data,labels = read_final_data(folder, settings),['OAK','EEL']
    for part in final_parts(data, settings):
        rest = np.setdiff1d(np.arange(len(data.records)),part)
        thresholds,calibrations = decide(settings, made.dev.y[rest], made.dev.scores[rest])
        assert (made.dev.preds[part]==apply_thresholds(made.dev.scores[part],thresholds,labels)).all()
        assert (made.dev.probs[part]==calibrate(made.dev.scores[part],calibrations,labels)).all()
    assert made.measures['brier_macro']==pytest.approx(((made.dev.probs-made.dev.y)**2).mean())


def test_a_model_of_another_recipe_is_not_replaced(tmp_path):
    from ipbes_classifier.files import write_json
    from ipbes_classifier.final import _check_final
    write_json(tmp_path/'recipe.json', dict(name='tfidf-vectors'))
    with pytest.raises(ValueError, match='holds tfidf-vectors, which tfidf-titles would replace'): _check_final('tfidf-titles', tmp_path)
    with pytest.raises(ValueError, match='did you mean tfidf-titles?'): _check_final('tfidf-title', tmp_path)
    assert _check_final('tfidf-vectors', tmp_path)=='tfidf-vectors'
