"""RIS and BibTeX: dialects of other programs, damaged files, random records and random bytes."""
import json
import re
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings, strategies as st

from ipbes_classifier import bibtex, ris
from ipbes_classifier.ris import COLUMNS

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FORMATS = {'ris':ris, 'bib':bibtex}


def read(module, path, size=1000): return pd.concat(list(module.frames(path, size)), ignore_index=True).fillna('')

def of_text(folder, suffix, text, encoding='utf-8'):
    path = folder/f'file.{suffix}'
    path.write_bytes(text if isinstance(text,bytes) else text.encode(encoding))
    return read(FORMATS[suffix], path)

def again(folder, suffix, df):
    FORMATS[suffix].write(df, folder/f'out.{suffix}')
    return read(FORMATS[suffix], folder/f'out.{suffix}')

def squeezed(s): return ' '.join(re.sub('[\x00-\x1f\x7f-\x9f\u2028\u2029]',' ',s).split())


ENDNOTE = '''TY  - JOUR
AU  - Toad, A.
AU  - Frog, B. C.
PY  - 2019
DA  - Mar 3
TI  - Cane toads in rivers: a review
T2  - Journal of Amphibians
VL  - 12
N1  - Times Cited: 7
Toad, A. Frog, B. C.
ASReview_irrelevant
AB  - First paragraph.

Second paragraph, after a blank line.
KW  - amphibians
rivers
invasive species
DO  - 10.1234/jamph.2019.7
UR  - <Go to ISI>://WOS:000000000000001
ID  - 17
ER  - 

'''
ZOTERO = '''TY  - JOUR
TI  - Cane toads in rivers
AU  - Toad, Anna
T2  - Journal of Amphibians
AB  - An abstract.
DA  - 2019/03/07/
PY  - 2019
DO  - 10.1234/toad
LA  - English
N1  - <p>ASReview_relevant</p>
N1  - <p>A person&#8217;s remark</p>
KW  - amphibians
L1  - files/toad.pdf
ER  - 
'''
SCOPUS = '''TY  - JOUR
TI  - Cane toads
T2  - Waters
J2  - Wat.
VL  - 3
PY  - 2019
DO  - 10.1234/SCOPUS.1
AU  - Toad, A.
AD  - Institute of Toads
AB  - An abstract. © 2019 Nobody.
KW  - Amphibians
DB  - Scopus
N1  - Export Date: 12 May 2024; Cited By: 3
M3  - Article
ER  -
'''
WOS = '''TY  - JOUR
AU  - Toad, A
AU  - Frog, B
TI  - Cane toads
T2  - WATERS
LA  - English
KW  - AMPHIBIANS
AB  - An abstract.
SN  - 1234-5678
DA  - MAR
PY  - 2019
VL  - 3
DO  - 10.1234/wos.1
AN  - WOS:000000000000001
ER  -

'''
OLD = '''TY - JOUR
A1 - Toad, A.
T1 - Cane toads in
  UK - based zoos
Y1 - 2019/03//
N2 - An abstract.
JF - Waters
JA - Wat.
M3 - doi: 10.1234/old.1
ER -
'''


@pytest.mark.parametrize('text,said', [
    (ENDNOTE, dict(title='Cane toads in rivers: a review', author='Toad, A.; Frog, B. C.', year='2019', journal='Journal of Amphibians', doi='10.1234/jamph.2019.7', id='17',
                   abstract='First paragraph. Second paragraph, after a blank line.', included='0')),
    (ZOTERO, dict(title='Cane toads in rivers', year='2019', language='English', keywords='', tags='amphibians', included='1')),
    (SCOPUS, dict(title='Cane toads', journal='Waters', doi='10.1234/SCOPUS.1', keywords='Amphibians', tags='', volume='3')),
    (WOS, dict(title='Cane toads', year='2019', id='WOS:000000000000001', language='English', keywords='AMPHIBIANS', tags='', volume='3', issn='1234-5678')),
    (OLD, dict(title='Cane toads in UK - based zoos', author='Toad, A.', year='2019', abstract='An abstract.', journal='Waters', doi='10.1234/old.1'))],
    ids=['endnote','zotero','scopus','wos','old'])
