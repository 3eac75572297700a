"""`ipbes assess` against Zotero, OpenAlex and Crossref on 127.0.0.1, up to a trained baseline: undisturbed, interrupted at any step, and gone on."""
import contextlib
import hashlib
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
import yaml
from moods import breaks_off, says, serving
from typer.testing import CliRunner

from ipbes_classifier import assess as page
from ipbes_classifier.assess import assess, read_plan
from ipbes_classifier.cli import app
from ipbes_classifier.corpus import Sample
from ipbes_classifier.files import file_hash
from test_zotero import GROUP, Zotero, paper

WORDS = dict(cited='invasion alien weed spread harbour ballast feral eradication island biosecurity pathway naturalised propagule vector outbreak quarantine'.split(),
             other='enzyme alloy turbine ledger dialect polymer surgery lattice sermon tariff neuron pigment orbit syntax ceramic plasma'.split(),
             common='we study results show effects data model sites years change species analysis between under sampled region method found'.split())
MAIL = 'screener@assessment.example.org'
SECRETS = dict(OPENALEX_API_KEY='s3cret-openalex', ZOTERO_API_KEY='s3cretzotero')


def prose(kind:str, n:int, length:int=60)->str:
    rng = random.Random(f'{kind}{n}')
    return ' '.join(rng.choice(WORDS[kind] if rng.random()<0.4 else WORDS['common']) for _ in range(length)).capitalize()


def cited(n:int, **more)->dict:
    "An item of the group; every fourth lacks its abstract."
    data = dict(title=prose('cited',n,9), abstractNote='' if n%4==0 else prose('cited',n), DOI=f'10.5555/cited.{n}', language='en' if n%3 else 'es')
    return paper(n, **(data|more))


class Services(Zotero):
    "Zotero, and beside it Crossref below /crossref and OpenAlex below /openalex."
    def note(self, h): return h.route if h.route.startswith(('/crossref','/openalex')) else super().note(h)

    def answer(self, h):
        if h.route.startswith('/crossref'): return self.crossref(h)
        if h.route.startswith('/openalex'): return self.openalex(h)
        return super().answer(h)

    def crossref(self, h):
        dois = [f.removeprefix('doi:') for f in h.query.get('filter','').split(',') if f] or [h.route.removeprefix('/crossref/works').replace('%2F','/').strip('/')]
        items = [dict(DOI=d, title=[prose('cited',n,9)], abstract=f'<jats:p>{prose("cited",n)}</jats:p>') for d in dois if d.startswith('10.5555/cited.') for n in [int(d.split('.')[-1])] if n%8==0]
        if 'filter' in h.query: return h.say(200, dict(message={'items':items,'total-results':len(items)}))
        return h.say(200, dict(message=items[0])) if items else h.say(404)

    left = 10**6   # requests that OpenAlex answers before its budget is used up
    def openalex(self, h):
        assert h.headers['Authorization']==f'Bearer {SECRETS["OPENALEX_API_KEY"]}'
        if self.left<=0: return h.say(429, dict(message='Insufficient budget'), x_ratelimit_remaining_usd='0', Retry_After='7200')
        self.left -= 1
        conditions = dict(c.split(':',1) for c in h.query.get('filter','').split(',') if c)
        if 'group_by' in h.query:
            topics = [f'T{int(d.split(".")[-1])%2+1}' for d in conditions['doi'].split('|') if self.topics]
            return h.say(200, dict(meta=dict(count=len(topics),cost_usd=0.0001), group_by=[dict(key=f'https://openalex.org/{k}',count=topics.count(k)) for k in sorted(set(topics))]))
        if 'sample' in h.query: return self.drawn(h, conditions)
        dois = conditions.get('doi','').split('|') if 'doi' in conditions else [h.route.partition('doi:')[2].replace('%2F','/')]
        known = [self.work(4000+n,doi=f'https://doi.org/{d}',title=prose('cited',n,9),text=prose('cited',n)) for d in dois if d.startswith('10.5555/cited.') for n in [int(d.split('.')[-1])]]
        if 'doi' in conditions: return h.say(200, dict(meta=dict(count=len(known),cost_usd=0.0001), results=known))
        return h.say(200, known[0], x_ratelimit_cost_usd='0') if known else h.say(404)

    def work(self, n, language='en', year=2001, doi=None, title='', text='', kind='article')->dict:
        words = (text or prose('other',5000+n)).split()
        return dict(id=f'https://openalex.org/W{n}', doi=doi, title=title or prose('other',5000+n,9), publication_year=year, language=language, type=kind,
                    abstract_inverted_index={w:[i for i,x in enumerate(words) if x==w] for w in dict.fromkeys(words)})

    topics = True   # does it know those of the group's papers?
    def drawn(self, h, conditions):
        "As in the service, the seed alone orders all works, and those that fit are taken in this order; of the topics is one in four, and the paper of the group that is known there too."
        assert set(conditions['type'].split('|'))=={'article','review'} and conditions['has_abstract']=='true' and conditions.get('primary_topic.id','T1|T2') in ('T1|T2','T2|T1')
        (a,_,b),hard,n = conditions['publication_year'].partition('-'),'primary_topic.id' in conditions,int(h.query['sample'])
        first = int(a)*2000+(conditions.get('language')=='es')*1000
        order = sorted(range(0,1000,4 if hard else 1), key=lambda i: hashlib.blake2b(f'{h.query["seed"]} {first+i}'.encode()).digest())
        works = [self.work(first+i, conditions.get('language','en'), int(b), kind='review' if i%5==0 else 'article') for i in order[:n]]
        if hard: works[-1] = self.work(9, doi='https://doi.org/10.5555/CITED.9', title='Another spelling')
        page,size = int(h.query.get('page',1)),int(h.query['per_page'])
        h.say(200, dict(meta=dict(count=n,cost_usd=0.0001), results=works[(page-1)*size:page*size]))


