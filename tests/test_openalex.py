"""OpenAlex as it answers on good and bad days: a server on 127.0.0.1 that speaks its works API, counts money and has moods."""
import base64
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moods import MoodyServer, breaks_off, resets, says, serving, sleeps
from typer.testing import CliRunner

from ipbes_classifier import openalex
from ipbes_classifier.cli import app
from ipbes_classifier.config import Api
from ipbes_classifier.fetch import RequestRefused, ServiceError
from ipbes_classifier.openalex import Budget, Query, fetch_snapshot, fetch_works, read_dois
from ipbes_classifier.openalex_json import SELECT
from ipbes_classifier.parts import Parts, alone_in
from ipbes_classifier.records import read_records

KEY = 'oa-SECRETKEY-4711'
MAIL = 'screener@assessment.example.org'


def work(n:int, **more)->dict:
    words = f'Plot {n} was dry and plot {n+1} was wet .'.split()
    index = {}
    for i,w in enumerate(words): index.setdefault(w,[]).append(i)
    return dict(id=f'https://openalex.org/W{1000+n}', doi=f'https://doi.org/10.{1000+n%3}/Paper.{n}', title=f'Plants of plot {n}', display_name=f'Plants of plot {n}', publication_year=1990+n%30,
        language=('en','fr')[n%5==0], type='article', keywords=[dict(id='https://openalex.org/keywords/rain', display_name='Rain', score=.5)], topics=[dict(id=f'https://openalex.org/T{n%4}', display_name=f'Topic {n%4}')],
        authorships=[dict(author=dict(id='https://openalex.org/A1', display_name='Ada Example'))], primary_location=dict(source=dict(display_name='Journal of Plots')),
        abstract_inverted_index=index if n%7 else None, referenced_works=[f'https://openalex.org/W{1000+n+k}' for k in (1,2)], cited_by_count=n)|more


def doi(n:int)->str: return f'10.{1000+n%3}/paper.{n}'


FIELDS = {
    'doi':lambda w,v: (w['doi'] or '').removeprefix('https://doi.org/').lower()==v.lower().removeprefix('https://doi.org/'),
    'ids.openalex':lambda w,v: w['id'].endswith(f'/{v}'), 'cites':lambda w,v: any(r.endswith(f'/{v}') for r in w['referenced_works']),
    'topics.id':lambda w,v: any(t['id'].endswith(f'/{v}') for t in w['topics']), 'language':lambda w,v: w['language']==v, 'type':lambda w,v: w['type']==v,
    'has_abstract':lambda w,v: (w['abstract_inverted_index'] is not None)==(v=='true'), 'title.search':lambda w,v: v.lower() in w['title'].lower(),
    'publication_year':lambda w,v: w['publication_year']>int(v[1:]) if v[0]=='>' else w['publication_year']<int(v[1:]) if v[0]=='<' else int(v.split('-')[0])<=w['publication_year']<=int(v.split('-')[-1])}
PARAMS = {'filter','search','select','sample','seed','page','per_page','cursor'}


class BadQuery(Exception): pass


class OpenAlexServer(MoodyServer):
    "The part of the works API that is used, with its limits; `paid` has each list that was answered."
    def __init__(self, works):
        super().__init__()
        self.works,self.key,self.budget,self.paid,self.most = works,None,10**9,[],10_000   # budget: in credits, $0.0001 each
        self.reset_says = True

    def limits(self, used=0): return {'x-ratelimit-limit':'10000','x-ratelimit-remaining':str(self.budget),'x-ratelimit-credits-used':str(used),'x-ratelimit-reset':'7200',
                                      'x-ratelimit-remaining-usd':str(self.budget/1e4),'x-ratelimit-cost-usd':str(used/1e4)}

    def answer(self, h):
        if len(f'GET {h.path} HTTP/1.1')>4094: return h.say(400, f'<h1><p>Bad Request</p></h1>\n\nRequest Line is too large ({len(h.path)+13} &gt; 4094)', kind='text/html')
        if self.key and h.headers.get('Authorization')!=f'Bearer {self.key}': return h.say(401, dict(error='Invalid or missing API key', message='Invalid or missing API key.'))
        if h.route.startswith('/works/doi:'): return self.single(h, unquote(h.route.removeprefix('/works/doi:')))
        if h.route!='/works': return h.say(404, '<!doctype html><title>404 Not Found</title>', kind='text/html')
        price = 10 if 'search' in h.query or '.search:' in h.query.get('filter','') else 1
        if price>self.budget:
            return h.say(429, dict(error='Rate limit exceeded', message=f'Insufficient budget. This request costs ${price/1e4}. Resets at midnight UTC.'), **self.limits(), **({'Retry_After':'7200'} if self.reset_says else {}))
        try: page = self.page(h.query)
        except BadQuery as e: return h.say(400, dict(error='Invalid query parameters error.', message=str(e)), **self.limits())
        self.budget -= price
        self.paid.append(h.path)
        page['meta']['cost_usd'] = price/1e4
        h.say(200, page, **self.limits(price))

    def single(self, h, wanted):
        found = [w for w in self.works if FIELDS['doi'](w,wanted) or wanted in w.get('merged',())]
        keep = h.query.get('select','').split(',')
        if found: h.say(200, {k:v for k,v in found[0].items() if k in keep}, **self.limits(0))
        else: h.say(404, dict(error='Not Found', message='No work found'), **self.limits(0))

    def page(self, q):
        if extra := set(q)-PARAMS: raise BadQuery(f'{min(extra)} is not a valid parameter.')
        if bad := [f for f in q.get('select','').split(',') if f and f not in self.works[0]]: raise BadQuery(f'{bad[0]} is not a valid select field.')
        if re.search(r'[*?]', q.get('search','')): raise BadQuery('Wildcards (* or ?) require exact (no-stem) search.')
        size,sample = int(q.get('per_page',25)),int(q.get('sample',0))
        if not 1<=size<=100: raise BadQuery('per-page parameter must be between 1 and 100')
        if sample>self.most: raise BadQuery('Sample size must be less than or equal to 10,000.')
        if sample and 'cursor' in q: raise BadQuery('Cursor pagination is not supported with sample.')
        found = [w for w in self.works if self.lets(w,q)]
        if sample: found = random.Random(int(q['seed'])).sample(found, min(sample,len(found)))
        start = (int(q['page'])-1)*size if 'page' in q else 0 if q.get('cursor')=='*' else int(base64.b64decode(q['cursor']))
        if 'page' in q and start+size>10_000: raise BadQuery('Maximum results size of 10,000 records is exceeded.')
        items = found[start:start+size]
        keep = q['select'].split(',')
        more = dict(next_cursor=base64.b64encode(str(start+size).encode()).decode() if items else None) if 'cursor' in q else dict(page=int(q.get('page',1)))
        return dict(meta=dict(count=len(found), db_response_time_ms=12, per_page=size, groups_count=None)|more, results=[{k:v for k,v in w.items() if k in keep} for w in items], group_by=[])

    def lets(self, w, q):
        if 'search' in q and not all(t.lower() in w['title'].lower() for t in q['search'].split()): return False
        for condition in filter(None, q.get('filter','').split(',')):   # a field may stand in several conditions; all of them hold
            name,colon,value = condition.partition(':')
            if not colon: raise BadQuery(f'Invalid query parameter in {condition}.')
            if name not in FIELDS: raise BadQuery(f'{name} is not a valid field. Valid fields are underscore or hyphenated versions of: {", ".join(sorted(FIELDS))}.')
            if value.count('|')>=100: raise BadQuery('Maximum number of values exceeded for a filter.')
            if not any(FIELDS[name](w,v) for v in value.split('|')): return False
        return True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv('OPENALEX_API_KEY', raising=False)
    with serving(server=OpenAlexServer([work(n) for n in range(640)])) as s: yield s


