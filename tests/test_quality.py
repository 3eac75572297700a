"The benchmark of quality: its figures are those of the package, and no model sees what it is measured on."
import numpy as np
import pandas as pd
import pytest

from ipbes_classifier.compare import MEASURES, _label_draws
from ipbes_classifier.config import Settings, label_names, load_config
from ipbes_classifier.final import FinalData, _without_known, read_final_data
from ipbes_classifier.metrics import average_precision, calibration_error, precision_at_prevalence, share_to_read, tnr_at, work_saved
from ipbes_classifier.records import normalise_title

CUT = 2010 # the year from which the time split tests


@pytest.fixture(scope='module')
def scripts(root):
    "The two modules of benchmarks/."
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(str(root/'benchmarks'))
        import measures
        import quality
        yield quality,measures


def rows(n, seed=0):
    "Made-up records: each label has words of its own; some have no year, some look suspect, some come from one export."
    rng,labels = np.random.default_rng(seed),label_names(load_config(env=''))
    y = (rng.random((n,len(labels)))<.25).astype(np.int8)
    common = [f'word{i}' for i in range(80)]
    def text(r, k): return ' '.join([*rng.choice(common,k),*[f'{l.lower()}{i}' for l,v in zip(labels,r) if v for i in rng.integers(0,6,2)]])
    year = pd.array(rng.integers(1990,2024,n), dtype='Int16')
    year[::9] = pd.NA
    none = y.sum(1)==0
    df = pd.DataFrame(dict(id=[f'{seed}-{i}' for i in range(n)], doi='', title=[text(r,6) for r in y], abstract=[text(r,30) for r in y], year=year, keywords='', language='',
                           source=['one/'+'GabrielNakamura/Decolonizing_expertise' if i%3==0 else 'other' for i in range(n)], notes='', suspect=[labels[0] if v and i%5==0 else '' for i,v in enumerate(none)]))
    return df.assign(**dict(zip(labels,y.T)))


@pytest.fixture
def bench(scripts, tmp_path, root):
    "A benchmark of 300 made-up records, of which one is an older paper once more, and 40 titles, of which one is a record's."
    records,titles = rows(300),rows(40,1).assign(abstract='')
    first,again = np.flatnonzero((records.year<CUT).fillna(False))[0],np.flatnonzero((records.year>=CUT).fillna(False))[0]
    records.loc[again,['title','abstract']] = records.loc[first,['title','abstract']].to_numpy()
    titles.loc[0,'title'] = records.title[5]
    new,clusters = _without_known(records, titles, Settings())
    s = load_config(root=root, overrides=['folds.n_folds=5','folds.test_size=0.2','ensemble.method=mean','logging.progress=false'], env='')
    return scripts[0].Bench(s, FinalData(records,new,clusters,len(titles)-len(new),[]), scripts[0].Steps(tmp_path/'w'), ['tfidf-logreg','tfidf-titles'], CUT)


@pytest.mark.parametrize('seed', range(5))
def test_weights_give_the_measures_of_repeated_records(scripts, seed):
    "Each figure of a draw is that of the package for the records that were drawn, as often as they were, and that of its leaderboard."
    m,rng = scripts[1],np.random.default_rng(seed)
    y,s,p = (rng.random(60)<.3).astype(np.int8),rng.integers(0,9,60)/8,rng.random(60)
    pred,wide,w = (s>.6).astype(np.int8),(s>.2).astype(np.int8),rng.integers(0,3,(2,60)).astype(np.int32)
    found = dict(zip(m.ALL, m.label_draws(y,s,pred,wide,p,w)))
    package = _label_draws(y,s,pred,w)
    for k,v in zip(MEASURES,package): np.testing.assert_allclose(found[k], v, rtol=1e-12)
    for i in range(2):
        a,b,q,d,v = (np.repeat(x,w[i]) for x in (y,s,p,pred,wide))
        want = dict(AP=average_precision(a,b), WSS95=work_saved(a,b), TNR95=tnr_at(a,b), read95=share_to_read(a,b), read99=share_to_read(a,b,.99), brier=((q-a)**2).mean(), ECE=calibration_error(a,q),
                    recall95=a[v==1].sum()/a.sum(), selected95=v.mean())|{f'precision_at_{x:g}':precision_at_prevalence(a,d,x) for x in m.PREVALENCES}
        assert {k:found[k][i] for k in want}==pytest.approx(want)


def test_each_record_is_tested_once_and_never_learnt_from(bench):
    f = bench.folds
    assert sorted(np.concatenate([x.test for x in f]).tolist())==list(range(300))
    for x in f: assert not set(x.train)&set(x.test) and not set(x.dev)&set(x.test) and not set(x.train)&set(x.dev)


def test_the_past_tells_the_future(bench):
    "Train and dev are older, test is not; a later copy of an older record, and records and titles without a year, are in none."
    f,year = bench.time_fold,bench.years
    assert year[np.r_[f.train,f.dev]].max()<CUT<=year[f.test].min() and not np.isnan(year[np.r_[f.train,f.dev,f.test]]).any()
    assert len(f.test)==(year>=CUT).sum()-1 and not np.isin(bench.data.clusters[f.test],bench.data.clusters[np.r_[f.train,f.dev]]).any()
    old = bench.titles(CUT)
    assert 0<len(old)<len(bench.titles()) and (old.year<CUT).all()


