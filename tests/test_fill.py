"""Filling a file from OpenAlex and Crossref on good days and bad ones: servers on 127.0.0.1 that speak their shapes; files are compared byte by byte."""
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ipbes_classifier.cli import app
from ipbes_classifier.config import Api
from ipbes_classifier.fetch import Service, ServiceError, Work
from ipbes_classifier.fill import OpenAlex, fill_file, left_table, make_sources
from ipbes_classifier.records import read_records, write_records
from moods import MoodyServer, breaks_off, cuts, resets, says, serving, sleeps, waits
from test_fetch import Server as CrossrefServer
from test_fetch import abstract, item, plain

KEY,MAIL = 'oa-key-7f3a91c2','screener@assessment.example.org'
N = 30
DOIS = [item(n)['DOI'].lower() for n in range(N)]


def work(n:int, **more)->dict:
    "A work of OpenAlex; its text says that it is from there."
    words:dict[str,list[int]] = {}
    for i,w in enumerate(f'OpenAlex: {abstract(n)}'.split()): words.setdefault(w,[]).append(i)
    return dict(id=f'https://openalex.org/W{1000+n}', doi=f'https://doi.org/10.{1000+n%3}/paper.{n}', title=f'Plants of plot number {n}', publication_year=2000+n%20,
                abstract_inverted_index=words, primary_location=dict(source=dict(display_name='Plots', host_organization_name=f'Plot Press {n%3}')))|more


class OpenAlexServer(MoodyServer):
    "`/works/doi:...` and `/works?filter=doi:a|b`; `seen` are the DOIs of each request, `price` is of one work and of a list."
    def __init__(self, works:list[dict]):
        super().__init__()
        self.works,self.price = {w['doi'].removeprefix('https://doi.org/'):w for w in works},(0,1)

    def note(self, h)->list[str]:
        return h.query['filter'].removeprefix('doi:').split('|') if 'filter' in h.query else [unquote(h.route.removeprefix('/works/')).removeprefix('doi:')]

    def answer(self, h):
        keep = h.query['select'].split(',')
        found = [{k:v for k,v in self.works[d].items() if k in keep} for d in self.note(h) if d in self.works]
        headers = {'x-ratelimit-credits-used':str(self.price['filter' in h.query]),'x-ratelimit-remaining':'900'} if self.price else {}
        if 'filter' in h.query: h.say(200, dict(meta=dict(count=len(found)),results=found[:int(h.query['per_page'])]), **headers)
        elif found: h.say(200, found[0], **headers)
        else: h.say(404, dict(error='Not Found'), **headers)


@pytest.fixture
def alex():
    with serving(server=OpenAlexServer([work(n) for n in range(N)])) as server: yield server


@pytest.fixture
def cr():
    "Crossref with abstracts of every second paper."
    with serving(server=CrossrefServer([item(n, publisher=f'Plot Press {n%3}', **({} if n%2 else dict(abstract=None))) for n in range(N)])) as server: yield server


def api(alex, cr=None, **kw)->Api:
    return Api(**(dict(email=MAIL, openalex_url=alex.url, crossref_url=(cr or alex).url, timeout=10, batch_size=10)|kw))


def library(folder:Path, n:int=N)->Path:
    rows = [dict(Key=f'K{i}', Title=f'Plants of plot number {i}' if i%4 else '', DOI=DOIS[i], Shelf=f'=shelf {i}') for i in range(n)]
    rows += [dict(Key='Z1', Title='Complete', DOI='10.5/complete', Shelf='x', Abstract='Complete enough, since this is more than fifty characters long.'),
             dict(Key='Z2', Title='Nowhere to be found', DOI='10.7777/none', Shelf='y'), dict(Key='Z3', Title='Without a DOI', Shelf='z')]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=['Key','Title','DOI','Abstract','Shelf']).fillna('').to_csv(folder/'library.csv', index=False)
    return folder/'library.csv'