ALL = Query(filter='topics.id:T0|T1|T2', from_year=1990)       # 480 of the 640


def fetch(server, out, query=ALL, budget=None, size=150, **api):
    return fetch_works(query, out, Api(**(dict(openalex_url=server.url, timeout=10, max_wait=5, retries=3)|api)), budget, size=size, backoff=0.01)


def files(folder:Path)->dict[str,bytes]: return {p.name:p.read_bytes() for p in sorted(folder.iterdir())}


def data(folder:Path)->dict[str,bytes]: return {k:v for k,v in files(folder).items() if k.endswith('.parquet')}


def ids(folder:Path)->list[str]: return pd.read_parquet(folder).id.tolist()


@pytest.fixture
def calm(server, tmp_path)->Path:
    "What an undisturbed run gives."
    assert fetch(server, tmp_path/'calm').complete
    server.seen,server.paid = [],[]
    return tmp_path/'calm'


def test_all_of_a_filter_comes_once_in_parts_of_a_fixed_size(server, tmp_path):
    done = fetch(server, tmp_path/'out')
    expected = [w['id'].rsplit('/',1)[1] for w in server.works if (int(w['id'].rsplit('W',1)[1])-1000)%4!=3]
    assert ids(tmp_path/'out')==expected and (done.n,done.new,done.complete,done.stop,done.repeated,done.lacking)==(480,480,True,'',0,0)
    manifest = json.loads((tmp_path/'out'/'_manifest.json').read_text())
    assert [p['n'] for p in manifest['parts']]==[150,150,150,30] and manifest['complete'] and manifest['query']==dict(filter='topics.id:T0|T1|T2', from_year=1990)
    assert len(server.paid)==5 and done.cost_usd==.0005 and manifest['counts']['cost_usd']==.0005
    row = pd.read_parquet(tmp_path/'out').iloc[1]
    assert row.title=='Plants of plot 1' and row.abstract=='Plot 1 was dry and plot 2 was wet .' and row.year==1991 and row.doi=='10.1001/paper.1' and row.author=='Ada Example' and row.journal=='Journal of Plots'
    assert all(set(re.search(r'select=([^&]*)', unquote(p))[1].split(','))==set(SELECT) for p in server.seen)


def test_a_folder_of_parts_is_a_file_of_records(calm):
    records = read_records(calm)
    assert len(records)==480 and records.year.dtype=='Int16' and records.title[0]=='Plants of plot 0' and records.keywords[0].startswith('Rain')


def test_a_second_run_of_what_is_complete_asks_nothing(server, calm):
    before = files(calm)
    again = fetch(server, calm)
    assert server.seen==[] and files(calm)==before and (again.n,again.new,again.complete)==(480,0,True)


@pytest.mark.parametrize('mood', [
    says(429, dict(error='Too many requests')), says(429, 'slow down', kind='text/plain', Retry_After='0.05'), says(429, '', x_ratelimit_remaining='900'), says(500, dict(error='Internal')), says(503, '', kind='text/html'),
    breaks_off, resets, sleeps, says(200, '<html>Sign in</html>', kind='text/html'), says(200, '{"meta":{"count":3'), says(200, '')],
    ids='429 429-retry-after 429-remaining 500 503 truncated reset slow html half-json empty'.split())
def test_a_mood_that_passes_changes_no_byte(server, calm, tmp_path, mood):
    server.moods += [mood,None,mood,mood,None,mood]
    done = fetch(server, tmp_path/'out', timeout=0.5 if mood is sleeps else 10)
    assert done.complete and files(tmp_path/'out')==files(calm)
    assert len(server.paid)==5 or mood is sleeps