@pytest.fixture
def server(monkeypatch):
    for k,v in SECRETS.items(): monkeypatch.setenv(k, v)
    with serving(server=Services()) as s:
        s.put(*map(cited,range(48)))
        yield s


@pytest.fixture
def given(tmp_path):
    "A corpus that somebody has."
    pd.DataFrame([dict(id=f'n{n}',title=prose('other',n,9),abstract=prose('other',n),year=str(2000+n%12)) for n in range(150)]).to_csv(tmp_path/'corpus.csv', index=False)
    return tmp_path/'corpus.csv'


def settings(server, **more)->list[str]:
    own = {'api.zotero_url':server.url, 'api.crossref_url':f'{server.url}/crossref', 'api.openalex_url':f'{server.url}/openalex', 'api.timeout':10, 'api.retries':1,
           'api.sources':'[crossref]', 'folds.n_folds':2, 'logging':'{progress: false, tensorboard: false}'}
    return [f'{k}={v}' for k,v in (own|more).items()]


def tree(root)->dict[str,str]:
    "Files of a project to hashes; without times, caches and what is hidden."
    files = [p for p in Path(root).rglob('*') if p.is_file() and not any(x.startswith('.') for x in p.relative_to(root).parts)]
    return {p.relative_to(root).as_posix():file_hash(p) for p in files if p.name!='provenance.json' and p.suffix!='.sqlite'}


def no_secret_in(root)->bool:
    return not any(s.encode() in p.read_bytes() for p in Path(root).rglob('*') if p.is_file() for s in (MAIL,*SECRETS.values()))


def test_from_a_group_to_a_first_figure(server, given, tmp_path):
    said = []
    done = assess(tmp_path/'p', {'TOX':[GROUP]}, [given], {'TOX':'What spreads'}, overrides=[*settings(server),f'api.email={MAIL}'], say=said.append)
    assert any(MAIL in a for a in server.agents)
    assert done.ran==[f'fetch TOX {GROUP}','count','preprocess','folds','train']
    config = yaml.safe_load((tmp_path/'p/configs/config.yaml').read_text())
    assert config['labels']==[dict(name='TOX',description='What spreads',positives=['data/raw/zotero_TOX.csv'])] and config['folds']['n_folds']==2
    data = pd.read_csv(tmp_path/'p/data/cleaned_dataset.csv')
    assert data.TOX.sum()==42 and len(data)==42+150   # 48 less the half of 12 without abstract that Crossref does not know either
    row = done.figures.loc['TOX']
    assert row.papers==29 and row.positives==int(round(row.prevalence*29)) and row.AP>0.9 and row.AP_at_1<=row.AP
    text = '\n'.join(said)
    assert 'prevalence' in text and 'ipbes run' in text and 'ipbes predict' in text
    assert no_secret_in(tmp_path/'p') and not any(s in text for s in SECRETS.values())