def fill(folder:Path, a:Api, names=None, **kw):
    "Fill the library in a folder of its own."
    if not (folder/'library.csv').exists(): library(folder)
    return fill_file(folder/'library.csv', folder/'out.csv', make_sources(a,folder/'fetched',names,backoff=0.01), **kw)


def files(folder:Path)->dict[str,bytes]: return {p.name:p.read_bytes() for p in sorted(folder.glob('out*'))}


def test_each_source_gives_what_those_before_it_had_not(alex, cr, tmp_path):
    done = fill(tmp_path, api(alex,cr))
    df = read_records(tmp_path/'out.csv')
    assert df.abstract[:N].str.startswith('OpenAlex: ').tolist()==[n%2==0 for n in range(N)] and df.title[:N].tolist()==[f'Plants of plot number {n}' for n in range(N)]
    assert df.Shelf.tolist()==[f'=shelf {i}' for i in range(N)]+['x','y','z'] and df.id.tolist()==[f'K{i}' for i in range(N)]+['Z1','Z2','Z3']
    assert sorted(sum(alex.seen,[]))==sorted([d for i,d in enumerate(DOIS) if i%2==0]+['10.7777/none'])
    assert done.figures['came']=={'Crossref':dict(title=8,abstract=15,year=30),'OpenAlex':dict(title=0,abstract=15,year=0)}
    assert 'Crossref gave 8 titles, 15 abstracts, 30 years; OpenAlex gave 15 abstracts; 1 not registered, 1 without DOI' in str(done)
    table = pd.read_csv(tmp_path/'out_filled.csv', keep_default_na=False)
    assert table.row.tolist()==[*range(1,N+1),N+2,N+3] and table.abstract_source.tolist()==['OpenAlex','Crossref']*15+['','']
    assert table.outcome.tolist()==['filled']*N+['unknown','no_doi'] and table.publisher.tolist()[:4]==['Plot Press 0','Plot Press 1','Plot Press 2','Plot Press 0']
    assert json.loads((tmp_path/'out_filled.json').read_text())==done.figures


def test_the_order_is_a_setting(alex, cr, tmp_path):
    a = api(alex, cr, sources=['openalex','crossref'])
    fill(tmp_path, a)
    assert read_records(tmp_path/'out.csv').abstract[:N].str.startswith('OpenAlex: ').all() and cr.seen==[['10.7777/none']]
    fill(tmp_path/'one', a, ['crossref'])
    assert read_records(tmp_path/'one/out.csv').abstract[:N].str.startswith('OpenAlex: ').sum()==0
    with pytest.raises(ValueError, match="no source 'pubmed'; known are crossref, openalex"): make_sources(api(alex,sources=['pubmed']), tmp_path)
    with pytest.raises(ValueError, match='named twice'): make_sources(a, tmp_path, ['openalex','openalex'])


def test_what_cannot_be_had_is_told_by_publisher(alex, cr, tmp_path):
    for n in range(0,N,3):
        alex.works[DOIS[n]]['abstract_inverted_index'] = None
        cr.items[DOIS[n]].pop('abstract',None)
    done = fill(tmp_path, api(alex,cr))
    assert left_table(done.figures).values.tolist()==[['10.1000','Plot Press 0',10,10],['10.7777','',1,1],['no DOI','',1,1]]
    assert '10.1000 Plot Press 0       10    10' in str(done)


@pytest.mark.parametrize('mood', [
    says(429, dict(error='Rate limit exceeded')), says(429, Retry_After='0.05'), says(403, dict(error='slow down'), **{'x-ratelimit-remaining':'900'}), says(500, 'Oops', kind='text/html'),
    says(503), says(504), breaks_off, resets, cuts(40), cuts(0), sleeps, says(200, '<html>Sign in to the hotel network</html>', kind='text/html'), says(200, '{"id":"https://openalex'),
    says(200, ''), says(408)], ids='429 429-retry-after 403-slow-down 500 503 504 truncated reset cut cut-at-once slow html half-json empty 408'.split())