@pytest.mark.parametrize('mood, words', [
    (says(500), '500 Internal Server Error'), (resets, 'does not answer'), (breaks_off, 'does not answer'), (says(200, '<html>', kind='text/html'), 'text/html that is not JSON'), (says(200, [1]), 'no list of works'),
    (says(200, dict(meta=dict(count=3), results=[1])), 'no list of works'), (says(404, dict(error='x')), 'is `api.openalex_url` right'), (says(429, dict(error='slow')), '429 Too Many Requests'),
    (says(200, dict(error='Invalid query parameters error.', message='not today')), 'refuses the query: not today'), (says(418), '418')],
    ids='500 reset truncated html list item 404 429 error-as-200 teapot'.split())
def test_a_mood_that_stays_ends_in_one_sentence_and_a_second_run_completes(server, calm, tmp_path, mood, words):
    server.moods += [None,None]
    server.mood = mood
    with pytest.raises(ServiceError) as e: fetch(server, tmp_path/'out', retries=1)
    message = str(e.value)
    assert words in message and f'; 200 works are in {tmp_path/"out"}, and the same command goes on' in message and '\n' not in message
    assert len(ids(tmp_path/'out'))==200, 'what is there can be read'
    server.mood,server.seen = None,[]
    done = fetch(server, tmp_path/'out')
    assert (done.n,done.new,done.complete)==(480,280,True) and files(tmp_path/'out')==files(calm)
    assert len(server.paid)==5, 'nothing was paid for twice'


@pytest.mark.parametrize('reset_says', [True,False])
def test_an_exhausted_quota_stops_cleanly_and_says_when_to_go_on(server, calm, tmp_path, reset_says):
    server.budget,server.reset_says = 3,reset_says
    start = time.monotonic()
    done = fetch(server, tmp_path/'out')
    assert (done.n,done.complete,done.stop)==(300,False,'quota') and len(ids(tmp_path/'out'))==300 and time.monotonic()-start<3
    wait = done.again-datetime.now(UTC)
    assert timedelta(minutes=119)<wait<timedelta(minutes=122) and f'after {done.again:%Y-%m-%d %H:%M} UTC' in done.advice
    assert len(server.seen)==4, 'it is not asked again and again'
    still = fetch(server, tmp_path/'out')
    assert (still.n,still.new,still.stop)==(300,0,'quota')
    server.budget = 100
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(calm) and len(server.paid)==5


def test_a_quota_below_the_price_of_a_search_is_a_quota_and_a_short_one_is_waited_for(server, tmp_path):
    server.budget = 9
    assert fetch(server, tmp_path/'out', Query(search='plot')).stop=='quota' and not (tmp_path/'out').exists()
    server.moods.append(says(429, dict(message='Insufficient budget'), Retry_After='1', x_ratelimit_remaining='0'))
    start = time.monotonic()
    assert fetch(server, tmp_path/'out').complete and time.monotonic()-start>=1


def test_a_budget_is_kept_and_goes_on(server, calm, tmp_path):
    for most,n in ((0,0),(.0001,100),(.00029,200)):
        done = fetch(server, tmp_path/'out', budget=Budget(max_cost=most))
        assert (done.n,done.complete,done.stop,len(server.paid))==(n,False,'cost',n//100) and done.cost_usd<=most
        assert (tmp_path/'out').exists()==bool(n)
    for most in (210,215,300):
        done = fetch(server, tmp_path/'out', budget=Budget(max_works=most))
        assert (done.n,done.stop,len(server.paid),len(ids(tmp_path/'out')))==(most,'works',3,most)
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(calm) and len(server.paid)==5


def test_a_search_costs_ten_times_as_much(server, tmp_path):
    assert fetch(server, tmp_path/'a', Query(search='plants 63')).cost_usd==.001
    assert fetch(server, tmp_path/'b', Query(filter='title.search:plot 63'), Budget(max_cost=.0005)).stop=='cost'
    assert set(ids(tmp_path/'a'))=={w['id'].rsplit('/',1)[1] for w in server.works if '63' in w['title']} and len(ids(tmp_path/'a'))==16


def test_works_that_come_twice_are_there_once(server, calm, tmp_path):
    whole = OpenAlexServer.page
    def shifted(q):
        "A work was added at the front after the first page: its last works come again."
        page = whole(server,q)
        if q.get('cursor') not in (None,'*'): page['results'] = whole(server, q|dict(cursor=base64.b64encode(str(int(base64.b64decode(q['cursor']))-2).encode()).decode()))['results'] or page['results']
        return page
    server.page = shifted
    done = fetch(server, tmp_path/'out')
    assert len(set(ids(tmp_path/'out')))==done.n>=470 and done.repeated>0 and f'{done.repeated} came twice' in done.account


def alters(**meta):
    "The true page with other words in its meta."
    def mood(h):
        page = h.server.page(h.query)
        page['meta'] |= meta
        h.server.paid.append(h.path)
        return h.say(200, page, **h.server.limits(1))
    return mood


def test_a_cursor_that_is_null_too_early_is_asked_for_again(server, calm, tmp_path):
    server.moods += [None,alters(next_cursor=None)]
    done = fetch(server, tmp_path/'out')
    assert done.complete and data(tmp_path/'out')==data(calm)
    server.moods += [None,*[alters(next_cursor=None)]*3]
    with pytest.raises(ServiceError, match=r'ended a list 280 works before the 480 that it states; 100 works are in'): fetch(server, tmp_path/'twice')
    assert fetch(server, tmp_path/'twice').complete and data(tmp_path/'twice')==data(calm)


def test_an_empty_page_in_the_middle_is_not_the_end(server, calm, tmp_path):
    empty = says(200, dict(meta=dict(count=480,next_cursor=None,cost_usd=.0001), results=[]))
    server.moods += [None,None,*[empty]*3]
    with pytest.raises(ServiceError, match='ended a list 280 works before'): fetch(server, tmp_path/'out')
    server.moods += [empty]
    assert fetch(server, tmp_path/'out').complete and data(tmp_path/'out')==data(calm)


def test_a_count_that_is_a_little_off_is_told_and_one_far_off_is_no_end(server, calm, tmp_path):
    server.mood = alters(count=483)
    done = fetch(server, tmp_path/'out')
    assert done.complete and done.lacking==3 and data(tmp_path/'out')==data(calm) and '3 counted by OpenAlex and not given' in done.account
    server.mood = alters(count=470)
    assert fetch(server, tmp_path/'less').complete and data(tmp_path/'less')==data(calm)
    server.mood = alters(count=None)
    assert fetch(server, tmp_path/'none').complete and data(tmp_path/'none')==data(calm)
    server.mood = alters(count=900)
    with pytest.raises(ServiceError, match='480 works are in'): fetch(server, tmp_path/'more')
    assert data(tmp_path/'more')==data(calm), 'all that came is there'


def test_a_cursor_that_stays_where_it_is_ends_the_run(server, tmp_path):
    stuck = base64.b64encode(b'100').decode()
    server.mood = alters(next_cursor=stuck)
    with pytest.raises(ServiceError, match='the same page again and again'): fetch(server, tmp_path/'out')
    assert len(server.seen)==2


def test_pages_that_go_in_circles_end(server, calm, tmp_path):
    true = OpenAlexServer.page
    def circle(q):
        page = true(server,q)
        if page['meta'].get('next_cursor')==base64.b64encode(b'500').decode(): page['meta']['next_cursor'] = base64.b64encode(b'0').decode()
        return page
    server.page = circle
    assert fetch(server, tmp_path/'out').complete and data(tmp_path/'out')==data(calm)
    server.works = [work(n) for n in range(1000)]
    with pytest.raises(ServiceError, match='the same works again and again, and 500 of the 1,000 that it states are lacking; 500 works are in'): fetch(server, tmp_path/'all', Query(filter='type:article'))
    del server.page
    done = fetch(server, tmp_path/'all', Query(filter='type:article'))
    assert done.complete and done.n==1000 and done.repeated>=500


JSON = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(max_size=8), lambda c: st.lists(c,max_size=3)|st.dictionaries(st.sampled_from(['meta','results','count','next_cursor','cost_usd','id','doi','error']),c,max_size=4), max_leaves=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(JSON, st.fixed_dictionaries(dict(meta=JSON,results=JSON)), st.fixed_dictionaries(dict(meta=st.fixed_dictionaries(dict(count=JSON,next_cursor=JSON,cost_usd=JSON)),
    results=st.lists(st.fixed_dictionaries(dict(id=st.sampled_from(['https://openalex.org/W1','https://openalex.org/W2','x','\ud800',7]),doi=JSON,title=JSON,publication_year=JSON,abstract_inverted_index=JSON)),max_size=4)))), min_size=1, max_size=4))
