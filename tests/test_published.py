"""A bucket on bad days: what is published arrives whole and in its folder, or a clean stop says why and a second run completes it.

The server speaks S3's listing in both versions, index pages, ranges and ETags. The same is asked of moto, which speaks S3 by itself.
"""
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections import defaultdict, deque
from html import escape
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moods import MoodyServer, cuts, drips, resets, says, serving, sleeps
from test_predecessor import LABELS, ipbes, tiny

import ipbes_classifier.published as published
from ipbes_classifier.config import Api
from ipbes_classifier.fetch import ServiceError
from ipbes_classifier.files import locked
from ipbes_classifier.project import init_project
from ipbes_classifier.published import Bucket, Published, check_content, fetch_published, list_published, read_index, read_listing, safe_path
from ipbes_classifier.screen import Screener

MIB = 2**20


def noise(n:int, seed:int=0)->bytes: return random.Random(seed).randbytes(n)


FILES = {'README.md':b'# published\n', 'dataset/':b'', 'dataset/cleaned_dataset.csv':b'doi,title\n'+noise(200_000).hex().encode()+b'\n', 'dataset/empty.csv':b'',
         **{f'dataset/folds/test{k}_run-0.csv':f'index\n{k}\n'.encode() for k in range(3)}, 'dataset/odd name+1 & 100% (é).txt':'ü'.encode(),
         'checkpoints/m_fold-1/config.json':b'{}', 'checkpoints/m_fold-10/config.json':b'{"a":1}'}


def etag(data:bytes)->str: return hashlib.md5(data).hexdigest()


class Store(MoodyServer):
    "A bucket, or a folder with index pages; `bad` holds moods by key, `listing` what a listing is to say instead."
    def __init__(self, files=FILES, style='v2', page=4):
        super().__init__()
        self.files,self.style,self.page = dict(files),style,page
        self.bad,self.etags,self.sizes,self.ranges = defaultdict(deque),{},{},[]
        self.keys,self.xml = None,None

    def answer(self, h):
        key = unquote(h.route)[1:]
        if not key or key.endswith('/') and self.style=='index': return self.folder(h,key)
        if self.bad[key] and self.bad[key].popleft()(h): return None
        if key not in self.files: return h.say(404, '<Error><Code>NoSuchKey</Code></Error>', kind='application/xml')
        return self.object(h, self.files[key], self.etags.get(key, etag(self.files[key])))

    def object(self, h, data, tag):
        headers = dict(ETag=f'"{tag}"')
        m = re.fullmatch(r'bytes=(\d+)-', h.headers.get('Range',''))
        self.ranges.append((unquote(h.route)[1:], int(m[1]) if m else 0))
        if m and int(m[1])<len(data) and h.headers.get('If-Range',f'"{tag}"')==f'"{tag}"':
            return send(h, 206, data[int(m[1]):], **headers, Content_Range=f'bytes {m[1]}-{len(data)-1}/{len(data)}')
        return send(h, 200, data, **headers)

    def folder(self, h, key):
        if self.style=='index': return self.index(h,key)
        if self.style=='closed': return h.say(403, '<Error><Code>AccessDenied</Code></Error>', kind='application/xml')
        if self.xml is not None: return h.say(200, self.xml, kind='application/xml')
        keys = [k for k in sorted(self.keys or self.files) if k.startswith(h.query.get('prefix',''))]
        after = h.query.get('continuation-token','').removeprefix('after ') if self.style=='v2' else h.query.get('marker','')
        keys = [k for k in keys if k>after]
        return h.say(200, self.page_of(keys, h.query.get('encoding-type')=='url'), kind='application/xml')

    def page_of(self, keys, quoted):
        now,plain = keys[:self.page],(quote_plus if quoted else escape)
        entries = ''.join(f'<Contents><Key>{plain(k)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{self.etags.get(k) or etag(self.files.get(k,b""))}&quot;</ETag>'
                          f'<Size>{self.sizes.get(k, len(self.files.get(k,b"x")))}</Size></Contents>' for k in now)
        more = '' if len(keys)<=self.page else f'<NextContinuationToken>after {escape(now[-1])}</NextContinuationToken>' if self.style=='v2' else ''
        return ('<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>'
                f'{"<EncodingType>url</EncodingType>" if quoted else ""}<IsTruncated>{"true" if len(keys)>self.page else "false"}</IsTruncated>{more}{entries}</ListBucketResult>')

    def index(self, h, key):
        below = {k.removeprefix(key).partition('/') for k in self.files if k.startswith(key) and k!=key}
        names = sorted({a+b for a,b,_ in below})
        if not names: return h.say(404, 'no such folder', kind='text/html')
        links = ''.join(f'<tr><td><a href="{quote(n)}">{escape(n)}</a></td></tr>' for n in names)
        return h.say(200, f'<!DOCTYPE html><html><a href="?C=M;O=A">Date</a><a href="../">Parent</a><a href="https://elsewhere.example/x">x</a><table>{links}</table></html>', kind='text/html')


def send(h, code, data, **headers):
    "Like `say`; `h.short`: so many bytes, and then an end in good order."
    n = vars(h).pop('short',None)
    if n is None or n>=len(data): return h.say(code, data, kind='binary/octet-stream', **headers)
    h.say(code, data[:n], kind='binary/octet-stream', length=len(data), **headers)
    h.close_connection = True
    return True


def truncates(n:int):
    def mood(h): h.short = n
    return mood


@pytest.fixture
def store():
    with serving(server=Store()) as s: yield s