def test_a_second_call_does_what_has_changed(server, given, tmp_path):
    call = lambda **kw: assess(tmp_path/'p', {'TOX':[GROUP]}, [given], overrides=settings(server), say=lambda _: None, **kw)
    call()
    before = tree(tmp_path/'p')
    server.seen.clear()
    assert call().ran==[] and tree(tmp_path/'p')==before
    assert [what for what,_ in server.seen]==['items/top'] or len(server.seen)<=2
    server.put(*(cited(n) for n in range(100,106)))
    assert call(update=False).ran==[]
    assert call().ran==[f'fetch TOX {GROUP}','count','preprocess','folds','train']
    assert pd.read_csv(tmp_path/'p/data/cleaned_dataset.csv').TOX.sum()==42+5
    (tmp_path/'p/data/folds/test0_run-0.csv').unlink()
    assert call().ran==['folds']
    assert assess(tmp_path/'p', overrides=['thresholds.method=f1'], say=lambda _: None).ran==['train']
    assert assess(tmp_path/'p', say=lambda _: None, dry_run=True).ran==[]


def test_a_second_label_by_a_second_call(server, given, tmp_path):
    assess(tmp_path/'p', {'TOX':[GROUP]}, [given], overrides=settings(server), say=lambda _: None)
    text = (tmp_path/'p/configs/config.yaml').read_text()
    (tmp_path/'p/configs/config.yaml').write_text(text.replace('seed: 42','# ours\nseed: 42   # the answer'))
    other = pd.DataFrame([dict(id=f'o{n}',title=prose('other',1000+n,9),abstract=prose('other',1000+n)) for n in range(30)])
    other.to_csv(tmp_path/'lab.csv', index=False)
    done = assess(tmp_path/'p', {'LAB':[tmp_path/'lab.csv']}, say=lambda _: None)
    assert done.ran==['count','preprocess','folds','train'] and list(done.figures.index)==['TOX','LAB']
    assert pd.read_csv(tmp_path/'p/data/cleaned_dataset.csv')[['TOX','LAB']].sum().tolist()==[42,30]
    text = (tmp_path/'p/configs/config.yaml').read_text()
    assert '# ours\nseed: 42   # the answer' in text and [l['name'] for l in yaml.safe_load(text)['labels']]==['TOX','LAB']
    both = assess(tmp_path/'at_once', {'TOX':[GROUP],'LAB':[tmp_path/'lab.csv']}, [given], overrides=settings(server), say=lambda _: None)
    assert both.figures.equals(done.figures)