@pytest.mark.parametrize('price', [(0,1),(1,1)], ids=['singletons','lists'])
def test_a_mood_that_passes_leaves_no_trace(mood, price, alex, cr, tmp_path):
    alex.price = price
    a = api(alex, cr, timeout=0.4 if mood is sleeps else 10)
    fill(tmp_path/'calm', a)
    for server in (alex,cr): server.moods += [mood,None,mood,mood]
    asked = len(alex.seen)
    fill(tmp_path/'stormy', a)
    assert files(tmp_path/'stormy')==files(tmp_path/'calm') and len(files(tmp_path/'calm'))==3
    assert len(alex.seen)-asked>asked or mood is sleeps


@pytest.mark.parametrize('mood, words', [
    (says(500), '500 Internal Server Error'), (says(401), 'answers 401; it asks for a key'), (says(403), 'answers 403; it asks for a key'), (resets, 'does not answer'), (breaks_off, 'does not answer'), (cuts(10), 'does not answer'),
    (says(200, '<html>', kind='text/html'), 'text/html that is not JSON'), (says(200, [1,2]), 'no work'), (says(200, dict(id='https://openalex.org/A5')), 'no work'),
    (says(200, '['*100_000), 'not JSON')], ids='500 401 403 reset truncated cut html list author deep'.split())
def test_a_mood_that_stays_ends_in_one_sentence_and_the_next_run_completes(mood, words, alex, cr, tmp_path):
    fill(tmp_path/'calm', api(alex,cr))
    alex.moods += [None]*4
    alex.mood,alex.seen = mood,[]
    with pytest.raises(ServiceError) as e: fill(tmp_path/'stormy', api(alex,cr,retries=1))
    message = str(e.value)
    assert words in message and '4 answers came before and are kept in' in message and '\n' not in message and MAIL not in message
    assert not files(tmp_path/'stormy')
    answered = sum(alex.seen[:4],[])
    alex.mood,alex.seen = None,[]
    fill(tmp_path/'stormy', api(alex,cr))
    assert files(tmp_path/'stormy')==files(tmp_path/'calm') and not set(answered)&set(sum(alex.seen,[]))


@pytest.mark.parametrize('headers', [
    {'x-ratelimit-remaining':'0','x-ratelimit-reset':'7200'}, {'x-ratelimit-remaining-usd':'0.00005','x-ratelimit-cost-usd':'0.0001','x-ratelimit-reset':'7200'}, {'Retry-After':'7200'}],
    ids='credits dollars retry-after'.split())
def test_a_quota_that_is_used_up_is_not_waited_for(headers, alex, cr, tmp_path, monkeypatch):
    fill(tmp_path/'calm', api(alex,cr))
    alex.moods += [None]*3
    alex.mood,alex.seen = says(429, dict(error='Insufficient budget'), **headers),[]
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r'asks to wait for 7,200 seconds, until .* UTC; 3 answers came before .* with a free key') as e: fill(tmp_path/'poor', api(alex,cr))
    assert e.value.again==7200 and len(alex.seen)==4 and time.monotonic()-start<5
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    with pytest.raises(ServiceError, match='is OPENALEX_API_KEY right'): fill(tmp_path/'poor', api(alex,cr))
    alex.mood = None
    fill(tmp_path/'poor', api(alex,cr))
    assert files(tmp_path/'poor')==files(tmp_path/'calm')
    paid = [d for batch in alex.seen for d in batch]
    assert max(map(paid.count,paid))==3 and sum(paid.count(d)>1 for d in paid)==3, 'only the one that was refused is asked for again'


@pytest.mark.parametrize('price, sizes', [((0,1),[1]*16), ((1,1),[1,10,5]), ((1,10),[1,10,*[1]*5]), ((1,11),[1,10,*[1]*5]), (None,[1,10,5])], ids=str)
def test_singletons_or_lists_by_what_the_headers_state(price, sizes, alex, cr, tmp_path):
    alex.price = price
    fill(tmp_path, api(alex,cr))
    assert [len(b) for b in alex.seen]==sizes