def test_whatever_comes_gives_works_or_one_sentence(pages):
    said = [json.dumps(p).encode() for p in pages]
    n = [0]
    def answer(request):
        n[0] += 1
        assert n[0]<200, 'it ends'
        return httpx2.Response(200, content=said[min(n[0],len(said))-1], headers={'content-type':'application/json'})
    with tempfile.TemporaryDirectory() as tmp:
        try: done = fetch_works(ALL, Path(tmp)/'out', Api(openalex_url='http://127.0.0.1', retries=0), size=2, backoff=0, transport=httpx2.MockTransport(answer))
        except ServiceError as e: assert '\n' not in str(e)
        else: assert done.complete and done.n==(len(ids(Path(tmp)/'out')) if done.n else 0)


def test_a_work_that_cannot_be_read_is_named_and_the_others_come(server, tmp_path):
    server.works[1] = work(1, abstract_inverted_index={'Plot':'x'})
    server.works[2] = work(2, id='https://openalex.org/A5')
    done = fetch(server, tmp_path/'out')
    assert done.complete and done.n==478 and len(done.unreadable)==2 and 'A5' in done.unreadable[1] and '2 damaged' in done.account


def test_a_query_that_openalex_refuses_is_shown_its_words_and_leaves_nothing(server, tmp_path):
    with pytest.raises(RequestRefused, match='refuses the query: topic is not a valid field. Valid fields are'): fetch(server, tmp_path/'out', Query(filter='topic:T1'))
    assert not (tmp_path/'out').exists() and len(server.seen)==1
    with pytest.raises(RequestRefused, match=r'Wildcards \(\* or \?\) require exact'): fetch(server, tmp_path/'out', Query(search='bee*'))
    server.mood = says(400, 'Blocked', kind='text/html')
    with pytest.raises(RequestRefused, match='refuses the query without a reason'): fetch(server, tmp_path/'out')


def test_another_query_and_a_changed_part_are_refused(server, calm):
    with pytest.raises(ValueError, match=r'holds another query \(filter "topics.id:T0\|T1\|T2" there, "topics.id:T0" now\); name another folder'): fetch(server, calm, Query(filter='topics.id:T0', from_year=1990))
    (calm/'part-00001.parquet').write_bytes(b'PAR1')
    with pytest.raises(ValueError, match=r'part-00001\.parquet was changed'): fetch(server, calm)


def test_two_processes_do_not_share_a_folder(server, tmp_path):
    with alone_in(tmp_path/'out'), pytest.raises(ValueError, match='another process is fetching into'): fetch(server, tmp_path/'out')
    assert server.seen==[]


def test_conditions_on_one_field_all_hold(server, tmp_path):
    def got(name, query):
        server.seen = []
        assert fetch(server, tmp_path/name, query).complete
        return {int(i[1:])-1000 for i in ids(tmp_path/name)},re.search(r'filter=([^&]*)', unquote(server.seen[0]))[1]
    for n,w in enumerate(server.works): w['topics'] = [dict(id=f'https://openalex.org/T{t}', display_name=f'Topic {t}') for t in (n%4,4+n%3)]
    assert got('topics', Query(filter='topics.id:T1|T2,topics.id:T4|T5'))==({n for n in range(640) if n%4 in (1,2) and n%3 in (0,1)},'topics.id:T1|T2,topics.id:T4|T5')
    assert got('years', Query(filter='publication_year:>2000,publication_year:<2010'))[0]=={n for n in range(640) if 10<n%30<20}
    assert got('options', Query(filter='publication_year:>2000,language:en|fr', from_year=1990, to_year=2009, languages=('fr',)))==({n for n in range(640) if 10<n%30<20 and n%5==0},'publication_year:>2000,language:en|fr,publication_year:1990-2009,language:fr')
    assert got('citing', Query(filter='cites:W1012', cited_by=(doi(11),)))[0]=={10}


