"A sample of a screening: drawn from all of it, blind, read back strictly; its estimates unbiased, their intervals as wide as they should be."
import json
import math
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest, hypergeom
from typer.testing import CliRunner

from ipbes_classifier.audit import design_file, draw, open_corpus, read_design, read_sample, strata_of, write_sample
from ipbes_classifier.cli import app
from ipbes_classifier.config import load_config
from ipbes_classifier.estimates import Cell, _of_label, estimate, exact_limits, ratio, total
from ipbes_classifier.files import write_json
from ipbes_classifier.models import make_model
from ipbes_classifier.ranking import read_ranked
from ipbes_classifier.records import read_records, write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen_corpus import PUT_ASIDE, screen
from ipbes_classifier.stopping import _ranks, stopping_of
from ipbes_classifier.thresholds import Calibration

WORDS = 'invasive alien ants forest values fishery galaxy dust bone spread study river crayfish nature people'.split()


def papers(n, seed=0):
    "Made-up records; some have no text."
    rng = np.random.default_rng(seed)
    text = lambda k: ' '.join(rng.choice(WORDS,k))
    return pd.DataFrame([dict(id=f'p{seed}.{i}', title='' if i%40==7 else text(4), abstract='' if i%40==7 else text(12), year=2000+i%20) for i in range(n)])


class NoDust:
    "A first pass that puts aside what speaks of dust."
    version = 'no-dust'

    def keep(self, records): return ~records['abstract'].str.contains('dust').to_numpy(dtype=bool)


@pytest.fixture(scope='module')
def lake(tmp_path_factory):
    "Two files of 400 and 200 records, and a model."
    place = tmp_path_factory.mktemp('audit')
    s = load_config(env='', overrides=['labels=[{name: A},{name: B}]'])
    toy = papers(80,9)
    toy = toy[toy.title!=''].assign(A=lambda d: d.abstract.str.contains('ants').astype(int), B=lambda d: d.abstract.str.contains('values').astype(int))
    (place/'model').mkdir()
    make_model('tfidf-logreg',s).fit(toy).save(place/'model')
    write_decisions(place/'model', dict(A=.5,B=.5), {l:Calibration(1.,0.,'logit') for l in 'AB'})
    (place/'in').mkdir()
    for i,n in enumerate((400,200)): write_records(papers(n,i), place/f'in/f{i}.csv')
    return place


@pytest.fixture(scope='module')
def found(lake):
    "A screening in eight parts, with records put aside and records without text."
    screen([lake/'in'], [lake/'model'], lake/'found', batch_size=90, first_pass=NoDust())
    return lake/'found'


@pytest.fixture(scope='module')
def rows(found): return pd.concat([pd.read_parquet(p) for p in open_corpus(found).parts], ignore_index=True)


def truth(table, label='A'): return table.abstract.str.contains('ants' if label=='A' else 'values').astype(int)


def fill(path, labels='A'):
    "Judge a sample by its words."
    table = pd.read_csv(path, keep_default_na=False)
    table.assign(**{l:truth(table,l) for l in labels}).to_csv(path, index=False)
    return path


def test_every_record_can_be_drawn(found, rows):
    "Also what was put aside, and what has no text: a census holds all, and so do enough samples."
    assert {PUT_ASIDE,'no text'}<=set(rows.note)
    for by in ('','A'):
        drawn = draw(found,600,by).drawn
        assert sorted(zip(drawn.file,drawn.row))==sorted(zip(rows.file,rows.row))
    seen = {n for seed in range(25) for n in draw(found,150,seed=seed).drawn.number}
    assert len(seen)>590


def test_each_record_has_the_stated_chance(found, rows):
    "Over many draws the records of a stratum are drawn as often as drawn/size says, each of them."
    count = np.zeros(600)
    for seed in range(60): count[draw(found,90,'A',seed).drawn.number] += 1
    d = draw(found,90,'A')
    stratum = strata_of(rows.A_score.to_numpy(float), rows.A_pred.to_numpy()==1, d.cuts)
    for h,s in enumerate(d.strata):
        chance,mine = s.drawn/s.size,count[stratum==h]
        assert len(mine)==s.size and mine.sum()==60*s.drawn
        assert np.abs(mine/60-chance).max()<=5*math.sqrt(chance*(1-chance)/60)


