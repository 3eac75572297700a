"Web of Science and PubMed files that no page should have to show: random records, random bytes, another reader."
import gzip
import re
import tracemalloc
import warnings

import pandas as pd
import pytest
import rispy
from hypothesis import given, settings
from hypothesis import strategies as st

from ipbes_classifier.tagged import WOS_COLUMNS, WOS_TAGS, nbib_frames, wos_frames, write_wos

TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=40) # whatever a file of text can hold
ROW = st.fixed_dictionaries(dict.fromkeys(WOS_TAGS,TEXT)|dict(pages=st.sampled_from(['','e12','1-9','S1-S4'])))
FREE = [c for c in WOS_TAGS if c not in ('doi','year','language','pages')] # the others are not rewritten where only their spelling differs

NBIB = 'PMID- 1\nTI  - Bees of a\n      meadow\nLID - 10.1/b [doi]\nAB  - Some.\nFAU - Okoye, Ada\nDP  - 2019 Jun\n\nPMID- 2\nTI  - Wasps\n'
WOS = 'FN Clarivate Analytics Web of Science\nVR 1.0\nPT J\nAU Okoye, A\n   Chen, D\nTI Bees\n   of a meadow\nAB Some.\nX9 kept\nPY 2019\nER\n\nPT J\nTI Wasps\nER\n\nEF\n'


def read(path, size=3)->pd.DataFrame:
    "All records of a file, an empty frame if there are none."
    return pd.concat([pd.DataFrame(columns=list(WOS_COLUMNS),dtype='str'), *wos_frames(path,size)], ignore_index=True)


def held(row):
    "What a file can hold of a row: each value on one line, names apart."
    line = {c: re.sub('[\r\n\0]+',' ',v).strip() for c,v in row.items()}
    return line|dict(author='; '.join(n.strip() for n in line['author'].split(';') if n.strip()))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4))
def test_any_record_survives(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp('wos')/'out.txt'
    back = read(write_wos(pd.DataFrame(rows,dtype='str'), path))
    assert back[list(WOS_TAGS)].to_dict('records')==[held(r) for r in rows]
    before = path.read_bytes()
    assert read(write_wos(back,path)).equals(back) and path.read_bytes()==before


@settings(max_examples=60, deadline=None)
@given(ROW, st.fixed_dictionaries({}, optional=dict.fromkeys(FREE,TEXT)))
def test_a_changed_field_changes_nothing_else(tmp_path_factory, row, changes):
    path = tmp_path_factory.mktemp('wos')/'out.txt'
    write_wos(pd.DataFrame([row],dtype='str'), path)
    path.write_text(path.read_text(encoding='utf-8').replace('\nER\n','\nCR Smith, 2001\n   Jones, 2003\nX9 kept\nER\n'), encoding='utf-8')
    first = read(path)
    again = read(write_wos(first.assign(**changes), path))
    assert again[list(WOS_TAGS)].to_dict('records')==[held(row|changes)]
    assert '\nCR Smith, 2001\n   Jones, 2003\nX9 kept\n' in again['original'][0]
    tags = lambda text: [l[:2] for l in text.split('\n') if not l.startswith('  ')]
    assert {*tags(again['original'][0])}-{*tags(first['original'][0])} <= {'TI','AB','DE','AU','SO','DT','UT','VL','IS','SN','PU'}


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300),
    st.builds(lambda text,at,new: text[:at].encode()+new+text[at:].encode(), st.sampled_from([WOS,NBIB]), st.integers(0,150), st.binary(min_size=1,max_size=8)),
    st.builds(lambda text,at: text[:at].encode(), st.sampled_from([WOS,NBIB]), st.integers(0,150))))
def test_any_bytes_give_records_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('any')/'file.txt'
    path.write_bytes(data)
    for frames in (wos_frames,nbib_frames):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: rows = [r for f in frames(path,2) for r in f.to_dict('records')]
            except ValueError as e: assert str(path) in str(e) and '\n' not in str(e)
            else: assert all(isinstance(v,str) for r in rows for v in r.values())


def test_agrees_with_rispy(tmp_path):
    "Where rispy can read a record, both find the same."
    path = tmp_path/'a.txt'
    path.write_text(WOS)
    ours,theirs = read(path),rispy.loads(WOS, implementation=rispy.WokParser, skip_unknown_tags=True)
    assert ours['title'].tolist()==[r['document_title'] for r in theirs]
    assert ours['author'].tolist()==['; '.join(r.get('authors',[])) for r in theirs]
    assert ours['year'].tolist()==[r.get('publication_year','') for r in theirs]


@pytest.mark.parametrize('pack', [bytes, lambda b: gzip.compress(b), lambda b: b'\xef\xbb\xbf'+b, lambda b: b.replace(b'\n',b'\r\n'), lambda b: b.decode().encode('utf-16')])
def test_however_it_is_packed(tmp_path, pack):
    path = tmp_path/'file.txt'
    path.write_bytes(pack(WOS.encode()))
    assert read(path)['title'].tolist()==['Bees of a meadow','Wasps']
    path.write_bytes(pack(NBIB.encode()))
    df = pd.concat(nbib_frames(path))
    assert df[['title','doi','year','author']].values.tolist()==[['Bees of a meadow','10.1/b','2019','Okoye, Ada'],['Wasps','','','']]