def get(s, what, out, **kw)->published.FetchedFiles:
    return fetch_published(what, out, Api(published_url=s.url, **(dict(timeout=10,retries=3)|{k:v for k,v in kw.items() if k!='jobs'})), jobs=kw.get('jobs',4), backoff=0.005)


def tree(folder:Path)->dict[str,bytes]:
    "All files but locks; addresses of the server left out of the account."
    out = {str(p.relative_to(folder)):p.read_bytes() for p in folder.rglob('*') if p.is_file() and '.locks' not in p.parts}
    if 'published.json' in out: out['published.json'] = re.sub(rb'http://127.0.0.1:\d+', b'', out['published.json'])
    return out


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory)->dict[str,bytes]:
    out = tmp_path_factory.mktemp('undisturbed')/'data'
    with serving(server=Store()) as s: get(s, 'dataset', out)
    return tree(out)


# ---- listings

def test_the_whole_of_a_folder_comes_and_nothing_else(undisturbed):
    assert {k:v for k,v in undisturbed.items() if k!='published.json'}=={k.removeprefix('dataset/'):v for k,v in FILES.items() if k.startswith('dataset/') and k!='dataset/'}
    account = json.loads(undisturbed['published.json'])['files']
    assert set(account)==set(undisturbed)-{'published.json'}
    assert all(a['sha256']==hashlib.sha256(undisturbed[p]).hexdigest() and a['checked']=='md5' for p,a in account.items())


@pytest.mark.parametrize('style, page', [('v2',1),('v2',2),('v2',1000),('v1',1),('v1',2),('v1',1000),('index',1)])
def test_all_ways_of_listing_give_the_same(style, page, tmp_path, undisturbed):
    with serving(server=Store(style=style,page=page)) as s:
        get(s, 'dataset', tmp_path/'data')
        assert tree(tmp_path/'data')==undisturbed
        assert set(get(s, '', tmp_path/'all').files)=={k for k in FILES if not k.endswith('/')}
        assert set(get(s, 'checkpoints/m_fold-1/', tmp_path/'one').files)=={'m_fold-1/config.json'}
        assert set(get(s, 'checkpoints/m_fold-1', tmp_path/'two').files)=={'m_fold-1/config.json','m_fold-10/config.json'}


def test_a_server_that_ignores_the_prefix_sends_no_more_than_was_asked_for(store, tmp_path):
    store.page = 99
    store.xml = store.page_of([*sorted(FILES),'../../escaped'],False)
    assert set(get(store, 'checkpoints', tmp_path).files)=={'m_fold-1/config.json','m_fold-10/config.json'}


def test_a_bucket_below_a_path_and_a_slash_at_the_end_of_its_address(tmp_path):
    with serving(server=Store({f'bucket/{k}':v for k,v in FILES.items()}, style='index')) as s:
        done = fetch_published('dataset', tmp_path, Api(published_url=s.url+'/bucket/'), backoff=0.01)
    assert len(done.files)==6 and (tmp_path/'folds/test0_run-0.csv').exists()


BOMB = '<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'+''.join(f'<!ENTITY {b} "{f"&{a};"*10}">' for a,b in zip('abcdefgh','bcdefghi'))+']><ListBucketResult><Contents><Key>&i;</Key><Size>1</Size></Contents></ListBucketResult>'
OUTSIDE = '<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/hostname">]><ListBucketResult><Contents><Key>&x;</Key><Size>1</Size></Contents></ListBucketResult>'
REMOTE = '<!DOCTYPE ListBucketResult SYSTEM "http://127.0.0.1:1/x.dtd"><ListBucketResult/>'


@pytest.mark.parametrize('xml, words', [
    (BOMB,'declares entities'), (OUTSIDE,'declares entities'), (REMOTE,'declares entities'), ('<ListBucketResult><Contents>','is no XML'),
    ('<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>','without a key or a size'),
    ('<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>','less than no bytes'),
    ('<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>','again and again'), ('<ListBucketResult></ListBucketResult>','publishes nothing'),
    ('<html>Sign in to the hotel network</html>','neither as S3'), ('','neither as S3'), ('<!-- ListBucketResult -->'+' '*(33*MIB),'more than 32 MiB')],
    ids='bomb external remote-dtd half no-size negative endless empty portal nothing huge'.split())
def test_a_listing_that_is_none_ends_in_one_sentence(store, tmp_path, xml, words):
    store.xml = xml
    with pytest.raises(ServiceError, match=words) as e: get(store, 'dataset', tmp_path/'data', retries=1)
    assert '\n' not in str(e.value) and not (tmp_path/'data').exists()
    store.xml = None
    assert len(get(store, 'dataset', tmp_path/'data').files)==6


def test_pages_without_end_are_not_followed(store, tmp_path, monkeypatch):
    monkeypatch.setattr(published, '_MOST', 50)
    n = iter(range(10**6))
    store.folder = lambda h,key: h.say(200, f'<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t{(i := next(n))}</NextContinuationToken>'
                                            f'<Contents><Key>dataset/{i}</Key><Size>1</Size></Contents></ListBucketResult>', kind='application/xml')
    with pytest.raises(ServiceError, match='more than 50 files'): get(store, 'dataset', tmp_path)
    store.folder = lambda h,key: h.say(200, f'<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t{next(n)}</NextContinuationToken>'
                                            '<Contents><Key>dataset/a</Key><Size>1</Size></Contents></ListBucketResult>', kind='application/xml')
    store.seen.clear()
    with pytest.raises(ServiceError, match='again and again'): get(store, 'dataset', tmp_path)
    assert len(store.seen)==2