@pytest.mark.parametrize('change', [lambda s: s, lambda s: s.replace('\n','\r\n'), lambda s: '\ufeff'+s, lambda s: s.replace('\n','\r'), lambda s: '\n\n'+s*2, lambda s: re.sub('(?m)^ER *-.*\n?','',s)],
                         ids=['as_is','crlf','bom','cr','twice','no_end'])
def test_dialects_of_ris(tmp_path, text, said, change):
    df = of_text(tmp_path, 'ris', change(text))
    for column,value in said.items(): assert df[column].tolist()==[value]*len(df), column
    assert again(tmp_path, 'ris', df)[COLUMNS].equals(df[COLUMNS])


@pytest.mark.parametrize('text', [ENDNOTE,ZOTERO,SCOPUS,WOS,OLD], ids=['endnote','zotero','scopus','wos','old'])
def test_what_nobody_changed_is_written_as_it_stood(tmp_path, text):
    again(tmp_path, 'ris', of_text(tmp_path, 'ris', text))
    assert (tmp_path/'out.ris').read_text().strip('\n')==text.strip('\n')


@pytest.mark.parametrize('text', [ENDNOTE,ZOTERO,SCOPUS,WOS,OLD], ids=['endnote','zotero','scopus','wos','old'])
def test_only_the_field_that_changed_is_replaced(tmp_path, text):
    df = of_text(tmp_path, 'ris', text)
    new = again(tmp_path, 'ris', df.assign(abstract='Another abstract.', toads_score=0.25))
    assert new.abstract.tolist()==['Another abstract.'] and new.toads_score.tolist()==['0.25']
    was,now = (set((tmp_path/f).read_text().split('\n')) for f in ('file.ris','out.ris'))
    assert {l for l in was-now if not re.match(r'(AB|N2) {1,2}- |$|Second paragraph', l)}==set()
    assert {re.sub(r'^(..) +- .*$', r'\1', l) for l in now-was}<={'AB','N2','N1'}
    rest = [c for c in df if c not in ('abstract','original')]
    assert new[rest].equals(df[rest])


def test_values_that_only_look_different_touch_nothing(tmp_path):
    df = of_text(tmp_path, 'ris', ZOTERO).assign(doi='10.1234/TOAD', language='en', year=2019., included='1.0')
    again(tmp_path, 'ris', df.assign(title=df.title+' '))
    assert (tmp_path/'out.ris').read_text()==ZOTERO


def test_an_empty_column_takes_nothing_away(tmp_path):
    for suffix,text in [('ris',ZOTERO), ('bib',BIB)]:
        df = of_text(tmp_path, suffix, text)
        again(tmp_path, suffix, df.assign(**{c: '' for c in COLUMNS if c!='title'}|dict(abstract=None)))
        assert (tmp_path/f'out.{suffix}').read_text().strip()==text.strip()


def test_asreview_notes_come_and_go(tmp_path):
    df = pd.DataFrame(dict(title=['a','b','c'], included=[1,0,None], asreview_time=[1.5,None,None], asreview_note=['two\nlines, "quoted"','',None], score=[.9,.1,.5]))
    new = again(tmp_path, 'ris', df)
    assert new.included.tolist()==['1','0',''] and new.asreview_note.tolist()==['two\nlines, "quoted"','','']
    notes = [[l[6:] for l in r.split('\n') if l.startswith('N1')] for r in new.original]
    assert [n[0] for n in notes]==['ASReview_relevant','ASReview_irrelevant','ASReview_not_seen']
    assert json.loads(notes[0][2].removeprefix('asreview_note: '))=='two\nlines, "quoted"' and 'asreview_time: 1.5' in notes[0]
    changed = again(tmp_path, 'ris', new.assign(included=['0','0','1'], score='0.7'))
    assert changed.included.tolist()==['0','0','1'] and changed.score.tolist()==['0.7']*3
    assert [o.count('ASReview_') for o in changed.original]==[1,1,1] and [o.count('ipbes_score') for o in changed.original]==[1,1,1]


def test_silence_about_a_label_stays_silence(tmp_path):
    df = of_text(tmp_path, 'ris', ENDNOTE+SCOPUS)
    assert df.included.tolist()==['0','']
    again(tmp_path, 'ris', df)
    assert (tmp_path/'out.ris').read_text().split()==(ENDNOTE+SCOPUS).split()


