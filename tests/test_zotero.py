"""Zotero as it answers on bad days: a server on 127.0.0.1 that speaks the Web API, version 3, over a library that people work in meanwhile."""
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moods import MoodyServer, breaks_off, cuts, resets, says, serving, sleeps
from typer.testing import CliRunner

from ipbes_classifier import zotero
from ipbes_classifier.cli import app
from ipbes_classifier.config import Api, load_config
from ipbes_classifier.fetch import ServiceError
from ipbes_classifier.project import init_project
from ipbes_classifier.records import read_records
from ipbes_classifier.zotero import COLUMNS, Library, fetch_group, item_row

GROUP,KEY = 77,'s3cretKeyOfAMember'


def key(n:int)->str: return f'{n:08d}'.translate(str.maketrans('0123456789','ABCDEFGH23'))


def paper(n:int, **more)->dict:
    "An item as the API gives it, without its version."
    data = dict(key=key(n), itemType='journalArticle', title=f'Plants of plot number {n}', DOI=f'10.{1000+n%3}/paper.{n}', publicationTitle='Plots', volume=n%20,
                creators=[dict(creatorType='author',firstName='Ann',lastName=f'Marsh{n}'),dict(creatorType='author',name='Plot Society')], date=f'{n%28+1}/05/{2000+n%20}',
                abstractNote=f'We sampled plot number {n} in spring and in autumn, and report how "cover",\nrichness and abundance follow the rain that fell.',
                tags=[dict(tag='Chapter 6'),dict(tag=f'plot {n}',type=1)], dateAdded=f'2023-06-{n%28+1:02d}T05:16:05Z', dateModified='2023-12-11T10:45:36Z', extra='PMID: 1')
    return dict(key=key(n), meta=dict(parsedDate=f'{2000+n%20}-05-{n%28+1:02d}'), data=data|more)


class Zotero(MoodyServer):
    "The library of one group: items, children too, with the versions at which they changed, and a log of deletions."
    private,cap,log_gap,ceiling = False,0,False,100
    def __init__(self, n:int=0):
        super().__init__()
        self.version,self.items,self.deleted = 1,{},{}
        self.put(*(paper(i) for i in range(n)))
        self.put(paper(90000,itemType='attachment'), paper(90001,itemType='note',parentItem=key(0)), paper(90002,itemType='note'), paper(90003,deleted=1))

    def put(self, *papers, renew:bool=True):
        self.version += 1
        for p in papers: self.items[p['key']] = p|dict(version=self.version, data=p['data']|dict(version=self.version))

    def change(self, n:int, **more): self.put(self.items[key(n)]|dict(data=self.items[key(n)]['data']|more))

    def delete(self, *ns):
        self.version += 1
        for n in ns:
            if self.items.pop(key(n),None) and not self.log_gap: self.deleted[key(n)] = self.version

    def note(self, h): return h.route.removeprefix(f'/groups/{GROUP}/'),h.query

    def answer(self, h):
        group,_,what = h.route.removeprefix('/groups/').partition('/')
        assert h.headers['Zotero-API-Version']=='3'
        if group!=str(GROUP): return h.say(404, 'Group not found', kind='text/plain')
        if self.private and h.headers['Zotero-API-Key']!=KEY: return h.say(403, 'Forbidden', kind='text/plain')
        if int(h.headers['If-Modified-Since-Version'] or -1)>=self.version: return h.say(304, Last_Modified_Version=str(self.version))
        since = int(h.query.get('since',0))
        if what=='deleted' and 'since' not in h.query: return h.say(400, "'since' parameter must be provided", kind='text/plain')
        if what=='deleted': return h.say(200, dict(collections=[],items=[k for k,v in self.deleted.items() if v>since]), Last_Modified_Version=str(self.version))
        found = [i for i in self.items.values() if i['version']>since and (what!='items/top' or not i['data'].get('parentItem'))]
        if h.query.get('includeTrashed')!='1': found = [i for i in found if not i['data'].get('deleted')]
        if 'itemKey' in h.query: found = [i for i in found if i['key'] in h.query['itemKey'].split(',')]
        field = h.query.get('sort','dateModified')
        found.sort(key=lambda i: (i['data'].get(field,''),i['key']), reverse=h.query.get('direction','desc')=='desc')
        versions = h.query.get('format')=='versions'
        limit = self.ceiling if 'itemKey' in h.query else int(h.query.get('limit',0 if versions else 25))
        if versions and self.cap: limit = min(limit or self.cap,self.cap)
        start = int(h.query.get('start',0))
        page = found[start:start+limit] if limit else found[start:]
        h.say(200, {i['key']:i['version'] for i in page} if versions else page, Last_Modified_Version=str(self.version), Total_Results=str(len(found)))

    def asked_for(self)->list[str]: return [k for what,q in self.seen if what=='items' for k in q['itemKey'].split(',')]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch): monkeypatch.setattr(zotero, '_BATCH', 20)