def test_index_pages_without_end_are_not_followed(tmp_path):
    with serving(lambda h: h.say(200, '<a href="deeper/">deeper</a>'*3, kind='text/html')) as s, pytest.raises(ServiceError, match='index pages without end'):
        get(s, 'dataset', tmp_path, retries=0)


def test_a_closed_bucket_says_so_and_is_not_asked_again_and_again(tmp_path):
    with serving(server=Store(style='closed')) as s:
        with pytest.raises(ServiceError, match=r'neither as S3 does \(.*403 Forbidden\) nor by index pages \(no link leads'): get(s, 'dataset', tmp_path)
        assert len(s.seen)==2


# ---- moods

PASSING = {'429':says(429,'Slow down'), '429-retry-after':says(429,Retry_After='0.05'), '500':says(500,'Oops',kind='text/html'), '503':says(503), '504':says(504), '408':says(408), 'reset':resets}


@pytest.mark.parametrize('mood', PASSING.values(), ids=PASSING)
def test_a_mood_that_passes_changes_nothing(store, tmp_path, mood, undisturbed):
    store.moods += [mood,None,mood,mood,None,None,mood]
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed and not store.moods


def test_a_slow_answer_is_asked_for_again(store, tmp_path, undisturbed):
    store.moods += [sleeps]
    store.bad['dataset/cleaned_dataset.csv'] += [sleeps]
    get(store, 'dataset', tmp_path, timeout=0.4)
    assert tree(tmp_path)==undisturbed


def test_half_a_listing_is_asked_for_again(store, tmp_path, undisturbed):
    store.moods += [None,says(200,'<ListBucketResult><Contents><Key>dataset/a</Key><Si',kind='application/xml'),cuts(300)]
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


BIG = 'dataset/cleaned_dataset.csv'


@pytest.mark.parametrize('bad', [[truncates(100_000)], [truncates(100_000),truncates(200_000)], [cuts(150_000)], [truncates(0)], [truncates(5)]*3, [cuts(70_000)]*5,
                                 [truncates(100_000),says(503),resets,truncates(10)]], ids='truncated twice reset nothing little five-resets mixed'.split())
def test_what_broke_off_goes_on_where_it_stopped(store, tmp_path, bad, undisturbed):
    store.bad[BIG] += bad
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed and not store.bad[BIG]
    begins = [b for k,b in store.ranges if k==BIG]
    assert begins==sorted(begins)


def test_only_what_is_missing_is_asked_for(store, tmp_path):
    store.bad[BIG] += [truncates(100_000),truncates(200_000)]
    get(store, 'dataset', tmp_path)
    assert [b for k,b in store.ranges if k==BIG]==[0,100_000,300_000]


def test_a_connection_that_breaks_many_times_is_enough(store, tmp_path):
    store.bad[BIG] += [truncates(70_000)]*5
    get(store, 'dataset', tmp_path, retries=1)
    assert [b for k,b in store.ranges if k==BIG]==[70_000*i for i in range(6)]


def test_a_server_without_ranges_sends_it_again(store, tmp_path, undisturbed):
    store.bad[BIG] += [truncates(100_000)]
    store.object = lambda h,data,tag: send(h, 200, data, ETag=f'"{tag}"')
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


def test_a_server_that_sends_another_range_is_asked_again(store, tmp_path, undisturbed):
    data = FILES[BIG]
    wrong = lambda h: send(h, 206, data[50_000:], ETag=f'"{etag(data)}"', Content_Range=f'bytes 50000-{len(data)-1}/{len(data)}')
    store.bad[BIG] += [truncates(100_000),wrong]
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


@pytest.mark.parametrize('length', [400_011,300_000,50_000])
def test_a_file_that_changes_meanwhile_comes_as_it_is_now(store, tmp_path, length):
    new = noise(length,1)
    def changes(h): store.files[BIG] = new
    store.bad[BIG] += [truncates(100_000),changes]
    done = get(store, 'dataset', tmp_path)
    assert (tmp_path/'cleaned_dataset.csv').read_bytes()==new and done.files['cleaned_dataset.csv'].file==Published(BIG,length,etag(new))
    assert not get(store, 'dataset', tmp_path).new


def test_a_file_that_changes_all_the_time_is_refused(store, tmp_path):
    n = iter(range(99))
    store.object = lambda h,data,tag: send(h, 200, b'%09d'%next(n), ETag=f'"{next(n):032x}"')
    with pytest.raises(ServiceError, match='6 of 6 files could not be fetched.*three times'): get(store, 'dataset', tmp_path)
    assert set(tree(tmp_path))==set()


@pytest.mark.parametrize('mood, words', [(says(500),'500 Internal Server Error'), (resets,'does not answer, or breaks off'), (says(429,Retry_After='7200'),'429 Too Many'), (truncates(1000),'breaks off')],
                         ids='500 reset quota truncated'.split())
def test_a_mood_that_stays_ends_in_one_sentence_and_a_second_run_completes(store, tmp_path, mood, words, undisturbed):
    store.bad[BIG] += [truncates(100_000)]+[mood]*20
    with pytest.raises(ServiceError, match=words) as e: get(store, 'dataset', tmp_path, max_wait=1)
    assert '\n' not in str(e.value) and 'the same command goes on from there' in str(e.value)
    assert not (tmp_path/'cleaned_dataset.csv').exists()
    store.bad.clear()
    store.ranges.clear()
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed
    assert [b for k,b in store.ranges if k==BIG][0]>=100_000