def test_rispy_reads_what_is_written(tmp_path):
    import rispy
    df = pd.DataFrame(dict(title=['A title','B'], abstract=['An abstract',''], author=['Toad, A.; Frog, B.',''], keywords=['a; b',''], year=[2019,None], doi=['10.1234/x',''], score=[.5,.25]))
    ris.write(df, tmp_path/'a.ris')
    with open(tmp_path/'a.ris', encoding='utf-8') as f: a,b = rispy.load(f)
    assert a==dict(type_of_reference='GEN', title='A title', abstract='An abstract', year='2019', doi='10.1234/x', keywords=['a','b'], authors=['Toad, A.','Frog, B.'], notes=['ipbes_score: 0.5','ipbes_keywords: "a; b"'])
    assert b==dict(type_of_reference='GEN', title='B', notes=['ipbes_score: 0.25'])


def test_records_without_type_and_stray_lines(tmp_path):
    text = 'TI  - One\nAB  - x\nER  - \n\nTI  - Two\nER  - \nER  - \nKW  - stray\nTY  - JOUR\nTI  - Three\nER  - \nthe end\n'
    df = of_text(tmp_path, 'ris', text)
    assert df.title.tolist()==['One','Two','Three'] and df.keywords.tolist()==['','','']
    assert sorted('\n'.join(df.original).split())==sorted(text.split())
    new = again(tmp_path, 'ris', df.assign(score=1))
    assert new.title.tolist()==df.title.tolist() and new.score.tolist()==['1']*3


def test_encodings(tmp_path):
    with pytest.warns(UserWarning, match='cp1252'): assert of_text(tmp_path, 'ris', 'TY  - JOUR\nTI  - Kröten\nER  - \n', 'cp1252').title[0]=='Kröten'
    for encoding in ('utf-16','utf-8-sig'):
        assert of_text(tmp_path, 'ris', 'TY  - JOUR\nTI  - Kröten\nER  - \n', encoding).title[0]=='Kröten'
        assert of_text(tmp_path, 'bib', '@misc{a, title={Kröten}}', encoding).title[0]=='Kröten'


def test_a_record_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    (tmp_path/'a.ris').write_text('TY  - JOUR\n'+('KW  - '+'x'*1000+'\n')*20_000)
    with pytest.raises(ValueError, match=r'a\.ris, line 1: a record of more than'): read(ris, tmp_path/'a.ris')
    (tmp_path/'a.bib').write_text('@misc{a, title={A}}\n@misc{b, title={'+('x'*1000+'\n')*20_000)
    with pytest.raises(ValueError, match=r'a\.bib, line 2: more than'): read(bibtex, tmp_path/'a.bib')


def test_frames_stream(tmp_path):
    (tmp_path/'a.ris').write_text(ZOTERO*25)
    (tmp_path/'a.bib').write_text('@misc{a, title={A}}\n'*25)
    for module,name in [(ris,'a.ris'),(bibtex,'a.bib')]:
        frames = list(module.frames(tmp_path/name, 10))
        assert [len(f) for f in frames]==[10,10,5] and all((f.dtypes=='str').all() for f in frames)
        assert module.write(iter(frames), tmp_path/f'b.{name}')==25
        assert read(module, tmp_path/f'b.{name}').title.tolist()==read(module, tmp_path/name).title.tolist()


def test_columns_of_notes_stay(tmp_path):
    (tmp_path/'a.ris').write_text('TY  - JOUR\nN1  - ipbes_x: 1\nER  - \nTY  - JOUR\nTI  - no note\nER  - \n')
    assert [f.get('x',pd.Series()).tolist() for f in ris.frames(tmp_path/'a.ris', 1)]==[['1'],['']]


BIB = r'''@string{waters = "Waters " # {of the World}}
@Article{ISI:000000000000001,
Author = {Toad, Anna and Frog, B. C. and {Institute of Toads and Frogs}},
Title = {{Cane toads in
   rivers: a {DNA} study of 50\% \& more}},
Journal = waters,
Year = {{2019}},
Abstract = {{First line
   second line, p $<$ 0.05, 10 $\mu$g.}},
DOI = {{10.1234/wos.1}},
Keywords = {{amphibians; rivers}},
Unique-ID = {{ISI:000000000000001}},
month = mar # "~1",
file = {C\:\\toad.pdf:application/pdf},
}

% a remark

@comment{jabref-meta: databaseType:bibtex;}
'''