def test_a_list_never_asks_for_more_than_a_hundred(alex, tmp_path):
    alex.price = (1,1)
    dois = [f'10.4000/{n}' for n in range(250)]
    alex.works = {d:work(n, doi=f'https://doi.org/{d}') for n,d in enumerate(dois)}
    works = OpenAlex(api(alex,batch_size=500), tmp_path).works(dois)
    assert [len(b) for b in alex.seen]==[1,100,100,49] and all(works.values())


def test_odd_dois_arrive_whole(alex, tmp_path):
    odd = ['10.1002/(sici)1097-0258(19980815/30)17:15<1661::aid-sim968>3.0.co;2-2','10.1000/a,b','10.1000/a|b','10.1000/a+b=c','10.1000/a&b','10.1000/a#b','10.1000/a?b','10.1000/100%','10.1000/ünï']
    alex.works |= {d:work(i, doi=f'https://doi.org/{d}') for i,d in enumerate(odd)}
    for price in ((0,1),(1,0)):
        alex.price = price
        works = OpenAlex(api(alex), tmp_path/str(price)).works(odd)
        assert [works[d] and works[d].title for d in odd]==[f'Plants of plot number {i}' for i in range(len(odd))]


def test_of_two_works_with_one_doi_the_one_with_an_abstract_is_taken(alex, tmp_path):
    two = [work(0, abstract_inverted_index=None),work(1, doi=f'https://doi.org/{DOIS[0].upper()}'),work(2, doi=f'https://doi.org/{DOIS[0]}', abstract_inverted_index={})]
    o = OpenAlex(api(alex), tmp_path, backoff=0.01)
    o.price = dict(one=1,many=1)
    alex.mood = lambda h: h.say(200, dict(meta=dict(count=4),results=[*two,work(4)]))
    works = o.works([DOIS[0],DOIS[4],DOIS[5]])
    assert works[DOIS[0]].abstract.startswith('OpenAlex: We sampled plot number 1') and works[DOIS[4]].title and works[DOIS[5]] is None


def test_a_list_that_is_cut_short_is_asked_for_in_halves(alex, tmp_path):
    alex.price,alex.mood = (1,1),lambda h: h.say(200, dict(meta=dict(count=99),results=[])) if len(alex.note(h))>2 else None
    assert all(OpenAlex(api(alex),tmp_path,backoff=0.01).works(DOIS[:9]).values())


def test_one_bad_doi_does_not_spoil_the_others(alex, tmp_path):
    alex.price,bad = (1,1),'10.1000/bad'
    alex.mood = lambda h: h.say(400, dict(error='Invalid filter')) if bad in alex.note(h) else None
    works = OpenAlex(api(alex),tmp_path,backoff=0.01).works([*DOIS[:6],bad])
    assert works.pop(bad) is None and all(works.values())
    alex.mood = says(400, 'Blocked by policy', kind='text/html')
    with pytest.raises(ServiceError, match='so it does whatever is asked'): OpenAlex(api(alex),tmp_path,backoff=0.01).works([bad])


def test_a_work_that_was_merged_is_followed_and_one_of_another_doi_is_not_taken(alex, tmp_path):
    def merged(h):
        if h.route.startswith('/works/doi:') and 'moved' not in h.query: return h.say(301, '', Location=f'{alex.url}/works/doi:{DOIS[3]}?select=id,doi,title')
    alex.mood = merged
    alex.moods += [merged,None]*2
    works = OpenAlex(api(alex), tmp_path).works([DOIS[3],'10.1000/alias'])
    assert works[DOIS[3]].title=='Plants of plot number 3' and works['10.1000/alias'] is None