def test_nobody_there(tmp_path):
    with pytest.raises(ServiceError, match='does not answer'): fetch_published('dataset', tmp_path/'data', Api(published_url='http://127.0.0.1:9'), backoff=0.01)
    assert not (tmp_path/'data').exists()


@pytest.mark.parametrize('code', [403,404,410])
def test_a_file_that_is_not_there_keeps_no_other_from_coming(store, tmp_path, code, undisturbed):
    store.bad[BIG] += [says(code,'<html>',kind='text/html')]*5
    with pytest.raises(ServiceError, match=f'1 of 6 files could not be fetched.*{code}'): get(store, 'dataset', tmp_path)
    assert {k for k in tree(tmp_path) if k!='published.json'}==set(undisturbed)-{'cleaned_dataset.csv','published.json'}
    store.bad.clear()
    done = get(store, 'dataset', tmp_path)
    assert done.new==['cleaned_dataset.csv'] and tree(tmp_path)==undisturbed


def test_a_sign_in_page_in_place_of_a_file_is_not_taken_for_half_of_it(tmp_path):
    with serving(server=Store(style='index')) as s:
        s.etags = dict.fromkeys(s.files,'65a1b2c3-7f')
        def portal(h):
            h.send_response(200)
            h.send_header('Connection','close')
            h.end_headers()
            h.wfile.write(b'<html>Sign in to the hotel network</html>')
            h.close_connection = True
            return True
        s.bad[BIG] += [lambda h: False,portal,portal]
        get(s, 'dataset', tmp_path)
    assert (tmp_path/'cleaned_dataset.csv').read_bytes()==FILES[BIG]


# ---- is it the file?

def test_an_etag_that_never_fits_is_an_error_and_nothing_is_kept(store, tmp_path, undisturbed):
    store.etags[BIG] = 'f'*32
    with pytest.raises(ServiceError, match='does not have the ETag ffff'): get(store, 'dataset', tmp_path)
    assert 'cleaned_dataset.csv' not in tree(tmp_path) and not any('.parts' in p for p in tree(tmp_path))
    assert 'folds/test0_run-0.csv' in tree(tmp_path)
    store.etags.clear()
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


def test_bytes_that_were_damaged_once_are_fetched_again(store, tmp_path, undisturbed):
    store.bad[BIG] += [lambda h: send(h, 200, b'x'+FILES[BIG][1:], ETag=f'"{etag(FILES[BIG])}"')]
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


def test_half_a_file_that_was_damaged_here_is_fetched_again(store, tmp_path, undisturbed):
    store.bad[BIG] += [truncates(100_000)]+[says(500)]*20
    with pytest.raises(ServiceError): get(store, 'dataset', tmp_path)
    part = next(p for p in (tmp_path/'.parts').iterdir() if p.stat().st_size==100_000)
    part.write_bytes(noise(100_000,5))
    store.bad.clear()
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


@pytest.mark.parametrize('size, words', [(10,'as listed'), (10**6,'as listed')])
def test_another_size_than_listed_is_an_error(store, tmp_path, size, words):
    store.sizes[BIG] = size
    with pytest.raises(ServiceError, match=words): get(store, 'dataset', tmp_path)
    assert 'cleaned_dataset.csv' not in tree(tmp_path)


def test_more_bytes_than_were_told_are_not_taken(store, tmp_path):
    def chunked(h):
        h.send_response(200)
        for k,v in {'Transfer-Encoding':'chunked','ETag':f'"{etag(FILES[BIG])}"'}.items(): h.send_header(k,v)
        h.end_headers()
        for _ in range(20): h.wfile.write(b'%x\r\n'%65536+b'z'*65536+b'\r\n')
        h.wfile.write(b'0\r\n\r\n')
        return True
    store.bad[BIG] += [chunked]*5
    with pytest.raises(ServiceError, match='the server sends more'): get(store, 'dataset', tmp_path)
    assert 'cleaned_dataset.csv' not in tree(tmp_path) and sum(len(v) for v in tree(tmp_path).values())<FILES[BIG].__len__()+10_000


def test_etags_that_are_no_md5_are_told(tmp_path):
    with serving(server=Store(style='index')) as s:
        s.etags = dict.fromkeys(s.files, '65a1b2c3-7f')
        done = get(s, 'dataset', tmp_path)
        assert '6 of them compared by size alone' in str(done) and {a.checked for a in done.files.values()}=={'size'}
        assert not get(s, 'dataset', tmp_path).new
        s.files[BIG],s.etags[BIG] = b'y'*len(FILES[BIG]),'65a1b2c3-80'
        assert get(s, 'dataset', tmp_path).new==['cleaned_dataset.csv'] and (tmp_path/'cleaned_dataset.csv').read_bytes()==s.files[BIG]


# ---- listings without end

@pytest.mark.parametrize('body, coding, words', [
    (zlib.compress(bytes(100*2**20),9,31),'gzip','more than 32 MiB'), (zlib.compress(zlib.compress(bytes(100*2**20),9,31),9,31),'gzip, gzip','cannot be unpacked')], ids=['bomb','bomb in a bomb'])
def test_a_listing_that_would_fill_the_memory_is_refused(tmp_path, body, coding, words):
    with serving(lambda h: h.say(200, body, **{'Content-Encoding':coding})) as s:
        tracemalloc.start()
        with pytest.raises(ServiceError, match=words): get(s, 'dataset', tmp_path, retries=1)
        assert tracemalloc.get_traced_memory()[1]<100*2**20
        tracemalloc.stop()