def test_bibtex_of_web_of_science(tmp_path):
    row = of_text(tmp_path, 'bib', BIB).iloc[0]
    assert row.title=='Cane toads in rivers: a DNA study of 50% & more' and row.author=='Toad, Anna; Frog, B. C.; Institute of Toads and Frogs'
    assert (row.year,row.doi,row.tags,row.journal,row.item_type,row.id)==('2019','10.1234/wos.1','amphibians; rivers','Waters of the World','article','ISI:000000000000001')
    assert row.abstract=='First line second line, p < 0.05, 10 μg.'
    assert row.keywords=='' and of_text(tmp_path, 'bib', BIB.replace('file =','pdf =')).iloc[0].keywords=='amphibians; rivers' # a file says that a reference manager had it


@pytest.mark.parametrize('title', ['Other title', r'100% {of} \it $5 --', 'a "quote"'])
def test_only_the_value_that_changed_is_replaced_in_bibtex(tmp_path, title):
    df = of_text(tmp_path, 'bib', BIB)
    new = again(tmp_path, 'bib', df.assign(title=title, toads_score=0.5))
    assert new.title.tolist()==[title] and new.toads_score.tolist()==['0.5']
    text = (tmp_path/'out.bib').read_text()
    for part in BIB.split('Title =')[0],BIB.split('Journal =')[1].split(',\n}')[0],BIB[BIB.index('% a remark'):].strip(): assert part in text
    rest = [c for c in df if c not in ('title','original')]
    assert new[rest].equals(df[rest])


def test_strings_go_with_the_entries_that_use_them(tmp_path):
    text = '@string{a="A"}\n@string{b=a # "B"}\n@string{c={C}}\n'+''.join(f'@misc{{k{i}, title={{T{i}}}, journal={v}}}\n' for i,v in enumerate(['b','c','{none}','b # " " # c']))
    df = of_text(tmp_path, 'bib', text)
    assert df.journal.tolist()==['AB','C','none','AB C']
    new = again(tmp_path, 'bib', df.iloc[[3,1]])
    assert new.journal.tolist()==['AB C','C'] and (tmp_path/'out.bib').read_text().count('@string')==3
    assert again(tmp_path, 'bib', df).journal.tolist()==df.journal.tolist() and (tmp_path/'out.bib').read_text().count('@string')==3


def test_odd_entries_are_kept(tmp_path):
    text = '@misc{same, title={A}}\n@MISC(same, title="B {"} C", title={twice})\n@misc{empty}\n@misc{x, note={me@home {y}}, title = {Z},}\n'
    df = of_text(tmp_path, 'bib', text)
    assert df.title.tolist()==['A','B " C','','Z'] and df.id.tolist()==['same','same','empty','x']
    new = again(tmp_path, 'bib', df.assign(year='2020'))
    assert new.year.tolist()==['2020']*4 and new.title.tolist()==df.title.tolist()


@pytest.mark.parametrize('text,line', [('@misc{a, title={A}}\n@misc{b, title={B}\n\n@misc{c, title={C}}', 2), ('@misc{a, title={A}}\n\n@misc{b, title={B', 3), ('@misc{a title={A}}', 1),
                                       ('@misc{a, title}', 1), ('@misc{a, title="A}\n@misc{b}', 1)])
def test_damaged_bibtex_names_the_line(tmp_path, text, line):
    with pytest.raises(ValueError, match=rf'file\.bib, line {line}: what begins here'): of_text(tmp_path, 'bib', text)


@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize('text', ['', '\n\n', 'A letter.\n', 'title,abstract\na,b\n', '{"a": 1}', 'ER  - \n'])
def test_no_record_is_an_error(tmp_path, suffix, text):
    with pytest.raises(ValueError, match=rf'file\.{suffix} holds no'): of_text(tmp_path, suffix, text)


def test_formats_turn_into_each_other(tmp_path):
    a = of_text(tmp_path, 'ris', ENDNOTE+ZOTERO)
    b = again(tmp_path, 'bib', a)
    kept = ['title','abstract','year','doi','keywords','language','author','journal','included']
    assert b[kept].equals(a[kept])
    assert again(tmp_path, 'ris', b)[kept].equals(a[kept])
    assert b.id.tolist()==['17','toad2019rivers']