def test_the_key_goes_to_its_service_only(alex, cr, tmp_path, monkeypatch):
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    alex.works = {}
    with serving(lambda h: h.say(200, {})) as elsewhere:
        alex.moods += [says(302, Location=f'{elsewhere.url}/works'), says(302, Location=f'{cr.url}/works/x')]
        with pytest.raises(ServiceError, match='no work'): OpenAlex(api(alex,retries=0), tmp_path).works(DOIS[:1])
        OpenAlex(api(alex,cr,retries=0), tmp_path).works(DOIS[:1])
        service = Service('S', alex.url, api(alex), headers={'Authorization':'Bearer x'})
        for address in (f'{elsewhere.url}/next', alex.url.replace('127.0.0.1','localhost')+'/next', f'{alex.url}@evil.example/', '//evil.example/'):
            if address!='//evil.example/':
                with pytest.raises(ValueError, match='is no address below'): service.ask(address)
    assert [a.get('Authorization') for a in alex.asked]==[f'Bearer {KEY}']*2 and not any('Authorization' in a for a in (*elsewhere.asked,*cr.asked)) and elsewhere.asked and cr.asked
    assert all(KEY not in path for path in map(str,alex.seen))


@settings(max_examples=100, deadline=None)
@given(plain|st.dictionaries(st.sampled_from(['id','doi','title','publication_year','abstract_inverted_index','primary_location']), plain).map(
    lambda d: dict(id='https://openalex.org/W1',doi=f'https://doi.org/{DOIS[0]}')|d), st.booleans())
def test_any_json_gives_works_or_one_clear_error(tmp_path_factory, body, listed):
    body = dict(meta=dict(count=1),results=[body]) if listed else body
    o = OpenAlex(Api(retries=0), tmp_path_factory.mktemp('o'), backoff=0, transport=httpx2.MockTransport(
        lambda r: httpx2.Response(200, content=json.dumps(body).encode(), headers={'content-type':'application/json'})))
    if listed: o.price = dict(one=1,many=1)
    try: assert all(w is None or isinstance(w,Work) for w in o.works(DOIS[:2 if listed else 1]).values())
    except ServiceError as e: assert '\n' not in str(e)


RIS = """TY  - JOUR
TI  - Plants of plot number 1
DO  - {doi}
XY  - a tag of nobody's
N2  -
ER  -

TY  - BOOK
TI  - Another one
AB  - A text of the library that is more than fifty characters long, to be left alone.
ER  -
"""


@pytest.mark.parametrize('suffix', '.csv .tsv .parquet .xlsx .ris .bib .txt'.split())
@pytest.mark.parametrize('given', '.csv .tsv .parquet .xlsx .ris .bib .txt'.split())
def test_any_format_in_and_out(given, suffix, alex, cr, tmp_path):
    records = read_records(library(tmp_path, 4))
    source = write_records(records.drop(columns='Shelf'), tmp_path/f'in{given}')
    fill_file(source, tmp_path/f'out{suffix}', make_sources(api(alex,cr),tmp_path/'fetched',backoff=0.01))
    df = read_records(tmp_path/f'out{suffix}')
    assert df.abstract.str[:9].tolist()==[('OpenAlex:' if n%2==0 else 'Backgroun') for n in range(4)]+['Complete ','','']
    assert df.doi.tolist()==records.doi.tolist() and df.title[0]=='Plants of plot number 0' and df.year.tolist()[:4]==[2000,2001,2002,2003]


