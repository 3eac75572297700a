"OpenAlex works from files and buckets, damaged, throttled and cut off; the bucket is moto's server on this machine."
import gzip
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from threading import Thread

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyalex
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipbes_classifier import openalex_json
from ipbes_classifier.openalex_json import COLUMNS, SELECT, bucket_info, frames, is_snapshot, rebuild_abstract, work_row

NESTED = ('keywords','topics','authorships','primary_location')


def work(n, **changes):
    "A made-up work in the shape of the API."
    words = f'Work {n} is about ants and the ants of island {n%7}'.split()
    index = {w: [i for i,v in enumerate(words) if v==w] for w in words}
    return dict(id=f'https://openalex.org/W{n}', doi=f'https://doi.org/10.1234/w{n}', title=f'Ants {n}', display_name=f'Ants {n}', publication_year=2000+n%20, language='en', type='article',
        ids=dict(openalex=f'https://openalex.org/W{n}', mag='1'), keywords=[dict(id='https://openalex.org/keywords/ants', display_name='Ants', score=.5)],
        topics=[dict(id='https://openalex.org/T1', display_name='Invasive species', score=.9, field=dict(id='f', display_name='Biology'))],
        authorships=[dict(author_position='first', author=dict(id='https://openalex.org/A1', display_name='Ada Okoye'), raw_author_name='A. Okoye', institutions=[dict(display_name='Some university')])],
        primary_location=dict(is_oa=True, landing_page_url='https://example.org', source=dict(id='https://openalex.org/S1', display_name='Journal of Examples'), raw_source_name='J Ex'),
        abstract_inverted_index=index, cited_by_count=n, updated_date='2026-06-24')|changes


def jsonl(works): return ''.join(json.dumps(w)+'\n' for w in works).encode()

def parquet(works, group=3)->bytes:
    "Works as the snapshot has them since 2026: nested columns, the inverted index as JSON text, Spark's names of lists."
    table = pa.Table.from_pylist([w|dict(abstract_inverted_index=json.dumps(w['abstract_inverted_index'])) for w in works])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=group, compression='snappy')
    return sink.getvalue().to_pybytes()


def read(path, size=4, **kw)->pd.DataFrame: return pd.concat([pd.DataFrame(columns=list(COLUMNS),dtype='str'), *frames(path,size,**kw)], ignore_index=True)

def snapshot(fmt='jsonl')->dict[str,bytes]:
    "Files of a small snapshot by their keys: work 3 in an old state and a new one, an author, manifests."
    pack,suffix = (lambda ws: gzip.compress(jsonl(ws)),'gz') if fmt=='jsonl' else (parquet,'parquet')
    return {f'data/{fmt}/manifest.json': b'{"entities": []}', f'data/{fmt}/works/manifest.json': b'{"files": []}',
        f'data/{fmt}/works/updated_date=2026-01-07/part_0000.{suffix}': pack([work(n) for n in range(1,8)]),
        f'data/{fmt}/works/updated_date=2026-06-24/part_0000.{suffix}': pack([work(3,title='Ants 3, corrected'),work(8)]),
        f'data/{fmt}/works/updated_date=2026-06-24/part_0001.{suffix}': pack([work(9)]),
        f'data/{fmt}/authors/updated_date=2026-06-24/part_0000.{suffix}': gzip.compress(jsonl([dict(id='https://openalex.org/A1', display_name='Ada Okoye')]))}

ORDER = [3,8,9,1,2,4,5,6,7]
EXPECTED = [work_row(work(n,**(dict(title='Ants 3, corrected') if n==3 else {}))) for n in ORDER]


@pytest.fixture
def local(tmp_path):
    def put(files):
        for name,data in files.items():
            (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/name).write_bytes(data)
        return tmp_path
    return put