def test_a_corpus_is_drawn_in_the_likeness_of_the_positives(server, tmp_path):
    said,more = [],settings(server,**{'api.sources':'[crossref,openalex]'})
    done = assess(tmp_path/'p', {'TOX':[GROUP]}, Sample(200,0.6,seed=7), overrides=more, say=said.append)
    assert done.ran==[f'fetch TOX {GROUP}','count','draw TOX','corpus','preprocess','folds','train']
    drawn = pd.read_csv(tmp_path/'p/data/raw/corpus_drawn.csv')
    assert drawn.groupby('part').asked.sum().to_dict()==dict(random=120,hard=80) and (drawn.asked==drawn.drawn).all()
    assert (drawn.drawn==drawn.repeated+drawn.positives+drawn.kept).all() and drawn.positives.sum()==(drawn.part=='hard').sum() and drawn.repeated.sum()<20
    shares = drawn.groupby('language').asked.sum()/200
    assert set(shares.index)=={'en','es'} and abs(shares.en-32/48)<0.02 and drawn.from_year.min()==2000 and drawn.to_year.max()==2019
    years = drawn[drawn.part=='random'].groupby(['from_year','to_year']).asked.sum()
    assert years.index.tolist()[0][0]==2000 and all(b+1==a for (_,b),(a,_) in zip(years.index,years.index[1:])) and years.max()<2*years.min()
    corpus = pd.read_parquet(tmp_path/'p/data/raw/corpus_openalex.parquet')
    assert len(corpus)==drawn.kept.sum() and corpus.id.is_unique and not corpus.doi.str.contains('cited').any() and set(corpus.source)=={'OpenAlex, random','OpenAlex, hard'}
    data = pd.read_csv(tmp_path/'p/data/cleaned_dataset.csv')
    assert data.TOX.sum()==48 and len(data)==48+len(corpus) and done.settings.data.item_types==['journalArticle','article','review']
    assert set(corpus.item_type)=={'article','review'} and not any('at random' in s for s in said)
    assert any('$0.00' in s for s in said) and no_secret_in(tmp_path/'p')
    server.seen.clear()
    assert assess(tmp_path/'p', say=said.append).ran==[] and not [s for s in server.seen if isinstance(s,str)]
    server.put(*(cited(n) for n in range(100,110)))   # the group grows: what was drawn stays, and is looked through for the new papers
    assert assess(tmp_path/'p', say=said.append).ran==[f'fetch TOX {GROUP}','count','corpus','preprocess','folds','train']
    assert assess(tmp_path/'p', {'TOX':[]}, Sample(50), say=said.append).ran[:2]==['draw TOX','corpus']
    assert len(pd.read_parquet(tmp_path/'p/data/raw/corpus_openalex.parquet'))<=50


def test_no_positive_with_a_topic_means_a_random_corpus(server, tmp_path):
    server.topics,said = False,[]
    assess(tmp_path/'p', {'TOX':[GROUP]}, Sample(100), fill=False, overrides=settings(server), say=said.append)
    assert set(pd.read_csv(tmp_path/'p/data/raw/corpus_drawn.csv').part)=={'random'}
    assert [s.partition(':')[0] for s in said if 'at random' in s]==['OpenAlex knows no topic of these 48 papers, 48 of which have a DOI']


def test_labels_get_works_of_their_own(server, tmp_path):
    pd.DataFrame([dict(id=f'o{n}',title=prose('cited',n,9),abstract=prose('cited',n),year=str(2000+n%20),language='en') for n in range(60)]).to_csv(tmp_path/'lab.csv', index=False)
    assess(tmp_path/'p', {'TOX':[tmp_path/'lab.csv'],'LAB':[tmp_path/'lab.csv']}, Sample(60), fill=False, overrides=settings(server), say=lambda _: None)
    drawn = pd.read_csv(tmp_path/'p/data/raw/corpus_drawn.csv')
    assert drawn.groupby('label').drawn.sum().to_dict()==dict(TOX=60,LAB=60) and drawn.repeated.sum()<15


def test_a_wrong_group_and_a_wrong_corpus_are_replaced(server, given, tmp_path):
    "A group that is not there; then one that is, in its place; then another corpus in the place of a sample."
    go = lambda *a: CliRunner().invoke(app, ['assess',str(tmp_path/'p'),*a,*settings(server)])
    right = server.answer
    server.answer = lambda h: h.say(404) if h.route.startswith('/groups/404') else right(h)
    r = go('--label','TOX','--group','404','--sample','40')
    assert r.exit_code==1 and '--label TOX --group NUMBER --forget TOX' in str(r.exception) and 'same command' not in str(r.exception)
    assert 'begin it anew' in str(go('--forget','TOX').exception)
    assert go('--label','TOX','--group',str(GROUP),'--forget','TOX').exit_code==0
    assert read_plan(tmp_path/'p').labels['TOX'].groups==[GROUP]
    first = tree(tmp_path/'p')['data/raw/corpus_openalex.parquet']
    pd.DataFrame([dict(id=f'o{n}',title=prose('cited',500+n,9),abstract=prose('cited',500+n),year=str(1990+n%5)) for n in range(40)]).to_csv(tmp_path/'lab.csv', index=False)
    assert go('--label','TOX','--positives',str(tmp_path/'lab.csv'),'--forget','TOX').exit_code==0   # drawn anew, for other years
    assert tree(tmp_path/'p')['data/raw/corpus_openalex.parquet']!=first and pd.read_csv(tmp_path/'p/data/raw/corpus_drawn.csv').to_year.max()==1994
    assert (tmp_path/'p/data/raw/forgotten/zotero_TOX.csv').exists()
    r = go('--corpus',str(given),'--new-corpus')
    assert r.exit_code==0 and yaml.safe_load((tmp_path/'p/configs/config.yaml').read_text())['data']['corpus']==[str(given)] and not read_plan(tmp_path/'p').samples