def test_what_a_file_has_beside_stays(alex, cr, tmp_path):
    (tmp_path/'in.ris').write_text(RIS.format(doi=DOIS[1].upper()))
    fill_file(tmp_path/'in.ris', tmp_path/'out.ris', make_sources(api(alex,cr),tmp_path/'fetched',backoff=0.01))
    old,new = RIS.format(doi=DOIS[1].upper()).splitlines(),(tmp_path/'out.ris').read_text().splitlines()
    assert [l for l in old if l.strip() not in ('','N2  -') and l not in new]==[] and f'Background {abstract(1)} P < 0.01.' in '\n'.join(new)
    zotero = 'Key,Item Type,Publication Year,Author,Title,DOI,Url,Abstract Note,Manual Tags,Extra'
    (tmp_path/'in.csv').write_text(f'{zotero}\nK1,journalArticle,,"Mouse, Ann",Plants of plot number 1,{DOIS[1]},,,keep; me,PMID: 1\n')
    fill_file(tmp_path/'in.csv', tmp_path/'out.csv', make_sources(api(alex,cr),tmp_path/'fetched',backoff=0.01), layout='zotero')
    row = pd.read_csv(tmp_path/'out.csv', dtype=str, keep_default_na=False).iloc[0]
    assert row['Manual Tags']=='keep; me' and row.Extra=='PMID: 1' and row.Author=='Mouse, Ann' and row['Abstract Note'].startswith('Background') and row['Publication Year']=='2001'


@pytest.mark.parametrize('name, text', [('out_filled.csv','what,who\nshelf,Ann\n'), ('out_filled.csv',''), ('out_filled.json','{"my":"notes"}'), ('out_filled.json','[1,2'), ('out_filled.csv',None)])
def test_files_of_others_are_not_written_over(name, text, alex, cr, tmp_path):
    fill(tmp_path/'calm', api(alex,cr))
    library(tmp_path)
    if text is None: (tmp_path/name).mkdir()
    else: (tmp_path/name).write_text(text)
    alex.seen.clear()
    with pytest.raises(FileExistsError, match=f'{name} is not what filling leaves beside its output'): fill(tmp_path, api(alex,cr))
    assert not alex.seen and [p.name for p in tmp_path.glob('out*')]==[name] and (text is None or (tmp_path/name).read_text()==text)
    (tmp_path/name).rename(tmp_path/'elsewhere')
    for _ in range(2): fill(tmp_path, api(alex,cr))
    assert files(tmp_path)==files(tmp_path/'calm'), 'its own files are written again'


# the command

IPBES = [sys.executable,'-c','from ipbes_classifier.cli import main; main()']


def project(folder:Path, alex, cr)->dict:
    "A project folder, and the environment to run commands in it."
    library(folder)
    (folder/'configs').mkdir()
    (folder/'configs/config.yaml').write_text('labels: [{name: A, positives: [library.csv]}]\n'
        f'api: {{openalex_url: "{alex.url}", crossref_url: "{cr.url}", timeout: 5, retries: 1, batch_size: 5}}\nlogging: {{progress: false}}\n')
    return dict(cwd=folder, env=os.environ|dict(PYALEX_EMAIL=MAIL,OPENALEX_API_KEY=KEY), text=True)


def run(*args, **kw): return subprocess.run([*IPBES,*args], capture_output=True, timeout=120, **kw)


def test_the_command(alex, cr, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path/'p', alex, cr)['cwd'])
    r = CliRunner().invoke(app, ['fill','library.csv','-o','a.csv'])
    assert r.exit_code==0 and 'Crossref gave' in r.stdout and 'OpenAlex gave 15 abstracts' in r.stdout and r.stdout.rstrip().endswith('a_filled.csv: what came from where')
    assert sorted(p.name for p in Path('data/fetched').iterdir())==['crossref.sqlite','openalex.sqlite']
    n = len(alex.seen)+len(cr.seen)
    r = CliRunner().invoke(app, ['fill','library.csv','-o','b.csv'])
    assert Path('a.csv').read_bytes()==Path('b.csv').read_bytes() and len(alex.seen)+len(cr.seen)==n
    r = CliRunner().invoke(app, ['fill','library.csv','-o','c.csv','--source','openalex'])
    assert r.exit_code==0 and 'Crossref' not in r.stdout and read_records('c.csv').abstract[:N].str.startswith('OpenAlex').all()
    r = CliRunner().invoke(app, ['preprocess','-fm'])
    assert r.exit_code==0 and 'Crossref gave' in r.stdout and 'OpenAlex gave 15 abstracts' in r.stdout