class Throttle:
    "A WSGI application that answers with `status` as often as `left` says, then as `app` does."
    def __init__(self, app): self.app,self.left,self.seen,self.headers,self.only = app,0,[],[],''
    def __call__(self, environ, start):
        self.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        self.headers.append({k: v for k,v in environ.items() if k.startswith('HTTP_')})
        if self.left and environ['REQUEST_METHOD']=='GET' and self.only in environ['PATH_INFO']:
            self.left -= 1
            start('503 Slow Down',[('Content-Type','application/xml')])
            return [b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>']
        return self.app(environ,start)


@pytest.fixture(scope='module')
def server():
    "Moto's S3 behind the throttle, on a free port."
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server
    class Quiet(WSGIRequestHandler):
        def log(self, *args, **kw): pass
    app = Throttle(DomainDispatcherApplication(create_backend_app))
    http = make_server('127.0.0.1', 0, app, threaded=True, request_handler=Quiet)
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    app.url = f'http://127.0.0.1:{http.server_port}'
    yield app
    http.shutdown()
    thread.join()


@pytest.fixture
def bucket(server, monkeypatch):
    "A function that puts files into the public bucket 'openalex' of a server without other content."
    import boto3
    import urllib.request
    urllib.request.urlopen(urllib.request.Request(f'{server.url}/moto-api/reset', method='POST'))
    server.left,server.only = 0,''
    for v in openalex_json._CREDENTIALS: monkeypatch.delenv(v, raising=False)
    monkeypatch.setenv('AWS_ENDPOINT_URL', server.url)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    client = boto3.client('s3', region_name='us-east-1', endpoint_url=server.url, aws_access_key_id='owner', aws_secret_access_key='secret')
    client.create_bucket(Bucket='openalex', ACL='public-read')
    def put(files, acl='public-read'):
        for key,data in files.items(): client.put_object(Bucket='openalex', Key=key, Body=data, ACL=acl)
        server.seen.clear()
        server.headers.clear()
        return 's3://openalex'
    return put


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
@pytest.mark.parametrize('below', ['','data','data/{}','data/{}/works'])
def test_a_local_snapshot(local, fmt, below):
    root = local(snapshot(fmt))/below.format(fmt)
    assert is_snapshot(root)
    assert read(root)[list(COLUMNS)].to_dict('records')==EXPECTED


def test_a_snapshot_of_both_formats_is_read_once(local):
    root = local(snapshot()|snapshot('parquet'))
    (root/'data/jsonl/works/updated_date=2026-06-24/part_0001.gz').write_bytes(b'not read')
    assert read(root)[list(COLUMNS)].to_dict('records')==EXPECTED


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
@pytest.mark.parametrize('below', ['','/data/','/data/{}/works'])
def test_a_bucket(bucket, server, fmt, below):
    address = bucket(snapshot(fmt))+below.format(fmt)
    assert is_snapshot(address)
    assert read(address)[list(COLUMNS)].to_dict('records')==EXPECTED
    assert not any('HTTP_AUTHORIZATION' in h for h in server.headers)
    assert not any('manifest' in s or 'authors' in s for s in server.seen)


def test_one_file_of_a_bucket(bucket):
    bucket(snapshot())
    assert read('s3://openalex/data/jsonl/works/updated_date=2026-06-24/part_0001.gz')['id'].tolist()==['W9']
    assert read(Path('s3://openalex/data/jsonl/works/updated_date=2026-06-24/part_0001.gz'))['id'].tolist()==['W9']


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
def test_a_bucket_that_asks_for_pauses(bucket, server, fmt):
    address = bucket(snapshot(fmt))
    server.left,server.only = 2,'part_0000'
    assert read(address)[list(COLUMNS)].to_dict('records')==EXPECTED
    assert server.left==0


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
def test_a_bucket_that_never_stops_asking_for_pauses(bucket, server, fmt, monkeypatch):
    from pyarrow.fs import AwsStandardS3RetryStrategy
    monkeypatch.setattr('pyarrow.fs.AwsStandardS3RetryStrategy', lambda max_attempts: AwsStandardS3RetryStrategy(max_attempts=2))
    monkeypatch.setattr(openalex_json, '_PAUSES', (.1,.1))
    address = bucket(snapshot(fmt))
    server.left,server.only = 10**6,'part_0000'
    with pytest.raises(OSError, match=r's3://openalex/data/\w+/works/updated_date=2026-06-24/part_0000.*: the service asks for a pause; run again later$'): read(address)
    server.left = 0
    assert read(address)[list(COLUMNS)].to_dict('records')==EXPECTED


def test_a_private_bucket(bucket, server, monkeypatch):
    bucket(snapshot(), acl='private')
    file = 's3://openalex/data/jsonl/works/updated_date=2026-06-24/part_0001.gz'
    with pytest.raises(OSError, match='access denied; keys are read from AWS_ACCESS_KEY_ID'): read(file)
    monkeypatch.setenv('AWS_ACCESS_KEY_ID','KEYKEYKEY')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY','hushhushhush')
    assert read(file)['id'].tolist()==['W9']
    with pytest.raises(FileNotFoundError) as e: read('s3://openalex/other')
    assert 'KEYKEYKEY' not in str(e.value) and 'hush' not in str(e.value)
    assert 'hush' not in str(server.headers)


def test_what_is_not_there(bucket, server, monkeypatch):
    bucket({'data/jsonl/works/manifest.json':b'{}'})
    for address in ('s3://openalex/data/nothing','s3://other/data'):
        with pytest.raises(FileNotFoundError, match=f'{address}: there is no such file or folder'): read(address)
    with pytest.raises(ValueError, match='s3://openalex/data: no file of works is in it.*manifest.json'): read('s3://openalex/data')
    from pyarrow.fs import AwsStandardS3RetryStrategy
    monkeypatch.setattr('pyarrow.fs.AwsStandardS3RetryStrategy', lambda max_attempts: AwsStandardS3RetryStrategy(max_attempts=1))
    monkeypatch.setenv('AWS_ENDPOINT_URL','http://127.0.0.1:9')
    with pytest.raises(OSError, match='the service cannot be reached'): read('s3://openalex/data')


def test_what_a_bucket_knows_of_a_file(bucket):
    "A file that has gone since it was listed is missing, not changed."
    bucket({'data/works/part_0001.gz':b'some bytes'})
    name = 's3://openalex/data/works/part_0001.gz'
    size,changed = bucket_info(name)
    assert size==10 and changed>0
    with pytest.raises(FileNotFoundError) as e: bucket_info(name.replace('part_0001','part_0009'))
    assert e.value.filename.endswith('part_0009.gz')


def test_a_damaged_file_in_a_bucket(bucket):
    files = snapshot()
    name = 'data/jsonl/works/updated_date=2026-01-07/part_0000.gz'
    bucket({name: files[name][:-30]})
    with pytest.raises(ValueError, match=f's3://openalex/{name}: cut off after line'): read('s3://openalex')
    bucket({name: b'<html>Sign in</html>'})
    with pytest.raises(ValueError, match=f"{name}, line 1: not JSON.*<html>"): read('s3://openalex')
    bucket({name: gzip.compress(jsonl([work(1),dict(id='https://openalex.org/A1',display_name='Ada')]))})
    with pytest.raises(ValueError, match=f'{name}, line 2: https://openalex.org/A1 is an author'): read('s3://openalex')
    bucket({name: b''})
    with pytest.raises(ValueError, match=f'{name} is empty'): read('s3://openalex')


def test_parquet_takes_only_what_it_reads(local, monkeypatch):
    "Leaves that no record has a place for are not decoded."
    works = [work(n) for n in range(1,5)]
    root = local({'works.parquet': parquet(works)})
    asked = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, 'iter_batches', lambda self,size,columns: asked.extend(columns) or real(self,size,columns=columns))
    assert read(root/'works.parquet')[list(COLUMNS)].to_dict('records')==[work_row(w) for w in works]
    assert sorted(c for c in asked if c.split('.')[0] in NESTED)==['authorships.list.element.author.display_name','authorships.list.element.raw_author_name',
        'keywords.list.element.display_name','primary_location.raw_source_name','primary_location.source.display_name','topics.list.element.display_name']
    assert {c.split('.')[0] for c in asked}=={*SELECT}