def test_a_query_that_is_too_long_is_told_so(server, tmp_path):
    with pytest.raises(RequestRefused, match=r'refuses the query without a reason; its address has 4,\d\d\d characters, and OpenAlex takes about 4,000'): fetch(server, tmp_path/'out', Query(filter=f'type:article,title.search:{"plot "*800}'))


def test_line_ends_of_all_kinds_within_a_title_survive(server, calm, tmp_path):
    for n,c in enumerate('\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r'): server.works[n*5] |= dict(title=f'Plants{c}of plot {n}', display_name=f'Plants{c}of plot {n}')
    assert fetch(server, tmp_path/'whole').complete
    server.budget,server.paid = 1,[]
    assert fetch(server, tmp_path/'out').stop=='quota'
    server.budget = 100
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(tmp_path/'whole') and len(server.paid)==5
    assert '\u2028' in pd.read_parquet(tmp_path/'out').title[0]


# samples

def test_a_sample_is_the_same_for_the_same_seed(server, tmp_path):
    a,b,c = (fetch(server, tmp_path/n, Query(sample=230, seed=s, languages=('en',))) for n,s in (('a',1),('b',1),('c',2)))
    assert (a.n,b.n,c.n)==(230,230,230) and files(tmp_path/'a')==files(tmp_path/'b') and ids(tmp_path/'a')!=ids(tmp_path/'c')
    assert all('cursor' not in p and 'sample=230' in p for p in server.paid) and len(server.paid)==9
    assert set(pd.read_parquet(tmp_path/'a').language)=={'en'}


def test_a_sample_of_more_than_there_is_gives_all(server, tmp_path):
    done = fetch(server, tmp_path/'out', Query(filter='topics.id:T1', sample=5000))
    assert done.complete and done.n==160 and len(server.paid)==2


def test_large_samples_take_several_seeds_and_stop_at_their_size(server, tmp_path, monkeypatch):
    monkeypatch.setattr(openalex,'PER_SAMPLE',120)
    server.most = 120
    done = fetch(server, tmp_path/'out', Query(sample=300, seed=5, filter='type:article'))
    assert done.complete and done.n==len(set(ids(tmp_path/'out')))==300
    assert {re.search(r'seed=(\d+)',p)[1] for p in server.paid}>={'5','6','7'}
    everything = fetch(server, tmp_path/'all', Query(sample=5000, seed=5, filter='topics.id:T0'))
    assert everything.complete and everything.n<=160 and everything.n>150, 'ends when a seed brings nothing new'


def test_an_interrupted_sample_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(openalex,'PER_SAMPLE',120)
    server.most = 120
    q = Query(sample=300, seed=5, filter='type:article')
    fetch(server, tmp_path/'calm', q)
    n = len(server.paid)
    for k in range(1,n): fetch(server, tmp_path/'out', q, Budget(max_cost=k*1e-4))
    assert fetch(server, tmp_path/'out', q).complete and files(tmp_path/'out')==files(tmp_path/'calm') and len(server.paid)==2*n


# lists of DOIs

def test_dois_come_in_batches_and_the_rest_alone(server, tmp_path):
    server.works += [work(900, doi='https://doi.org/10.1002/(sici)1097(1998)17:15<1661::aid-sim968>3.0.co;2-2'), work(901, doi='https://doi.org/10.5555/a,b'), work(902, merged=('10.5555/preprint',))]
    wanted = [*(doi(n) for n in range(250)),'10.1002/(sici)1097(1998)17:15<1661::aid-sim968>3.0.co;2-2','10.5555/a,b','10.5555/preprint','10.9999/none']
    done = fetch(server, tmp_path/'out', Query(dois=tuple(wanted)))
    assert done.complete and done.n==253 and done.unknown==('10.9999/none',) and set(ids(tmp_path/'out'))=={*(f'W{1000+n}' for n in range(250)),'W1900','W1901','W1902'}
    assert len(server.paid)==3 and done.cost_usd==.0003
    assert sum(p.startswith('/works/doi:') for p in server.seen)==3, 'the odd one, the merged one and the unknown one'


LONG = [f'10.1002/(sici)1097-0258(199808)17:15/16<{n}::aid-sim{n}>3.0.co;2-{n%10}' for n in range(1000,1120)]


def test_long_dois_come_in_shorter_batches(server, tmp_path):
    server.works = [work(n, doi=f'https://doi.org/{d}') for n,d in enumerate(LONG)]
    done = fetch(server, tmp_path/'out', Query(dois=tuple(LONG)))
    assert done.complete and done.n==120 and len(server.paid)==len(server.seen) and 3500<max(map(len,server.seen))+13<=4094
    citing = Query(cited_by=tuple(LONG), filter=f'title.search:{"|".join(["plot"]*90)}', from_year=1990)
    assert fetch(server, tmp_path/'citing', citing).n==119 and max(map(len,server.seen))+13<=4094


def test_single_works_cost_nothing(server, tmp_path):
    done = fetch(server, tmp_path/'out', Query(dois=tuple(doi(n) for n in range(30))), Budget(max_cost=0))
    assert done.complete and done.n==30 and done.cost_usd==0 and server.paid==[] and len(server.seen)==30