def test_keys_are_given_once(tmp_path):
    df = pd.DataFrame(dict(title=['A','B','C'], id=['x','x','X']))
    new = again(tmp_path, 'bib', df)
    keys = re.findall(r'@misc\{([^,]*),', (tmp_path/'out.bib').read_text())
    assert len({k.lower() for k in keys})==3 and new.id.tolist()==df.id.tolist()
    df = df.assign(id=['Müller 2019','https://openalex.org/W1','plain_1'])
    assert again(tmp_path, 'bib', df).id.tolist()==df.id.tolist() and (tmp_path/'out.bib').read_text().count('ipbes_id')==1


TAGGED = {'ris': [ZOTERO.replace('KW  - amphibians','KW  - include'),
                  'TY  - JOUR\nTI  - Toads\nDP  - Web of Science\nDB  - Scopus\nAN  - WOS:1\nKW  - include\nER  - \n', # Zotero names where it found the record, in front of its tags
                  'TY  - JOUR\nT1  - Toads\nN1  - read\nKW  - include, chapter 4\nER  - \n', SCOPUS.replace('KW  - Amphibians','KW  - include\nL1  - a.pdf')],
          'bib': ['@article{toad_2019,\n\ttitle = {Toads},\n\tkeywords = {chapter 4, include},\n\tfile = {x.pdf:files/1/x.pdf:application/pdf},\n}\n', '@article{a, title={T}, keywords={include}}',
                  BIB.replace('amphibians; rivers','include')]}


