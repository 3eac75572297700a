"""What the page on preprocessing need not show: every planted duplicate, hostile input, worker processes, and a real library."""
import html
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ipbes_classifier.files import read_json
from ipbes_classifier.preprocess import preprocess
from ipbes_classifier.records import read_records

REAL = os.environ.get('IPBES_REAL_DATA')
LABELS = ['A','B']


def text(topic:str)->str: return f'We study {topic} at {len(topic)} sites and report how abundance, richness and cover change with rainfall, with fire and with time.'


def write(folder:Path, name:str, rows:list[dict])->Path:
    (pd.DataFrame(rows).to_csv if name.endswith('.csv') else pd.DataFrame(rows).to_parquet)(folder/name, index=False)
    return folder/name


def zotero(key:str, title:str, abstract:str='', doi:str='', kind:str='journalArticle', **more:str)->dict:
    return {'Key':key,'Item Type':kind,'Title':title,'Abstract Note':abstract,'DOI':doi,'Extra':'','Url':'','Language':'','Manual Tags':'','Automatic Tags':''}|more


def run(folder:Path, a:list[dict], corpus:list[dict], name:str='out.csv', **kw):
    "Preprocess a library of label A and a corpus; the account and the result by id."
    account = preprocess(dict(A=[write(folder,'a.csv',a)] if a else []), [write(folder,'corpus.parquet',corpus)] if corpus else [], folder/name, LABELS, progress=False, **kw)
    return account,read_records(folder/name, labels=LABELS).set_index('id')


def test_columns_of_the_result(tmp_path):
    run(tmp_path, [zotero('k','A title of four words',text('x'))], [])
    assert list(pd.read_csv(tmp_path/'out.csv'))==['doi','title','abstract','A','B','id','year','keywords','language','source']
    run(tmp_path, [zotero('k','A title of four words',text('x'))], [], 'out.parquet')
    assert list(pd.read_parquet(tmp_path/'out.parquet'))==['doi','title','abstract','A','B','id','year','keywords','language','source']


def test_a_tag_never_arrives(tmp_path):
    secret = 'CH4_citing_chapter'
    row = zotero('k','Pines of the southern Cape',text('pines'))|{'Manual Tags':secret,'Automatic Tags':secret,'Notes':secret,'Collections':secret,'File Attachments':secret,'Date Added':secret}
    run(tmp_path, [row], [dict(title='Other paper on other things', abstract=text('things'), **{'Manual Tags':secret})])
    for f in ('out.csv','out_account.json','out_account.csv','out_account.html'): assert secret not in (tmp_path/f).read_text()


def test_short_and_generic_titles_match_only_without_contradiction(tmp_path):
    corpus = [dict(id=f'{t[:3]}{i}', title=t, doi=d, abstract=text(t+f' number {i}'*i)) for t,dois in
              [('Editorial',['','']), ('Introduction',['10.1000/1','10.1000/2']), ('Alien pines',['10.1000/3','10.1000/4']), ('Feral goats',['10.1000/5',''])]
              for i,d in enumerate(dois,1)]
    account,df = run(tmp_path, [], corpus)
    assert list(df.index)==['Edi1','Edi2','Int1','Int2','Ali1','Ali2','Fer1'] and account.reasons['duplicate']==1


def test_a_form_letter_is_not_one_paper(tmp_path):
    corpus = [dict(id=str(i), title=f'Retraction of paper number {i}', doi=f'10.1000/{i}', abstract=text('this article was retracted by the editors')) for i in range(12)]
    assert len(run(tmp_path, [], corpus)[1])==12


def test_sameness_is_passed_on(tmp_path):
    corpus = [dict(id='a', title='Goats on small islands', doi='', abstract=text('goats')), dict(id='b', title='Goats on Small Islands!', doi='10.1000/b', abstract=''),
              dict(id='c', title='Cabras en islas pequeñas del sur', doi='https://doi.org/10.1000/B', abstract='')]
    account,df = run(tmp_path, [], corpus)
    assert df.loc['a','doi']=='10.1000/b' and len(df)==1
    assert account.rows().by.tolist()==['title','chain']


