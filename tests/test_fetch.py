"""Crossref as it answers on bad days: a server on 127.0.0.1 that speaks its shapes and has its moods."""
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ipbes_classifier.cli import app
from ipbes_classifier.config import Api, load_config
from ipbes_classifier.crossref import Crossref, crossref_work
from ipbes_classifier.fetch import Cache, Service, ServiceError, Work
from ipbes_classifier.fill import count_gaps, fill_missing, gap_table
from ipbes_classifier.preprocess import preprocess
from ipbes_classifier.project import preprocess_project
from ipbes_classifier.records import read_records, to_records
from moods import MoodyServer, breaks_off, drips, resets, says, serving, sleeps, waits

MAIL = 'screener@assessment.example.org'


def abstract(n:int)->str: return f'We sampled plot number {n} in spring and in autumn and report how cover, richness and abundance follow the rain that fell.'


def jats(n:int)->str: return f'<jats:sec><jats:title>Background</jats:title><jats:p>{abstract(n)} <jats:italic>P</jats:italic> &lt; 0.01.</jats:p></jats:sec>'


def item(n:int, **more)->dict:
    return dict(DOI=f'10.{1000+n%3}/Paper.{n}', title=[f'Plants of plot number {n}'], issued={'date-parts':[[2000+n%20,5]]}, abstract=jats(n))|more


class Server(MoodyServer):
    "Crossref's `/works` and `/works/{doi}`; `seen` are the DOIs of each request."
    def __init__(self, items:list[dict]):
        super().__init__()
        self.items,self.headers = {i['DOI'].lower():i for i in items},{'x-rate-limit-limit':'1000','x-rate-limit-interval':'1s'}

    def note(self, h)->list[str]:
        return [f.removeprefix('doi:') for f in h.query['filter'].split(',')] if 'filter' in h.query else [unquote(h.route.removeprefix('/works/'))]

    def answer(self, h):
        dois = self.note(h)
        found = [self.items[d.lower()] for d in dois if d.lower() in self.items]
        if 'filter' in h.query:
            keep = h.query['select'].split(',')
            h.say(200, dict(status='ok', message={'total-results':len(found),'items':[{k:v for k,v in i.items() if k in keep} for i in found]}))
        elif found: h.say(200, dict(status='ok', message=found[0]))
        else: h.say(404, 'Resource not found.', kind='text/plain')


@pytest.fixture
def crossref():
    with serving(server=Server([item(n) for n in range(40)])) as server: yield server


def source(server, tmp_path, **kw)->Crossref:
    api = Api(**(dict(email=MAIL, crossref_url=server.url, timeout=10, batch_size=10)|kw))
    return Crossref(api, tmp_path/'fetched', backoff=0.01)


def gaps(dois:list[str])->pd.DataFrame: return to_records(pd.DataFrame(dict(doi=dois, title=['']*len(dois), abstract=['']*len(dois))))


DOIS = [item(n)['DOI'].lower() for n in range(25)]


@pytest.mark.parametrize('mood', [
    says(429, 'Too many', kind='text/plain'), says(429, 'Too many', kind='text/plain', Retry_After='0.05'), says(500, 'Oops', kind='text/html'), says(503), says(504),
    breaks_off, resets, sleeps, says(200, '<html>Sign in to the hotel network</html>', kind='text/html'), says(200, '{"status":"ok","mess'), says(200, ''), says(408)],
    ids='429 429-retry-after 500 503 504 truncated reset slow html half-json empty 408'.split())
def test_a_mood_that_passes_costs_a_request_and_nothing_else(crossref, tmp_path, mood):
    crossref.moods += [mood,None,mood,mood]
    filled,found = fill_missing(gaps(DOIS), [source(crossref,tmp_path,timeout=0.5 if mood is sleeps else 10)])
    assert filled.abstract.tolist()==[f'Background {abstract(n)} P < 0.01.' for n in range(25)]
    assert filled.title.tolist()==[f'Plants of plot number {n}' for n in range(25)] and filled.year.tolist()==[2000+n%20 for n in range(25)]
    assert (len(crossref.seen)==6 or mood is sleeps) and set(found.outcome)=={'filled'} and set(found.abstract_source)=={'Crossref'}