def test_a_listing_that_drips_is_cut_off(tmp_path):
    with serving() as s, pytest.raises(ServiceError, match='has not ended a listing in 2 seconds'):
        s.mood = drips(head=False)
        get(s, 'dataset', tmp_path, timeout=0.2)
    assert len(s.seen)==1


def test_another_host_does_not_learn_the_mail_address(store, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv('IPBES_EMAIL', 'screener@assessment.example.org')
    with serving(server=MoodyServer(lambda h: h.say(302, Location=f'{store.url}{h.path}'))) as front:
        get(front, 'dataset', tmp_path/'data')
    assert all('screener@' in a for a in front.agents) and store.agents and not any('screener@' in a for a in store.agents)
    assert tree(tmp_path/'data')==undisturbed


# ---- names

@pytest.mark.parametrize('keys, words', [
    (['dataset/../../escaped'],'leads out of its folder'), (['dataset/..'],'leads out'), (['dataset//etc/passwd'],'absolute'), (['dataset/C:/escaped'],'name of a drive'), (['dataset/c:escaped'],'name of a drive'), (['dataset/CON'],'Windows'), (['dataset/x.'],'Windows'),
    (['dataset/x /y'],'Windows'), (['dataset/x?y'],'Windows'), (['dataset/a/Nul.txt'],'Windows'), (['dataset/a\u202eb'],'control characters'),
    (['dataset/..\\..\\escaped'],'backslash'), (['dataset/a/\\escaped'],'backslash'), (['dataset/a/./b'],'empty or a dot'), (['dataset/a//b'],'empty or a dot'), (['dataset/a\x07b'],'control characters'),
    (['dataset/'+'n'*256],'too long'), (['dataset/published.json'],'used here'), (['dataset/.parts/x'],'used here'), (['dataset/.Locks/x'],'used here'),
    (['dataset/a','dataset/a/b'],'a file and of a folder'), (['dataset/A.csv','dataset/a.csv'],'one name on some systems'), (['dataset/é','dataset/e\u0301'],'one name on some systems')])
@pytest.mark.parametrize('style', ['v2','v1'])
def test_a_name_that_leads_elsewhere_stops_all(tmp_path, keys, words, style):
    with serving(server=Store(dict.fromkeys([*keys,'dataset/good.csv'],b'evil'),style)) as s:
        with pytest.raises(ValueError, match=words) as e: get(s, 'dataset', tmp_path/'a/b/data')
        assert '\n' not in str(e.value) and '\x07' not in str(e.value)
        assert not list(tmp_path.rglob('*')) and all(h.startswith('/?') for h in s.seen)
        assert len(get(s, 'dataset/good', tmp_path/'data').files)==1


def test_links_of_an_index_page_lead_nowhere_else(tmp_path):
    page = '<a href="/etc/passwd">a</a><a href="../../x">b</a><a href="%2e%2e/%2e%2e/escaped">c</a>'
    def answer(h): return h.say(200, page, kind='text/html') if h.route.endswith('/') else h.say(200, b'x')
    with serving(answer) as s, pytest.raises(ValueError, match='leads out of its folder'): get(s, 'dataset', tmp_path/'data')
    assert not (tmp_path/'data').exists()


def test_a_folder_marked_by_an_empty_file_is_a_folder(tmp_path):
    with serving(server=Store({'dataset/folds':b'','dataset/folds/a.csv':b'x','dataset/other/':b''})) as s: assert set(get(s, 'dataset', tmp_path).files)=={'folds/a.csv'}


@pytest.mark.parametrize('link', ['folds','cleaned_dataset.csv','published.json','.parts','.locks'])
def test_a_link_in_the_folder_is_not_followed(store, tmp_path, link):
    away = tmp_path/'away'
    away.mkdir()
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/link).symlink_to(away if '.' not in link[1:] else away/'file')
    with pytest.raises(ValueError, match='is a symbolic link'): get(store, 'dataset', tmp_path/'data')
    assert not list(away.iterdir()) and (tmp_path/'data'/link).is_symlink()


def test_a_link_planted_meanwhile_is_not_followed(store, tmp_path):
    away,out = tmp_path/'away',tmp_path/'data'
    away.mkdir()
    store.bad['dataset/folds/test1_run-0.csv'] += [lambda h: (out/'folds').exists() or (out/'folds').symlink_to(away)]
    with pytest.raises(ValueError, match='is a symbolic link'): get(store, 'dataset/folds/test1', out)
    assert not list(away.iterdir())


def test_the_folder_itself_may_be_a_link(store, tmp_path, undisturbed):
    (tmp_path/'disk').mkdir()
    (tmp_path/'data').symlink_to(tmp_path/'disk')
    get(store, 'dataset', tmp_path/'data')
    assert tree(tmp_path/'disk')==undisturbed


@given(st.text(max_size=40)|st.lists(st.sampled_from(['..','.','','a','C:','\\','/','~','\0','é','published.json','b.csv',' ']), max_size=5).map('/'.join))
def test_no_key_leaves_the_folder(key):
    try: path = safe_path(key, 'dataset/')
    except ValueError as e:
        assert '\n' not in str(e)
        return
    base = Path('/base/folder')
    full = Path(os.path.normpath(base/path))
    assert base in full.parents and full==base/path and '\\' not in path