def test_the_most_complete_row_stands_and_gaps_are_filled(tmp_path):
    a = [zotero('lib','Rats on islands of the south',text('rats'),**{'Language':'English','Publication Year':'2001'})]
    corpus = [dict(id='long', title='Rats on islands of the south', doi='10.1000/r', abstract=text('rats')+' '+text('rats again'), keywords='rats; islands', year=1999)]
    _,df = run(tmp_path, a, corpus)
    assert df.loc['long',['doi','language','keywords','A']].tolist()==['10.1000/r','en','rats; islands',1] and df.year.tolist()==[1999]


def test_item_types(tmp_path):
    a = [zotero('a','Mushrooms eaten in mountain villages',kind='book'), zotero('b','A report without a twin',text('b'),kind='report'), zotero('c','A book section of its own',text('c'),kind='Book Section')]
    corpus = [dict(id='x', title='Mushrooms eaten in mountain villages', abstract=text('mushrooms'))]
    account,df = run(tmp_path, a, corpus)
    assert df.A.to_dict()=={'x':1} and account.reasons['item_type']==3
    account,df = run(tmp_path, a, corpus, item_types=['journal article','book-section'])
    assert sorted(df.index)==['c','x']
    assert len(run(tmp_path, a, corpus, item_types=None)[1])==3


def test_conflicts_and_statements(tmp_path):
    corpus = [dict(id='p', title='Carp in lakes of the plain', abstract=text('carp'), A='1', B=''), dict(id='q', title='CARP in lakes of the plain', abstract=text('carp'), A='0', B='0'),
              dict(id='r', title='Trout in brooks of the hills', abstract=text('trout'), A='', B='0')]
    account,df = run(tmp_path, [zotero('t','Trout in brooks of the hills',text('trout'))], corpus)
    assert df.A.to_dict()=={'t':1,'p':1} and df.B.sum()==0
    assert [(c['label'],c['into']) for c in account.conflicts]==[('A',1)] and '(p)' in account.conflicts[0]['says_1'] and '(q)' in account.conflicts[0]['says_0']
    assert account.overruled==dict(A=0,B=0)
    with pytest.raises(ValueError, match="corpus.parquet, column 'A': row 2 says 'maybe'"):
        run(tmp_path, [], [dict(title='x',abstract='y',A='1'),dict(title='x',abstract='y',A='maybe')])


def test_one_doi_on_two_papers_is_pointed_out(tmp_path):
    account,_ = run(tmp_path, [], [dict(id='a', title='Feral pigs dig up the fenced plots', doi='10.1000/x', abstract=text('pigs')),
                                   dict(id='b', title='Quoll ranges in northern savannas', doi='10.1000/x', abstract=text('quolls'))])
    assert len(account.doubtful)==1 and account.doubtful[0]['title_words_in_common']<.4


def test_drops(tmp_path):
    corpus = [dict(id='a', title='No abstract is to be had here', abstract='No abstract available.', language='en'), dict(id='b', title='', abstract=' ', language=''),
              dict(id='c', title='Un article en français', abstract=text('pins'), language='Français'), dict(id='d', title='A whole paper about goats', abstract=text('goats'), language='')]
    account,df = run(tmp_path, [], corpus, languages=['en'])
    assert list(df.index)==['d'] and {k:v for k,v in account.reasons.items() if v}==dict(no_abstract=1,no_text=1,language=1)
    _,df = run(tmp_path, [], corpus, keep_title_only=True)
    assert list(df.index)==['a','c','d'] and df.loc['a','abstract']==''
    with pytest.raises(ValueError, match='none of 2 rows is left: no_text 1, no_abstract 1'): run(tmp_path, [], corpus[:2])