@pytest.mark.parametrize('mood, words', [
    (says(500), '500 Internal Server Error'), (says(401), '401 Unauthorized'), (says(403), '403 Forbidden'), (resets, 'does not answer'), (breaks_off, 'does not answer (RemoteProtocolError)'),
    (says(200, '<html>', kind='text/html'), 'text/html that is not JSON'), (says(200, [1,2]), 'no list of works'), (says(200, dict(message=dict(items=[1]))), 'no list of works'),
    (says(200, dict(message=dict(items=[], **{'total-results':'many'}))), 'no list of works'), (says(429, Retry_After='7200'), 'wait for 7,200 seconds'),
    (says(200, '['*100_000), 'not JSON')], ids='500 401 403 reset truncated html list item total quota deep'.split())
def test_a_mood_that_stays_ends_in_one_sentence(crossref, tmp_path, mood, words):
    crossref.moods += [None]
    crossref.mood = mood
    with pytest.raises(ServiceError) as e: source(crossref,tmp_path,retries=2).works(DOIS)
    message = str(e.value)
    assert words in message and '10 answers came before and are kept in' in message and '\n' not in message and MAIL not in message
    crossref.mood,crossref.seen = None,[]
    assert all(source(crossref,tmp_path).works(DOIS).values())
    assert [d for batch in crossref.seen for d in batch]==DOIS[10:]


def test_a_quota_that_is_used_up_is_not_waited_for(crossref, tmp_path):
    crossref.mood = says(429, Retry_After='7200')
    start = time.monotonic()
    with pytest.raises(ServiceError): source(crossref,tmp_path).works(DOIS)
    assert len(crossref.seen)==1 and time.monotonic()-start<5


def test_the_pace_is_the_one_that_headers_grant(crossref, tmp_path):
    crossref.headers = {'x-rate-limit-limit':'5, 5','x-rate-limit-interval':'1s, 1s'}
    source(crossref,tmp_path,batch_size=5).works(DOIS)
    assert len(crossref.times)==5 and crossref.times[-1]-crossref.times[0]>0.6, 'four steps of 0.2 seconds, less what the first request was late'


def test_retry_after_is_waited_for(crossref, tmp_path):
    crossref.moods += [says(429, Retry_After='1')]
    source(crossref,tmp_path).works(DOIS[:3])
    assert crossref.times[1]-crossref.times[0]>=1


def test_one_bad_doi_does_not_spoil_its_batch(crossref, tmp_path):
    bad = '10.1000/bad(doi'
    crossref.mood = lambda h: h.say(400, dict(status='failed', message=[dict(type='filter-not-available',message='bad')])) if bad in crossref.note(h) else None
    works = source(crossref,tmp_path).works([*DOIS[:6],bad])
    assert works.pop(bad) is None and all(works.values())
    crossref.seen,crossref.mood = [],None
    crossref.items[bad] = item(1, DOI=bad)
    assert source(crossref,tmp_path).works([bad])[bad].title==item(1)['title'][0] and crossref.seen==[[bad]], 'a refusal is not kept'


@pytest.mark.parametrize('n', [1,2,60])
def test_a_gateway_that_refuses_everything_is_named_soon(n, crossref, tmp_path):
    crossref.mood = says(400, 'Blocked by policy', kind='text/html')
    with pytest.raises(ServiceError, match='refuses a request: 400 .*so it does whatever is asked.*0 answers came before'):
        source(crossref,tmp_path).works([f'10.1000/{i}' for i in range(n)])
    assert len(crossref.seen)<=8
    crossref.mood = None
    assert source(crossref,tmp_path).works([item(1)['DOI'].lower()])[item(1)['DOI'].lower()], 'nothing of it was kept'