@pytest.fixture
def server():
    with serving(server=Zotero(45)) as s: yield s


def api(server, **kw)->Api: return Api(**(dict(zotero_url=server.url, timeout=10, email='screener@assessment.example.org')|kw))


def fetch(server, out, **kw): return fetch_group(GROUP, out, api(server,**kw), backoff=0.01)


def undisturbed(server, folder)->bytes:
    "The file that a first fetch of the library as it is now gives."
    server.moods.clear()
    server.mood = None
    out = Path(folder)/f'undisturbed{server.version}.csv'
    if not out.exists(): fetch(server, out)
    return out.read_bytes()


def rows(path)->list[dict]:
    with open(path, encoding='utf-8-sig', newline='') as f: return list(csv.DictReader(f))


def test_a_library_comes_as_zotero_exports_it(server, tmp_path):
    done = fetch(server, tmp_path/'z.csv')
    got = rows(tmp_path/'z.csv')
    assert (done.n,done.added,done.group,done.version)==(45,45,GROUP,server.version) and len(got)==45 and list(got[0])==list(COLUMNS)
    first = next(r for r in got if r['Key']==key(7))
    assert {k:v for k,v in first.items() if v}=={'Key':key(7),'Item Type':'journalArticle','Publication Year':'2007','Author':'Marsh7, Ann; Plot Society','Title':'Plants of plot number 7',
        'Publication Title':'Plots','DOI':'10.1001/paper.7','Volume':'7','Date':'8/05/2007','Date Added':'2023-06-08 05:16:05','Date Modified':'2023-12-11 10:45:36','Extra':'PMID: 1',
        'Abstract Note':paper(7)['data']['abstractNote'],'Manual Tags':'Chapter 6','Automatic Tags':'plot 7'}
    assert [r['Date Added'] for r in got]==sorted(r['Date Added'] for r in got)
    assert [what for what,_ in server.seen]==['items/top','items','items','items']
    records = read_records(tmp_path/'z.csv')
    assert sorted(records.id)==sorted(key(n) for n in range(45)) and set(records.source)=={'z.csv'} and not any('Chapter' in str(v) for v in records.to_numpy().ravel())
    assert (tmp_path/'z.csv').read_bytes()[:4]==b'\xef\xbb\xbf"' and sorted(p.name for p in tmp_path.iterdir())==['.locks','.z.sqlite','z.csv']


def test_the_columns_are_those_of_a_real_export(real_data):
    with open(real_data/'zotero_ias_export.csv', encoding='utf-8-sig', newline='') as f: assert tuple(next(csv.reader(f)))==COLUMNS


MOODS = dict(r429=says(429,'Too many',kind='text/plain'), r429_retry_after=says(429,Retry_After='0'), r500=says(500,'Oops',kind='text/html'), r503=says(503,Backoff='0'), r504=says(504),
             truncated=breaks_off, cut=cuts(40), reset=resets, slow=sleeps, html=says(200,'<html>Sign in to the hotel network</html>',kind='text/html'), half_json=says(200,'{"ABCD2345":'), empty=says(200,''))


@pytest.mark.parametrize('mood', MOODS)
def test_a_mood_that_passes_costs_a_request_and_nothing_else(server, tmp_path, mood):
    act = MOODS[mood]
    server.moods += [act,None,act,act] if mood!='slow' else [None,act]
    fetch(server, tmp_path/'z.csv', timeout=0.5 if mood=='slow' else 10)
    got = (tmp_path/'z.csv').read_bytes()
    assert len(server.seen)==(5 if mood=='slow' else 7)
    assert got==undisturbed(server,tmp_path)


@pytest.mark.parametrize('passed', [0,1,2,3])
@pytest.mark.parametrize('mood, words', [
    ('r500','500 Internal Server Error'), ('reset','does not answer'), ('truncated','does not answer'), ('html','text/html that is not JSON'), ('r429','429 Too Many Requests')])