def test_what_another_call_asked_for_is_not_lost(server, given, tmp_path, monkeypatch):
    "The other call ends between the start of this one and its turn."
    call = lambda label,n: assess(tmp_path/'p', {label:[tmp_path/f'{label}.csv']}, [given], overrides=settings(server), fill=False, say=lambda _: None)
    for i,l in enumerate(('TOX','LAB')): pd.DataFrame([dict(id=f'{l}{n}',title=prose('cited',100*i+n,9),abstract=prose('cited',100*i+n)) for n in range(30)]).to_csv(tmp_path/f'{l}.csv', index=False)
    true = page._only_one
    def late(root, s):
        monkeypatch.setattr(page, '_only_one', true)
        call('LAB', 1)
        return true(root, s)
    monkeypatch.setattr(page, '_only_one', late)
    assert list(call('TOX', 0).figures.index)==['LAB','TOX'] and list(read_plan(tmp_path/'p').labels)==['LAB','TOX']


@pytest.mark.parametrize('how', ['api={email: MAIL, retries: 2}','api[email]=MAIL'])
def test_a_mail_address_is_not_written_down(how, server, given, tmp_path):
    pd.DataFrame([dict(id=f'o{n}',title=prose('cited',n,9),abstract=prose('cited',n)) for n in range(30)]).to_csv(tmp_path/'lab.csv', index=False)
    done = assess(tmp_path/'p', {'TOX':[tmp_path/'lab.csv']}, [given], overrides=[*settings(server),how.replace('MAIL',MAIL)], fill=False, say=lambda _: None)
    assert done.settings.api.email==MAIL and no_secret_in(tmp_path/'p')


def test_a_settings_file_that_cannot_be_changed_names_itself(server, given, tmp_path):
    pd.DataFrame([dict(id=f'o{n}',title=prose('cited',n,9),abstract=prose('cited',n)) for n in range(30)]).to_csv(tmp_path/'lab.csv', index=False)
    assess(tmp_path/'p', {'TOX':[tmp_path/'lab.csv']}, [given], overrides=settings(server), fill=False, say=lambda _: None)
    config = tmp_path/'p/configs/config.yaml'
    text = config.read_text().replace('n_folds: 2','n_folds: &n 2')+'baseline: {min_df: *n}\n'
    assert '&n' in text
    config.write_text(text)
    with pytest.raises(ValueError, match=r'config.yaml: `folds.n_folds` cannot be set .* by hand: `folds: \{n_folds: 3\}`'): assess(tmp_path/'p', overrides=['folds.n_folds=3'], say=lambda _: None)
    assert config.read_text()==text