def test_answers_of_another_address_are_not_taken(crossref, tmp_path):
    source(crossref,tmp_path).works(DOIS[:2])
    here = source(crossref,tmp_path)
    elsewhere = Crossref(Api(crossref_url=f'{crossref.url}/mirror'), here.cache.path.parent)
    crossref.seen = []
    assert set(elsewhere.works(DOIS[:2]))==set(DOIS[:2]) and crossref.seen
    n = len(crossref.seen)
    assert all(here.works(DOIS[:2]).values()) and len(crossref.seen)==n


def test_a_pace_of_hours_ends_the_run_and_keeps_what_came(crossref, tmp_path):
    crossref.headers = {'x-rate-limit-limit':'1','x-rate-limit-interval':'2h'}
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r'api\.max_wait.*asks to wait for 7,[12]\d\d seconds, until .* UTC; 1 answers came before'):
        source(crossref,tmp_path,batch_size=1).works(DOIS[:3])
    assert time.monotonic()-start<5 and len(crossref.seen)==1


def test_odd_dois_arrive_whole(crossref, tmp_path):
    odd = ['10.1002/(sici)1097-0258(19980815/30)17:15<1661::aid-sim968>3.0.co;2-2','10.1000/a,b','10.1000/a+b=c','10.1000/a&b','10.1000/a#b','10.1000/a?b','10.1000/100%','10.1000/ünï']
    crossref.items |= {d:item(i, DOI=d.upper()) for i,d in enumerate(odd)}
    works = source(crossref,tmp_path).works(odd)
    assert [works[d] and works[d].title for d in odd]==[f'Plants of plot number {i}' for i in range(len(odd))]


def test_an_answer_for_another_doi_is_no_answer(crossref, tmp_path):
    crossref.items['10.1000/alias'] = item(1)
    assert source(crossref,tmp_path).works(['10.1000/alias'])=={'10.1000/alias':None}
    assert source(crossref,tmp_path).works(['10.1000/alias',DOIS[0]])['10.1000/alias'] is None


def test_a_list_that_is_cut_short_is_asked_for_in_halves(crossref, tmp_path):
    crossref.mood = lambda h: h.say(200, dict(message={'total-results':len(crossref.note(h)),'items':[item(0)]})) if len(crossref.note(h))>2 else None
    assert all(source(crossref,tmp_path).works(DOIS[:8]).values())


def test_what_is_there_is_never_touched_and_other_papers_are_not_mixed_in(crossref, tmp_path):
    crossref.items['10.1001/paper.7']['subtitle'] = ['The first ten years']
    records = to_records(pd.DataFrame([
        dict(doi='https://doi.org/10.1001/PAPER.1', title='PLANTS of Plot number 1', abstract='', year='1999'),
        dict(doi=DOIS[2], title='Tax evasion among dentists', abstract=''), dict(doi=DOIS[3], title='', abstract='A text of the library of more than fifty characters.'),
        dict(doi=DOIS[7], title='Plants of plot number 7', abstract='<p>None.</p>'), dict(doi='10.9999/none', title='Plants elsewhere', abstract=''),
        dict(doi='', title='Plants nowhere', abstract=''), dict(doi=DOIS[8], title='Complete', abstract='Complete enough, since this is more than fifty characters long.')]))
    before = records.copy()
    filled,found = fill_missing(records, [source(crossref,tmp_path)])
    pd.testing.assert_frame_equal(records, before)
    assert filled.title.tolist()==['PLANTS of Plot number 1','Tax evasion among dentists','Plants of plot number 3','Plants of plot number 7','Plants elsewhere','Plants nowhere','Complete']
    assert filled.abstract.str[:13].tolist()==['Background We','','A text of the','Background We','','','Complete enou'] and filled.year[0]==1999
    assert found.outcome.tolist()==['filled','other_title','filled','filled','unknown','no_doi']
    t = gap_table(count_gaps(found))
    assert t.loc['all',['records','title','abstract']].tolist()==[6,1,2] and t.loc['10.9999','unknown']==1
    assert sorted(d for b in crossref.seen for d in b)==sorted([DOIS[1],DOIS[2],DOIS[3],DOIS[7],'10.9999/none'])