def test_old_exports_are_read_with_a_warning(tmp_path):
    path = tmp_path/'old.txt'
    path.write_bytes('PT J\nTI Caf\u00e9\nER\n'.encode('cp1252'))
    with pytest.warns(UserWarning, match='old.txt is not UTF-8'): assert read(path)['title'].tolist()==['Caf\u00e9']


@pytest.mark.parametrize('text,where', [(WOS.replace('ER\n\nPT','\nPT'),'line 3'), (WOS[:-8],'line 13'), (WOS.replace('   of a','of a'),'line 7'), (WOS.replace('PT J','TI J',1),'line 3')])
def test_a_damaged_record_is_named(tmp_path, text, where):
    path = tmp_path/'bad.txt'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'bad.txt.*{where}'): read(path)


def test_a_file_is_never_in_memory_as_a_whole(tmp_path):
    path = tmp_path/'long.txt'
    with open(path,'w') as f:
        f.write('FN Clarivate Analytics Web of Science\nVR 1.0\n')
        for i in range(4000): f.write(f'PT J\nTI Bees {i}\nAB {"Many words of an abstract. "*80}\nUT WOS:{i}\nER\n\n')
    tracemalloc.start()
    n = sum(len(f) for f in wos_frames(path,50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n==4000 and peak<path.stat().st_size/2, (peak,path.stat().st_size)


def test_a_record_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('ipbes_classifier.tagged._MAX', 10_000)
    (tmp_path/'a.txt').write_text('PT J\n'+'   and on it goes\n'*2000)
    with pytest.raises(ValueError, match='begins in line 1 has no ER'): read(tmp_path/'a.txt')
    (tmp_path/'b.nbib').write_text('PMID- 1\n'+'      and on it goes\n'*2000)
    with pytest.raises(ValueError, match='begins in line 1 has more than 10,000'): list(nbib_frames(tmp_path/'b.nbib'))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path/'out.txt'
    path.write_text('old')
    with pytest.raises(ValueError, match='out.txt, record 2'): write_wos(pd.DataFrame(dict(title=pd.Series(['Bees','\ud800'],dtype=object))), path)
    with pytest.raises(ValueError, match='record 1, line 3'): write_wos(pd.DataFrame(dict(title=['Bees'],original=['PT J\nTI Bees\nno tag\nER'])), path)
    assert path.read_text()=='old' and [p.name for p in tmp_path.iterdir()]==['out.txt']


def test_records_are_written_back_as_they_were(tmp_path):
    "Through records, whose DOIs and languages are spelt otherwise; a filled DOI is the only new line."
    from ipbes_classifier.records import read_records, write_records
    path = tmp_path/'in.txt'
    path.write_text(WOS.replace('PY 2019','LA English\nDI 10.1234/BEES.1\nPY 2019'), encoding='utf-8-sig')
    df = read_records(path, keep_all=True)
    write_records(df, tmp_path/'out.txt')
    assert (tmp_path/'out.txt').read_bytes()==path.read_bytes()
    df.loc[1,'doi'] = '10.1234/wasps'
    write_records(df, tmp_path/'out.txt')
    assert (tmp_path/'out.txt').read_text(encoding='utf-8')==path.read_text(encoding='utf-8').replace('TI Wasps\n','TI Wasps\nDI 10.1234/wasps\n')


@pytest.mark.parametrize('between', ['\n\ufeff','\ufeff','','\r\n'])
def test_files_put_behind_one_another(tmp_path, between):
    (tmp_path/'a.txt').write_text('\ufeff'+WOS.rstrip('\n')+between+WOS, encoding='utf-8')
    assert read(tmp_path/'a.txt')['title'].tolist()==['Bees of a meadow','Wasps']*2


def test_volume_issue_pages_issn_and_publisher(tmp_path):
    place = dict(volume='12', issue='3', pages='11-19', issn='1234-567X', publisher='PRESS')
    (tmp_path/'a.txt').write_text('PT J\nTI Bees\nPU PRESS\nSN 1234-567X\nVL 12\nIS 3\nBP 11\nEP 19\nER\n')
    df = read(tmp_path/'a.txt')
    assert df.iloc[0][list(place)].to_dict()==place
    change = dict(volume='13', issue='4', pages='e20', issn='0000-0001', publisher='OTHER')
    new = read(write_wos(df.assign(**change), tmp_path/'b.txt'))
    assert new.iloc[0][list(place)].to_dict()==change and 'EP' not in new['original'][0]
    assert read(write_wos(df.drop(columns='original'), tmp_path/'b.txt')).iloc[0][list(place)].to_dict()==place
    write_wos(df.assign(pages='11–19'), tmp_path/'b.txt')
    assert read(tmp_path/'b.txt')['original'].tolist()==df['original'].tolist()
    (tmp_path/'a.nbib').write_text('PMID- 1\nTI  - Wasps\nVI  - 12\nIP  - 3\nPG  - 11-19\nIS  - 1234-567X (Electronic)\n')
    assert next(nbib_frames(tmp_path/'a.nbib')).iloc[0][list(place)].to_dict()==place|dict(publisher='')


def test_labels_do_not_get_lost_without_a_word(tmp_path):
    with pytest.warns(UserWarning, match=r"b\.txt: .*no place for 'IAS', 'IAS_score'; these columns are left out"): write_wos(pd.DataFrame(dict(title=['Bees'],IAS=[1],IAS_score=[.5],empty=[''])), tmp_path/'b.txt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        write_wos(pd.DataFrame(dict(title=['Bees'],IAS=[None],source=['x'])), tmp_path/'b.txt')
