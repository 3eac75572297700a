"A first pass before a model: what it promises, when it promises nothing, and what it refuses."
import json
import pickle
from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from ipbes_classifier.cascade import (Asked, _cross_fitted, _without, allowed_losses, cascade_folder, check_has_test, find_cascade, find_cut, fit_cascade, load_cascade, make_cascade,
                                      measure_cascade, save_cascade, selects)
from ipbes_classifier.config import load_config
from ipbes_classifier.final import train_final
from ipbes_classifier.first_pass import N_FEATURES, Hashed, Quick, hash_words, margins
from ipbes_classifier.models import make_model
from ipbes_classifier.records import write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen import Screener, as_records
from ipbes_classifier.screen_corpus import PUT_ASIDE, screen

TOPICS = dict(A='alien invasive weed pest introduced spread'.split(), B='value wellbeing culture payment trust belief'.split(), C='dust star orbit lens'.split())
COMMON = [f'word{i}' for i in range(150)]


def papers(n, seed):
    "Made-up records: a sixth on A, a sixth on B, the rest on neither."
    rng = np.random.default_rng(seed)
    topics = rng.choice(list('ABCCCC'), n)
    text = [' '.join([*rng.choice(TOPICS[t],5),*rng.choice(COMMON,15)]) for t in topics]
    return pd.DataFrame(dict(id=[f'{seed}.{i}' for i in range(n)], title=[f'On {t.split()[0]}' for t in text], abstract=text, A=(topics=='A').astype(int), B=(topics=='B').astype(int)))


def train(folder, labels='AB', seed=1):
    "A linear checkpoint on made-up records."
    s = load_config(env='', overrides=[f'labels=[{",".join("{name: "+l+"}" for l in labels)}]'])
    folder.mkdir(parents=True, exist_ok=True)
    make_model('tfidf-logreg', s).fit(papers(300,seed)).save(folder)
    write_decisions(folder, dict.fromkeys(labels,.5), {})
    return folder


@pytest.fixture(scope='module')
def model(tmp_path_factory): return train(tmp_path_factory.mktemp('model')/'toy')


@pytest.fixture(scope='module')
def screener(model): return Screener.load(model)


@pytest.fixture(scope='module')
def cascade(screener): return fit_cascade(screener, papers(400,2), papers(1500,3))


def test_too_few_selected_records_read_everything(screener):
    few = fit_cascade(screener, papers(400,2), papers(200,3))
    assert few.cut.value is None and few.cut.n<299 and few.cut.read==1
    assert str(few.cut).startswith(f'everything is read: {few.cut.n} selected records are too few')
    assert few.keep(as_records(papers(50,4))).all()


def test_no_dev_record_has_an_abstract(screener):
    none = fit_cascade(screener, papers(100,2), papers(50,3).assign(abstract=''))
    assert none.cut.value is None and none.cut.n==0


def test_unlabelled_records_make_up_for_a_small_dev(screener):
    more = fit_cascade(screener, papers(400,2), papers(200,3), papers(1500,5)[['id','title','abstract']])
    assert more.cut.n==selects(screener,papers(200,3)).sum()+selects(screener,papers(1500,5)).sum()>=299
    new = as_records(papers(2000,6))
    assert more.keep(new).mean()<.6 and more.keep(new)[selects(screener,new)].mean()>=.99


def test_no_unlabelled_record_is_scored_by_a_first_pass_that_knew_it():
    "A word of one record alone, with an extreme margin, must not show in its own score."
    def ask(n,margin): return Asked(hash_words(pd.DataFrame(dict(title=[f'only{i}' for i in range(n)], abstract=['same words']*n))), margin[:,None], margin>0)
    learn,other = ask(40,np.full(40,-4.)),ask(10,np.full(10,-4.))
    odd = replace(other, margin=np.where(np.arange(10)==3,2.,-4.)[:,None])
    assert _cross_fitted(Hashed,learn,odd)[3]==pytest.approx(_cross_fitted(Hashed,learn,other)[3], abs=1e-4)
    assert not np.allclose(_cross_fitted(Hashed,learn,odd), _cross_fitted(Hashed,learn,other), atol=1e-3)