@pytest.mark.parametrize('kind', ['map','pairs','nested text'])
def test_other_shapes_of_parquet(local, tmp_path, kind):
    "The inverted index as a map or as pairs; nested fields as JSON text."
    works = [work(n) for n in range(1,5)]
    index = pa.array([list(w['abstract_inverted_index'].items()) for w in works], pa.map_(pa.string(),pa.list_(pa.int32())))
    if kind=='pairs': index = pa.array([[dict(zip('ab',p)) for p in w['abstract_inverted_index'].items()] for w in works])
    if kind=='nested text': works,index = [w|{k: json.dumps(w[k]) for k in NESTED} for w in works],pa.array([json.dumps(w['abstract_inverted_index']) for w in works])
    table = pa.Table.from_pylist([{k: v for k,v in w.items() if k!='abstract_inverted_index'} for w in works]).append_column('abstract_inverted_index', index)
    pq.write_table(table, tmp_path/'works.parquet')
    if kind!='pairs': assert read(tmp_path/'works.parquet')[list(COLUMNS)].to_dict('records')==[work_row(work(n)) for n in range(1,5)]
    else:
        with pytest.raises(ValueError, match='works.parquet, row 1: abstract_inverted_index maps each word'): read(tmp_path/'works.parquet')


def test_other_tables_are_refused(tmp_path):
    pd.DataFrame(dict(title=['Ants'],abstract=['Ants.'])).to_parquet(tmp_path/'own.parquet')
    with pytest.raises(ValueError, match="own.parquet: a table of OpenAlex works has a column id; columns found: 'title, abstract'"): read(tmp_path/'own.parquet')


