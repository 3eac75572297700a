"The page to screen with: what it refuses, that strangers' text stays text, and a person's way through it in a browser."
import asyncio
import copy
import gzip
import html
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('starlette', reason='the extra `app` is not installed')
pytest.importorskip('python_multipart')

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from test_jupyterlab import CHROMIUM, needs_chromium

from ipbes_classifier.app import make_app, open_port
from ipbes_classifier.app_guard import HEADERS
from ipbes_classifier.app_results import Limits, Results
from ipbes_classifier.config import load_config, resource_dir
from ipbes_classifier.models import make_model
from ipbes_classifier.records import read_records, write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen import Screener, predict
from ipbes_classifier.thresholds import Calibration

LABELS = ['A','<i>&B']
HOSTILE = '<svg onload=alert(1)>' # cleaning takes known tags out of texts, not this one
SCRIPT = '<script>alert(2)</script>'


def papers(n=60):
    "Made-up papers, half of them about weeds."
    kinds = [['weed','invasive','alien'],['value','culture','trust']]
    text = [' '.join([*kinds[i%2],f'word{i%7}',f'site{i%5}']) for i in range(n)]
    return pd.DataFrame(dict(id=[f'P{i}' for i in range(n)], title=[f'On {t.split()[0]} {i}' for i,t in enumerate(text)], abstract=text, keywords='', A=[1-i%2 for i in range(n)], B=[i%2 for i in range(n)]))


def checkpoint(folder, name='tfidf-logreg', extra=()):
    settings = load_config(env='', overrides=['labels=[{name: A},{name: B}]','baseline.min_df=1','logging.progress=false','logging.tensorboard=false',*extra])
    model = make_model(name, settings).fit(papers(), papers(20))
    if name!='minilm': model.labels = LABELS # as a stranger's checkpoint may call them
    model.save(folder)
    write_decisions(folder, dict.fromkeys(model.labels,.5), dict.fromkeys(model.labels,Calibration(1.,0.,'logit')))
    return folder