def test_a_mood_that_stays_ends_in_a_clean_stop_that_a_second_run_completes(server, tmp_path, passed, mood, words):
    out = tmp_path/'z.csv'
    server.moods += [None]*passed
    server.mood = MOODS[mood]
    with pytest.raises(ServiceError, match=words) as e: fetch(server, out, retries=2)
    assert not out.exists() and ('items that came before are kept' in str(e.value))==(passed>1) and '\n' not in str(e.value)
    came = server.asked_for()[:20*max(0,passed-1)]
    server.mood = None
    server.seen.clear()
    assert fetch(server, out).n==45
    assert not set(came)&set(server.asked_for())
    assert out.read_bytes()==undisturbed(server,tmp_path)


def test_a_long_pause_that_is_asked_for_ends_the_call_and_a_short_one_is_kept(server, tmp_path):
    server.moods += [None,None,says(429,Retry_After='7200')]
    with pytest.raises(ServiceError, match='asks to wait for 7,200 seconds; 20 items that came before are kept') as e: fetch(server, tmp_path/'z.csv')
    assert e.value.again==7200 and len(server.seen)==3
    server.headers = {'Backoff':'0.3'}
    server.seen.clear()
    started = time.monotonic()
    fetch(server, tmp_path/'z.csv')
    assert len(server.seen)==3 and time.monotonic()-started>0.55
    server.headers = {}
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


def test_killed_in_a_first_fetch_of_forty_pages_it_does_not_pay_again(tmp_path, monkeypatch):
    monkeypatch.undo()
    with serving(server=Zotero(4000)) as server:
        child = [None]
        def kills(h):
            os.kill(child[0].pid, signal.SIGKILL)
            child[0].wait()
        server.moods += [None]*41+[kills]
        code = f'from ipbes_classifier.zotero import *; from ipbes_classifier.config import Api; fetch_group({GROUP}, "z.csv", Api(zotero_url="{server.url}"))'
        child[0] = subprocess.Popen([sys.executable,'-c',f'import sys; sys.stdin.read(); {code}'], cwd=tmp_path, stdin=subprocess.PIPE)
        child[0].communicate()
        assert child[0].returncode==-signal.SIGKILL and not (tmp_path/'z.csv').exists()
        before = server.asked_for()
        assert len(before)==2050 and {len(q['itemKey'].split(',')) for what,q in server.seen if what=='items'}=={50}, 'as many keys as the documentation allows'
        server.seen.clear()
        fetch(server, tmp_path/'z.csv')
        after = server.asked_for()
        assert len(set(before)&set(after))<=50 and len(server.seen)==1+41 and after==sorted(after)
        assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)
        assert len(rows(tmp_path/'z.csv'))==4000


def test_killed_while_the_table_is_written_it_goes_on(server, tmp_path, monkeypatch):
    fetch(server, tmp_path/'z.csv')
    server.change(3, title='Another title')
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', killed)
        with pytest.raises(KeyboardInterrupt): fetch(server, tmp_path/'z.csv')
    server.seen.clear()
    done = fetch(server, tmp_path/'z.csv')
    assert (done.changed,done.added,done.removed)==(1,0,0) and len(server.seen)==1
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)
    assert fetch(server, tmp_path/'z.csv').changed==0


def test_a_second_run_asks_only_for_what_changed(server, tmp_path):
    out = tmp_path/'z.csv'
    since = fetch(server, out).version
    server.change(3, title='A corrected title')
    server.change(4, deleted=1)
    server.change(90003, deleted=0)
    server.delete(5,90000)
    server.put(paper(400), paper(401,itemType='attachment',parentItem=key(400)))
    server.seen.clear()
    done = fetch(server, out)
    assert (done.n,done.added,done.changed,done.removed)==(45,2,1,2)
    assert str(done)==f'45 items of Zotero group 77 at version {server.version}: 2 new, 1 changed, 2 gone'
    assert [what for what,_ in server.seen]==['items/top','deleted','items','items/top'] and sorted(server.asked_for())==sorted(map(key,(3,4,400,90003)))
    assert server.seen[0][1]['since']==server.seen[1][1]['since']==str(since)
    assert out.read_bytes()==undisturbed(server,tmp_path)


def test_where_nothing_changed_one_question_says_so_and_the_file_stays(server, tmp_path):
    out = tmp_path/'z.csv'
    fetch(server, out)
    server.seen.clear()
    before = out.stat().st_mtime_ns
    assert 'nothing new' in str(fetch(server,out)) and len(server.seen)==1 and out.stat().st_mtime_ns==before
    out.unlink()
    assert fetch(server,out).n==45 and out.read_bytes()==undisturbed(server,tmp_path)


