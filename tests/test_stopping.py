"Rules for stopping: the values of buscarpy, and how often a promise is kept."
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, hypergeom
from typer.testing import CliRunner

from ipbes_classifier.cli import app
from ipbes_classifier.stopping import (depth, hypergeometric_p, hypergeometric_stop, irrelevant_stop, least_more, quantile_position, read_labels, remainder_p, stopping,
                                       stopping_of)

def listing(seed, size=400, relevant=20, lift=2.):
    "Labels of a made-up ranked list."
    rng = np.random.default_rng(seed)
    y = np.r_[np.ones(relevant,int),np.zeros(size-relevant,int)]
    return y[np.argsort(-(rng.normal(size=size)+lift*y),kind='stable')]


# labels, corpus, target -> what buscarpy 0.0.2 gave, so that this holds where it is not installed
PINNED = [((1,50,.95),0.9774971591363775),((1,200,.95),0.4181902240154667),((1,300,.95),0.10402219140083216),((2,200,.8),0.08015332180448356),((3,390,.95),0.005177509777522283)]


@pytest.mark.parametrize(('case','p'), PINNED)
def test_the_p_value_is_the_pinned_one(case, p):
    seed,n,target = case
    assert hypergeometric_p(listing(seed)[:n],400,target)==pytest.approx(p,rel=1e-9)


@pytest.mark.filterwarnings('ignore')
def test_the_p_value_is_that_of_buscarpy():
    calculate_h0 = pytest.importorskip('buscarpy').calculate_h0
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng([7,seed])
        size,relevant = int(rng.integers(50,3000)),int(rng.integers(1,40))
        y,target = listing(seed,size,relevant,rng.uniform(0,3)),float(rng.choice([.7,.8,.9,.95,.99]))
        n = int(rng.integers(1,size))
        theirs,mine = calculate_h0(y[:n],size,target),hypergeometric_p(y[:n],size,target)
        if math.isnan(theirs): continue
        compared += 1
        if y[:n].sum()/target%1>1e-6: assert mine==pytest.approx(theirs,rel=1e-9,abs=1e-12), (seed,n,target)
    assert compared>30


@pytest.mark.filterwarnings('ignore')
def test_where_buscarpy_has_no_value_the_supposition_is_impossible():
    "More relevant records would have to be left than records are: recall cannot be below the target."
    calculate_h0 = pytest.importorskip('buscarpy').calculate_h0
    y = np.ones(100,int)
    assert math.isnan(calculate_h0(y,100,.5)) and hypergeometric_p(y,100,.5)==0


def test_every_urn_was_tried():
    "Leaving out urns that begin elsewhere than after a relevant record changes no value."
    for seed in range(10):
        y = listing(seed,200,10)[:150]
        r,urns = y.sum(),y[::-1].cumsum()
        k = np.floor(r/.9+1-(r-urns)+1e-9)
        read = np.arange(1,151)
        p = hypergeom.cdf(urns,200-150+read,k,read)
        assert hypergeometric_p(y,200,.9)==pytest.approx(float(np.min(p)),rel=1e-9)


@pytest.mark.parametrize('confidence', [.5,.8,.95,.999])
def test_the_quick_stop_is_the_first_at_which_the_test_is_passed(confidence):
    for seed in range(6):
        y = listing(seed,600,[3,30,150][seed%3],[0,1,3][seed%3])
        for target in (.8,.95):
            slow = next((n for n in range(20,600,20) if hypergeometric_p(y[:n],600,target)<1-confidence), 600)
            assert hypergeometric_stop(y,target,confidence,20)==slow, (seed,target)


def test_p_falls_while_nothing_relevant_is_read_and_least_more_is_exact():
    y = listing(5)[:200]
    p = [hypergeometric_p(np.r_[y,np.zeros(k,int)],400) for k in range(0,200,10)]
    assert all(b<=a+1e-12 for a,b in zip(p,p[1:]))
    k = least_more(y,400)
    assert hypergeometric_p(np.r_[y,np.zeros(k,int)],400)<.05<=hypergeometric_p(np.r_[y,np.zeros(k-1,int)],400)