@settings(max_examples=200)
@given(st.binary(max_size=300)|st.binary(max_size=100).map(lambda b: b'<ListBucketResult>'+b+b'</ListBucketResult>'))
def test_any_bytes_are_a_listing_or_one_sentence(data):
    try: found = read_listing(data)
    except ServiceError as e: assert '\n' not in str(e)
    else: assert found is None or isinstance(found[0],list)
    assert all(u.startswith('https://s.example/d/') for u in read_index(data,'https://s.example/d/'))


# ---- what stands there already

def test_a_second_run_asks_for_no_file(store, tmp_path, undisturbed):
    get(store, 'dataset', tmp_path)
    store.ranges.clear()
    before = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.csv')}
    done = get(store, 'dataset', tmp_path)
    assert not store.ranges and not done.new and tree(tmp_path)==undisturbed and before=={p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.csv')}


def test_a_file_of_somebody_else_stays(store, tmp_path):
    for content in (b'my own\n', noise(len(FILES[BIG]),3)):
        (tmp_path/'cleaned_dataset.csv').write_bytes(content)
        with pytest.raises(FileExistsError, match='cleaned_dataset.csv is not what is published'): get(store, 'dataset', tmp_path)
        assert (tmp_path/'cleaned_dataset.csv').read_bytes()==content and not store.ranges


def test_a_folder_where_a_file_should_be_stays(store, tmp_path):
    (tmp_path/'cleaned_dataset.csv').mkdir()
    with pytest.raises(FileExistsError, match='is a folder'): get(store, 'dataset', tmp_path)


def test_an_outdated_file_is_replaced_unless_somebody_changed_it(store, tmp_path):
    get(store, 'dataset', tmp_path)
    store.files[BIG] = b'doi,title\nnew\n'
    assert get(store, 'dataset', tmp_path).new==['cleaned_dataset.csv']
    assert (tmp_path/'cleaned_dataset.csv').read_bytes()==store.files[BIG]
    (tmp_path/'cleaned_dataset.csv').write_text('mine\n')
    store.files[BIG] = b'doi,title\nnewer\n'
    with pytest.raises(FileExistsError): get(store, 'dataset', tmp_path)
    assert (tmp_path/'cleaned_dataset.csv').read_text()=='mine\n'


def test_a_damaged_account_is_told(store, tmp_path):
    (tmp_path/'published.json').write_text('{')
    with pytest.raises(ValueError, match='published.json is not JSON'): get(store, 'dataset', tmp_path)


def test_two_calls_add_to_one_account(store, tmp_path):
    get(store, 'dataset/folds', tmp_path)
    get(store, 'dataset/c', tmp_path)
    assert set(json.loads((tmp_path/'published.json').read_text())['files'])=={'cleaned_dataset.csv',*(f'folds/test{k}_run-0.csv' for k in range(3))}


def test_two_at_once_do_not_mix(store, tmp_path):
    with locked(tmp_path/'published.json'), pytest.raises(OSError, match='another process fetches into this folder'): get(store, 'dataset', tmp_path)
    assert not store.ranges


# ---- disks

def test_a_full_disk_is_one_sentence_and_a_second_run_completes(store, tmp_path, undisturbed):
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,hard))
    try:
        with pytest.raises(OSError, match='cleaned_dataset.csv cannot be written: the disk is full') as e: get(store, 'dataset', tmp_path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft,hard))
    assert '\n' not in str(e.value) and not (tmp_path/'cleaned_dataset.csv').exists()
    get(store, 'dataset', tmp_path)
    assert tree(tmp_path)==undisturbed


def test_what_the_disk_cannot_hold_is_not_begun(store, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(10**6,10**6,1000))
    with pytest.raises(OSError, match='400.0 kB are to come, and the disk has room for 1.0 kB'): get(store, 'dataset', tmp_path)
    assert not store.ranges


def test_a_folder_that_cannot_be_written(store, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='is a file, and a folder is needed there'): get(store, 'dataset', tmp_path/'file/data')


# ---- processes