@pytest.mark.parametrize('suffix,text', [(s,t) for s,texts in TAGGED.items() for t in texts])
def test_a_tag_of_a_person_is_never_a_keyword(tmp_path, suffix, text):
    from ipbes_classifier.records import read_records
    df = of_text(tmp_path, suffix, text)
    assert df.keywords.tolist()==[''] and 'include' in df.tags[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        records = read_records(tmp_path/f'file.{suffix}')
    assert len(records)==1 and 'include' not in records.drop(columns='included',errors='ignore').to_csv()
    new = again(tmp_path, suffix, df.assign(keywords='rivers; toads'))
    assert new.keywords.tolist()==['rivers; toads'] and new.tags.tolist()==df.tags.tolist()
    for other in FORMATS:
        moved = again(tmp_path, other, new.drop(columns='original'))
        assert moved.keywords.tolist()==['rivers; toads'] and moved.tags.tolist()==df.tags.tolist()


def test_scopus_tells_own_words_from_its_index(tmp_path):
    row = of_text(tmp_path, 'bib', '@ARTICLE{Smith2020,\nauthor={Smith, J.},\ntitle={A},\nauthor_keywords={own; words},\nkeywords={indexed},\nsource={Scopus},\n}').iloc[0]
    assert (row.keywords,row.tags)==('own; words','indexed')


PLACE = dict(volume='12', issue='3-4', pages='11-19', issn='1234-567X', publisher='Press & Sons')

@pytest.mark.parametrize('suffix', FORMATS)
def test_volume_issue_pages_issn_and_publisher(tmp_path, suffix):
    df = pd.DataFrame([dict(title='A',journal='J')|PLACE, dict(title='B',volume='',issue='',pages='e1234',issn='',publisher='')])
    new = again(tmp_path, suffix, df)
    assert new[list(PLACE)].equals(df[list(PLACE)].fillna('').astype('str'))
    text = (tmp_path/f'out.{suffix}').read_text()
    for line in ['VL  - 12','IS  - 3-4','SP  - 11','EP  - 19','SN  - 1234-567X','PB  - Press & Sons','SP  - e1234'] if suffix=='ris' else ['volume = {12}','number = {3-4}','pages = {11--19}','issn = {1234-567X}']: assert line in text
    change = dict(volume='13', issue='5', pages='20-22', issn='0000-0001', publisher='Other')
    assert again(tmp_path, suffix, new.iloc[:1].assign(**change))[list(PLACE)].iloc[0].to_dict()==change
    assert again(tmp_path, suffix, new.assign(pages=['11–19','e1234'])).original.tolist()==new.original.tolist()


@pytest.mark.parametrize('suffix', FORMATS)
def test_types_survive(tmp_path, suffix):
    kinds = ['journalArticle','magazineArticle','newspaperArticle','patent','presentation','blogPost','preprint','thesis','report','bookSection','conferencePaper','book','dataset','webpage','podcast','manuscript']
    new = again(tmp_path, suffix, pd.DataFrame(dict(title=kinds, item_type=kinds, journal='J')))
    assert [ris.type_name(t) for t in new.item_type]==kinds
    if suffix=='ris': assert re.findall('TY  - (.*)', (tmp_path/'out.ris').read_text())[:7]==['JOUR','MGZN','NEWS','PAT','SLIDE','BLOG','UNPB']


def test_the_book_of_a_chapter_is_its_container(tmp_path):
    df = of_text(tmp_path, 'ris', 'TY  - CHAP\nTI  - Chap\nBT  - The Book\nER  - \nTY  - BOOK\nBT  - A book alone\nER  - \n')
    assert df[['title','journal']].values.tolist()==[['Chap','The Book'],['A book alone','']]


@pytest.mark.parametrize('suffix,text', [('ris','TY  - JOUR\nTI  - T\nN1  - ipbes_old_score: 0.5\nipbes_remark: "mine"\nN1  - read by Anna\nER  - \n'),
                                         ('bib','@misc{a,\n title = {T},\n ipbes_old_score = {0.5},\n ipbes_remark = {mine},\n other = {x}\n}\n')])
def test_stale_scores_are_taken_away(tmp_path, suffix, text):
    df = of_text(tmp_path, suffix, text)
    assert df.old_score.tolist()==['0.5']
    for change in (df.assign(old_score=''), df.drop(columns='old_score')):
        FORMATS[suffix].write(change, tmp_path/f'out.{suffix}', notes=['old_score'])
        new = read(FORMATS[suffix], tmp_path/f'out.{suffix}')
        assert 'old_score' not in new and new.remark.tolist()==['mine'] and new.title.tolist()==['T']
        assert 'read by Anna' in new.original[0] if suffix=='ris' else 'other = {x}' in new.original[0]
    assert again(tmp_path, suffix, df.assign(old_score='')).old_score.tolist()==['0.5'] # without names nothing is taken away


def test_a_changed_label_leaves_no_other_behind(tmp_path):
    df = of_text(tmp_path, 'ris', 'TY  - JOUR\nTI  - T\nN1  - asreview_label: 1\nN1  - ASReview_relevant\nER  - \nTY  - JOUR\nTI  - U\nN1  - asreview_label: 0\nER  - \n')
    assert df.included.tolist()==['1','0']
    new = again(tmp_path, 'ris', df.assign(included=['0','1']))
    assert new.included.tolist()==['0','1'] and 'asreview_label' not in (tmp_path/'out.ris').read_text()
    assert again(tmp_path, 'ris', df.drop(columns='included').assign(asreview_label=['0','0'])).included.tolist()==['0','0']


def test_addresses_are_written_as_they_are(tmp_path):
    df = pd.DataFrame(dict(title=['A'], doi=['10.1234/a_b~c%d'], url=['http://a.b/~u?x=1&y_2=%20#z']))
    new = again(tmp_path, 'bib', df)
    assert 'doi = {10.1234/a_b~c%d}' in (tmp_path/'out.bib').read_text() and 'url = {http://a.b/~u?x=1&y_2=%20#z}' in (tmp_path/'out.bib').read_text()
    assert new[['doi','url']].equals(df[['doi','url']])


def test_a_line_of_an_abstract_may_look_like_an_entry(tmp_path):
    text = '@article{a,\n title={A},\n abstract = {Write to\n@home (x) now}\n}\n@article{b, title={B}}\n'
    df = of_text(tmp_path, 'bib', text)
    assert df.title.tolist()==['A','B'] and df.abstract[0]=='Write to @home (x) now'
    again(tmp_path, 'bib', df)
    assert (tmp_path/'out.bib').read_text().split()==text.split()


@pytest.mark.parametrize('suffix,text', [('ris','TY  - JOUR\nTI  - T\nER  - \n\n'), ('bib','@misc{a, title={T}}\n')])
def test_files_behind_one_another(tmp_path, suffix, text):
    assert len(of_text(tmp_path, suffix, ('\ufeff'+text)*3))==3


@pytest.mark.parametrize('suffix,record', [('ris','TY  - JOUR\nN1  - ipbes_x{i}: 1\nER  - \n'), ('bib','@misc{{k{i}, ipbes_x{i}={{1}}}}\n')])
def test_a_name_of_its_own_in_each_record_is_refused(tmp_path, suffix, record):
    assert of_text(tmp_path, suffix, ''.join(record.format(i=i) for i in range(100))).shape[0]==100
    with pytest.raises(ValueError, match=rf'file\.{suffix}: the records have notes .* more than 500 names'): of_text(tmp_path, suffix, ''.join(record.format(i=i) for i in range(600)))


letters = st.text(st.characters(exclude_categories=['Cs']), max_size=30)
tricky = st.lists(st.sampled_from(['TY  - JOUR','ER  - ','AB  - ','\n','\r','\t','; ',';','ipbes_x: 1','ASReview_relevant','<p>','&amp;','"','{','}','\\','$','%','#','~','^','_','&','@article{','--',
                                   "''",'``',',','=',' and ','and','\u2028','\x85','é','北','\\"','\\alpha','?`','10.1234/x']), max_size=8).map(''.join)
value = letters|tricky
single = value.map(lambda s: s.replace('; ',' '))
many = st.lists(value.map(lambda s: squeezed(s.replace(';','').replace(',',''))).filter(bool), max_size=3).map('; '.join)
record = st.fixed_dictionaries(dict(title=single, abstract=single, journal=single, language=single, url=single, doi=st.sampled_from(['','10.1234/a_b','10.1234/a(b)<c>']), year=st.sampled_from(['','1999','2020']),
                                    keywords=many, tags=many, author=many, volume=single, issue=single, publisher=single, pages=st.sampled_from(['','e12','1-9','S1-S4']), issn=st.sampled_from(['','1234-567X']), toads_score=st.sampled_from(['','0.5','-1e-05']), remark=value))


@quick
@given(st.lists(record, min_size=1, max_size=4))
def test_any_record_survives_ris(tmp_path, rows):
    df = pd.DataFrame(rows)
    once = again(tmp_path, 'ris', df)
    assume(not df.url.str.contains('10.').any())
    for c in df:
        want = df[c].tolist() if c=='remark' else df[c].map(squeezed).tolist()
        assert [s if c=='remark' else squeezed(s) for s in once.get(c,pd.Series(['']*len(df)))]==want, c
    assert again(tmp_path, 'ris', once).drop(columns='original').equals(once.drop(columns='original'))


@quick
@given(st.lists(record, min_size=1, max_size=4))
def test_any_record_survives_bibtex(tmp_path, rows):
    df = pd.DataFrame(rows)
    once = again(tmp_path, 'bib', df)
    assume(not df.url.str.contains('10.').any())
    for c in df: assert once.get(c,pd.Series(['']*len(df))).map(squeezed).tolist()==df[c].map(squeezed).tolist(), c
    assert again(tmp_path, 'bib', once).drop(columns='original').equals(once.drop(columns='original'))


@quick
@given(record, record, st.sampled_from(['ris','bib']))
def test_any_change_arrives_and_nothing_else(tmp_path, old, new, suffix):
    once = again(tmp_path, suffix, pd.DataFrame([old]))
    twice = again(tmp_path, suffix, once.assign(**new))
    assume('10.' not in old['url']+new['url'])
    for c in new:
        want = squeezed(new[c]) or squeezed(once[c][0] if c in once else '')
        assert squeezed(twice[c][0] if c in twice else '')==want, c


lines = st.lists(st.sampled_from([b'TY  - JOUR',b'TY - X',b'ty  - a',b'ER  - ',b'ER',b'TI  - a',b'AB  - b',b'  KW  - c',b'N1  - <p>ASReview_relevant</p>',b'N1  - ipbes_x: "a',b'UK  - d',b'',b'words',b'\xff\xfe',b'\x00',b'\xe9',
                                  b'@article{a,',b'@article(b,',b'@string{c = "d"}',b'@comment{',b'title = {a {b} \\"{o} $x',b'journal = c # "x",',b'}',b')',b'"',b'title={A}}',b'@a{b, title = c}'])|st.binary(max_size=12), max_size=30)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines.map(b'\n'.join), st.sampled_from(['ris','bib']))