@pytest.mark.parametrize('bad', ['out.docx','library.csv'])
def test_an_output_that_cannot_be_is_refused_before_anybody_is_asked(bad, alex, cr, tmp_path):
    r = run('fill','library.csv','-o',bad, **project(tmp_path/'p', alex, cr))
    assert r.returncode==1 and len(r.stderr.strip().splitlines())==1 and not alex.seen and not cr.seen


def test_a_used_up_quota_is_exit_code_3(alex, cr, tmp_path):
    kw = project(tmp_path/'p', alex, cr)
    alex.mood = says(429, **{'x-ratelimit-remaining':'0','x-ratelimit-reset':'7200'})
    for command in (['fill','library.csv','-o','out.csv'],['preprocess','-fm']):
        r = run(*command, **kw)
        assert r.returncode==3 and r.stdout=='' and len(r.stderr.strip().splitlines())==1 and 'wait for 7,200 seconds' in r.stderr
    assert not files(tmp_path/'p') and [q.name for q in (tmp_path/'p/data').iterdir()]==['fetched']
    alex.mood = None
    r = run('fill','library.csv','-o','out.csv', **kw)
    fill(tmp_path/'calm', api(alex,cr))
    assert r.returncode==0 and files(tmp_path/'p')==files(tmp_path/'calm')


@pytest.mark.parametrize('how', [signal.SIGKILL,signal.SIGINT], ids=['killed','interrupted'])
def test_killed_and_resumed_gives_the_same_files(how, alex, cr, tmp_path):
    fill(tmp_path/'calm', api(alex,cr))
    kw = project(tmp_path/'p', alex, cr)
    alex.seen,alex.moods = [],alex.moods
    alex.moods += [None]*5+[waits(20)]
    p = subprocess.Popen([*IPBES,'fill','library.csv','-o','out.csv'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kw)
    end = time.monotonic()+60
    while len(alex.seen)<6 and time.monotonic()<end: time.sleep(0.02)
    p.send_signal(how)
    p.wait(timeout=30)
    assert len(alex.seen)==6 and p.returncode!=0 and not files(tmp_path/'p')
    asked,alex.seen = sum(alex.seen[:5],[]),[]
    alex.moods.clear()
    assert run('fill','library.csv','-o','out.csv', **kw).returncode==0
    assert files(tmp_path/'p')==files(tmp_path/'calm') and not set(asked)&set(sum(alex.seen,[]))


def echoes(code:int):
    "An answer that says back all that it was sent, in each place where it can."
    def repeats(h):
        sent = f"{h.headers.get('Authorization')} {h.headers.get('User-Agent')}"
        data = json.dumps(dict(error=sent, id=sent, message=sent)).encode()
        h.send_response(code, sent)
        for k,v in {'Content-Type':sent,'X-Sent':sent,'Location':f'http://127.0.0.1:9/{KEY}','Content-Length':str(len(data))}.items(): h.send_header(k, v)
        h.end_headers()
        h.wfile.write(data)
        return True
    return repeats


@pytest.mark.parametrize('mood', [None,echoes(200),echoes(401),echoes(400),echoes(500),echoes(301),says(429, **{'x-ratelimit-remaining':'0','x-ratelimit-reset':'7200'}),resets,
    says(200, dict(id=f'https://openalex.org/{KEY}'))], ids='fine 200 401 400 500 301 quota reset work'.split())
def test_key_and_mail_stand_nowhere(mood, alex, cr, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(project(tmp_path/'p', alex, cr)['cwd'])
    monkeypatch.setenv('OPENALEX_API_KEY', KEY)
    monkeypatch.setenv('PYALEX_EMAIL', MAIL)
    alex.moods += [None]*2
    alex.mood = mood
    for command in (['fill','library.csv','-o','out.csv'],['fill','library.csv','-o','out.parquet','--source','openalex'],['preprocess','-fm']):
        r = CliRunner().invoke(app, [*command,'api.retries=0'])
        logs = '\n'.join(m.getMessage() for m in caplog.records if not (mood and mood.__name__=='repeats' and m.name.startswith(('httpx2','httpcore2'))))
        said = f'{r.output}\n{r.stderr}\n{r.exception!r}\n{r.exception}\n{logs}'
        assert (r.exit_code==0)==(mood is None), said
        assert KEY not in said and MAIL not in said, said
    assert {a.get('Authorization') for a in alex.asked}=={f'Bearer {KEY}'} and all(MAIL in a for a in (*alex.agents,*cr.agents)) and cr.agents
    assert not any('Authorization' in a for a in cr.asked) and KEY not in str(alex.seen+cr.seen)
    assert list(Path.cwd().rglob('*.sqlite'))
    for p in Path.cwd().rglob('*'):
        if p.is_file(): assert KEY.encode() not in p.read_bytes() and MAIL.encode() not in p.read_bytes(), p
    sources = make_sources(api(alex,cr), tmp_path/'c')
    assert KEY not in repr(sources)+repr([s.service for s in sources])+repr(vars(sources[1]))


def test_a_mail_in_the_settings_stays_there(alex, cr, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path/'p', alex, cr)['cwd'])
    for command in (['fill','library.csv','-o','out.csv'],['preprocess','-fm'],['config']):
        r = CliRunner().invoke(app, [*command,f'api.email={MAIL}'])
        assert r.exit_code==0 and MAIL not in r.output
    assert all(MAIL in a for a in (*alex.agents,*cr.agents)) and Path('data/provenance.json').exists()
    assert not any(MAIL.encode() in p.read_bytes() for p in Path.cwd().rglob('*') if p.is_file())


@pytest.mark.parametrize('url', [f'https://ann:{KEY}@api.example',f'https://api.example/?api_key={KEY}'])
@pytest.mark.parametrize('name', ['crossref_url','openalex_url','zotero_url','published_url'])
def test_an_address_with_a_key_is_refused_without_being_shown(name, url, alex, cr, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path/'p', alex, cr)['cwd'])
    r = CliRunner().invoke(app, ['fill','library.csv','-o','out.csv',f'api.{name}={url}'])
    assert r.exit_code==1 and f'`api.{name}` holds @, ? or #' in str(r.exception) and KEY not in str(r.exception)+r.output and not alex.seen