def test_only_titles_of_no_record_are_learnt_from_and_by_one_model(scripts, bench, monkeypatch):
    "What reaches `fit`, seen by a stand-in."
    assert bench.data.dropped==1 and bench.data.records.title[5] not in set(bench.titles().title)
    seen,real = {},scripts[0].make_model
    def spy(name, s):
        model = real(name, s)
        fit = model.fit
        model.fit = lambda train,dev,**more: (seen.update({name:train}),fit(train,dev,**more))[1]
        return model
    monkeypatch.setattr(scripts[0], 'make_model', spy)
    f,t = bench.folds[0],bench.time_fold
    for m in bench.models: bench.scores(m,'fold-0',f)
    learnt = [set(seen[m].id) for m in bench.models]
    assert learnt[0]==set(bench.ids[f.train]) and learnt[1]-learnt[0]==set(bench.titles().id)
    bench.scores('tfidf-titles','time',t)
    assert set(seen['tfidf-titles'].id)==set(bench.ids[t.train])|set(bench.titles(CUT).id)


def test_thresholds_and_probabilities_come_from_dev(bench):
    "Other labels on test change none of what is decided."
    f = bench.folds[0]
    before = bench.tested('tfidf-logreg','fold-0',f)
    bench.y[f.test] = 1-bench.y[f.test]
    after = bench.tested('tfidf-logreg','fold-0',f)
    assert (before.y!=after.y).all()
    for k in ('scores','preds','wide','probs'): np.testing.assert_array_equal(getattr(before,k), getattr(after,k))


def test_the_benchmark_measures_all_that_it_names(scripts, bench, tmp_path):
    "Every part, model and label, with counts that fit; a second call does no step again."
    pytest.importorskip('cleanlab')
    found = scripts[0].measure(bench, 20, tmp_path)
    assert set(found['parts'])=={'all','without_suspects','one_export','without_flagged','time_records','time'}
    tables = {k:pd.DataFrame(v['table']) for k,v in found['parts'].items()}
    for t in tables.values():
        assert {(m,l) for m,l in zip(t.model,t.label)}=={(m,l) for m in ('Ensemble','tfidf-logreg','tfidf-titles','source only') for l in (*bench.labels,'macro')}
        for m in scripts[1].ALL:
            given = t[t[f'{m}_low'].notna()]
            assert t[m].between(0 if m!='WSS95' else -1,1).all() and (given[f'{m}_low']<=given[m]).all() and (given[m]<=given[f'{m}_high']).all(), m
        assert t.AP_low.notna().any()
    n = {k:t.n[0] for k,t in tables.items()}
    none = bench.y.sum(1)==0
    suspects = (bench.data.records.suspect!='').to_numpy()&none
    assert n['all']==300 and n['without_suspects']==300-suspects.sum() and n['one_export']==100 and n['time']==n['time_records']==len(bench.time_fold.test)
    assert n['without_flagged']==300-found['doubts']['any']['flagged']
    assert tables['all'].set_index(['model','label']).loc[('tfidf-logreg',bench.labels[0])].positives==bench.y[:,0].sum()
    judge = pd.read_csv(tmp_path/'negatives_to_judge.csv')
    y = bench.data.records.set_index('id')[bench.labels]
    assert (judge.groupby('label').probability.diff().dropna()<=0).all() and judge.judged.isna().all()
    assert all(y.loc[i,l]==0 for i,l in zip(judge.id,judge.label)) and judge.groupby('label').size().between(1,200).all()
    def again(): raise AssertionError('a step was done again')
    assert bench.steps.do('scores/fold-0/tfidf-logreg', again)


def test_planted_false_negatives_are_flagged(scripts):
    "Scores that know better than the labels."
    pytest.importorskip('cleanlab')
    rng = np.random.default_rng(0)
    true = rng.random((400,1))<.2
    p,y = np.where(true,.9,.05)+rng.normal(0,.01,(400,1)),true.astype(np.int8)
    wrong = np.flatnonzero(true[:,0])[:8]
    y[wrong] = 0
    found = set(np.flatnonzero(scripts[1].flagged(y,p)[:,0]))
    assert found<=set(wrong) and len(found)>=6  # how many it flags follows an estimate of how many are wrong


def test_a_part_keeps_the_records_that_it_names(scripts, bench):
    c = bench.comparison({'fold-0':bench.folds[0]})
    some = set(bench.ids[bench.folds[0].test][::2])
    part = scripts[1].restrict(c, lambda i: i.isin(some))
    for by in part.models.values(): assert set(by[0,0].frame.id)==some and len(by[0,0].wide)==len(by[0,0].y)==len(some)


def test_no_title_is_that_of_a_record_in_other_words(real_data):
    "What `tfidf-titles` learns from beside its folds: titles are compared with records by DOI and title; this looks for those that share four fifths of their words."
    data = read_final_data(real_data, load_config(env=''))
    titles,known = ([frozenset(normalise_title(t).split()) for t in d.title] for d in (data.titles,data.records))
    holds = {}
    for i,words in enumerate(known):
        for w in words: holds.setdefault(w,[]).append(i)
    def nearest(words):
        if not words: return 0.
        few = sorted((w for w in words if w in holds), key=lambda w: len(holds[w]))
        some = {i for w in few[:max(1,len(words)//5+1)] for i in holds[w]} # who shares four fifths of the words has one of these
        return max((len(words&known[i])/len(words|known[i]) for i in some), default=0.)
    assert len(titles)>2000 and max(map(nearest,titles))<.8