@example(b'TY  - JOUR\n', 'ris')
@example(b'@a{b}', 'bib')
def test_any_bytes_give_records_or_one_error(tmp_path, content, suffix):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: df = of_text(tmp_path, suffix, content)
        except ValueError as e:
            assert f'file.{suffix}' in str(e) and '\n' not in str(e)
            return
        assert len(df) and list(df)[:len(COLUMNS)]==COLUMNS and list(df)[-1]=='original'
        new = again(tmp_path, suffix, df)
        rest = [c for c in df if c!='original']
        assert new[rest].equals(df[rest])


@pytest.mark.parametrize('suffix,text', [
    ('ris','TY  - '*200_000), ('ris','TY  - JOUR\n'+'N1  - '+'<p>ipbes_'*50_000+'\n'), ('ris','TY  - JOUR\nN1  - '+'ipbes_x: "\\'*50_000+'\nER  - '), ('ris','TY  - J\n'+'  \n'*200_000),
    ('ris','TY  - JOUR\nUR  - '+'doi.org/10.1234/'*50_000), ('bib','@'*500_000), ('bib','@misc{a, title={'+'{'*100_000+'}'*100_000+'}}'), ('bib','@misc{a, title={'+'\\a '*200_000+'}}'),
    ('bib','@misc{a, title={'+'$x '*200_000+'}}'), ('bib','@misc{a, author={'+' and '*100_000+'}}'), ('bib','@misc{a, title={'+'\\"{'*50_000+'}'*50_000+'}}'), ('bib','@misc{a,'+'x=a#b,'*50_000+'}'), ('bib',''.join(f'@misc{{k{i}, title={{Title {i}}}, abstract={{{"word "*20}}}}}' for i in range(16_000))),
    ('bib','@misc{a, title={'+'{a} '*100_000+'}}'), ('bib','@string{a=a # a}\n'*50+'@misc{b, title=a # a}'), ('bib',''.join(f'@string{{s{i}=s{i-1} # s{i-1}}}\n' for i in range(60))+'@misc{b, title=s59}')])