def test_the_page_escapes_titles(tmp_path):
    run(tmp_path, [], [dict(id='<script>1</script>', title='x &lt;script&gt;alert(1)&lt;/script2&gt; <unknown>', abstract=''), dict(id='b', title='A paper to keep here', abstract=text('b'))])
    page = (tmp_path/'out_account.html').read_text()
    assert '<script' not in page and html.escape('alert(1)</script2> <unknown>') in page


def test_the_page_says_how_many_rows_it_shows_and_where_all_are(tmp_path):
    corpus = [dict(id=str(i), title=f'Untraceable report number {i}, "quoted"\nand broken, with commas', abstract='') for i in range(130)]
    account,_ = run(tmp_path, [], [*corpus,dict(id='', title='=A paper to keep here', abstract=text('b')),dict(id='', title='=A paper to keep here', abstract='')])
    page = (tmp_path/'out_account.html').read_text()
    assert 'no_abstract: the first 100 of 130' in page and 'duplicate: all 1' in page and page.count('Untraceable')==100
    assert 'All 131 are in <a href="out_account.csv">out_account.csv</a>' in page
    rows = account.rows()
    assert len(rows)==131 and rows.row.tolist()==[*range(1,131),132] and rows.title[129].startswith('Untraceable report number 129, "quoted" and')
    assert rows.into.isna().tolist()==[True]*130+[False] and rows.by[130]=='title' and 'rows' not in read_json(account.path)


def test_the_account_reads_well_in_a_terminal(tmp_path):
    a = [zotero('k','A title of four words',text('x')),zotero('l','A book of five words',kind='book')]
    lines = str(run(tmp_path, a, [dict(title='Another title of five words', abstract=text('y'))])[0]).splitlines()
    assert lines==['3 rows read, 2 records written to out.csv', '', 'file            role            rows  kept  item_type', 'a.csv           positives of A     2     1          1',
                   'corpus.parquet  corpus             1     1          0', 'all                                3     2          1', '',
                   'item_type: not one of data.item_types (journalArticle)', '', 'label  positives  prevalence',
                   'A              1     50.00 %', 'B              0      0.00 %']


def test_every_reason_is_explained_below_the_table(tmp_path):
    account,_ = run(tmp_path, [], [dict(title='No abstract is to be had here', abstract=''), dict(title='Un article en français', abstract=text('pins'), language='fr'),
                                   dict(title='A whole paper about goats', abstract=text('goats'))], languages=['en','de'])
    words = str(account).splitlines()
    assert 'no_abstract: none, or under 50 characters; -fm asks for them' in words and 'language: not one of data.languages (en, de)' in words
    assert '<li><b>no_abstract</b>: none, or under 50' in (tmp_path/'out_account.html').read_text()


def screened(name:str, column:str, said:list, **more)->list[dict]: return [dict(id=f'{name}{i}', title=f'Paper {i} of {name} on its own subject', abstract=text(f'{name} {i}'), **{column:x}|more) for i,x in enumerate(said)]


@pytest.mark.parametrize('column', ['included','asreview_label','label_included','Included'])
def test_only_papers_that_were_taken_in_are_positives(tmp_path, column):
    account,df = run(tmp_path, screened('a',column,['1','0','','-1','1']), screened('c','year',['2001']))
    assert df.A.to_dict()=={'a0':1,'a1':0,'a4':1,'c0':0} and account.labels==dict(A=2,B=0)
    assert {r:n for r,n in account.reasons.items() if n}==dict(undecided=2)
    assert f'a.csv holds decisions ({column}: 2 yes, 1 no, 2 undecided): only the 2 are positives of A' in str(account).splitlines()
    assert account.rows().query('reason=="undecided"').id.tolist()==['a2','a3'] and 'only the 2 are positives of A' in (tmp_path/'out_account.html').read_text()