@pytest.fixture(scope='module')
def model(tmp_path_factory): return checkpoint(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def screener(model): return Screener.load(model)


def browser(screener, *args, **kwargs): return TestClient(make_app(screener,*args,**kwargs), base_url='http://localhost', raise_server_exceptions=False)


@pytest.fixture(scope='module')
def page(screener): return browser(screener, Limits(max_bytes=1<<20, max_records=200))


def said(answer):
    "What a page says is wrong."
    assert answer.headers['content-security-policy']==HEADERS['content-security-policy']
    return html.unescape(re.search(r'role="alert"><p>(.*?)</p>', answer.text, re.S)[1])


def send(page, name, content, **kwargs): return page.post('/screen', files=dict(file=(name,content)), **kwargs)


def ris(df, path):
    write_records(df, path)
    return path.read_bytes()


def foreign(answer):
    "Elements of a page that no template has."
    found = list[str]()
    class Elements(HTMLParser):
        def handle_starttag(self, tag, attrs):
            a = dict(attrs)
            own = a.keys()=={'src','defer'} and a['src']=='/static/app.js' if tag=='script' else tag not in ('img','object','iframe','i')
            if not own or [k for k in a if k.startswith('on') or k=='style'] or 'javascript:' in str(a.get('href')): found.append(self.get_starttag_text())
    Elements().feed(answer.text)
    return found


# refusals

@pytest.mark.parametrize('name,content,words', [
    ('paper.pdf', b'%PDF-1.7', 'paper.pdf is a PDF'), ('empty.ris', b'', 'empty.ris is empty'), ('head.csv', b'title,abstract\n', 'head.csv has a header and no records'),
    ('notes.txt', b'just words', 'plain text'), ('x.csv', b'name,year\na,1\n', "no column 'title'"), ('nul.csv', b'title\na\0b\n', 'NUL byte'), ('bad.xlsx', b'PK\x03\x04rest', 'damaged'),
    ('cut.csv', b'title,abstract\n"a,b\n', 'cut.csv is not well-formed|never ends'), ('cut.gz', gzip.compress(b'title\na\n'*999, mtime=0)[:30], 'damaged'), ('latin.csv', 'title\né\n'.encode('latin-1'), 'latin.csv is not UTF-8'),
    ('x.json', b'{"a": 1}', 'JSON'), ('bad.parquet', b'PAR1 and no more', 'bad.parquet is not a parquet file')])
def test_a_file_that_cannot_be_read_is_explained(page, name, content, words):
    answer = send(page, name, content)
    assert answer.status_code==400 and re.search(words,said(answer)), said(answer)
    assert 'upload-' not in answer.text and 'ipbes-app-' not in answer.text
    assert page.get('/').status_code==200


def test_nothing_and_half_of_something_is_explained(page):
    assert page.post('/screen', data={}).status_code==400 and 'nothing to score' in said(page.post('/screen', data=dict(title='  ')))
    assert page.post('/screen', content=b'--x\r\nrubbish', headers={'content-type':'multipart/form-data; boundary=x'}).status_code==400
    assert page.post('/screen', content=b'x', headers={'content-type':'multipart/form-data'}).status_code==400
    assert page.post('/screen', data={f'f{i}':'x' for i in range(20)}, files=dict(file=('a.ris',b'x'))).status_code==400
    assert page.post('/screen', data=dict(title='x'*(2<<20))).status_code==413
    assert page.post('/').status_code==405 and page.get('/screen').status_code==405
    for path in ('/x','/result/x','/result/x/1','/result/x/progress','/result/x/scored.ris','/static/home.html','/static/../settings.ini','/static/%2e%2e/setup.py','/static/none.css'): assert page.get(path).status_code==404, path


def test_a_file_beyond_the_limits_is_413_with_the_way_out(page):
    answer = send(page, 'big.ris', bytes(2<<20))
    assert answer.status_code==413 and '1 MB' in said(answer) and 'ipbes screen' in said(answer)
    answer = send(page, 'many.csv', 'title\n'+'weed\n'*201)
    assert answer.status_code==413 and 'more than 200 records' in said(answer) and 'ipbes screen' in said(answer)
    answer = send(page, 'bomb.csv.gz', gzip.compress(b'title\n'+b'a'*(20<<20)))
    assert answer.status_code==413 and 'unpacks to more' in said(answer)
    assert send(page, 'fits.csv', 'title\n'+'weed\n'*200).status_code==200


def test_a_length_that_lies_or_is_missing_does_not_help(page):
    "A body in chunks has no Content-Length; one that states less than it sends is cut by the server, so the application is asked itself."
    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.ris"\r\n\r\n'
        for _ in range(40): yield bytes(1<<16)
    kind = {'content-type':'multipart/form-data; boundary=x'}
    assert page.post('/screen', content=chunks(), headers=kind).status_code==413
    assert page.post('/screen', content=b''.join(chunks()), headers=kind|{'content-length':'10'}).status_code==413
    assert page.post('/screen', content=chunks(), headers={'content-type':'application/x-www-form-urlencoded'}).status_code==413


def test_only_known_hosts_and_own_forms(screener, page):
    for host in ('evil.example','localhost.evil.example','127.0.0.1.evil.example:80',''): assert page.get('/', headers=dict(host=host)).status_code==400, host
    for host in ('127.0.0.1:8000','localhost:1','[::1]:8000'): assert page.get('/', headers=dict(host=host)).status_code==200, host
    for header in (dict(origin='https://evil.example'),dict(origin='null'),dict(origin='http://localhost:81'),{'sec-fetch-site':'cross-site'},{'sec-fetch-site':'same-site'}):
        assert page.post('/screen', data=dict(title='weed'), headers=header).status_code==403, header
    for header in (dict(origin='http://localhost'),{'sec-fetch-site':'same-origin'},{}): assert page.post('/screen', data=dict(title='weed'), headers=header).status_code==200, header
    named = browser(screener, hosts=['screen.example.org'])
    assert named.get('/', headers=dict(host='screen.example.org')).status_code==200 and named.get('/').status_code==400


@pytest.mark.parametrize('path,status', [('/',200),('/x',404),('/static/app.css',200),('/static/app.js',200)])
def test_every_answer_has_the_policy_and_no_inline_code(page, path, status):
    answer = page.get(path)
    assert answer.status_code==status and HEADERS.items()<=dict(answer.headers).items()
    if path[1:7]!='static': assert not re.search(r'<style|\bon\w+=|style="|<script>|https?://(?!doi\.org|www\.w3\.org)', answer.text)


# strangers' text

def test_texts_of_strangers_stay_text(page):
    bad = pd.DataFrame([dict(id=SCRIPT, doi='10.1234/x"><img', title=f'{HOSTILE} weed', abstract=f'<object data=x> &lt;iframe src=x&gt; {HOSTILE} weed', year='2001'), dict(id='"><svg onload=x>', doi="10.1234/'onclick='x", title='\' onmouseover="x', abstract='', year='')])
    answer = send(page, f'"{HOSTILE}<b>.csv', bad.to_csv(index=False))
    assert answer.status_code==200
    record = page.get(f'{answer.url.path}/1?words=A')
    second = page.get(f'{answer.url.path}/2?label=%3Ci%3E%26B&show=rest&order=%22%3E%3Cscript%3E')
    refused = send(page, f'<b>{HOSTILE}.pdf', b'%PDF-')
    typed = page.post('/screen', data=dict(title=HOSTILE, abstract=HOSTILE, file='x'))
    kept = page.post('/screen', data=dict(title=SCRIPT, abstract='"></textarea><script>'), files=dict(file=('<i>.pdf',b'%PDF-')))
    for a in (answer,record,second,refused,typed,kept,page.get('/')): assert a.status_code in (200,400) and not foreign(a), a.url
    assert html.escape('<i>&B') in answer.text and html.escape(HOSTILE) in answer.text and html.escape(SCRIPT) in answer.text and html.escape(HOSTILE) in refused.text and html.escape(SCRIPT) in kept.text
    assert html.escape(HOSTILE.split()[0][:4]) in record.text and '&lt;object' in re.sub('</?mark[^>]*>', '', record.text)


def test_foreign_elements_would_be_noticed():
    for text in (SCRIPT,HOSTILE,'<img src=x>','<a href="javascript:x">','<p style="x">'): assert foreign(types.SimpleNamespace(text=text))


def test_headers_of_a_download_hold_no_name_of_a_stranger(page):
    answer = send(page, 'a\r\nset-cookie: x"\u2028é.ris', b'TY  - JOUR\nTI  - weed\nER  - \n')
    got = page.get(f'{answer.url.path}/scored.ris')
    assert got.status_code==200 and 'set-cookie' not in got.headers and re.fullmatch(r"attachment; filename\*=UTF-8''[\w.%-]+_scored\.ris", got.headers['content-disposition'])


# scores and downloads

def test_scores_are_those_of_predict(page, model, tmp_path):
    papers(150)[['id','title','abstract']].to_csv(tmp_path/'new.csv', index=False)
    answer = send(page, 'new.csv', (tmp_path/'new.csv').read_bytes())
    table = pd.read_csv(io.StringIO(page.get(f'{answer.url.path}/scored.csv?order=file').text), dtype=dict(id=str), keep_default_na=False)
    wanted = pd.read_csv(predict(tmp_path/'new.csv', [model], tmp_path/'scored.csv'), dtype=dict(id=str), keep_default_na=False)
    pd.testing.assert_frame_equal(table[wanted.columns], wanted)
    ranked = pd.read_csv(io.StringIO(page.get(f'{answer.url.path}/scored.csv?label=A').text))
    assert (ranked.A_score.diff().dropna()<=0).all() and len(ranked)==150


def test_a_reference_comes_back_as_it_was_with_its_scores(page, tmp_path):
    text = 'TY  - JOUR\nAU  - Doe, J\nTI  - Invasive weed\nAB  - alien weed\nXX  - mine\nER  - \n\nTY  - BOOK\nTI  - Trust\nN1  - ipbes_A_score: 0.1\nER  - \n'
    answer = send(page, 'lib.ris', text)
    back = page.get(f'{answer.url.path}/scored.ris?order=file').text
    assert re.sub(r'N1  - ipbes_.*\n', '', back).split()==re.sub(r'N1  - ipbes_.*\n', '', text).split()
    assert back.count('ipbes_A_score')==2 and 'ipbes_A_score: 0.1\n' not in back
    (tmp_path/'back.ris').write_text(back)
    again = read_records(tmp_path/'back.ris')
    assert list(again.title)==['Invasive weed','Trust'] and again['A_pred'].tolist()==['1','0']
    selected = page.get(f'{answer.url.path}/scored.ris?label=A&show=selected').text
    assert selected.count('TY  -')==1 and 'Invasive weed' in selected


def test_no_cell_is_a_formula(page):
    bad = ['=1+1','+1','-1','@x','\t=1',' =HYPERLINK("http://x")','plain']
    answer = send(page, 'f.csv', pd.DataFrame(dict(id=['=2','b','c','d','e','f','g'], title=bad, abstract='weed')).to_csv(index=False))
    table = pd.read_csv(io.StringIO(page.get(f'{answer.url.path}/scored.csv?order=file').text), dtype=str, keep_default_na=False)
    assert not [v for c in ('id','title') for v in table[c] if v.lstrip()[:1] in '=+-@'] and "'=2" in set(table['id']) and table.title.iloc[-1]=='plain'
    book = page.get(f'{answer.url.path}/scored.xlsx')
    assert book.status_code==200 and book.content[:2]==b'PK'
    assert len(pd.read_excel(io.BytesIO(book.content), engine='calamine'))==7
    assert page.get(f'{answer.url.path}/scored.exe').status_code==404


def test_every_format_that_is_read_is_read_here(page, tmp_path):
    for suffix in ('csv','tsv','xlsx','parquet','ris','bib','txt'):
        write_records(papers(4)[['id','title','abstract']], tmp_path/f'x.{suffix}')
        answer = send(page, 'no-ending', (tmp_path/f'x.{suffix}').read_bytes())
        assert answer.status_code==200 and '4 records' in answer.text, suffix
    assert '4 records' in send(page, 'x.csv.gz', gzip.compress((tmp_path/'x.csv').read_bytes())).text


def test_records_without_text_are_marked(page):
    answer = send(page, 'gaps.csv', 'id,title,abstract\na,weed,\nb,,\nc,trust,value\n')
    assert 'no abstract' in answer.text and 'no text' in answer.text and 'no score' in answer.text
    assert '1 record without abstract' in html.unescape(answer.text) and 'without any text' in answer.text
    empty = page.get(f'{answer.url.path}/2')
    assert empty.status_code==200 and 'Without title' in empty.text and 'no text' in empty.text
    assert page.get(f'{answer.url.path}/4').status_code==404 and page.get(f'{answer.url.path}/0').status_code==404


def test_views_pages_and_neighbours(page):
    answer = send(page, 'p.csv', papers(120)[['id','title','abstract']].to_csv(index=False))
    rows = lambda a: re.findall(r'role="rowheader".*?<a href="[^"]*/(\d+)\?', a.text)
    assert len(rows(answer))==50 and len(rows(page.get(answer.url.path+'?page=3')))==20 and rows(page.get(answer.url.path+'?page=99'))==rows(page.get(answer.url.path+'?page=3'))
    one = page.get(answer.url.path+'?label=A&show=selected&page=2')
    assert len(rows(one))==10 and all(int(n)%2==1 for n in rows(one))
    links = re.findall(r'rel="(prev|next)" href="([^"]*)"', one.text)
    assert [k for k,_ in links]==['prev'] and 'show=selected' in links[0][1]
    first = page.get(html.unescape(re.search(r'role="rowheader".*?<a href="([^"]*)"', one.text, re.S)[1]))
    assert '51 of 60' in first.text and page.get(html.unescape(re.search(r'rel="next" href="([^"]*)"', first.text)[1])).status_code==200
    assert page.get(answer.url.path+'?label=nobody&show=x&order=&page=-3').status_code==200


def test_words_of_a_record(page):
    answer = page.post('/screen', data=dict(title='On <weed>', abstract='An invasive weed of value.'))
    shown = html.unescape(re.sub('<[^>]+>', '', re.search(r'<p class="abstract">(.*?)</p>', answer.text, re.S)[1]))
    assert shown=='An invasive weed of value.' and 'class="up' in answer.text and 'exactly' in answer.text
    other = page.get(answer.url.path+'?words=%3Ci%3E%26B')
    assert re.search(r'<mark class="down\d" title="-0[.]\d+">weed</mark>', other.text)
    assert page.get(answer.url.path+'?words=nobody').status_code==200


def test_a_whole_book_is_scored_and_shown_in_part(page):
    answer = send(page, 'book.csv', pd.DataFrame([dict(title='word '*2000, abstract='weed value '*40_000)]).to_csv(index=False))
    record = page.get(answer.url.path+'/1?words=A')
    assert record.status_code==200 and 'too long' in record.text and len(record.text)<100_000 and len(answer.text)<10_000 and '<h2 id="words">' not in record.text


def test_below_another_application(screener):
    outer = TestClient(Starlette(routes=[Mount('/screening',make_app(screener))]), base_url='http://localhost')
    answer = outer.post('/screening/screen', files=dict(file=('p.csv',papers(3)[['id','title','abstract']].to_csv(index=False))))
    assert answer.url.path.startswith('/screening/result/')
    for link in re.findall(r'(?:href|src|action)="(/[^"]*)"', answer.text): assert link.startswith('/screening/') and outer.get(html.unescape(link)).status_code==200, link


# a server that goes on

class Slow(Screener):
    "A screener that waits for a sign before each batch, and counts who works at once."
    def __init__(self, screener):
        vars(self).update(vars(screener))
        self.screener,self.go,self.at_once,self.most = screener,threading.Semaphore(0),0,0

    def score(self, x):
        self.at_once += 1
        self.most = max(self.most,self.at_once)
        assert self.go.acquire(timeout=30)
        self.at_once -= 1
        return self.screener.score(x)


def test_a_long_file_shows_how_far_it_is_and_lets_others_in(screener):
    slow = Slow(screener)
    page = browser(slow)
    answer = send(page, 'long.csv', papers(150)[['id','title','abstract']].to_csv(index=False))
    assert '<progress max="150" value="0"' in answer.text and 'http-equiv="refresh"' in answer.text
    assert page.get(answer.url.path+'/progress').json()==dict(done=0, of=150, finished=False)
    assert page.get(answer.url.path+'/scored.csv').status_code==409 and '<progress' in page.get(answer.url.path+'/1').text
    typed = page.post('/screen', data=dict(title='weed'))
    assert '<progress max="1" value="0"' in typed.text
    slow.go.release(2) # the first batch, and the paper that was typed: it comes before the second batch
    until = time.monotonic()+30
    while not page.get(typed.url.path[:-2]+'/progress').json()['finished']: assert time.monotonic()<until
    assert page.get(answer.url.path+'/progress').json()==dict(done=64, of=150, finished=False)
    slow.go.release(2)
    until = time.monotonic()+30
    while not page.get(answer.url.path+'/progress').json()['finished']: assert time.monotonic()<until
    assert '150 records' in page.get(answer.url.path).text and slow.most==1


def test_an_error_of_the_model_is_told_and_forgotten(screener, monkeypatch):
    broken = copy.copy(screener)
    broken.score = lambda x: 1/0
    page = browser(broken)
    answer = page.post('/screen', data=dict(title=HOSTILE))
    assert answer.status_code==500 and 'division by zero' in said(answer)
    broken.score = screener.score
    assert page.post('/screen', data=dict(title='weed')).status_code==200


def test_an_error_nobody_thought_of_is_a_page_without_its_words(screener, monkeypatch):
    page = browser(screener)
    monkeypatch.setattr('ipbes_classifier.app.read_upload', lambda *a: {}['secret'])
    answer = send(page, 'x.csv', b'title\na\n')
    assert answer.status_code==500 and 'secret' not in answer.text and HEADERS.items()<=dict(answer.headers).items()
    assert page.get('/').status_code==200


def test_old_results_are_let_go(screener):
    page = browser(screener, results=Results(most=2))
    paths = [page.post('/screen', data=dict(title=f'weed {i}')).url.path for i in range(3)]
    assert [page.get(p).status_code for p in paths]==[404,200,200]
    assert 'not here any more' in said(page.get(paths[0]))
    assert len({p.split('/')[2] for p in paths})==3 and all(len(p.split('/')[2])>=24 for p in paths)


def test_nothing_stays_on_the_disk(screener, tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    page = browser(screener)
    answer = send(page, 'x.csv', 'title,abstract\n'+'weed,alien\n'*3000)
    until = time.monotonic()+60
    while not page.get(answer.url.path+'/progress').json()['finished']: assert time.monotonic()<until
    for kind in ('ris','csv','xlsx'): assert page.get(f'{answer.url.path}/scored.{kind}?show=all').status_code==200
    for content in (b'%PDF-',b'',bytes(3<<20)): send(page, 'x.pdf', content)
    assert not list(tmp_path.iterdir())


def test_files_of_the_page_are_there(root):
    for name in re.findall(r"'(\w+\.html)'", (root/'ipbes_classifier'/'app.py').read_text()): assert (resource_dir('app_files')/name).is_file()
    assert not re.findall(r'https?://(?!doi\.org|www\.w3\.org)\S+', ''.join(p.read_text() for p in resource_dir('app_files').iterdir()))


# a real server

@pytest.fixture
def served(screener):
    "The address of a server with a small limit."
    with open_port('127.0.0.1',0) as s:
        server = uvicorn.Server(uvicorn.Config(make_app(screener,Limits(max_bytes=1<<20)), log_level='error'))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([s])), daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{s.getsockname()[1]}'
        server.should_exit = True
        thread.join(10)


def test_a_client_that_lies_about_the_length_or_leaves_does_no_harm(served):
    port = int(served.rsplit(':',1)[1])
    head = b'POST /screen HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n'
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.ris"\r\n\r\n'.ljust(1<<16, b'a')
    chunk = b'10000\r\n%s\r\n'
    for extra,body in ((b'Transfer-Encoding: chunked\r\n', chunk%start+chunk%bytes(1<<16)*20+b'0\r\n\r\n'),(b'Content-Length: 2000000\r\n',start+bytes(2_000_000-len(start)))):
        with socket.create_connection(('127.0.0.1',port), timeout=20) as s:
            s.sendall(head+extra+b'\r\n'+body)
            assert s.recv(100).startswith(b'HTTP/1.1 413')
    with socket.create_connection(('127.0.0.1',port)) as s: s.sendall(head+b'Content-Length: 999999\r\n\r\nabc')
    with socket.create_connection(('127.0.0.1',port), timeout=20) as s:
        s.sendall(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n')
        assert s.recv(100).startswith(b'HTTP/1.1 200')


def test_the_command_says_where_it_is_and_that_a_port_is_taken(model):
    command = [Path(sys.executable).with_name('ipbes'),'app','-m',str(model)]
    with open_port('127.0.0.1',0) as s:
        done = subprocess.run([*command,'--port',str(s.getsockname()[1])], capture_output=True, text=True, timeout=120)
        assert done.returncode==1 and 'is taken' in done.stderr and len(done.stderr.strip().splitlines())==1
    p = subprocess.Popen([*command,'--port','0','--host','0.0.0.0'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ|dict(PYTHONUNBUFFERED='1'))
    try:
        address = p.stdout.readline().split()[0]
        assert re.fullmatch(r'http://localhost:\d+/', address)
        with socket.create_connection(('127.0.0.1',int(address.rstrip('/').rsplit(':',1)[1])), timeout=20) as s:
            s.sendall(b'GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n')
            assert s.recv(100).startswith(b'HTTP/1.1 400')
    finally: p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=30)
    assert p.returncode==0 and 'no password' in err and 'Traceback' not in err


@needs_chromium
def test_a_person_screens_in_a_browser(served, tmp_path):
    "Paste a paper and see why; drop a file, filter, read on, take the selected home; a file that is too large; without JavaScript too."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    lib = tmp_path/'library.ris'
    write_records(papers(60)[['id','title','abstract']].assign(title=lambda d: [HOSTILE,*d.title[1:]]), lib)
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        try:
            for script in (True,False):
                context = chromium.new_context(viewport=dict(width=390 if script else 1200,height=800), java_script_enabled=script, accept_downloads=True)
                tab = context.new_page()
                wrong = []
                tab.on('console', lambda m, w=wrong: w.append(m.text) if m.type=='error' and '413' not in m.text else None)
                tab.on('dialog', lambda d, w=wrong: (w.append(d.message),d.dismiss()))
                _way(tab, served, lib, script)
                assert not wrong
                context.close()
        finally: chromium.close()


def _way(tab, served, lib, script):
    "One person's way through the page."
    tab.goto(served)
    tab.get_by_label('Title').fill('On weeds')
    tab.get_by_label('Abstract').fill('An invasive alien weed.')
    tab.get_by_role('button', name='Score the paper').click()
    tab.get_by_role('heading', name='Words that moved the score for A').wait_for()
    assert tab.locator('.abstract mark.up5, .abstract mark.up4').count()
    tab.get_by_role('link', name='Show what moved it').click()
    tab.get_by_role('heading', name='Words that moved the score for <i>&B').wait_for()
    tab.get_by_role('link', name='New papers').click()
    tab.get_by_label('Choose a file').set_input_files(lib)
    tab.get_by_role('button', name='Score the file').click()
    tab.get_by_role('table').wait_for()
    assert tab.get_by_role('rowheader').count()==50 and tab.get_by_text(HOSTILE).count()
    tab.get_by_label('Records').select_option('selected')
    if script: tab.wait_for_url('**show=selected**')
    tab.get_by_label('Label', exact=True).select_option('A')
    if not script: tab.get_by_role('button', name='Show').click()
    tab.wait_for_url('**label=A**')
    assert tab.get_by_role('rowheader').count()==30
    with tab.expect_download() as d: tab.get_by_role('link', name='RIS').click()
    assert d.value.suggested_filename=='library_scored.ris' and Path(d.value.path()).read_text().count('TY  -')==30
    assert tab.evaluate('document.documentElement.scrollWidth<=innerWidth') if script else True
    tab.get_by_role('rowheader').first.get_by_role('link').click()
    tab.get_by_text('1 of 30').wait_for()
    tab.get_by_role('link', name='Next').click()
    tab.get_by_text('2 of 30').wait_for()
    tab.goto(served)
    tab.get_by_label('Choose a file').set_input_files(dict(name='big.ris', mimeType='text/plain', buffer=bytes(3<<20)))
    if script: return tab.get_by_text('takes files of any size').wait_for()
    tab.get_by_role('button', name='Score the file').click()
    tab.get_by_role('heading', name='Too large').wait_for()


@needs_chromium
def test_a_long_file_shows_its_progress_in_a_browser(screener):
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    slow = Slow(screener)
    with open_port('127.0.0.1',0) as s:
        server = uvicorn.Server(uvicorn.Config(make_app(slow), log_level='error'))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([s])), daemon=True)
        thread.start()
        with playwright.sync_playwright() as p:
            chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            tab = chromium.new_page()
            tab.goto(f'http://127.0.0.1:{s.getsockname()[1]}')
            tab.get_by_label('Choose a file').set_input_files(dict(name='long.csv', mimeType='text/csv', buffer=papers(100)[['title','abstract']].to_csv(index=False).encode()))
            tab.get_by_role('button', name='Score the file').click()
            tab.get_by_text('0 of 100 records scored').wait_for()
            slow.go.release()
            tab.get_by_text('64 of 100 records scored').wait_for()
            slow.go.release()
            tab.get_by_role('table').wait_for()
            chromium.close()
        server.should_exit = True
        thread.join(10)


@pytest.mark.long
def test_an_encoder_is_explained_when_asked(tmp_path):
    screener = Screener.load(checkpoint(tmp_path/'m', 'minilm', ['models={minilm: {num_train_epochs: 1, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}}','input.max_length=32']))
    page = browser(screener)
    answer = page.post('/screen', data=dict(title='Weeds', abstract='An invasive alien weed.'))
    while '<progress' in answer.text: answer = page.get(answer.url.path)
    assert 'Show what moved it' in answer.text and '<h2 id="words">' not in answer.text
    asked = page.get(answer.url.path+'?words=A')
    assert '<h2 id="words">' in asked.text and 'left out once' in asked.text and np.all([w in asked.text for w in ('Weeds','invasive')])