def test_one_look_at_a_random_sample_of_the_rest_is_wrong_no_oftener_than_promised():
    "Over all outcomes, exactly: what is left has so many relevant records that recall misses the target by one."
    for found,left,drawn,target in ((40,500,200,.8),(95,2000,400,.95),(0,300,50,.9)):
        for missing in range(1,60):
            x = np.arange(drawn+1)
            wrong = [(found+k)/(found+missing)<target and remainder_p(found,left,drawn,int(k),target)<.05 for k in x]
            assert (hypergeom.pmf(x,left,missing,drawn)*wrong).sum()<=.05


def test_the_quantile_rule_keeps_its_promise_whatever_the_order():
    "Exactly: the chance that j of r sampled relevant records lie above the depth of the target."
    for relevant in (59,100,400):
        for r in (14,20,59):
            for target in (.8,.95):
                if not (j := quantile_position(r,target)): continue
                short = math.ceil(target*relevant-1e-9)-1
                assert hypergeom.sf(j-1,relevant,short,r)<=.05, (relevant,r,target)


def test_the_quantile_position_is_the_smallest():
    for r in (*range(1,80),199,1000):
        for target in (.7,.95):
            allowed = np.flatnonzero(binom.sf(np.arange(r),r,target)<=.05+1e-12)+1
            assert quantile_position(r,target)==(allowed[0] if len(allowed) else None)


def test_depth_in_simulation():
    rng,y = np.random.default_rng(0),listing(1,5000,100,1.5)
    at,wrong = np.flatnonzero(y)+1,0
    for _ in range(500):
        ranks = rng.choice(at,25,replace=False)
        wrong += (at<=depth(ranks,.8)).sum()<80
    assert wrong/500<=.05


def test_naive_rules():
    assert irrelevant_stop([0]*10,3)==3 and irrelevant_stop([1]*5,1)==5 and irrelevant_stop([1,0,0],3)==3


@pytest.mark.parametrize(('content','words'), [('1\n0\nx\n',"row 3 says 'x'"),('1\n\n0\n','number 2 in reading order has no label')])
def test_a_list_with_odd_labels_is_refused(tmp_path, content, words):
    (tmp_path/'l.txt').write_text(content)
    with pytest.raises(ValueError, match=words): read_labels(tmp_path/'l.txt')


def test_a_list_may_be_a_workbook_in_any_order(tmp_path):
    from ipbes_classifier.records import write_records
    write_records(pd.DataFrame(dict(rank=[2,3,1],title=list('bca'),L=['0','','1'])), tmp_path/'l.xlsx')
    assert read_labels(tmp_path/'l.xlsx','L').tolist()==[1,0]


def test_labels_out_of_range_are_refused():
    for f in (lambda: hypergeometric_p([0,1,2],9), lambda: stopping([0,1],1), lambda: stopping([0],9,1.), lambda: remainder_p(1,2,3,0)):
        with pytest.raises(ValueError): f()


def test_where_a_list_ends_before_one_may_stop_it_says_so():
    y = [1]+[0]*40
    assert 'Only 50 have a rank' in str(stopping(y,4000,ranked=50)) and 'rank' not in str(stopping(y,4000,ranked=4000)) and 'rank' not in str(stopping(y,4000))


def test_the_command_says_it(tmp_path):
    (tmp_path/'l.txt').write_text('1\n'+'0\n'*380)
    run = lambda *a: CliRunner().invoke(app,['audit','stop',str(tmp_path/'l.txt'),*a])
    assert 'recall is 0.95 or more with confidence 0.95' in run('--size','400').output
    assert 'at least' in run('--size','4000').output
    assert 'how many records has the corpus?' in str(run().exception)
    assert stopping_of(tmp_path/'l.txt',size=400).more==0