@pytest.mark.parametrize('cut', [3,20,0.5,0.9,-9,-4,-1])
def test_parquet_that_was_cut_off(tmp_path, cut):
    data = parquet([work(n) for n in range(1,9)])
    (tmp_path/'w.parquet').write_bytes(data[:int(len(data)*cut) if isinstance(cut,float) else cut])
    with pytest.raises(ValueError, match='w.parquet'): read(tmp_path/'w.parquet')


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_parquet_gives_works_or_one_error(tmp_path_factory, data):
    path,good = tmp_path_factory.mktemp('p')/'w.parquet',bytearray(parquet([work(n) for n in range(1,9)]))
    for _ in range(data.draw(st.integers(1,4))): good[data.draw(st.integers(4,len(good)-1))] = data.draw(st.integers(0,255))
    path.write_bytes(good)
    try: read(path)
    except ValueError as e: assert 'w.parquet' in str(e)


LINES = jsonl([work(1),work(2)])

@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.builds(lambda t,at,new: t[:at]+new+t[at:], st.sampled_from([LINES,gzip.compress(LINES),json.dumps([work(1),work(2)]).encode()]), st.integers(0,700), st.binary(min_size=1,max_size=6)),
    st.builds(lambda t,at: t[:at], st.sampled_from([LINES,gzip.compress(LINES),json.dumps(dict(results=[work(1)])).encode()]), st.integers(0,2000))))
def test_any_bytes_give_works_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('any')/'works.jsonl'
    path.write_bytes(data)
    try: rows = read(path).to_dict('records')
    except ValueError as e: assert str(path) in str(e) and '\n' not in str(e)
    else: assert all(isinstance(v,str) for r in rows for v in r.values())


JSON = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(max_size=9), lambda s: st.lists(s,max_size=3)|st.dictionaries(st.text(max_size=9),s,max_size=3), max_leaves=6)

@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional={f: JSON for f in SELECT if f!='id'}))
def test_any_values_give_a_row_or_one_error(fields):
    "A field that has another shape than OpenAlex gives it."
    try: row = work_row(dict(id='W1')|fields)
    except ValueError: return
    assert tuple(row)==COLUMNS and all(isinstance(v,str) for v in row.values())


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=['Cs']), max_size=200))
def test_abstracts_are_rebuilt_as_pyalex_does(text):
    words = text.split(' ')
    index = {w: [i for i,v in enumerate(words) if v==w] for w in words}
    assert rebuild_abstract(index)==text==pyalex.invert_abstract(index)


def test_line_numbers_and_layouts(tmp_path):
    path = tmp_path/'w.json'
    path.write_bytes(b'\xef\xbb\xbf\n\n'+LINES+b'\n{"id":"W3"\n')
    with pytest.raises(ValueError, match='w.json, line 6: not JSON'): read(path)
    path.write_text('\n'+json.dumps([work(1),dict(results=[work(2),work(3)])],indent=2)+'\n')
    assert read(path)['id'].tolist()==['W1','W2','W3']
    path.write_text(json.dumps(work(5),indent=2))
    assert read(path)['id'].tolist()==['W5']
    path.write_text('{\n "id": "W1",\n "title": }')
    with pytest.raises(ValueError, match='w.json: not JSON: Expecting value: line 3'): read(path)
    path.write_text(json.dumps(dict(meta=dict(count=0),results=[])))
    assert read(path).empty