@pytest.mark.parametrize('at', range(5))
@pytest.mark.parametrize('what', ['added','changed','deleted','trashed','restored','deleted and back'])
def test_someone_works_in_the_library_meanwhile(server, tmp_path, at, what):
    def works(h):
        if what=='added': server.put(paper(500))
        elif what=='changed': server.change(44, title='Changed between pages')
        elif what=='deleted': server.delete(0,20,44)
        elif what=='trashed': server.change(20, deleted=1)
        elif what=='restored': server.change(90003, deleted=0)
        else:
            server.delete(20)
            server.put(paper(20,title='Back again'))
    server.moods += [None]*at+[works]
    fetch(server, tmp_path/'z.csv')
    first = (tmp_path/'z.csv').read_bytes()
    if at<4: assert first==undisturbed(server,tmp_path)
    fetch(server, tmp_path/'z.csv')
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


@pytest.mark.parametrize('seed', [*range(4),*(pytest.param(n,marks=pytest.mark.long) for n in range(4,40))])
def test_whatever_happens_when_it_ends_in_the_same_file(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(zotero, '_BATCH', 5)
    r = random.Random(seed)
    with serving(server=Zotero(23)) as server:
        server.cap = r.choice([0,0,7])
        server.ceiling = r.choice([100,3])
        def works(h):
            n = r.randrange(30)
            if key(n) not in server.items: server.put(paper(n))
            else: r.choice([lambda: server.delete(n), lambda: server.change(n,title=f'Title {r.random()}'), lambda: server.change(n,deleted=r.choice([0,1])),
                            lambda: server.delete(n,(n+1)%30)])()
            server.log_gap = r.random()<0.2
        for _ in range(4):
            server.moods += r.choices([None,works,resets,says(500),says(429,Retry_After='99999')], [8,2,1,1,0.5], k=20)
            try: fetch(server, tmp_path/'z.csv')
            except ServiceError: pass
            works(None)
        server.moods.clear()
        fetch(server, tmp_path/'z.csv')
        assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


def test_a_library_that_never_stands_still_is_left_alone_and_later_completed(server, tmp_path):
    server.mood = lambda h: server.change(1, title=f'Title {server.version}')
    with pytest.raises(ServiceError, match='changed group 77 again and again while it was read; try later; 4[78] items'): fetch(server, tmp_path/'z.csv')
    server.mood = None
    server.seen.clear()
    fetch(server, tmp_path/'z.csv')
    assert server.asked_for()==[key(1)] or not server.asked_for()
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


def test_a_gap_in_the_list_of_deletions_is_found(server, tmp_path):
    fetch(server, tmp_path/'z.csv')
    server.log_gap = True
    server.delete(17)
    assert fetch(server,tmp_path/'z.csv').removed==1
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


def test_a_library_that_was_set_back_is_fetched_anew(server, tmp_path):
    fetch(server, tmp_path/'z.csv')
    server.version = 0
    server.items.clear()
    server.put(*(paper(n,title='From the backup') for n in range(10)))
    done = fetch(server, tmp_path/'z.csv')
    assert (done.n,done.removed,done.changed)==(10,35,10) and (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


@pytest.mark.parametrize('old', [says(200, {}, Last_Modified_Version='1', Total_Results='0'), says(304, Last_Modified_Version='1')], ids=['list','unchanged'])
def test_one_answer_of_a_copy_that_lags_behind_costs_a_request_and_nothing_else(server, tmp_path, old):
    fetch(server, tmp_path/'z.csv')
    server.change(3, title='A corrected title')
    server.seen.clear()
    server.moods += [old]
    done = fetch(server, tmp_path/'z.csv')
    assert (done.n,done.changed,done.removed)==(45,1,0) and server.asked_for()==[key(3)] and (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)
    server.seen.clear()
    server.moods += [old]
    assert 'nothing new' in str(fetch(server, tmp_path/'z.csv')) and not server.asked_for()


def test_a_list_of_versions_in_pages(server, tmp_path):
    server.cap = 60
    server.moods += [None,None,lambda h: server.delete(1,2),None,lambda h: server.put(paper(600))]
    fetch(server, tmp_path/'z.csv')
    got = (tmp_path/'z.csv').read_bytes()
    server.cap = 0
    assert got==undisturbed(server,tmp_path)


@pytest.mark.parametrize('body, words', [
    ([dict(key='ABCD2345')], 'no list of versions'), ({'../../etc':3}, 'no list of versions'), ({'ABCD2345':'3'}, 'no list of versions'), ('null', 'lists 0 of 9 items'), ({}, 'lists 0 of 9 items')])
def test_a_list_of_something_else_is_refused(server, tmp_path, body, words):
    server.mood = says(200, body, Last_Modified_Version='3', Total_Results='9')
    with pytest.raises(ServiceError, match=words): fetch(server, tmp_path/'z.csv')
    assert not (tmp_path/'z.csv').exists()


@pytest.mark.parametrize('body', [dict(items=[]), [3], [dict(key='ABCD2345',version=1,data={})], [dict(key=key(0),version='1',data={})], [dict(key=key(0),version=1,data=[])], 'null'])
def test_items_that_are_none_are_refused(server, tmp_path, body):
    server.moods += [None,says(200, body, Last_Modified_Version='3', Total_Results='9')]
    with pytest.raises(ServiceError, match='no list of the items asked for'): fetch(server, tmp_path/'z.csv')
    fetch(server, tmp_path/'z.csv')
    assert (tmp_path/'z.csv').read_bytes()==undisturbed(server,tmp_path)


def test_another_service_at_the_address_is_told(server, tmp_path):
    server.mood = says(200, {})
    with pytest.raises(ServiceError, match='answers without last-modified-version; is `api.zotero_url` the address of a Zotero Web API'): fetch(server, tmp_path/'z.csv')


def test_a_private_group_and_the_key_that_opens_it(server, tmp_path, monkeypatch):
    out = tmp_path/'z.csv'
    server.private = True
    with pytest.raises(ServiceError, match='shows group 77 to its members only: put the key of a member into the variable ZOTERO_API_KEY'): fetch(server, out)
    monkeypatch.setenv('ZOTERO_API_KEY', 'aWrongKey')
    with pytest.raises(ServiceError, match='does not let the key in ZOTERO_API_KEY read group 77') as e: fetch(server, out)
    assert 'aWrongKey' not in str(e.value) and len(server.seen)==2
    monkeypatch.setenv('ZOTERO_API_KEY', KEY)
    assert fetch(server, out).n==45
    server.mood = says(500, KEY)
    server.put(paper(600))
    with pytest.raises(ServiceError) as e: fetch(server, out, retries=1)
    assert KEY not in str(e.value) and not any(KEY in repr(s) for s in server.seen)
    for f in tmp_path.rglob('*'): assert not f.is_file() or not any(s in f.read_bytes() for s in (KEY.encode(),b'screener@')), f


def test_a_group_that_is_not_there(server, tmp_path):
    with pytest.raises(ServiceError, match=r'has no group 78; the number is the one in the address of its page, https://www.zotero.org/groups/NUMBER/NAME'):
        fetch_group(78, tmp_path/'z.csv', api(server))
    assert len(server.seen)==1
    assert fetch(server, tmp_path/'z.csv').n==45   # the right number, after the wrong one
    with pytest.raises(ValueError, match="'ias' is no Zotero group"): fetch_group('ias', tmp_path/'z.csv', api(server))


def test_nothing_of_a_person_is_written_over(server, tmp_path):
    out = tmp_path/'z.csv'
    out.write_text('Key,Title\n1,An export by hand\n')
    with pytest.raises(FileExistsError, match='z.csv is not what was fetched: it comes from elsewhere'): fetch(server, out)
    assert out.read_text().startswith('Key,Title') and not server.seen
    out.unlink()
    fetch(server, out)
    out.write_bytes(out.read_bytes()+b'"edited"\n')
    with pytest.raises(FileExistsError, match='or was changed since'): fetch(server, out)
    with pytest.raises(ValueError, match='holds the library http.*/groups/77, not http.*/groups/5'): fetch_group(5, out, api(server))
    with pytest.raises(ValueError, match='is written as .csv'): fetch(server, tmp_path/'z.ris')
    (tmp_path/'d.csv').mkdir()
    with pytest.raises(OSError): fetch(server, tmp_path/'d.csv')


def test_a_damaged_memory_is_told(server, tmp_path):
    (tmp_path/'.z.sqlite').write_bytes(b'no database '*400)
    with pytest.raises(OSError, match='delete the file to fetch it anew'): fetch(server, tmp_path/'z.csv')


JSON = st.recursive(st.none()|st.booleans()|st.integers()|st.floats(allow_nan=False)|st.text(), lambda x: st.lists(x,max_size=3)|st.dictionaries(st.text(max_size=8),x,max_size=3), max_leaves=5)
FIELDS = sorted({n for names in zotero._NAMES.values() for n in names}|{'creators','tags','deleted','parentItem'})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS),JSON,max_size=8), JSON)
def test_any_item_is_a_row_that_reads_back(tmp_path_factory, data, meta):
    item = json.loads(json.dumps(dict(key=key(1), version=1, meta=meta, data=data|dict(key=key(1),itemType='book'))))
    row = item_row(item)
    assert list(row)==list(COLUMNS) and all(isinstance(v,str) for v in row.values())
    folder = tmp_path_factory.mktemp('any')
    library = Library(folder/'.z.sqlite','x')
    library.keep([item])
    zotero._write(library, folder/'z.csv')
    assert rows(folder/'z.csv')==([row] if zotero._is_reference(item) else [])