def test_a_key_that_is_none_is_refused_without_being_shown(alex, cr, tmp_path):
    kw = project(tmp_path/'p', alex, cr)
    kw['env'] |= dict(OPENALEX_API_KEY=f'{KEY}\nX-Evil: 1')
    r = run('fill','library.csv','-o','out.csv', **kw)
    assert r.returncode==1 and 'the variable OPENALEX_API_KEY does not hold a key' in r.stderr and KEY not in r.stderr and not alex.seen


def test_no_network_is_one_sentence(alex, cr, tmp_path):
    kw = project(tmp_path/'p', alex, cr)
    with socket.socket() as s:
        s.bind(('127.0.0.1',0))
        r = run('fill','library.csv','-o','out.csv',f'api.openalex_url=http://127.0.0.1:{s.getsockname()[1]}', **kw)
    assert r.returncode==1 and r.stdout=='' and len(r.stderr.strip().splitlines())==1 and 'does not answer (ConnectError)' in r.stderr and not files(tmp_path/'p')


def test_two_at_once_share_what_they_learn(alex, cr, tmp_path):
    library(tmp_path/'a'), library(tmp_path/'b')
    jobs = [threading.Thread(target=lambda k=k: fill_file(tmp_path/k/'library.csv', tmp_path/k/'out.csv', make_sources(api(alex,cr),tmp_path/'fetched',backoff=0.01))) for k in 'ab']
    for j in jobs: j.start()
    for j in jobs: j.join()
    assert files(tmp_path/'a')==files(tmp_path/'b') and len(files(tmp_path/'a'))==3
