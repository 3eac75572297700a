"Screening on Ray Data: the bytes of one process, also where a file is damaged, an actor is killed, or the work was begun by another engine."
import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip('ray')

from test_screen_corpus import content, papers, some_on_dust, train, train_cascade

from ipbes_classifier import screen_ray
from ipbes_classifier.cluster import ray_session
from ipbes_classifier.config import load_config
from ipbes_classifier.records import write_records
from ipbes_classifier.screen_corpus import PUT_ASIDE, Scorer, Unreadable, screen
from ipbes_classifier.screen_ray import pack, room_for, score_on_ray, unpack

LONG = pytest.mark.long


@pytest.fixture(scope='module')
def model(tmp_path_factory): return train(tmp_path_factory.mktemp('model')/'toy')


@pytest.fixture(scope='module')
def on_ray():
    "The engine, in one Ray for all tests."
    os.environ.setdefault('RAY_worker_niceness', '0')
    # workers find this module's classes
    os.environ['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parent),os.environ.get('PYTHONPATH','')])
    s = load_config(env='', overrides=['ray.num_cpus=2'])
    with ray_session(s): yield partial(score_on_ray, s=s)


@pytest.fixture
def lake(tmp_path):
    "Three files of 25 records."
    (tmp_path/'lake').mkdir()
    for i in range(3): write_records(papers(25,i), tmp_path/f'lake/f{i}.parquet')
    return tmp_path/'lake'


class KeepsHalf:
    "A first pass."
    version = 'half'
    def keep(self, records): return (np.arange(len(records))%2).astype(bool)


class Dies(Scorer):
    "A scorer whose process is killed, as often as `deaths` says, at one batch."
    deaths,place = 1,''
    def rows(self, records, file, start):
        if file.endswith('f1.parquet') and start==10:
            for i in range(self.deaths):
                try: (Path(self.place)/f'died{i}').touch(exist_ok=False)
                except FileExistsError: continue
                os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(records, file, start)


def deadly(job, engine, **kw):
    "The engine with such scorers."
    load = job.load
    def dying():
        scorer = load()
        out = Dies(scorer.screener, scorer.first_pass)
        for k,v in kw.items(): setattr(out, k, v)
        return out
    job.load = dying
    engine(job)


def test_same_bytes(on_ray, lake, model, tmp_path, monkeypatch):
    "Formats, an empty file, two models, a first pass, paths that are relative to where the command was given, and an actor that is killed."
    monkeypatch.chdir(tmp_path)
    write_records(papers(23,7), tmp_path/'x.ris')
    write_records(papers(9,8), tmp_path/'y.csv')
    (tmp_path/'empty.csv').touch()
    kw = dict(inputs=['lake','x.ris','y.csv','empty.csv'], models=[os.path.relpath(model)]*2, batch_size=10, first_pass=KeepsHalf())
    found = screen(out='ray', engine=partial(deadly, engine=on_ray, deaths=1, place=str(tmp_path)), **kw)
    its = screen(out='here', **kw)
    assert (tmp_path/'died0').exists()
    assert content(tmp_path/'ray')==content(tmp_path/'here') and len(list(tmp_path.glob('ray/scores/*')))==13
    assert (found.rows,found.notes,found.selected,found.empty)==(its.rows,its.notes,its.selected,its.empty) and found.rows==107
    assert 0<found.notes[PUT_ASIDE]<107


def test_cascade(on_ray, tmp_path):
    "Each actor loads the first pass that stands beside the checkpoint."
    model = train_cascade(tmp_path/'toy')
    write_records(some_on_dust(60,3), tmp_path/'x.parquet')
    (tmp_path/'y.csv').write_text('title,abstract\n')
    kw = dict(inputs=[tmp_path/'x.parquet',tmp_path/'y.csv'], models=[model], batch_size=20)
    found,its = screen(out=tmp_path/'ray', engine=on_ray, **kw),screen(out=tmp_path/'here', **kw)
    assert content(tmp_path/'ray')==content(tmp_path/'here') and 0<found.notes[PUT_ASIDE]<60
    assert str(found)==str(its) and 'its cut at ' in found.first_pass


@LONG
def test_begun_by_another_engine(on_ray, lake, model, tmp_path):
    "What is there is not scored again, and what was lost is."
    kw = dict(inputs=[lake], models=[model], batch_size=10)
    screen(out=tmp_path/'whole', **kw)
    screen(out=tmp_path/'out', **kw)
    parts = sorted(tmp_path.glob('out/scores/part-*'))
    for p in (parts[1],parts[5],*parts[6:]): p.unlink()
    left = {p:(p.stat().st_ino,p.stat().st_mtime_ns) for p in tmp_path.glob('out/scores/part-*')}
    written = []
    def engine(job):
        on_ray(job)
        written.append(job.written)
    screen(out=tmp_path/'out', engine=engine, **kw)
    assert written==[5] and content(tmp_path/'out')==content(tmp_path/'whole')
    assert {p:(p.stat().st_ino,p.stat().st_mtime_ns) for p in left}==left
    screen(out=tmp_path/'out', engine=engine, **kw)
    assert written==[5,0]


@LONG
def test_damaged_files(on_ray, lake, model, tmp_path):
    (lake/'f1.parquet').write_bytes((lake/'f1.parquet').read_bytes()[:-300])
    with pytest.raises(Unreadable, match='f1.parquet is not a parquet file, or a damaged one'): screen([lake], [model], tmp_path/'ray', batch_size=10, engine=on_ray)
    found = screen([lake], [model], tmp_path/'ray', batch_size=10, engine=on_ray, skip_bad=True)
    its = screen([lake], [model], tmp_path/'here', batch_size=10, skip_bad=True)
    assert content(tmp_path/'ray')==content(tmp_path/'here') and found.rows==50
    assert list(found.bad)==list(its.bad) and json.loads((tmp_path/'ray/_manifest.json').read_text())['files'][1]['problem']==its.bad[str(lake/'f1.parquet')]


@LONG
def test_batch_that_kills_every_actor(on_ray, lake, model, tmp_path):
    "It is named, the rest is kept, and the same call goes on."
    with pytest.raises(ChildProcessError, match=r'f1.parquet: 3 processes were lost while they scored the records 10 to 19 '):
        screen([lake], [model], tmp_path/'ray', batch_size=10, engine=partial(deadly, engine=on_ray, deaths=9, place=str(tmp_path)))
    assert len(list(tmp_path.glob('died*')))==3
    assert not (tmp_path/'ray/scores/part-00001-00001.parquet').exists()
    screen([lake], [model], tmp_path/'ray', batch_size=10, engine=on_ray)
    screen([lake], [model], tmp_path/'here', batch_size=10)
    assert content(tmp_path/'ray')==content(tmp_path/'here')


@LONG
def test_model_that_is_another_one_elsewhere(on_ray, lake, model, tmp_path):
    "A machine that would score by other weights is refused, and nothing is complete."
    other = train(tmp_path/'other', seed=2)
    def engine(job):
        job.load = partial(_load, str(other))
        on_ray(job)
    with pytest.raises(ValueError, match='a machine of the cluster would score otherwise: model is'): screen([lake], [model], tmp_path/'out', engine=engine)
    assert not content(tmp_path/'out')


def _load(folder):
    from ipbes_classifier.screen import Screener
    return Scorer(Screener.load(folder))


@LONG
def test_bug_is_no_damage(on_ray, lake, model, tmp_path):
    "What is no error of the input keeps its traceback, with --skip-bad too."
    class Broken(Scorer):
        def rows(self, *args): raise KeyError('a bug')
    def engine(job):
        load = job.load
        job.load = lambda: Broken(load().screener)
        on_ray(job)
    with pytest.raises(KeyError, match='a bug'): screen([lake], [model], tmp_path/'out', skip_bad=True, engine=engine)


def test_no_ray_where_nothing_is_left(lake, model, tmp_path, monkeypatch):
    screen([lake], [model], tmp_path/'out')
    def never(*args): raise AssertionError
    monkeypatch.setattr(screen_ray, 'ray_session', never)
    assert screen([lake], [model], tmp_path/'out', engine=partial(score_on_ray, s=load_config(env=''))).rows==75


def test_machines_that_are_too_small():
    assert room_for([dict(cpus=16,gpus=2),dict(cpus=3,gpus=1)], cpus=4, gpus=1)==2
    with pytest.raises(ValueError, match='no machine has 4 processors and 1 GPUs for a model; the most are 16 processors and 1 GPUs'):
        room_for([dict(cpus=16,gpus=0),dict(cpus=3,gpus=1)], cpus=4, gpus=1)


def test_packed_tables(model, lake):
    "What travels comes out as it went in, so that the bytes of a part are those of one machine."
    table = pq.read_table(lake/'f0.parquet')
    assert unpack(pack(table))==table and unpack(pack(table[:0]))==table[:0]