# In a project

def run(*args, cwd):
    code = 'import sys; sys.argv[0] = "ipbes"; from ipbes_classifier.cli import main; main()'
    return subprocess.run([sys.executable,'-c',code,*args], capture_output=True, text=True, cwd=cwd, env=os.environ|dict(COLUMNS='110',TERM='dumb'))


def test_from_group_to_data_set(server, tmp_path, monkeypatch):
    init_project(tmp_path/'p')
    monkeypatch.chdir(tmp_path/'p')
    s = load_config()
    label = s.labels[0].name
    done = CliRunner().invoke(app, ['fetch','zotero','--group',str(GROUP),'--label',label,f'api.zotero_url={server.url}'])
    assert done.exit_code==0, done.output
    assert done.stdout==f'45 items of Zotero group 77 at version {server.version}: 45 new\ndata/raw/zotero_{label}.csv\n' and not done.stderr
    made = CliRunner().invoke(app, ['preprocess','--positives',f'{label}=data/raw/zotero_{label}.csv','logging.progress=false'])
    assert made.exit_code==0, made.output
    data = pd.read_csv('data/cleaned_dataset.csv')
    assert len(data)==45 and data[label].eq(1).all() and 'Chapter 6' not in Path('data/cleaned_dataset.csv').read_text()