def command(s, out, **kw):
    env = os.environ|dict(OMP_NUM_THREADS='1')
    return subprocess.Popen([Path(sys.executable).with_name('ipbes'),'fetch','published','dataset','-o',str(out),f'api.published_url={s.url}'], cwd=out.parent, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def wait_for(condition, seconds:float=30):
    "Wait until it holds; a file that goes while it is looked at is a no."
    def holds():
        try: return condition()
        except FileNotFoundError: return False
    end = time.monotonic()+seconds
    while not holds():
        assert time.monotonic()<end
        time.sleep(0.02)


@pytest.mark.parametrize('sign', [signal.SIGKILL,signal.SIGINT])
def test_after_a_kill_the_same_command_completes(store, tmp_path, sign, undisturbed):
    out,data = tmp_path/'data',FILES[BIG]
    def stalls(h):
        h.send_response(200)
        for k,v in {'Content-Length':str(len(data)),'ETag':f'"{etag(data)}"'}.items(): h.send_header(k,v)
        h.end_headers()
        h.wfile.write(data[:123_456])
        h.wfile.flush()
        time.sleep(20)
        return True
    store.bad[BIG] += [stalls]
    p = command(store, out)
    wait_for(lambda: [f.stat().st_size for f in out.glob('.parts/*')]==[123_456] and len(list(out.glob('folds/*')))==3 and len(list(out.glob('*.*')))==4)
    p.send_signal(sign)
    assert p.wait(15)!=0
    assert not (out/'cleaned_dataset.csv').exists()
    store.ranges.clear()
    p = command(store, out)
    told,err = p.communicate(timeout=60)
    assert p.returncode==0 and '1 fetched, 5 there before' in told, told+err
    assert tree(out)==undisturbed and store.ranges==[(BIG,123_456)]


# ---- moto's S3, which is nobody's stand-in for this code

@pytest.fixture(scope='module')
def moto():
    "A bucket with names that need quoting, a file stored in parts, and pages of three names."
    import boto3
    from moto.server import ThreadedMotoServer
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(MOTO_S3_DEFAULT_MAX_KEYS='3', AWS_ACCESS_KEY_ID='none', AWS_SECRET_ACCESS_KEY='none').items(): m.setenv(k,v)
        server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
        server.start()
        host,port = server.get_host_and_port()
        s3 = boto3.client('s3', endpoint_url=f'http://{host}:{port}', region_name='us-east-1')
        s3.create_bucket(Bucket='shelf')
        for k,v in FILES.items(): s3.put_object(Bucket='shelf', Key=k, Body=v, ACL='public-read')
        weights = noise(11*MIB+7,9)
        up = s3.create_multipart_upload(Bucket='shelf', Key='checkpoints/m_fold-1/pytorch_model.bin')
        tell = dict(Bucket='shelf', Key='checkpoints/m_fold-1/pytorch_model.bin', UploadId=up['UploadId'])
        parts = [dict(PartNumber=i+1, ETag=s3.upload_part(Body=weights[i*5*MIB:(i+1)*5*MIB], PartNumber=i+1, **tell)['ETag']) for i in range(3)]
        s3.complete_multipart_upload(MultipartUpload=dict(Parts=parts), **tell)
        yield Api(published_url=f'http://{host}:{port}/shelf', timeout=20),weights,s3
        server.stop()


def test_s3_as_moto_speaks_it(moto, tmp_path, undisturbed):
    api,weights,s3 = moto
    assert s3.list_objects_v2(Bucket='shelf')['IsTruncated']
    fetch_published('dataset', tmp_path/'data', api)
    got,account = tree(tmp_path/'data'),lambda t: t['published.json'].replace(b'/shelf/',b'/')
    assert account(got)==account(undisturbed) and {k:v for k,v in got.items() if k!='published.json'}=={k:v for k,v in undisturbed.items() if k!='published.json'}
    done = fetch_published('checkpoints', tmp_path/'models', api)
    arrived = done.files['m_fold-1/pytorch_model.bin']
    assert arrived.checked=='md5' and arrived.file.etag.endswith('-3') and (tmp_path/'models/m_fold-1/pytorch_model.bin').read_bytes()==weights
    assert {f.key:f.size for f in list_published('', Bucket(api.published_url,api))}=={k:len(v) for k,v in FILES.items()}|{'checkpoints/m_fold-1/pytorch_model.bin':len(weights)}


def test_a_large_file_goes_on_at_moto(moto, tmp_path):
    api,weights,_ = moto
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4*MIB,hard))
    try:
        with pytest.raises(OSError, match='pytorch_model.bin cannot be written'): fetch_published('checkpoints/m_fold-1/', tmp_path, api)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft,hard))
    part = next(p for p in (tmp_path/'.parts').iterdir() if p.stat().st_size>MIB)
    came = part.stat().st_size
    assert came<=4*MIB and part.read_bytes()==weights[:came]
    fetch_published('checkpoints/m_fold-1/', tmp_path, api)
    assert (tmp_path/'m_fold-1/pytorch_model.bin').read_bytes()==weights


def test_a_bucket_that_is_not_there(moto, tmp_path):
    api,_,_ = moto
    with pytest.raises(ServiceError, match='neither as S3 does .*404'): fetch_published('dataset', tmp_path, Api(published_url=api.published_url+'-other'), backoff=0.01)


@given(st.lists(st.integers(1,4*MIB), min_size=1, max_size=3), st.data())
@settings(max_examples=15, deadline=None)
def test_etags_of_parts_are_told_from_others(tmp_path_factory, sizes, data):
    part,n = data.draw(st.sampled_from([1,2,5,8])),data.draw(st.integers(1,3))
    content = noise((n-1)*part*MIB+data.draw(st.integers(1,part*MIB)))
    tag = f"{hashlib.md5(b''.join(hashlib.md5(content[i*part*MIB:(i+1)*part*MIB]).digest() for i in range(n))).hexdigest()}-{n}"
    path = tmp_path_factory.mktemp('parts')/'x'
    path.write_bytes(content)
    assert check_content(path, Published('x',len(content),tag))[0]==('md5' if part>1 or n==1 or len(content)/n>(part-1)*MIB else 'size')
    path.write_bytes(content[:-1]+bytes([content[-1]^1]))
    assert check_content(path, Published('x',len(content),tag))[0]!='md5'


# ---- from the bucket to predictions

MODEL = 'best_model_cross_val_BCE_bert-base-uncased_fold-{}'


@pytest.fixture(scope='module')
def shelf(tmp_path_factory):
    "What IPBES-Classifier published, in small: a data set, folds that overlap, and checkpoints as its training left them."
    place = tmp_path_factory.mktemp('shelf')
    for k in range(2): tiny(place/'checkpoints'/MODEL.format(k), head=True)
    rows = pd.DataFrame(dict(doi=[f'10.1/{i}' for i in range(60)], title=[f'Paper {i} on {w} of nature' for i,w in enumerate(['birds','fish','forests']*20)],
                             abstract=[f'We counted {i} plots of {w} in spring, in summer and in autumn and describe what changed.' for i,w in enumerate(['wild','alien','local','study']*15)]))
    rows = rows.assign(**{l:(rows.index%(3+j)==0).astype(int) for j,l in enumerate(LABELS)}, **{'Publication Year':2020, 'author':'Doe, Jane'})
    (place/'dataset/folds').mkdir(parents=True)
    rows.to_csv(place/'dataset/cleaned_dataset.csv')
    for name,r in dict(train=range(40), dev=range(40,50), test=[*range(30,40),*range(50,60)]).items():
        pd.DataFrame(dict(index=r)).to_csv(place/f'dataset/folds/{name}0_run-0.csv', index=False)
    return {str(p.relative_to(place)):p.read_bytes() for p in sorted(place.rglob('*')) if p.is_file()}