@pytest.mark.parametrize('suffix', ['.csv','.tsv','.xlsx','.ris'])
def test_a_sample_drawn_twice_is_the_same_bytes_and_shows_no_score(found, tmp_path, suffix):
    for name in 'ab': write_sample(draw(found,40,'A',seed=3), found, tmp_path/f'{name}{suffix}')
    assert (tmp_path/f'a{suffix}').read_bytes()==(tmp_path/f'b{suffix}').read_bytes()
    assert (tmp_path/'a.design.json').read_bytes()==(tmp_path/'b.design.json').read_bytes()
    table = read_records(tmp_path/f'a{suffix}')
    assert not [c for c in table if 'score' in c or 'pred' in c or 'prob' in c or c in ('rank','note','stratum','number')]
    if suffix in ('.csv','.tsv'): assert (tmp_path/f'a{suffix}').read_text('utf-8-sig').splitlines()[0].replace('"','').replace('\t',',')=='file,row,id,title,abstract,year,doi,A,B'
    design = json.loads(design_file(tmp_path/'a.csv').read_text())
    assert design['rows']==600 and sum(s['drawn'] for s in design['strata'])==40 and design['by']=='A'


def test_the_order_tells_nothing_about_the_score(found, rows):
    orders = [np.corrcoef(np.arange(150), draw(found,150,'A',seed=s).drawn.stratum)[0,1] for s in range(6)]
    assert abs(np.mean(orders))<.15


def test_texts_are_those_of_the_files(found, lake, tmp_path):
    write_sample(draw(found,50,seed=1), found, tmp_path/'s.csv')
    table = pd.read_csv(tmp_path/'s.csv', keep_default_na=False)
    for r in table.itertuples():
        source = papers(400 if r.file.endswith('f0.csv') else 200, int(r.file[-5]))
        assert (r.title,r.abstract,r.year)==(source.title[r.row],source.abstract[r.row],source.year[r.row])


def test_formulas_are_defused_in_csv(lake, tmp_path):
    write_records(papers(30).assign(title='=HYPERLINK("x")',abstract='\uff1d1+1'), tmp_path/'in.csv')
    screen([tmp_path/'in.csv'], [lake/'model'], tmp_path/'out')
    write_sample(draw(tmp_path/'out',5), tmp_path/'out', tmp_path/'s.csv')
    assert (pd.read_csv(tmp_path/'s.csv').title=="'=HYPERLINK(\"x\")").all() and (pd.read_csv(tmp_path/'s.csv').abstract=="'\uff1d1+1").all()


def test_a_changed_file_is_noticed(lake, tmp_path):
    write_records(papers(30), tmp_path/'in.csv')
    screen([tmp_path/'in.csv'], [lake/'model'], tmp_path/'out')
    d = draw(tmp_path/'out',5)
    text = (tmp_path/'in.csv').read_text()
    (tmp_path/'in.csv').write_text(text.replace('dust','dusk'))
    with pytest.raises(ValueError, match='in.csv has changed since it was screened'): write_sample(d, tmp_path/'out', tmp_path/'s.csv')
    (tmp_path/'in.csv').unlink()
    with pytest.raises(FileNotFoundError, match='in.csv, which was screened into .* is not there'): write_sample(d, tmp_path/'out', tmp_path/'s.csv')
    assert not list(tmp_path.glob('s.*'))


def test_a_workbook_has_room_for_a_long_abstract(lake, tmp_path):
    write_records(papers(3).assign(abstract='ants '*20_000), tmp_path/'in.csv')
    screen([tmp_path/'in.csv'], [lake/'model'], tmp_path/'out')
    write_sample(draw(tmp_path/'out',3), tmp_path/'out', tmp_path/'s.xlsx')
    assert set(read_records(tmp_path/'s.xlsx').abstract.str.len())=={32_767}


@pytest.mark.parametrize('fails', ['write_records','write_json'])
def test_a_sample_is_there_with_its_design_or_not_at_all(found, tmp_path, monkeypatch, fails):
    def full(*args, **kwargs): raise OSError('the disk is full')
    monkeypatch.setattr(f'ipbes_classifier.audit.{fails}', full)
    with pytest.raises(OSError, match='the disk is full'): write_sample(draw(found,5), found, tmp_path/'s.csv')
    assert not list(tmp_path.iterdir())