@pytest.mark.parametrize('left', [pytest.param(0,marks=pytest.mark.long),7])
def test_a_spent_budget_is_gone_on_with_and_nothing_is_paid_twice(left, server, tmp_path):
    args = ['--label','TOX','--group',str(GROUP),'--sample','200',*settings(server,**{'api.max_wait':1})]
    go = lambda name: CliRunner().invoke(app, ['assess',str(tmp_path/name),*args])
    paid = lambda: sum(s.startswith('/openalex') for s in server.seen if isinstance(s,str))
    assert go('whole').exit_code==0
    n = paid()
    server.seen.clear()
    server.left = left
    r = go('cut')
    assert r.exit_code==3 and 'stopped at "draw 200 works like those of TOX' in r.output and 'budget' in r.output and 'give the same command after' in r.output and 'Traceback' not in r.output
    assert not any(s in r.output for s in SECRETS.values())
    server.left = 10**6
    assert go('cut').exit_code==0 and paid()==n+1   # the refusal is the only one too many
    assert tree(tmp_path/'cut')==tree(tmp_path/'whole')


class Stop(BaseException): "What an impatient person does."


@pytest.mark.parametrize('where', ['draw_corpus',*(pytest.param(x,marks=pytest.mark.long) for x in ('preprocess_project','fetch_group','split_project','train','write_json'))])
def test_a_kill_in_a_step_changes_nothing(where, server, tmp_path, monkeypatch):
    "A step is cut off right before and right after its work; what follows gives the files of a call that nothing cut off."
    import ipbes_classifier.train
    import ipbes_classifier.zotero
    call = lambda name: assess(tmp_path/name, {'TOX':[GROUP]}, Sample(100), overrides=settings(server), say=lambda _: None)
    owner = dict(fetch_group=ipbes_classifier.zotero, train=ipbes_classifier.train).get(where, page)
    true,n = getattr(owner,where),0
    for before,left in [(True,0),(False,0),*([(b,1) for b in (True,False)*4] if where=='write_json' else [])]:
        def cut(*a, before=before, todo=[0]*left, **kw):
            if todo and todo.pop()==0: return true(*a, **kw)
            if not before: true(*a, **kw)
            raise Stop
        monkeypatch.setattr(owner, where, cut)
        n += 1
        with contextlib.suppress(Stop):
            call('cut')
            n -= 1
        monkeypatch.setattr(owner, where, true)
    call('cut')
    call('whole')
    assert n>=(8 if where=='write_json' else 2) and tree(tmp_path/'cut')==tree(tmp_path/'whole')


RUN = "import sys; from ipbes_classifier.cli import main; sys.argv[0]='ipbes'; main()"