def test_from_the_bucket_to_predictions(shelf, tmp_path):
    root = init_project(tmp_path/'project')
    (root/'configs/config.yaml').write_text(''.join(['labels:\n',*(f'  - {{name: {l}}}\n' for l in LABELS),'logging: {progress: false}\nbaseline: {max_features: 300}\n']))
    with serving(server=Store(shelf,page=3)) as s:
        here = dict(cwd=root)
        address = f'api.published_url={s.url}'
        out,_ = ipbes('fetch', 'published', '--list', 'dataset', address, **here)
        assert len(out.splitlines())==5 and out.splitlines()[0].split()==[f'{len(shelf["dataset/cleaned_dataset.csv"]):,}','dataset/cleaned_dataset.csv'] and not (root/'data').exists()
        out,err = ipbes('fetch', 'published', address, **here)
        assert '4 files' in out and out.endswith('\ndata\n') and '`ipbes convert .` looks at the data set' in err
        out,err = ipbes('fetch', 'published', 'checkpoints', '--jobs', 2, address, **here)
        assert out.endswith('\nresults/final_model\n') and '`ipbes convert .` makes of 2 checkpoints' in err
        assert tree(root/'results/final_model').keys()-{'published.json'}=={k.removeprefix('checkpoints/') for k in shelf if k.startswith('checkpoints')}
        out,err = ipbes('convert', '.', code=1, **here)
        assert '60 records' in out and out.count('converted, outputs IAS, SUA, VA')==2 and '1 of 1 folds are refused' in err
        out,_ = ipbes('fetch', 'published', 'checkpoints', address, **here)
        assert '0 fetched' in out and not any('.parts' in str(p) for p in root.rglob('*'))
        pd.DataFrame(dict(title=['Birds of the forest'],abstract=['wild fish'])).to_csv(root/'new.csv', index=False)
        ipbes('predict', 'new.csv', '-m', f'results/final_model/{MODEL.format(1)}', '-o', 'scored.csv', **here)
        assert {f'{l}_score' for l in LABELS}<=set(pd.read_csv(root/'scored.csv').columns)
        ipbes('folds', '-nf', 2, '-nr', 1, **here)
        ipbes('train', '-m', 'tfidf-logreg', **here)
        _,err = ipbes('fetch', 'published', 'dataset', address, code=1, **here)
        assert 'is not what is published under that name' in err and len(list((root/'data/folds/before').iterdir()))==3


def test_one_checkpoint_without_a_project(shelf, tmp_path):
    with serving(server=Store(shelf)) as s:
        _,err = ipbes('fetch', 'published', f'checkpoints/{MODEL.format(1)}', f'api.published_url={s.url}', cwd=tmp_path, code=1)
        assert '-o DIR names a folder' in err and len(err.splitlines())==1 and not s.seen
        _,err = ipbes('fetch', 'published', f'checkpoints/{MODEL.format(1)}', '-o', 'models', f'api.published_url={s.url}', cwd=tmp_path)
    command = re.search('`ipbes ([^`]*)`',err)[1].split()
    ipbes(*command, '--labels', ','.join(LABELS), cwd=tmp_path)
    assert len(Screener.load(tmp_path/'models'/MODEL.format(1)).score(dict(title='Birds',abstract='fish')))==1


def test_the_command_says_in_one_sentence_what_is_wrong(store, tmp_path):
    address = f'api.published_url={store.url}'
    init_project(tmp_path/'project')
    for args,words in {('README',):'has no place in a project', ('datasets','-o','x'):"nothing whose name begins with 'datasets'", ('dataset','-o','x','api.retries=-1'):'api.retries'}.items():
        _,err = ipbes('fetch', 'published', *args, address, cwd=tmp_path/'project', code=1)
        assert words in err and len(err.splitlines())==1 and not (tmp_path/'project/x').exists()
    store.keys = ['dataset/\x1b[31mred']
    store.page_of = lambda keys,quoted: '<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>dataset/%1B[31mred</Key><Size>3</Size></Contents></ListBucketResult>'
    out,_ = ipbes('fetch', 'published', '--list', 'dataset', address, cwd=tmp_path)
    assert '\x1b' not in out and r"'dataset/\x1b[31mred'" in out


def test_what_another_call_has_begun_stays(store, tmp_path):
    store.bad[BIG] += [truncates(100_000)]+[says(500)]*20
    with pytest.raises(ServiceError): get(store, BIG, tmp_path)
    store.bad.clear()
    get(store, 'dataset/folds', tmp_path)
    assert [p.stat().st_size for p in (tmp_path/'.parts').iterdir()]==[100_000]
    store.files[BIG] = noise(5000)
    get(store, 'dataset', tmp_path)
    assert not (tmp_path/'.parts').exists() and (tmp_path/'cleaned_dataset.csv').read_bytes()==noise(5000)