def test_papers_of_a_corpus_that_were_taken_in_are_no_negatives(tmp_path):
    corpus = screened('c','included',['1','0',''])+[dict(id='s', title='A paper with a label of its own', abstract=text('its own'), included='1', A='1')]
    account,df = run(tmp_path, [], corpus)
    assert df.A.to_dict()=={'c1':0,'c2':0,'s':1} and account.reasons['taken_in']==1
    assert 'corpus.parquet holds decisions (included: 2 yes, 1 no, 1 undecided): 1 are left out; --positives LABEL=corpus.parquet says which label they carry' in str(account).splitlines()


def test_decisions_on_two_copies_of_one_paper(tmp_path):
    a = screened('a','included',['1','0'])
    account,df = run(tmp_path, [*a, a[0]|dict(id='x',included='0'), a[1]|dict(id='y',included='')], [])
    assert df.A.to_dict()=={'a0':1,'a1':0} and account.overruled==dict(A=1,B=0) and [c['label'] for c in account.conflicts]==['A']
    assert account.reasons['undecided']==account.reasons['duplicate']==1


def test_a_paper_left_out_of_one_library_is_a_positive_of_another(tmp_path):
    for name,said in (('a.csv',['1','0']),('b.csv',['0','1'])): write(tmp_path, name, screened('p','included',said))
    preprocess(dict(A=tmp_path/'a.csv',B=tmp_path/'b.csv'), [], tmp_path/'out.csv', LABELS, progress=False)
    df = read_records(tmp_path/'out.csv', labels=LABELS).set_index('id')
    assert df[LABELS].to_numpy().tolist()==[[1,0],[0,1]]


def test_decisions_that_begin_late_in_a_file_hold_for_all_of_it(tmp_path):
    ris = lambda i,note='': f'TY  - JOUR\nTI  - Paper {i} of a file on its own subject\nAB  - {text(f"paper {i}")}\nID  - {i}\n{note}ER  - \n\n'
    (tmp_path/'lib').mkdir()
    (tmp_path/'lib/a.ris').write_text(''.join([ris(0),ris(1),ris(2,'N1  - ASReview_relevant\n'),ris(3,'N1  - ASReview_irrelevant\n')]))
    (tmp_path/'lib/b.ris').write_text(ris(4))
    account = preprocess(dict(A=tmp_path/'lib'), [], tmp_path/'out.csv', LABELS, progress=False, batch_size=1)
    df = read_records(tmp_path/'out.csv', labels=LABELS)
    assert df.A.tolist()==[1,0,1] and df.title.str[6].tolist()==['2','3','4'] and account.reasons['undecided']==2


def test_a_label_may_be_called_as_decisions_are(tmp_path):
    corpus = write(tmp_path, 'corpus.csv', screened('c','included',['1','0']))
    assert preprocess({}, [corpus], tmp_path/'out.csv', ['included'], progress=False).labels==dict(included=1)
    with pytest.raises(ValueError, match="corpus.csv, column 'included': row 2 says 'maybe'"):
        preprocess(dict(A=write(tmp_path,'corpus.csv',screened('c','included',['1','maybe']))), [], tmp_path/'o.csv', LABELS, progress=False)


def test_a_label_must_not_shadow_a_field(tmp_path):
    with pytest.raises(ValueError, match="'source' is the name of a column"): preprocess({}, [], tmp_path/'o.csv', ['source'])


def test_an_error_leaves_nothing_behind(tmp_path):
    (tmp_path/'bad.csv').write_bytes(b'title,abstract\na,b\n\xff\xfe,c\n')
    with pytest.raises(ValueError, match='bad.csv is not UTF-8'): preprocess({}, [tmp_path/'bad.csv'], tmp_path/'o.csv', LABELS, progress=False)
    assert [p.name for p in tmp_path.iterdir()]==['bad.csv']