def test_a_list_is_read_work_by_work(tmp_path, monkeypatch):
    monkeypatch.setattr(openalex_json, '_BLOCK', 700)
    works = [work(n,title='\u00c4meisen \U0001f41c '*9) for n in range(1,40)]
    (tmp_path/'w.json').write_text(json.dumps(works,ensure_ascii=False), encoding='utf-8')
    assert read(tmp_path/'w.json')[list(COLUMNS)].to_dict('records')==[work_row(w) for w in works]
    assert json.loads(read(tmp_path/'w.json')['original'][38])==works[38]


def test_what_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(openalex_json, 'MAX_RECORD', 5000)
    monkeypatch.setattr(openalex_json, '_BLOCK', 1000)
    (tmp_path/'line').write_text(json.dumps(work(1,title='x'*6000)))
    with pytest.raises(ValueError, match='line, line 1: longer than'): read(tmp_path/'line')
    (tmp_path/'list').write_text(json.dumps([work(1),work(2,title='x'*20000)]))
    with pytest.raises(ValueError, match='list, work 2: not JSON, or cut off'): read(tmp_path/'list')
    (tmp_path/'text').write_text(json.dumps(dict(results=[work(n) for n in range(9)]),indent=1))
    with pytest.raises(ValueError, match='text: one JSON text of more than'): read(tmp_path/'text')


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
def test_memory_does_not_grow_with_the_file(tmp_path, fmt):
    works = [work(n,title='Ants '*800) for n in range(4000)]
    def peak(n):
        "Most bytes held while `n` works are read."
        (tmp_path/'works').write_bytes(gzip.compress(jsonl(works[:n]),1) if fmt=='jsonl' else parquet(works[:n],500))
        tracemalloc.start()
        assert sum(len(f) for f in frames(tmp_path/'works',100))==n
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held
    peak(1000) # imports what is needed
    few,many = peak(1000),peak(4000)
    assert many<1.5*few, (few,many)


def test_the_set_of_ids():
    draw,seen,known = random.Random(0),openalex_json.WorkIds(),set()
    for _ in range(60_000):
        n = draw.choice([draw.randrange(20_000),4_000_000_000+draw.randrange(10**9)])
        assert seen.add(f'W{n}')==(n not in known)
        known.add(n)


def test_the_region_is_not_asked_for(tmp_path):
    "Opening an address takes no network: the first that is asked is the endpoint."
    code = '''import socket
def refuse(*a): raise RuntimeError('network')
socket.socket.connect = refuse
from ipbes_classifier.openalex_json import _located
print(_located('s3://openalex/data')[0].region)'''
    env = {k: v for k,v in os.environ.items() if not k.startswith('AWS_')}
    assert subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, env=env, timeout=60).stdout=='us-east-1\n'


@pytest.mark.parametrize('fmt', ['jsonl','parquet'])
def test_records_read_snapshots_and_buckets(local, bucket, fmt):
    "The way that every command takes."
    from ipbes_classifier.records import iter_records, read_records
    root,address = local(snapshot(fmt)),bucket(snapshot(fmt))
    here = read_records(root)
    assert here['id'].tolist()==[f'W{n}' for n in ORDER] and here['doi'][0]=='10.1234/w3' and here['year'].tolist()==[2000+n for n in ORDER]
    assert 'original' not in here
    there = pd.concat(iter_records(address,4), ignore_index=True)
    assert there.drop(columns='source').equals(here.drop(columns='source'))


def test_records_read_saved_works(tmp_path):
    from ipbes_classifier.records import read_records
    works = [work(n) for n in (1,2)]
    for name,data in {'w.json':json.dumps(works).encode(), 'answer.json':json.dumps(dict(meta={},results=works),indent=1).encode(), 'w.jsonl':jsonl(works),
        'w.jsonl.gz':gzip.compress(jsonl(works)), 'w.parquet':parquet(works)}.items():
        (tmp_path/name).write_bytes(data)
        assert read_records(tmp_path/name)['title'].tolist()==['Ants 1','Ants 2'], name