def test_an_index_with_repeats_is_kept(crossref, tmp_path):
    records = gaps(DOIS[:3]).set_axis([5,5,5])
    assert fill_missing(records, [source(crossref,tmp_path)])[0].title.tolist()==[f'Plants of plot number {n}' for n in range(3)]


def test_sources_fill_what_those_before_them_could_not(crossref, tmp_path):
    del crossref.items[DOIS[0]]['abstract']
    class Other:
        name,asked = 'Other',[]
        def works(self, dois): self.asked += dois; return {d:Work('Plants of plot number 0',abstract(99),1980) for d in dois}
    filled,found = fill_missing(gaps(DOIS[:2]), [source(crossref,tmp_path),Other()])
    assert Other.asked==[DOIS[0]] and filled.abstract[0]==abstract(99) and filled.year[0]==2000
    assert found.loc[0,['outcome','title_source','abstract_source','year_source']].tolist()==['filled','Crossref','Other','Crossref']


def test_the_mail_reaches_the_service_and_nothing_else(crossref, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv('PYALEX_EMAIL', MAIL)
    crossref.moods += [None,says(500),None]
    crossref.mood = says(403)
    with pytest.raises(ServiceError) as e: source(crossref,tmp_path,email='').works(DOIS)
    assert all(a.endswith(f'(mailto:{MAIL})') for a in crossref.agents) and len(crossref.agents)==4
    assert MAIL not in str(e.value) and MAIL not in caplog.text and not any(MAIL.encode() in p.read_bytes() for p in tmp_path.rglob('*') if p.is_file())
    monkeypatch.setenv('PYALEX_EMAIL', 'nobody\r\nHost: evil')
    with pytest.raises(ValueError, match='is not a mail address') as e: source(crossref,tmp_path,email='')
    assert 'evil' not in str(e.value)


def test_old_answers_are_asked_for_again(crossref, tmp_path):
    source(crossref,tmp_path).works(DOIS[:2])
    source(crossref,tmp_path).works(DOIS[:2])
    assert len(crossref.seen)==1
    source(crossref,tmp_path,cache_days=0).works(DOIS[:2])
    assert len(crossref.seen)==2


def test_processes_share_a_cache(tmp_path):
    path = tmp_path/'c'/'answers.sqlite'
    jobs = [threading.Thread(target=lambda k=k: [Cache(path).write('S',{f'{k}-{i}':{'n':i}}) for i in range(20)]) for k in range(4)]
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert len(Cache(path).read('S',[f'{k}-{i}' for k in range(4) for i in range(20)]))==80


def test_a_cache_that_cannot_be_written_is_named(crossref, tmp_path):
    (tmp_path/'fetched').mkdir()
    (tmp_path/'fetched'/'crossref.sqlite').write_bytes(b'not a data base'*100)
    with pytest.raises(OSError, match='crossref.sqlite: the answers of services cannot be kept here'): source(crossref,tmp_path).works(DOIS)
    assert not crossref.seen


plain = st.recursive(st.none()|st.booleans()|st.integers()|st.floats()|st.text(max_size=20), lambda x: st.lists(x,max_size=3)|st.dictionaries(
    st.sampled_from(['title','subtitle','original-title','abstract','issued','date-parts','DOI','message','items','total-results','x']),x,max_size=5), max_leaves=12)


listed = st.lists(st.dictionaries(st.sampled_from(['title','subtitle','original-title','abstract','issued']), plain).map(lambda d: d|dict(DOI=DOIS[0])), max_size=3)


@settings(max_examples=100, deadline=None)
@given(plain|listed.map(lambda x: dict(message=dict(items=x))), st.integers(1,3))
def test_any_json_gives_works_or_one_clear_error(tmp_path_factory, body, n):
    api = Api(retries=0)
    def answer(request): return httpx2.Response(200, content=json.dumps(body).encode(), headers={'content-type':'application/json'})
    c = Crossref(api, tmp_path_factory.mktemp('c'), backoff=0, transport=httpx2.MockTransport(answer))
    try: assert all(w is None or isinstance(w,Work) for w in c.works(DOIS[:n]).values())
    except ServiceError as e: assert '\n' not in str(e)
    if isinstance(body,dict): assert isinstance(crossref_work(body), Work)


# the whole command

def library(folder:Path)->tuple[Path,Path]:
    "A library of 30 rows without abstracts, some known to the corpus, and a corpus."
    names = ['Key','Item Type','Publication Year','Title','DOI','Url','Abstract Note','Extra']
    rows = [[f'K{n}','book' if n==4 else 'journalArticle','',f'Plants of plot number {n}',item(n)['DOI'] if n%5 else '','','',''] for n in range(30)]
    pd.DataFrame(rows, columns=names).to_csv(folder/'library.csv', index=False)
    pd.DataFrame([dict(doi=f'10.5/{n}', title=f'Bond prices of quarter {n}', abstract=abstract(200+n)) for n in range(20)]).to_csv(folder/'corpus.csv', index=False)
    return folder/'library.csv',folder/'corpus.csv'


def fill(folder:Path, name:str, sources)->object:
    lib,corpus = library(folder)
    return preprocess(dict(A=[lib]), [corpus], folder/name, ['A'], progress=False, sources=sources)


def test_filled_abstracts_count_and_the_account_says_so(crossref, tmp_path):
    del crossref.items[DOIS[6]]['abstract']
    without = fill(tmp_path, 'without.csv', [])
    assert without.labels=={'A':0} and not crossref.seen
    account = fill(tmp_path, 'with.csv', [source(crossref,tmp_path)])
    assert account.labels=={'A':22} and account.filled['records']==29 and account.filled['came']=={'Crossref':dict(title=0,abstract=22,year=23)}
    assert DOIS[4] not in sum(crossref.seen,[])
    assert '29 rows without title or abstract: Crossref gave 22 abstracts, 23 years; 1 registered without it, 6 without DOI' in str(account)
    figures = json.loads((tmp_path/'with_account.json').read_text())
    assert figures['filled']==account.filled and sum(p['abstract'] for p in figures['filled']['prefixes'] if p['prefix']!='all')==22
    df = read_records(tmp_path/'with.csv', labels=['A'])
    assert df[df.A==1].abstract.str.startswith('Background We sampled').all()


def test_a_doi_of_another_paper_is_pointed_out(crossref, tmp_path):
    crossref.items[DOIS[3]]['title'] = ['Interest rates after the war']
    account = fill(tmp_path, 'with.csv', [source(crossref,tmp_path)])
    assert [(r['row'].endswith('library.csv row 4 (K3)'),r['doi']) for r in account.filled['other_title']]==[(True,DOIS[3])]
    assert 'Not filled, but look' in (tmp_path/'with_account.html').read_text() and '1 under another title' in str(account)


def test_interrupted_by_the_service_and_resumed_gives_the_same_file(crossref, tmp_path):
    (tmp_path/'a').mkdir(), (tmp_path/'b').mkdir()
    fill(tmp_path/'a', 'out.csv', [source(crossref,tmp_path/'a')])
    crossref.seen = []
    crossref.moods += [None]
    crossref.mood = says(503)
    with pytest.raises(ServiceError): fill(tmp_path/'b', 'out.csv', [source(crossref,tmp_path/'b',retries=1)])
    assert sorted(p.name for p in (tmp_path/'b').iterdir())==['corpus.csv','fetched','library.csv']
    crossref.mood = None
    fill(tmp_path/'b', 'out.csv', [source(crossref,tmp_path/'b')])
    for name in ('out.csv','out_account.csv'): assert (tmp_path/'a'/name).read_text()==(tmp_path/'b'/name).read_text().replace(str(tmp_path/'b'),str(tmp_path/'a'))
    answered = crossref.seen[0]
    assert not any(d in answered for batch in crossref.seen[3:] for d in batch)


def project(folder:Path, url:str)->dict:
    "A project folder, and the environment to run commands in it."
    (folder/'configs').mkdir(parents=True)
    library(folder)
    (folder/'configs/config.yaml').write_text('labels: [{name: A, positives: [library.csv]}]\ndata: {corpus: [corpus.csv]}\n'
                                              f'api: {{sources: [crossref], crossref_url: "{url}", timeout: 5, retries: 1, batch_size: 5}}\nlogging: {{progress: false}}\n')
    return dict(cwd=folder, env=os.environ|{'PYALEX_EMAIL':MAIL}, text=True, timeout=120)


IPBES = [sys.executable,'-c','from ipbes_classifier.cli import main; main()']


@pytest.mark.parametrize('flag', ['-fm','--fill-missing'])
def test_the_command(crossref, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(project(tmp_path/'p', crossref.url)['cwd'])
    monkeypatch.setenv('PYALEX_EMAIL', MAIL)
    r = CliRunner().invoke(app, ['preprocess'])
    assert r.exit_code==0 and not crossref.seen and 'Crossref' not in r.output
    r = CliRunner().invoke(app, ['preprocess',flag])
    assert r.exit_code==0 and 'Crossref gave 23 abstracts' in r.stdout and MAIL not in r.output
    assert crossref.agents[0].endswith(f'(mailto:{MAIL})')
    assert not any(MAIL.encode() in p.read_bytes() for p in Path.cwd().rglob('*') if p.is_file())


def test_killed_and_resumed_gives_the_same_file(crossref, tmp_path):
    project(tmp_path/'whole', crossref.url)
    preprocess_project(load_config(root=tmp_path/'whole'), fill_missing=True)
    crossref.seen = []
    crossref.moods += [None,None,waits(4)]
    kw = project(tmp_path/'killed', crossref.url)
    p = subprocess.Popen([*IPBES,'preprocess','-fm'], **{k:v for k,v in kw.items() if k!='timeout'}, stdout=subprocess.DEVNULL)
    end = time.monotonic()+60
    while len(crossref.seen)<3 and time.monotonic()<end: time.sleep(0.02)
    p.kill()
    p.wait()
    assert len(crossref.seen)==3 and not (tmp_path/'killed/data/cleaned_dataset.csv').exists()
    crossref.moods.clear()
    preprocess_project(load_config(root=tmp_path/'killed'), fill_missing=True)
    assert (tmp_path/'killed/data/cleaned_dataset.csv').read_bytes()==(tmp_path/'whole/data/cleaned_dataset.csv').read_bytes()
    asked = sum(crossref.seen,[])
    assert [asked.count(d) for d in sum(crossref.seen[:2],[])]==[1]*10


def test_no_network_is_one_sentence(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        kw = project(tmp_path/'p', f'http://127.0.0.1:{s.getsockname()[1]}')
        r = subprocess.run([*IPBES,'preprocess','-fm'], capture_output=True, **kw)
    assert r.returncode==1 and r.stdout=='' and len(r.stderr.strip().splitlines())==1 and 'does not answer (ConnectError)' in r.stderr
    assert [p.name for p in (tmp_path/'p/data').iterdir()]==['fetched']


@pytest.mark.parametrize('head', [True,False], ids=['head','body'])
def test_an_answer_that_drips_is_cut_off(crossref, head):
    crossref.mood = drips(head)
    start = time.monotonic()
    service = Service('A service', crossref.url, Api(timeout=0.2), backoff=0.01)
    with pytest.raises(ServiceError, match='has not ended its answer in 2 seconds'): service.get('/works/1')
    assert time.monotonic()-start<6 and len(crossref.seen)==1, 'ten times the timeout, and it is not asked again'
    crossref.mood = None
    assert service.get(f'/works/{DOIS[0].replace("/","%2F")}')['message']['DOI'].lower()==DOIS[0], 'the service is still of use'


BOMBS = dict(gzip=zlib.compress(bytes(200*2**20), 9, 31), twice=zlib.compress(zlib.compress(bytes(200*2**20), 9, 31), 9, 31))


@pytest.mark.parametrize('body, coding, words', [
    (BOMBS['gzip'],'gzip','more than 64 MiB'), (b' '*(65*2**20),'identity','more than 64 MiB'), (BOMBS['twice'],'gzip, gzip','was not asked for'), (b'x','br','was not asked for'),
    (b'nothing packed','gzip','cannot be unpacked')], ids='gzip plain twice brotli damaged'.split())
def test_an_answer_that_would_fill_the_memory_is_refused(crossref, body, coding, words):
    crossref.mood = says(200, body, **{'Content-Encoding':coding})
    tracemalloc.start()
    with pytest.raises(ServiceError, match=words) as e: Service('A service', crossref.url, Api(retries=1), backoff=0.01).get('/works/1')
    assert tracemalloc.get_traced_memory()[1]<250*2**20 and e.value.again==(0 if coding=='gzip' and body==b'nothing packed' else None)
    tracemalloc.stop()
    crossref.mood = says(200, zlib.compress(b'{"a":1}', 9, 31), **{'Content-Encoding':'gzip'})
    assert Service('A service', crossref.url, Api()).get('/works/1')==dict(a=1)


def test_a_redirect_with_a_bomb_is_followed_without_it(crossref):
    crossref.moods += [says(302, BOMBS['gzip'], **{'Content-Encoding':'gzip','Location':f'/works/{DOIS[0].replace("/","%2F")}'})]
    assert Service('A service', crossref.url, Api()).get('/works/1')['message']['DOI'].lower()==DOIS[0] and len(crossref.seen)==2


def test_another_host_learns_neither_key_nor_mail_address(crossref):
    with serving(lambda h: h.say(200, dict(here=h.headers.get('X-Key')))) as other:
        crossref.mood = says(302, Location=f'{other.url}/works/1')
        service = Service('A service', crossref.url, Api(email=MAIL), headers={'X-Key':'secret'})
        assert service.get('/works/1')==dict(here=None)
    assert crossref.asked[0]['X-Key']=='secret' and MAIL in crossref.agents[0]
    assert MAIL not in str(other.asked) and 'secret' not in str(other.asked) and other.agents[0].startswith('ipbes_classifier/')


def test_a_long_wait_is_told_and_a_short_one_is_not(crossref, monkeypatch, caplog):
    slept = []
    monkeypatch.setattr(time, 'sleep', slept.append)
    service = Service('Crossref', crossref.url, Api(), backoff=0.01)
    crossref.moods += [says(429, Retry_After='2'),says(503, Retry_After='120')]
    service.get('/works', filter=f'doi:{DOIS[0]}', select='DOI')
    told = f'Crossref at {crossref.url} answers 503 Service Unavailable; waiting for 120 seconds'
    assert [x for x in slept if x]==[2,120]
    assert [r.message for r in caplog.records if r.name=='ipbes_classifier.fetch']==[told]
    crossref.headers = {'x-rate-limit-limit':'1','x-rate-limit-interval':'60s'}
    for _ in range(2): service.get('/works', filter=f'doi:{DOIS[0]}', select='DOI')
    assert 'asks for a pause after each answer; waiting for 60 seconds' in caplog.records[-1].message


def test_a_long_wait_is_told_on_stderr(crossref, tmp_path):
    crossref.mood = says(503, Retry_After='12')
    code = f'import time; time.sleep = print; from ipbes_classifier.fetch import *; from ipbes_classifier.config import Api; Service("Crossref","{crossref.url}",Api(retries=1)).get("/works/1")'
    r = subprocess.run([sys.executable,'-c',code], capture_output=True, text=True, cwd=tmp_path)
    assert r.stderr.splitlines()[0]==f'Crossref at {crossref.url} answers 503 Service Unavailable; waiting for 12 seconds'


def test_an_error_knows_its_status(crossref, tmp_path):
    for code in (401,403,429,500,503):
        crossref.mood = says(code)
        with pytest.raises(ServiceError) as e: source(crossref,tmp_path,retries=0).works(DOIS[:1])
        assert e.value.status==code
    crossref.mood = resets
    with pytest.raises(ServiceError) as e: source(crossref,tmp_path,retries=0).works(DOIS[:1])
    assert e.value.status is None