def test_a_sample_of_another_screening_is_refused(lake, found, tmp_path):
    write_sample(draw(found,20), found, tmp_path/'s.csv')
    fill(tmp_path/'s.csv')
    screen([lake/'in/f0.csv'], [lake/'model'], tmp_path/'other', first_pass=False)
    for f in (lambda: read_sample(tmp_path/'s.csv',tmp_path/'other'), lambda: estimate(tmp_path/'other',tmp_path/'s.csv')):
        with pytest.raises(ValueError, match='is a sample of another screening'): f()
    with pytest.raises(ValueError, match='draw it again'): write_sample(draw(found,20), tmp_path/'other', tmp_path/'t.csv')


def test_a_renamed_sample_takes_its_design_by_name(found, tmp_path):
    write_sample(draw(found,20), found, tmp_path/'s.csv')
    fill(tmp_path/'s.csv').rename(tmp_path/'mine.csv')
    with pytest.raises(FileNotFoundError, match='mine.design.json'): read_sample(tmp_path/'mine.csv',found)
    assert len(read_sample(tmp_path/'mine.csv',found,tmp_path/'s.design.json'))==20
    assert read_design(tmp_path/'s.design.json').rows==600


def test_ranks_are_those_of_the_screening(found, rows):
    ranked = read_ranked(found,'A')
    by = dict(zip(zip(ranked.file,ranked.row),ranked['rank']))
    mine = _ranks(found,'A',np.arange(600))
    assert all(by.get((f,r),math.inf)==k for f,r,k in zip(rows.file,rows.row,mine))


def test_estimates_are_unbiased_and_intervals_hold(found, rows, lake, tmp_path):
    "Many samples, simple and stratified, of the whole way through files of scores."
    y = np.concatenate([truth(papers(n,i)) for i,n in enumerate((400,200))])
    corpus,selected = open_corpus(found),rows.A_pred.to_numpy()==1
    true = {('relevant','corpus'):y.sum(), ('recall','selected'):y[selected].sum()/y.sum()}
    for by in ('','A'):
        values,held = [],[]
        for seed in range(15):
            d = draw(found,120,by,seed)
            sample = d.drawn.assign(A=y[d.drawn.number])
            sample.attrs['design'] = d
            e = {(r['measure'],r['of']):r for r in _of_label(corpus,sample,'A',[50],.95)}
            values.append(e['relevant','corpus']['value'])
            held += [e[k]['low']<=v<=e[k]['high'] for k,v in true.items()]
        assert abs(np.mean(values)-y.sum())<4*np.std(values)/math.sqrt(15)
        assert np.mean(held)>=.9


def coverage(strata, n_inside, draws, seed):
    "How often the intervals of total and recall hold the truth; mean of the total. `strata`: size and relevant of each."
    rng,held,values = np.random.default_rng(seed),[],[]
    a,r = sum(k for _,k in strata[:n_inside]),sum(k for _,k in strata)
    for _ in range(200):
        cells = [Cell(size,n,int(rng.hypergeometric(k,size-k,n))) for (size,k),n in zip(strata,draws)]
        t,q = total(cells),ratio(cells[:n_inside],cells[n_inside:])
        values.append(t.value)
        held.append((t.low<=r<=t.high, math.isnan(q.value) or q.low<=a/r<=q.high))
    return np.mean(held,axis=0),np.array(values)


@pytest.mark.parametrize(('strata','draws'), [([(500,200),(2000,60),(20000,40)],[50,50,100]), ([(100,10),(2000,3),(20000,2)],[30,50,100]), ([(50,40),(300,100)],[40,150])])
def test_coverage_of_stratified_intervals(strata, draws):
    "Rare and common, with strata in which nothing may be found: at the level promised, less the chance of 200 draws; and unbiased."
    (held_total,held_recall),values = coverage(strata,1,draws,4)
    assert min(held_total,held_recall)>=.92
    assert abs(values.mean()-sum(k for _,k in strata))<4*values.std()/math.sqrt(200)


