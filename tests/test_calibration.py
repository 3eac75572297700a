"Calibration and thresholds: what the benchmarks compute, and what the page says of their figures."
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest

from ipbes_classifier import thresholds as T
from ipbes_classifier.results import read_decisions, write_decisions


@pytest.fixture
def script(monkeypatch, root):
    "A benchmark as a module."
    monkeypatch.syspath_prepend(str(root/'benchmarks'))
    return pytest.importorskip


@pytest.fixture
def figures(root):
    return {n:json.loads((root/f'benchmarks/results/{n}.json').read_text()) for n in ('calibration','thresholds')}


def made_up(n, share, seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(n)<share).astype(int)
    return y,1/(1+np.exp(-(rng.normal(size=n)+1.5*y-1)))


@given(st.integers(200,400), st.floats(.2,.8), st.integers(0,99), st.sampled_from([lambda s: s, lambda s: np.minimum(s**3,.2), lambda s: 7*s-3]))
@settings(max_examples=25, deadline=None)
def test_a_calibration_rises_and_calls_nothing_impossible(n, share, seed, bend):
    y,s = made_up(n,share,seed)
    s = bend(s)
    for fit in (T.fit_label,T.fit_steps):
        c = fit(y,s)
        p = c.probability(np.sort(s))
        assert (np.diff(p)>=0).all() and 0<p[0] and p[-1]<1 and T.Calibration.from_dict(json.loads(json.dumps(c.to_dict())))==c


def test_steps_lie_beside_a_checkpoint_as_a_sigmoid_does(tmp_path):
    y,s = made_up(3000,.5,0)
    s = np.where(s>.5,.9,.2*s)
    c = T.fit_calibration(np.c_[y,y],np.c_[s,made_up(3000,.5,0)[1]],['A','B'])
    assert [type(x) for x in c.values()]==[T.Steps,T.Calibration]
    write_decisions(tmp_path, dict(A=.5,B=.5), c)
    assert read_decisions(tmp_path)[1]==c


def test_steps_are_not_tried_on_few(monkeypatch):
    monkeypatch.setattr(T,'fit_steps',None)
    y,s = made_up(3000,.5,0)
    keep = np.r_[np.flatnonzero(y==0),np.flatnonzero(y==1)[:T.ENOUGH-1]]
    assert type(T.fit_label(y[keep],np.minimum(s[keep]**3,.2))) is T.Calibration


def test_temperature_cannot_be_bettered_nearby(script):
    y,s = made_up(2000,.3,1)
    t,x = script('calibration'),np.log(s/(1-s))
    p = t.temperature(y,s)(s)
    slope = np.median(np.log(p/(1-p))/x)
    assert all(t.log_loss(y,p).mean()<=t.log_loss(y,1/(1+np.exp(-slope*k*x))).mean() for k in (.98,.99,1.01,1.02))


def test_a_promised_recall_is_bounded_as_scipy_bounds_it(script):
    t = script('thresholds')
    y,s = made_up(4000,.02,2)
    n,threshold = y.sum(),t.bounded_recall(y,s,.8)
    found = int(y[s>=threshold].sum())
    def low(k): return binomtest(k,n,alternative='greater').proportion_ci(t.SURE,method='exact').low
    assert low(found)>=.8>low(found-1)
    assert t.bounded_recall(y[:300],s[:300],.95)==s[:300].min() and y[:300].any()


def test_parts_of_dev_share_no_near_duplicates(script):
    u = script('unseen')
    clusters = np.repeat(np.arange(50),3)
    y = (clusters<10).astype(int)
    part = u.dealt(y,clusters,5)
    assert all(len(set(part[clusters==c]))==1 for c in range(50)) and [y[part==k].sum() for k in range(5)]==[6]*5


def test_figures_are_of_full_size(figures):
    for n,q in figures.items(): assert not q['quick'] and q['command']==f'python benchmarks/{n}.py' and q['n']>20_000


def test_the_page_says_what_the_figures_say(figures):
    "That steps are better for the common label alone, that Venn-Abers predictors are so of words alone, that few positives make steps worse, and that no rule for a threshold is better."
    c,t = figures['calibration'],figures['thresholds']
    common,rare = max(c['positives'],key=c['positives'].get),t['rare']
    assert not any(r['better'] for r in c['rows'] if r['label'] in rare)
    of_common = [r for r in c['rows'] if r['label']==common]
    assert {r['model'] for r in of_common}==set(c['chosen'])=={'tfidf-logreg','tfidf-titles','tfidf-vectors'}
    assert all(r['better'] for r in of_common if r['way'] in ('isotonic','as the package chooses') and (r['model']!='tfidf-vectors' or r['dev']=='four folds'))
    assert all(r['better']==(r['model']!='tfidf-vectors') for r in of_common if r['way']=='Venn-Abers')
    assert c['chosen']['tfidf-vectors']['four folds'][common]['as the package chooses']=={'isotonic':10}
    few = [r for r in c['needed'] if r['way']=='isotonic' and 5<=r['positives']<=100]
    assert few and all(r['minus_sigmoid']>0 for r in few)
    assert not any(r.get('better') for r in t['f1'])
    assert all(r['minus_naive']['difference']>-.002 for r in t['f1'] if r['rule']=='smoothed by a sigmoid, as 20 positives')