def test_what_to_write_into_the_settings_is_said(server, tmp_path, monkeypatch):
    init_project(tmp_path/'p')
    monkeypatch.chdir(tmp_path/'p')
    label = load_config().labels[0].name
    call = lambda *more: CliRunner().invoke(app, ['fetch','zotero','-g',f'https://www.zotero.org/groups/{GROUP}/some_name','--label',*more,f'api.zotero_url={server.url}'])
    other = call('New')
    assert other.exit_code==0 and "'New' is no label of the settings" in other.stderr and '`- {name: New, positives: [data/raw/zotero_New.csv]}` below `labels:`' in other.stderr
    elsewhere = call(label,'-o','mine.csv')
    assert elsewhere.exit_code==0 and f'the settings name data/raw/zotero_{label}.csv as positives of {label}: put mine.csv there instead, or beside it' in elsewhere.stderr
    assert other.stderr.count('\n')==elsewhere.stderr.count('\n')==1
    assert 'cannot be part of a file' in str(call('../x').exception)


def test_without_a_project_it_stands_here_and_a_failure_is_one_sentence(server, tmp_path):
    done = run('fetch','zotero','-g','77','--label','A',f'api.zotero_url={server.url}', cwd=tmp_path)
    assert done.returncode==0 and (tmp_path/'zotero_A.csv').exists() and done.stderr=='`ipbes preprocess --positives A=zotero_A.csv` reads it\n'
    done = run('fetch','zotero','-g','78',f'api.zotero_url={server.url}', cwd=tmp_path)
    assert done.returncode==1 and done.stderr.count('\n')==1 and done.stderr.startswith(f'ipbes: Zotero at {server.url} has no group 78') and not done.stdout


def test_an_empty_group_is_told(tmp_path):
    with serving(server=Zotero(0)) as server:
        done = run('fetch','zotero','-g','77',f'api.zotero_url={server.url}', cwd=tmp_path)
        assert done.returncode==0 and 'there are no references in group 77' in done.stderr and rows(tmp_path/'zotero_77.csv')==[]