@pytest.mark.long
@pytest.mark.parametrize('until', [6,14])
def test_a_killed_process_goes_on(until, server, tmp_path):
    "SIGKILL after some requests; the same command then gives the files of an undisturbed run."
    def start(name): return subprocess.Popen([sys.executable,'-c',RUN,'assess',str(tmp_path/name),'--label','TOX','--group',str(GROUP),'--sample','150',*settings(server,**{'api.batch_size':1})],
                                             env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    server.seen.clear()
    first = start('cut')
    end = time.time()+60
    while len(server.seen)<until and first.poll() is None and time.time()<end: time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for name in ('cut','whole'):
        p = start(name)
        out,_ = p.communicate(timeout=120)
        assert p.returncode==0, out
    assert tree(tmp_path/'cut')==tree(tmp_path/'whole')


def test_a_service_that_stops_is_gone_on_with(server, given, tmp_path):
    "Exit code 3, one sentence, no traceback; what was fetched before stays."
    args = ['assess',str(tmp_path/'p'),'--label','TOX','--group',str(GROUP),'--corpus',str(given),*settings(server,**{'api.max_wait':1})]
    whole = ['assess',str(tmp_path/'whole'),*args[2:]]
    true = server.crossref
    server.crossref = says(429, Retry_After='7200')
    r = CliRunner().invoke(app, args)
    assert r.exit_code==3 and 'stopped at "fill, clean and label"' in r.output and 'give the same command after 20' in r.output and 'Traceback' not in r.output
    assert (tmp_path/'p/data/raw/zotero_TOX.csv').exists() and not (tmp_path/'p/data/cleaned_dataset.csv').exists()
    server.crossref = true
    assert CliRunner().invoke(app, args).exit_code==0 and CliRunner().invoke(app, whole).exit_code==0
    assert tree(tmp_path/'p')==tree(tmp_path/'whole')
    server.mood = says(503)
    r = CliRunner().invoke(app, args)
    assert r.exit_code==1 and '--no-update' in str(r.exception)   # 3 is for a quota or a long wait
    assert CliRunner().invoke(app, [*args,'--no-update']).exit_code==0


def test_bad_bodies_end_in_the_same_files(server, given, tmp_path):
    call = lambda name: assess(tmp_path/name, {'TOX':[GROUP]}, [given], overrides=settings(server,**{'api.retries':5}), say=lambda _: None)
    server.moods += [None,says(500),None,breaks_off]
    call('moody')
    call('whole')
    assert tree(tmp_path/'moody')==tree(tmp_path/'whole')


def test_too_few_positives_cost_nothing(server, given, tmp_path):
    for n in range(4,48): server.delete(n)
    with pytest.raises(ValueError, match='too few positives: label TOX'): assess(tmp_path/'p', {'TOX':[GROUP]}, Sample(1000), overrides=settings(server), say=lambda _: None)
    assert not [s for s in server.seen if isinstance(s,str)]


def test_what_a_person_sees(server, given, tmp_path):
    go = lambda *a: CliRunner().invoke(app, ['assess',str(tmp_path/'p'),*a,*settings(server)])
    r = go('--label','TOX','--group',str(GROUP),'--corpus',str(given),'--dry-run')
    assert r.exit_code==0 and [l.rpartition(': ')[2] for l in r.output.splitlines()]==['to do']*5 and not (tmp_path/'p').exists() and not server.seen
    for args,told in ((['--label','TOX','--corpus',str(given)],'label TOX has no positives'), (['--label','TOX','--group',str(GROUP)],'draw from OpenAlex'),
                      ([],'nothing says what to look for'), (['--label','title','--group','1','--sample','9'],'cannot be called'),
                      (['--label','TOX','--group','none','--sample','9'],'no Zotero group'), (['--label','A','--label','B','--group','1','--sample','9'],'of which label'),
                      (['--label','TOX','--positives','gone.csv','--sample','9'],'no file gone.csv'), (['--label','TOX','--group','1','--seed','9'],'--sample N')):
        r = go(*args)
        assert r.exit_code==1 and told in str(r.exception), (args,r.output,r.exception)
        assert not (tmp_path/'p').exists()


def test_labels_come_and_go_by_the_command(server, given, tmp_path):
    go = lambda *a: CliRunner().invoke(app, ['assess',str(tmp_path/'p'),*a])
    pd.DataFrame([dict(id=f'o{n}',title=prose('other',1000+n,9),abstract=prose('other',1000+n),year='2005') for n in range(30)]).to_csv(tmp_path/'lab.csv', index=False)
    assert go('--label','TOX','--group',str(GROUP),'--corpus',str(given),'--no-fill',*settings(server)).exit_code==0
    r = go('--positives',f'LAB={tmp_path/"lab.csv"}','--sample','40')
    assert r.exit_code==0 and 'draw 40 works like those of LAB' in r.output and list(read_plan(tmp_path/'p').samples)==['LAB'] and not read_plan(tmp_path/'p').fill
    assert 'LAB' in r.output.rpartition('papers  positives')[2]
    r = go('--forget','LAB','--no-update')
    assert r.exit_code==0 and list(pd.read_csv(tmp_path/'p/data/cleaned_dataset.csv').columns).count('LAB')==0
    assert 'no label LAB to forget; labels: TOX' in str(go('--forget','LAB').exception)
    (tmp_path/'bad.csv').write_text('a,b\n1,2\n')
    assert "no column 'title'" in str(go('--label','BAD','--positives',str(tmp_path/'bad.csv')).exception) and list(read_plan(tmp_path/'p').labels)==['TOX']


def test_state_that_was_damaged(tmp_path, given):
    (tmp_path/'p/configs').mkdir(parents=True)
    (tmp_path/'p/configs/assess.json').write_text(json.dumps(dict(labels=dict(A=dict(gruops=[]))  ,corpus=[],samples={},fill=True,steps={})))
    with pytest.raises(ValueError, match='move it away'): read_plan(tmp_path/'p')