def test_worker_processes_give_the_same_bytes_even_without_a_main_guard(tmp_path):
    rng = np.random.default_rng(0)
    n = 300
    write(tmp_path,'corpus.csv',[dict(id=str(i), title=f'Title of paper number {rng.integers(200)}', abstract=text(f'topic {i}'), doi='') for i in range(n)])
    script = tmp_path/'script.py'
    script.write_text("import sys\nfrom ipbes_classifier.preprocess import preprocess\n"
                      "preprocess({}, [sys.argv[1]], sys.argv[2], ['A'], progress=False, workers=int(sys.argv[3]), batch_size=int(sys.argv[4]))\n")
    for name,workers,size in (('one.csv','1','1000'),('two.csv','2','40')):
        subprocess.run([sys.executable,script,tmp_path/'corpus.csv',tmp_path/name,workers,size], check=True, timeout=120)
    for end in ('.csv','_account.csv','_account.html'): assert (tmp_path/f'one{end}').read_text().replace('one','two')==(tmp_path/f'two{end}').read_text().replace('one','two')
    assert 1<len(pd.read_csv(tmp_path/'one.csv'))<n


def test_every_planted_duplicate_of_the_sample_is_found(tmp_path):
    sample = pytest.importorskip('ipbes_classifier.sample')
    files = sample.write_sample(tmp_path/'sample')
    planted = read_json(files['planted'])
    labels = list(files['positives'])
    account = preprocess({l:[p] for l,p in files['positives'].items()}, [files['corpus']], tmp_path/'c.csv', labels, keep_title_only=True, item_types=None, progress=False)
    df = read_records(tmp_path/'c.csv', labels=labels)
    gone = {(Path(r.file).name,r.id): r.into for r in account.rows().itertuples()}
    place = {i: n for n,i in enumerate(df.id)}
    where = lambda row: gone.get(tuple(row), place.get(row[1]))
    assert planted['pairs']
    for p in planted['pairs']:
        a,b = where(p['a']),where(p['b'])
        assert (a==b)==('near_duplicate' not in p['kind']), p
    near = [p['a'][0] for p in planted['pairs'] if p['kind']=='near_duplicate' and p['a'][0]==p['b'][0]]
    assert df[labels].sum().to_dict()=={l: n+near.count(files['positives'][l].name) for l,n in planted['papers'].items()}
    assert not df.title.str.contains('<i>|&amp;').any() and not df.abstract.str.contains('jats|<i>|&amp;|^Abstract').any()


@pytest.mark.skipif(not REAL, reason='IPBES_REAL_DATA is not set')
def test_the_account_of_a_real_library_agrees_with_what_is_known_of_it(tmp_path):
    "The counts of the library's own description; nothing of its text is shown, since failures print into logs."
    account = preprocess(dict(A=[Path(REAL)/'zotero_ias_export.csv']), [], tmp_path/'c.csv', LABELS, progress=False)
    f = account.files[0]
    assert f['rows']==4295 and f['item_types']['journalArticle']==3414 and f['languages']['']==1624
    assert {k:f['findings'][k] for k in ('titles_with_markup','titles_with_italics','abstracts_empty','dois_empty','dois_in_extra','dois_in_url','dois_not_bare',
                                         'rows_sharing_title','rows_sharing_doi')}==dict(titles_with_markup=742, titles_with_italics=733, abstracts_empty=2127,
        dois_empty=1119, dois_in_extra=215, dois_in_url=177, dois_not_bare=166, rows_sharing_title=14, rows_sharing_doi=4)
    assert f['findings']['rows_sharing_found_doi']==12 # eight more share a DOI that stands in `Extra` or `Url`: copies, and chapters with their book's
    assert account.n_read==account.n_kept+sum(account.reasons.values())==account.n_kept+len(account.rows())
    tags = pd.read_csv(Path(REAL)/'zotero_ias_export.csv', dtype=str, keep_default_na=False)['Manual Tags'].str.split('; ').explode().unique()
    rare = [t for t in tags if len(t)>6]
    kept = read_records(tmp_path/'c.csv')
    assert not any((kept[c]==t).any() for t in rare for c in ('keywords','source','language'))
    assert (kept.keywords=='').all()