def test_time_is_bounded(tmp_path, suffix, text):
    start = time.process_time()
    try: again(tmp_path, suffix, of_text(tmp_path, suffix, text))
    except ValueError as e: assert f'file.{suffix}' in str(e)
    assert time.process_time()-start<20


MEASURE = '''
import resource, sys, time
from importlib import import_module
module = import_module('ipbes_classifier.'+sys.argv[1])
start = time.process_time()
n = module.write((f.assign(toads_score=0.5) for f in module.frames(sys.argv[2])), sys.argv[2]+'.out')
print(n, time.process_time()-start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
'''
ONE = {'ris': 'TY  - JOUR\nID  - {i}\nTI  - {title}\n'+'AU  - Toad, A.\n'*5+'AB  - {abstract}\nPY  - 2019\nT2  - Waters\n'+'KW  - amphibians\n'*6+'DO  - 10.1234/t.{i}\nXX  - unknown\nN1  - a remark\nER  - \n\n',
       'bibtex': '@article{{key{i},\n title = {{{{{title}}}}},\n author = {{Toad, {{\\"O}}zg{{\\"u}}r and Frog, B.}},\n abstract = {{{abstract} 50\\% $\\alpha$}},\n year = 2019,\n journal = {{Waters}},\n'
                 ' keywords = {{amphibians, rivers}},\n doi = {{10.1234/t.{i}}},\n other = {{kept}}\n}}\n\n'}


@pytest.mark.long
@pytest.mark.parametrize('name,seconds', [('ris',60),('bibtex',150)])
def test_eighty_thousand_records(tmp_path, name, seconds):
    words = [''.join(chr(97+(i*7+j*5)%26) for j in range(3+i%8)) for i in range(997)]
    text = lambda i,n: ' '.join(words[(i*31+j*j)%997] for j in range(n))
    with open(tmp_path/'big','w') as f:
        for i in range(80_000): f.write(ONE[name].format(i=i, title=text(i,14), abstract=text(i,220)))
    n,took,memory = map(float, subprocess.run([sys.executable,'-c',MEASURE,name,str(tmp_path/'big')], capture_output=True, text=True, check=True).stdout.split())
    assert n==80_000 and took<seconds and memory<2048