@pytest.mark.parametrize('n,share', [(299,.99),(700,.99),(400,.95)])
def test_promise_holds_over_repeated_draws(n, share):
    "The share below the cut, looked up in the distribution of which the selected records are a sample."
    rng = np.random.default_rng(n)
    lost = np.array([norm.cdf(find_cut(rng.normal(size=n),np.ones(n,bool),share).value) for _ in range(2000)])
    held = np.mean(lost<=1-share)
    assert .935<held
    unbounded = np.array([norm.cdf(np.quantile(rng.normal(size=n),1-share)) for _ in range(500)])
    assert np.mean(unbounded<=1-share)<.8 # a plain quantile promises nothing of the kind


def test_promise_of_cross_fitted_scores_holds_over_repeated_draws(screener):
    "First passes of fresh train, dev and unlabelled records, each measured on the same 6,000 others."
    new = as_records(papers(6000,7))
    wanted = selects(screener,new)
    kept = []
    for k in range(12):
        made = fit_cascade(screener, papers(60,100+k), papers(300,200+k), papers(700,300+k), share=.97)
        assert made.cut.value is not None
        kept.append(made.keep(new)[wanted].mean())
    assert np.sum(np.array(kept)<.97)<=2 # of 12 at 95 %, more than 2 in 2 % of cases


@pytest.mark.parametrize('share,confidence', [(0,.95),(1,.95),(.99,0),(.99,1.5)])
def test_shares_out_of_range(screener, share, confidence):
    with pytest.raises(ValueError, match='should lie between 0 and 1'): fit_cascade(screener, papers(9,2), papers(9,3), None, share, confidence)


def test_more_is_promised_only_of_more_records():
    assert [allowed_losses(n) for n in (0,298,299,1000)]==[None,None,0,4]
    assert allowed_losses(299,confidence=.99) is None


def test_loss_is_counted_per_label(screener, cascade):
    data = papers(1500,8)
    table = measure_cascade(cascade, screener, data).set_index('label')
    scored,kept = screener.score(data),cascade.keep(as_records(data))
    for l in 'AB':
        wanted = (scored[f'{l}_pred']==1).to_numpy()
        assert table.loc[l,'selected']==wanted.sum()>0 and table.loc[l,'lost']==(wanted&~kept).sum()
        assert table.loc[l,'relevant_selected']==(wanted&(data[l]==1)).sum()
    none = measure_cascade(replace(cascade,cut=replace(cascade.cut,value=1e9)), screener, data).set_index('label')
    assert none.loc['any','lost']==none.loc['any','selected'] and none.attrs['read']==0


def test_without_abstract_the_model_decides(cascade):
    assert cascade.keep(as_records([dict(title='On dust',abstract=''),dict(title='',abstract='')])).all()