def test_an_interrupted_list_of_dois_goes_on(server, tmp_path):
    q = Query(dois=(*(doi(n) for n in range(104)),*(f'10.9999/none.{n}' for n in range(8))))
    calm = fetch(server, tmp_path/'calm', q)
    assert calm.n==104 and len(calm.unknown)==8 and len(server.paid)==2
    n,server.seen = len(server.seen),[]
    server.mood = says(500)
    for _ in range(n-1):
        server.moods += [None]
        with pytest.raises(ServiceError): fetch(server, tmp_path/'out', q, retries=0)
    server.mood = None
    assert fetch(server, tmp_path/'out', q).complete and files(tmp_path/'out')==files(tmp_path/'calm')
    assert len(server.paid)==2*2


def test_works_that_cite_and_are_cited(server, tmp_path):
    cited = fetch(server, tmp_path/'cited', Query(cited_by=(doi(10),doi(20)), from_year=1990))
    assert sorted(ids(tmp_path/'cited'))==['W1008','W1009','W1018','W1019'] and cited.complete and cited.unknown==()
    references = fetch(server, tmp_path/'references', Query(references=(doi(10),doi(11),'10.9999/none')))
    assert sorted(ids(tmp_path/'references'))==['W1011','W1012','W1013'] and references.unknown==('10.9999/none',) and references.repeated==0
    nothing = fetch(server, tmp_path/'nothing', Query(references=('10.9999/none',)))
    assert nothing.complete and nothing.n==0 and nothing.unknown==('10.9999/none',)


def test_interrupted_citations_go_on(server, tmp_path):
    q = Query(references=tuple(doi(n) for n in range(300)), languages=('en',))
    calm = fetch(server, tmp_path/'calm', q)
    n,server.paid = len(server.paid),[]
    assert calm.complete and calm.n==len([m for m in range(1,302) if m%5])
    server.budget = 1
    for _ in range(n-1):
        assert fetch(server, tmp_path/'out', q).stop=='quota'
        server.budget = 1
    assert fetch(server, tmp_path/'out', q).complete and files(tmp_path/'out')==files(tmp_path/'calm') and len(server.paid)==n


def test_dois_are_read_from_what_people_have(tmp_path):
    (tmp_path/'a.txt').write_text('DOI\nhttps://doi.org/10.1234/A.1\n10.1234/b(2)\n')
    pd.DataFrame(dict(title=['x','y'], doi=['10.1234/a.1',''])).to_parquet(tmp_path/'b.parquet')
    (tmp_path/'c.ris').write_text('TY  - JOUR\nTI  - Plants\nDO  - 10.1234/c\nER  - \n')
    assert [read_dois(tmp_path/f) for f in ('a.txt','b.parquet','c.ris')]==[('10.1234/a.1','10.1234/b(2)'),('10.1234/a.1',),('10.1234/c',)]
    (tmp_path/'d.txt').write_text('nothing here\n')
    with pytest.raises(ValueError): read_dois(tmp_path/'d.txt')


# the key