def test_exact_limits_hold_for_every_truth():
    for size,n in ((30,10),(100,25)):
        limits = [exact_limits(x,n,size) for x in range(n+1)]
        for k in range(size+1):
            p = hypergeom.pmf(np.arange(n+1),size,k,n)
            assert sum(q for q,(low,high) in zip(p,limits) if low<=k<=high)>=.95-1e-9


def test_exact_limits_of_millions_are_those_of_clopper_and_pearson():
    for x in (0,1,17):
        ci = binomtest(x,500).proportion_ci(.95,'exact')
        assert np.array(exact_limits(x,500,250_000_000))/250_000_000==pytest.approx([ci.low,ci.high],abs=1e-6)


def test_commands_from_draw_to_stop(found, tmp_path):
    run = lambda *a: CliRunner().invoke(app,['audit',*map(str,a)])
    done = run('draw',found,'-n',150,'-o',tmp_path/'s.csv')
    assert done.exit_code==0 and '150 of 600 records' in done.output
    fill(tmp_path/'s.csv','AB')
    done = run('estimate',found,tmp_path/'s.csv','--first',50,'-o',tmp_path/'e.csv')
    assert done.exit_code==0 and 'prevalence' in done.output and 'first 50' in done.output
    table = pd.read_csv(tmp_path/'e.csv')
    assert set(table.label)=={'A','B'} and table.columns.tolist()==['label','measure','of','value','low','high','n','relevant']
    ranked = read_ranked(found,'A',100)
    sample = read_sample(tmp_path/'s.csv',found)
    write_records(ranked[['rank','id']].assign(title='x',A=['1']*60+['']*40), tmp_path/'list.csv')
    s = stopping_of(tmp_path/'list.csv','A',found,sample=tmp_path/'s.csv',target=.8)
    assert (s.read,s.found,s.relevant,s.size)==(60,60,int(sample.A.sum()),600)
    done = run('stop',tmp_path/'list.csv','--label','A','--folder',found,'--sample',tmp_path/'s.csv','--target',.8)
    assert done.exit_code==0 and 'By the random sample' in done.output
    run('draw',found,'-n',150,'--by','A','-o',tmp_path/'t.csv')
    fill(tmp_path/'t.csv')
    assert 'needs a simple random sample' in str(run('stop',tmp_path/'list.csv','-l','A','--folder',found,'--sample',tmp_path/'t.csv').exception)


@pytest.mark.parametrize('args', [('draw','none','-o','s.csv'),('estimate','none','s.csv')])
def test_no_screening_is_one_sentence(tmp_path, args, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(CliRunner().invoke(app,['audit',*args]).exception,FileNotFoundError)


def test_a_corpus_of_few_records_has_estimates_too(lake, tmp_path):
    "Fewer records than the least of the depths that are shown unless others are asked for."
    write_records(papers(30), tmp_path/'in.csv')
    found = screen([tmp_path/'in.csv'], [lake/'model'], tmp_path/'out').folder
    write_sample(draw(found,30), found, tmp_path/'s.csv')
    table = estimate(found, fill(tmp_path/'s.csv'))
    assert set(table.of)=={'corpus','selected'} and table.value[1]==truth(papers(30)).sum()
    with pytest.raises(ValueError, match='first 30: .* has fewer records with a rank'): estimate(found, tmp_path/'s.csv', [10,30])


def test_memory_does_not_follow_the_corpus(tmp_path):
    "Ten times as many parts take hardly more: far less than a number for each of their records."
    def peak(n):
        folder = tmp_path/str(n)
        (folder/'scores').mkdir(parents=True)
        for b in range(n):
            t = pa.table(dict(file=['x.csv']*5000, row=np.arange(5000)+5000*b, id=['']*5000, A_score=np.random.default_rng(b).uniform(size=5000), A_pred=np.zeros(5000,dtype=np.int8)))
            pq.write_table(t, folder/f'scores/part-00000-{b:05d}.parquet')
        write_json(folder/'_manifest.json', dict(settings=dict(labels=['A']), files=[], complete=True, rows=5000*n))
        draw(folder,50,'A')
        tracemalloc.start()
        draw(folder,50,'A')
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    assert peak(50)-peak(5)<45*5000*8/3