@pytest.mark.parametrize('damage,words', [
    (lambda d: (d/'weights.npz').write_bytes((d/'weights.npz').read_bytes()[:-5]), 'is damaged'),
    (lambda d: (d/'weights.npz').unlink(), 'is damaged'),
    (lambda d: (d/'cascade.json').write_text('{'), 'cascade.json'),
    (lambda d: (d/'cascade.json').write_text(json.dumps(json.loads((d/'cascade.json').read_text())|dict(model='other@1'))), 'imitates other@1'),
    (lambda d: (d/'cascade.json').write_text(json.dumps(json.loads((d/'cascade.json').read_text())|dict(n_features=N_FEATURES//2))), 'hashes words to'),
])
def test_damaged_or_foreign(tmp_path, cascade, damage, words):
    folder = save_cascade(cascade, tmp_path/'c')
    assert load_cascade(folder,cascade.model).version==cascade.version
    damage(folder)
    with pytest.raises(ValueError, match=words): load_cascade(folder, cascade.model)


def test_weights_of_another_cascade_are_refused(tmp_path, screener, cascade):
    other = save_cascade(fit_cascade(screener,papers(300,9),papers(1500,3)), tmp_path/'other')
    mine = save_cascade(cascade, tmp_path/'mine')
    (mine/'weights.npz').write_bytes((other/'weights.npz').read_bytes())
    with pytest.raises(ValueError, match='not of this'): load_cascade(mine)


def test_after_training_again_or_with_other_labels_it_is_not_used(tmp_path):
    checkpoint = train(tmp_path/'m')
    first = Screener.load(checkpoint)
    save_cascade(fit_cascade(first,papers(400,2),papers(1500,3)), cascade_folder(checkpoint,first.version))
    assert find_cascade([checkpoint]) is not None
    train(checkpoint, seed=11)
    assert find_cascade([checkpoint]) is None
    assert find_cascade([train(tmp_path/'only_a','A')]) is None


def test_screen_leaves_scores_empty_and_counts_them(tmp_path):
    checkpoint = train(tmp_path/'m')
    s = Screener.load(checkpoint)
    made = fit_cascade(s, papers(400,2), papers(1500,3))
    save_cascade(made, cascade_folder(checkpoint,s.version))
    lake,read = tmp_path/'lake.csv',made.keep(as_records(papers(300,12)))
    write_records([papers(300,12)[['id','title','abstract']]], lake)
    found,every = screen([lake],[checkpoint],tmp_path/'out'),screen([lake],[checkpoint],tmp_path/'all',first_pass=False)
    rows,whole = (pd.concat([pd.read_parquet(p) for p in sorted((tmp_path/d/'scores').rglob('*.parquet'))]) for d in ('out','all'))
    assert found.notes[PUT_ASIDE]==(~read).sum()>0 and PUT_ASIDE not in every.notes
    aside = (rows['note']==PUT_ASIDE).to_numpy()
    assert (aside==~read).all() and rows.loc[aside,['A_score','B_score']].isna().all(axis=None) and not whole[['A_score','B_score']].isna().any(axis=None)
    pd.testing.assert_frame_equal(rows[~aside][['A_score','B_score']].reset_index(drop=True), whole[~aside][['A_score','B_score']].reset_index(drop=True))


# what a model knows itself

VECTORS = ['labels=[{name: A},{name: B}]','folds.n_folds=2','baseline={min_df: 1, vector_tokens: 16, nearest: 3}','thresholds.method=f1']


@pytest.fixture(scope='module')
def final(tmp_path_factory):
    "A model that was fitted on all records and asks an encoder."
    folder = tmp_path_factory.mktemp('final')
    papers(240,1).to_csv(folder/'corpus.csv', index=False)
    return train_final(folder, folder/'model', load_config(env='',overrides=VECTORS), 'tfidf-vectors', say=lambda _: None).path


def test_a_model_that_sums_up_is_asked_what_it_knows(final, tmp_path):
    papers(1200,21)[['id','title','abstract']].to_csv(tmp_path/'sample.csv', index=False)
    s = load_config(env='',overrides=VECTORS)
    place,made,screener = make_cascade([final], tmp_path/'sample.csv', share=.97, settings=s)
    new = as_records(papers(600,22))
    wanted,kept = selects(screener,new),made.keep(new)
    assert isinstance(made.first,Quick) and made.cut.value is not None and made.n==dict(train=0,unlabelled=1200,dev=0)
    assert kept[wanted].mean()>=.96 and kept.mean()<.6
    again = load_cascade(place, screener.version, screener)
    assert again.version==made.version and (again.keep(new)==kept).all()
    with pytest.raises(ValueError, match='asks its model'): load_cascade(place).keep(new)
    assert len(pickle.dumps(made))<20_000, 'the model does not travel with it'
    assert (copy(made).before(screener).keep(new)==kept).all()
    write_records([papers(100,23)[['id','title','abstract']]], tmp_path/'lake.csv')
    found = screen([tmp_path/'lake.csv'], [final], tmp_path/'out')
    assert found.notes[PUT_ASIDE]==(~made.keep(as_records(papers(100,23)))).sum()>0


def test_a_model_fitted_on_all_records_needs_others(final, tmp_path):
    s = load_config(env='',overrides=VECTORS)
    with pytest.raises(ValueError, match='none is left to set a cut on; name records that it has not seen: --unlabelled'): make_cascade([final], settings=s)
    with pytest.raises(ValueError, match='was fitted on these very records'): make_cascade([final], final.parent/'corpus.csv', settings=s)
    with pytest.raises(ValueError, match='there is no test part'): check_has_test([final])


def test_dev_and_unlabelled_records_set_the_cut_together(final):
    "Of each record its own score and its own decision."
    s = Screener.load(final)
    dev,more = papers(200,31),papers(300,32)
    made = fit_cascade(s, None, dev, more, share=.9)
    every = as_records(pd.concat([dev,more]))
    x,wanted = made.ask(every),selects(s,every)
    known = _cross_fitted(Quick, None, Asked(x, margins(s.score(every),s.thresholds[0]), wanted))
    assert made.cut.n==wanted.sum() and made.cut.lost==(known[wanted]<np.float32(made.cut.value)).sum()==allowed_losses(int(wanted.sum()),.9)


def test_promise_of_what_a_model_knows_holds_over_repeated_draws():
    "Lines through few records with uneven noise, cut as a first pass is; the share lost is looked up in 50,000 others."
    rng = np.random.default_rng(5)
    def draw(n):
        x = rng.normal(size=(n,2))*[2,1]-1
        margin = x*[1,.5]+rng.standard_t(4,size=x.shape)*[.3,.6]*(1+(x>0))
        return Asked(x, margin, (margin>0).any(1))
    new,kept = draw(50_000),[]
    for _ in range(200):
        a = draw(600)
        cut = find_cut(_cross_fitted(Quick,None,a), a.selected, .95)
        kept.append((Quick.fit(a.x,a.margin).scores(new.x)[new.selected]>=np.float32(cut.value)).mean())
    assert np.mean(np.array(kept)>=.95)>=.9 # 95 % promised; fewer than 180 of 200 have a chance of 0.2 %


def test_a_first_pass_of_another_kind_of_model_is_refused(screener, cascade, tmp_path):
    place = save_cascade(cascade, tmp_path/'c')
    path = place/'cascade.json'
    with np.load(place/'weights.npz') as z: assert set(z.files)=={'weights','bias','idf'}
    first = Quick(*np.ones((3,2),np.float32))
    save_cascade(replace(cascade,first=first), place)
    with pytest.raises(ValueError, match='which .* does not tell; run `ipbes cascade` again'): load_cascade(place, screener.version, screener)
    path.write_text(path.read_text().replace('"quick"','"slow"'))
    with pytest.raises(ValueError, match='was made by another version; run `ipbes cascade` again'): load_cascade(place)


def test_records_of_the_data_set_are_left_out_of_the_unlabelled():
    "The model has learnt from them, dev would count twice, and test could measure nothing any more."
    def named(df, word): return df.assign(title=[f'{word} {i} {t}' for i,t in enumerate(df.title)], doi='')
    s,said,known = load_config(env=''),[],named(papers(60,1),'known')
    fresh = named(papers(40,2),'fresh')
    seen = known.iloc[:7].assign(id='x', title=lambda d: [t.upper() for t in d.title], abstract='', doi='')
    known.loc[known.index[7:9],'abstract'] = [' '.join(f'term{i}of{k}' for k in range(100)) for i in (7,8)]
    nearly = known.iloc[7:9].assign(title=['another 1','another 2'], abstract=lambda d: [f'{a} and more' for a in d.abstract])
    left = _without(pd.concat([seen,fresh,nearly], ignore_index=True), known, 'sample.csv', s, said.append)
    assert left.title.tolist()==fresh.title.tolist() and said==['sample.csv: 9 of 49 records are in the data set already and were left out']
    assert _without(fresh, known, 'sample.csv', s, said.append).equals(fresh) and len(said)==1
    with pytest.raises(ValueError, match='sample.csv: all 7 records are in the data set that the model was trained and tested on'): _without(seen, known, 'sample.csv', s, said.append)
    assert _without(seen, None, 'sample.csv', s, said.append) is seen, 'a model of all records has no data set here'