def test_the_key_goes_into_a_header_and_nowhere_else(server, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    server.key = KEY
    assert fetch(server, tmp_path/'out', email=MAIL).complete and all(a['Authorization']==f'Bearer {KEY}' for a in server.asked)
    server.mood = lambda h: h.say(400, dict(error='x', message=f'no such thing: {h.path}&api_key={KEY} of {MAIL}, {h.headers["Authorization"]}'))
    with pytest.raises(RequestRefused) as refused: fetch(server, tmp_path/'other', Query(search='x'), email=MAIL)
    server.mood,server.key = None,'another'
    with pytest.raises(ServiceError, match='is the key in OPENALEX_API_KEY right') as wrong: fetch(server, tmp_path/'other')
    said = f'{refused.value} {wrong.value} {caplog.text} {server.seen} '+' '.join(p.read_bytes().decode('utf-8','replace') for p in tmp_path.rglob('*') if p.is_file())
    assert KEY not in said and MAIL not in said and 'no such thing' in said
    monkeypatch.setenv('OPENALEX_API_KEY', 'two\nlines')
    with pytest.raises(ValueError, match='OPENALEX_API_KEY does not hold a key') as bad: fetch(server, tmp_path/'other')
    assert 'two' not in str(bad.value)


@pytest.mark.parametrize('code', [401,403])
def test_without_a_key_it_is_tried_and_said(server, tmp_path, code):
    told = []
    fetch_works(ALL, tmp_path/'out', Api(openalex_url=server.url), say=told.append)
    assert len(told)==1 and 'OPENALEX_API_KEY' in told[0] and 'openalex.org/settings/api' in told[0]
    server.mood = says(code, dict(error='API key required'))
    with pytest.raises(ServiceError, match=rf'answers {code}: API key required; it asks for a key: make one at https://openalex.org/settings/api'): fetch(server, tmp_path/'other')
    assert not (tmp_path/'other').exists() and server.asked[-1].get('Authorization') is None


def test_a_403_that_counts_asks_to_slow_down(server, calm, tmp_path):
    server.moods += [says(403, dict(error='Rate limit exceeded'), x_ratelimit_remaining='900'), None, says(403, '', Retry_After='0.05'), says(403, '', x_ratelimit_remaining_usd='0.5')]
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(calm)
    server.mood = says(403, '', Retry_After='0.05')
    with pytest.raises(ServiceError, match='answers 403: it asks to slow down$'): fetch(server, tmp_path/'other')
    server.mood = says(403, dict(error='Rate limit exceeded'), x_ratelimit_remaining='0', x_ratelimit_reset='7200')
    assert fetch(server, tmp_path/'other').stop=='quota'


def test_bought_money_counts_and_so_does_a_stated_price(server, calm, tmp_path):
    bought = dict(x_ratelimit_remaining='0', x_ratelimit_remaining_usd='0', x_ratelimit_onetime_remaining='900', x_ratelimit_prepaid_remaining_usd='3.5', x_ratelimit_reset='7200')
    server.moods += [None, says(429, dict(error='Too many requests'), **bought)]
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(calm)
    server.mood = says(429, dict(error='Rate limit exceeded'), x_ratelimit_remaining_usd='0.0008', x_ratelimit_cost_required_usd='0.001', x_ratelimit_reset='7200')
    assert fetch(server, tmp_path/'other').stop=='quota' and len(server.seen)==7


@pytest.mark.parametrize('code', [200,400,401,403,404,413,418,429,500])
def test_no_error_shows_the_key_that_a_server_echoes(server, tmp_path, monkeypatch, code):
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    server.mood = lambda h: h.say(code, dict(error='x', message=f'no: {h.headers["Authorization"]}'), x_echo=KEY, Location=f'/?api_key={KEY}')
    with pytest.raises(ServiceError) as e: fetch(server, tmp_path/'out', retries=0)
    assert KEY not in f'{e.value!r} {e.getrepr(style="long")}' and e.value.status==(None if code in (200,404) else code)
    server.mood = lambda h: h.say(429, dict(message=f'Insufficient budget of {KEY}'), x_ratelimit_remaining='0')
    done = fetch(server, tmp_path/'out', retries=0)
    assert done.stop=='quota' and KEY not in repr(done)


def test_the_doi_of_a_single_work_leads_nowhere_else(server, tmp_path):
    server.works.append(work(900, doi='https://doi.org/10.1002/../../a?b#c,d'))
    done = fetch(server, tmp_path/'out', Query(dois=('10.1002/../../a?b#c,d',)))
    assert ids(tmp_path/'out')==['W1900'] and done.complete and server.seen[0].startswith('/works/doi:10.1002%2F..%2F..%2Fa%3Fb%23c%2Cd?')


# crashes

def test_a_process_that_is_killed_loses_no_page_it_paid_for(server, calm, tmp_path):
    script = ("import sys; from ipbes_classifier.config import Api; from ipbes_classifier.openalex import Query, fetch_works\n"
              f"fetch_works(Query(filter='topics.id:T0|T1|T2', from_year=1990), sys.argv[1], Api(openalex_url={server.url!r}), size=150)")
    for kept,how in ((1,signal.SIGKILL),(2,signal.SIGINT),(3,signal.SIGKILL)):
        server.mood = lambda h: time.sleep(20) or True
        server.moods += [None]
        n = len(server.seen)
        p = subprocess.Popen([sys.executable,'-c',script,str(tmp_path/'out')], env=os.environ|dict(OMP_NUM_THREADS='1'), stderr=subprocess.DEVNULL)
        end = time.monotonic()+40
        while len(server.seen)<n+2 and time.monotonic()<end: time.sleep(0.02)
        p.send_signal(how)
        p.wait()
        assert len(server.paid)==kept and (how==signal.SIGKILL or len(ids(tmp_path/'out'))==100*kept), 'who presses Ctrl-C finds what is there'
    server.mood = None
    assert fetch(server, tmp_path/'out').complete and files(tmp_path/'out')==files(calm) and len(server.paid)==5


def test_a_crash_between_any_two_writes_is_harmless(server, calm, tmp_path, monkeypatch):
    class Crash(BaseException): pass
    left,dead,real,close = [0],[False],os.replace,Parts.close
    def replace(*args):
        left[0] -= 1
        if left[0]==0: dead[0] = True
        if dead[0]: raise Crash
        return real(*args)
    monkeypatch.setattr(os,'replace',replace)
    monkeypatch.setattr(Parts,'close',lambda self,**kw: 0 if dead[0] else close(self,**kw))
    for k in range(1,30):
        left[0],dead[0],out = k,False,tmp_path/f'out{k}'
        try: fetch(server, out)
        except Crash: pass
        crashed,left[0],dead[0] = dead[0],-1,False
        assert fetch(server, out).complete and files(out)==files(calm), k
        if not crashed: break
    assert k==14 and not crashed, 'each of the thirteen renames was a place to crash at'


def test_a_full_disk_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(os,'fsync',lambda fd: (_ for _ in ()).throw(OSError(28,'No space left on device')))
    with pytest.raises(OSError, match='the disk is full'): fetch(server, tmp_path/'out')
    monkeypatch.undo()
    assert fetch(server, tmp_path/'out').complete


# a snapshot

@pytest.fixture
def snapshot(tmp_path)->Path:
    root = tmp_path/'snapshot'/'works'
    for k in range(4):
        (root/f'updated_date=2026-0{k+1}-01').mkdir(parents=True)
        (root/f'updated_date=2026-0{k+1}-01'/'part_000.jsonl').write_text('\n'.join(json.dumps(work(n)) for n in range(k*100,k*100+100)))
    return root


def test_a_snapshot_is_read_like_the_service(snapshot, tmp_path):
    q = Query(from_year=1995, to_year=2005, languages=('en',), with_abstract=True)
    done = fetch_snapshot(snapshot, q, tmp_path/'calm', size=30, frame=70)
    got = pd.read_parquet(tmp_path/'calm')
    assert done.complete and set(got.id)=={f'W{1000+n}' for n in range(400) if 1995<=1990+n%30<=2005 and n%5 and n%7} and done.cost_usd==0
    for most in (10,40,70): assert fetch_snapshot(snapshot, q, tmp_path/'out', Budget(max_works=most), size=30, frame=70).n==most
    fetch_snapshot(snapshot, q, tmp_path/'out', size=30, frame=70)
    assert files(tmp_path/'out')==files(tmp_path/'calm')


def test_a_sample_of_a_snapshot_does_not_depend_on_its_files(snapshot, tmp_path):
    fetch_snapshot(snapshot, Query(sample=40, seed=3, to_year=2010), tmp_path/'a', size=30, frame=70)
    one = tmp_path/'one.jsonl'
    one.write_text('\n'.join(json.dumps(work(n)) for n in range(400)))
    fetch_snapshot(one, Query(sample=40, seed=3, to_year=2010), tmp_path/'b', size=30, frame=1000)
    assert data(tmp_path/'a')==data(tmp_path/'b') and len(set(ids(tmp_path/'a')))==40


def test_a_damaged_snapshot_keeps_what_came_and_goes_on(snapshot, tmp_path):
    fetch_snapshot(snapshot, Query(from_year=1995), tmp_path/'calm', size=30, frame=50)
    bad = snapshot/'updated_date=2026-01-01'/'part_000.jsonl'
    good = bad.read_text()
    bad.write_text(good[:len(good)//2])
    with pytest.raises(ValueError, match='part_000.jsonl'): fetch_snapshot(snapshot, Query(from_year=1995), tmp_path/'out', size=30, frame=50)
    assert len(ids(tmp_path/'out'))>=200
    bad.write_text(good)
    fetch_snapshot(snapshot, Query(from_year=1995), tmp_path/'out', size=30, frame=50)
    assert files(tmp_path/'out')==files(tmp_path/'calm')


def test_a_snapshot_in_a_bucket_is_the_same_as_one_on_the_disk(snapshot, tmp_path, monkeypatch, ipbes):
    import boto3
    from moto.server import ThreadedMotoServer
    moto = ThreadedMotoServer('127.0.0.1', 0, verbose=False)
    moto.start()
    try:
        url = 'http://{}:{}'.format(*moto.get_host_and_port())
        for v in ('AWS_ACCESS_KEY_ID','AWS_PROFILE','AWS_ROLE_ARN','AWS_WEB_IDENTITY_TOKEN_FILE'): monkeypatch.delenv(v, raising=False)
        monkeypatch.setenv('AWS_ENDPOINT_URL', url)
        monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
        s3 = boto3.client('s3', region_name='us-east-1', endpoint_url=url, aws_access_key_id='owner', aws_secret_access_key='secret')
        s3.create_bucket(Bucket='openalex', ACL='public-read')
        for f in sorted(snapshot.rglob('*.jsonl')): s3.put_object(Bucket='openalex', Key=f'data/works/{f.relative_to(snapshot)}', Body=f.read_bytes(), ACL='public-read')
        args = ('--from-year',1995,'--language','fr')
        r,local = ipbes('--snapshot','s3://openalex/data/works',*args,'-o','remote'),ipbes('--snapshot',snapshot,*args,'-o','local')
    finally: moto.stop()
    assert r.exit_code==local.exit_code==0 and data(tmp_path/'remote')==data(tmp_path/'local') and len(ids(tmp_path/'remote'))>50


# the command

@pytest.fixture
def ipbes(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *args: CliRunner().invoke(app, ['fetch','openalex',*map(str,args),f'api.openalex_url={server.url}','api.retries=0','api.max_wait=2'])


def test_the_command_fetches_and_goes_on(server, tmp_path, ipbes, monkeypatch):
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    args = ('--filter','topics.id:T0|T1|T2','--from-year',1990,'--to-year',2030,'--language','en','-o','bees')
    server.budget = 2
    r = ipbes(*args)
    assert r.exit_code==3 and "OpenAlex's budget for today is used up; run the same command again after" in r.stderr and '200 works (200 new), $0.0002 spent in all\nbees' in r.stdout
    server.budget = 100
    r = ipbes(*args,'--max-works',250)
    assert r.exit_code==0 and '250 works (50 new)' in r.stdout and '--max-works is reached' in r.stderr
    r = ipbes(*args)
    assert r.exit_code==0 and '384 works (134 new)' in r.stdout and not r.stderr and len(server.paid)==4
    assert len(read_records(tmp_path/'bees'))==384


def test_the_command_reads_dois_and_snapshots(server, tmp_path, ipbes, snapshot):
    (tmp_path/'dois.txt').write_text(f'{doi(1)}\n{doi(2)}\n')
    r = ipbes('--dois','dois.txt','--max-cost',0,'-o','papers')
    assert r.exit_code==0 and 'OPENALEX_API_KEY' in r.stderr and sorted(ids(tmp_path/'papers'))==['W1001','W1002']
    assert ipbes('--cited-by','dois.txt','-o','citing').exit_code==0 and sorted(ids(tmp_path/'citing'))==['W1000','W1001']
    assert ipbes('--references','dois.txt').exit_code==0 and sorted(ids(tmp_path/'openalex'))==['W1002','W1003','W1004']
    assert ipbes('--snapshot',snapshot,'--sample',5,'-o','few').exit_code==0 and len(ids(tmp_path/'few'))==5


@pytest.mark.parametrize('args, words', [(('--filter','topic:T1'),'topic is not a valid field'), ((),'nothing is asked for'), (('--dois','nowhere.txt'),'no such file'), (('--search','x','--language','klingon'),'no language')])
def test_the_command_refuses_in_a_sentence(args, words, ipbes, tmp_path):
    r = ipbes(*args,'-o','out')
    assert isinstance(r.exception,(ValueError,OSError)) and words in str(r.exception) and not (tmp_path/'out').exists()


def test_a_line_that_is_no_doi_is_named(tmp_path):
    (tmp_path/'d.txt').write_text('10.1001/paper.1\n\nNA\n')
    with pytest.raises(ValueError, match="d.txt: line 3, 'NA', holds no DOI"): read_dois(tmp_path/'d.txt')
    (tmp_path/'t.csv').write_text('title,doi\nAnts,10.1001/paper.1\nBees,\n')
    assert read_dois(tmp_path/'t.csv')==('10.1001/paper.1',)


def test_a_table_is_not_what_is_made(tmp_path):
    r = CliRunner().invoke(app, ['fetch','openalex','--sample','3','-o',str(tmp_path/'out.csv')])
    assert r.exit_code==1 and 'ipbes records' in str(r.exception) and not (tmp_path/'out.csv').exists()
