"Records in every format: what is written is read back, what other tools wrote is kept, and bytes of any kind end in records or in one sentence."
import gzip
import json
import re
import warnings
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ipbes_classifier import tables
from ipbes_classifier.preprocess import preprocess
from ipbes_classifier.records import convert_records, iter_records, read_records, to_records, write_records

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
def examples(n): return settings(max_examples=n, deadline=None, suppress_health_check=CHECKS)

# letters of any script and signs that formats use for themselves; no line ends or control characters, which most formats cannot hold
text = st.text(st.characters(exclude_categories=('Cs','Cc','Zl','Zp','Cn'), exclude_characters='\ufeff'), max_size=40)
tricky = st.sampled_from(['=1+1','+a','@b','-','"','""','\'','{x}','}','{','\\','a & b','%','TY  - JOUR','ER  - ','ER','EF','@article{','  x','5 % of $3_2 #1 ~','"a" b',';','a; b',',','null','NA','NaN','0','007','1e5',
                          'N1  - x','<p>a</p>','&amp;','http://x.y/z?a=1&b=2','é ß ø Å ﬁ 漢字 😀','a -- b','---','PMID- 1','PT J','{"id": 1}','a\u00a0b','_x0041_','{\\"a}','$x^2$'])
line = (text|tricky|st.lists(tricky|text, max_size=3).map(' '.join)).map(lambda s: ' '.join(s.split()))
words = line.map(lambda s: s.replace(';',' ').strip()).filter(bool)
joined = st.lists(words.map(lambda s: ' '.join(s.split())), max_size=3, unique=True).map('; '.join)
record = st.fixed_dictionaries(dict(
    title=line.filter(bool), abstract=line, year=st.sampled_from(['','1999','2024']), doi=st.sampled_from(['','10.1234/a.b(c)-1','10.1016/s0006-3207(99)00001-2','10.1002/1.a<2::b>3.0.co;2-7']),
    keywords=joined, language=st.sampled_from(['','en','pt']), author=st.lists(st.sampled_from(['Ito, A.','de la Ó, M. J.','WWF','van Dyk, B., Jr.']), max_size=3, unique=True).map('; '.join),
    journal=line, id=st.sampled_from(['','W1','x_2020'])))
some = st.lists(record, min_size=1, max_size=4)
EVERY = ['a.csv','a.tsv','a.parquet','a.xlsx','a.ris','a.bib','a.txt']
KEPT = ['title','abstract','year','doi','keywords','author','journal'] # what every format has a place for


def frame(rows): return to_records(pd.DataFrame(rows, dtype='str'), keep_all=False)
def fields(df, columns=KEPT): return df[columns].astype('string').fillna('').to_dict('records')


@examples(25)
@given(some)
@pytest.mark.parametrize('name', EVERY)
def test_what_is_written_is_read_back(tmp_path, name, rows):
    df = frame(rows)
    back = read_records(write_records(df, tmp_path/name))
    assert fields(back)==fields(df)


@examples(8)
@given(some)
@pytest.mark.parametrize('layout', tables.LAYOUTS)
@pytest.mark.parametrize('name', ['a.csv','a.tsv','a.xlsx','a.parquet'])
def test_layouts_are_read_back(tmp_path, name, layout, rows):
    df = frame(rows)
    path = write_records(df, tmp_path/name, layout)
    header = pd.read_csv(path, sep='\t' if name=='a.tsv' else ',', dtype=str).columns if name in ('a.csv','a.tsv') else None
    if header is not None and layout!='asreview': assert tables.find_layout(list(header))==layout and list(header[:len(tables.LAYOUTS[layout].columns)])==list(tables.LAYOUTS[layout].columns)
    columns = [*KEPT,*(['language','id'] if layout in ('zotero','wos','scopus') else [])]
    assert fields(read_records(path),columns)==fields(df,columns)


@examples(25)
@given(some, st.data())
@pytest.mark.parametrize('name', ['a.ris','a.bib'])
def test_labels_scores_and_columns_of_ones_own_travel_in_notes(tmp_path, name, rows, data):
    n = len(rows)
    df = frame(rows).assign(included=data.draw(st.lists(st.sampled_from(['0','1','']), min_size=n, max_size=n)), A=data.draw(st.lists(st.sampled_from(['0','1']), min_size=n, max_size=n)),
                            A_score=data.draw(st.lists(st.floats(0,1), min_size=n, max_size=n)), remark=data.draw(st.lists(line, min_size=n, max_size=n)))
    back = read_records(write_records(df, tmp_path/name))
    for c in ('A','included'): assert (back[c].tolist() if c in back else ['']*n)==df[c].tolist()
    assert back.A_score.astype(float).tolist()==df.A_score.tolist()
    assert (back.remark.tolist() if 'remark' in back else ['']*n)==df.remark.tolist()


@examples(4)
@given(some)
@pytest.mark.parametrize('a', EVERY)
@pytest.mark.parametrize('b', EVERY[3:])
def test_from_any_format_to_any_other(tmp_path, a, b, rows):
    df = frame(rows)
    (tmp_path/'b').mkdir(exist_ok=True)
    convert_records([write_records(df, tmp_path/a)], tmp_path/'b'/b)
    assert fields(read_records(tmp_path/'b'/b))==fields(df)


# what other tools wrote

SHAPES = {
    'zotero.ris':'TY  - JOUR\nTI  - Ants of islands\nAU  - Ito, Ana\nAU  - Ode, B.\nT2  - Island Life\nAB  - We count.\nDA  - 2019/03/04/\nPY  - 2019\nDO  - 10.1234/AbC\nVL  - 3\nKW  - ants\nKW  - islands\n'
                 'N1  - <p>read by Ana</p>\nUR  - https://x.y/z\nL1  - files/7/a.pdf\nXX  - unknown\nER  - \n\n',
    'endnote.ris':'TY  - JOUR\nAU  - Ito, A.\nTI  - Bees\nC1  - custom\nID  - 77\nER  -\n',
    'library.bib':'% made by a program\n@string{il = "Island Life"}\n\n@article{ito2019,\n  title = {Ants of {I}slands},\n  author = {Ito, Ana and Ode, B.},\n  journal = il,\n  year = 2019,\n  doi = {10.1234/AbC},\n'
                  '  keywords = {ants; islands},\n  abstract = {We count.},\n  x-unknown = {kept},\n  file = {:a.pdf:PDF}\n}\n\n@comment{ jabref-meta: x }\n',
    'savedrecs.txt':'\ufeffFN Clarivate Analytics Web of Science\nVR 1.0\nPT J\nAU Ito, A\n   Ode, B\nAF Ito, Ana\n   Ode, Bo\nTI Ants of\n   islands\nSO ISLAND LIFE\nLA English\nDT Article; Early Access\nDE ants; islands\nID FAUNA\n'
                    'AB We count.\nCR Ode B, 2001, ISLAND LIFE\n   Ito A, 2002, NATURE\nTC 3\nPY 2019\nDI 10.1234/AbC\nUT WOS:000123\nER\n\nEF',
    'savedrecs_tab.txt':'PT\tAU\tTI\tSO\tLA\tDT\tDE\tID\tAB\tTC\tPY\tDI\tUT\tPM\nJ\tIto, A; Ode, B\t"Ants" of islands\tISLAND LIFE\tEnglish\tArticle\tants; islands\tFAUNA\tWe "count".\t3\t2019\t10.1234/AbC\tWOS:000123\t\t\n'
                        'J\tOde, B\t"Bees\tISLAND LIFE\tEnglish\tArticle\t\t\t\t0\t2020\t\tWOS:000124\t\t\n',
    'scopus.csv':'\ufeff"Authors","Author full names","Title","Year","Source title","Cited by","DOI","Link","Abstract","Author Keywords","Index Keywords","Language of Original Document","Document Type","Source","EID"\n'
                 '"Ito A.; Ode B.","Ito, Ana (1)","Ants of islands","2019","Island Life","3","10.1234/AbC","https://www.scopus.com/x","We count.","ants; islands","Fauna","English","Article","Scopus","2-s2.0-1"\n',
    'asreview.csv':'record_id,title,abstract,doi,included,asreview_ranking\n0,Ants of islands,We count.,10.1234/AbC,1,1\n1,Bees,,,-1,2\n',
    'zotero.csv':'"Key","Item Type","Publication Year","Author","Title","Publication Title","DOI","Url","Abstract Note","Date","Language","Extra","Manual Tags"\n'
                 '"AB12","journalArticle","2019","Ito, Ana; Ode, B.","Ants of islands","Island Life","10.1234/AbC","https://x.y","We count.","2019-03-04","English (US)","Citation Key: ito","chapter 4"\n',
    'pubmed.nbib':'\nPMID- 123\nOWN - NLM\nDP  - 2019 Mar\nTI  - Ants of\n      islands.\nLID - 10.1234/AbC [doi]\nAB  - We count.\nFAU - Ito, Ana\nAU  - Ito A\nLA  - eng\nPT  - Journal Article\nJT  - Island life\nOT  - ants\nOT  - islands\n\n',
    'works.jsonl':json.dumps(dict(id='https://openalex.org/W1', doi='https://doi.org/10.1234/abc', display_name='Ants of islands', publication_year=2019, language='en', type='article',
                                  abstract_inverted_index=dict(We=[0],**{'count.':[1]}), keywords=[dict(display_name='ants')], authorships=[], primary_location=None))+'\n'}


@pytest.fixture
def shapes(tmp_path):
    for name,content in SHAPES.items(): (tmp_path/name).write_text(content, encoding='utf-8', newline='')
    return tmp_path


@pytest.mark.parametrize('name', SHAPES)
def test_each_format_as_other_tools_write_it(shapes, name):
    df = read_records(shapes/name)
    first = df.iloc[0]
    title = first.title.rstrip('.').replace('{','').replace('}','').replace('"','')
    if name!='endnote.ris': assert (title.lower(),first.doi,first.abstract.replace('"',''))==('ants of islands','10.1234/abc','We count.')
    if name not in ('endnote.ris','asreview.csv'): assert first.year==2019
    if name not in ('endnote.ris','asreview.csv','works.jsonl','zotero.csv'): assert 'Ito' in first.author
    if name in ('zotero.ris','library.bib'): assert first.keywords=='' and 'islands' not in ' '.join(str(v) for c,v in first.items() if c not in ('title','journal')) # what a person said of it
    elif name not in ('endnote.ris','asreview.csv','works.jsonl','zotero.csv'): assert first.keywords.replace(', ','; ')=='ants; islands'
    if 'item_type' in df: assert set(df.item_type)=={'journalArticle'}
    if name in ('savedrecs.txt','savedrecs_tab.txt','scopus.csv','zotero.csv','pubmed.nbib','works.jsonl'): assert first.language=='en'
    assert not {'chapter 4','FAUNA','Fauna','<p>read by Ana</p>'}&set(df.astype(str).to_numpy().ravel()) and 'original' not in df
    assert len(df)==SHAPES[name].count('W1')+(name in ('savedrecs_tab.txt','asreview.csv'))+(name!='works.jsonl')


@pytest.mark.filterwarnings('ignore:Length of header')
@pytest.mark.parametrize('name', [n for n in SHAPES if n not in ('pubmed.nbib','works.jsonl')])
def test_nothing_that_another_tool_wrote_is_lost(shapes, name):
    "The same format again: every cell, tag and field is there as it was."
    out = shapes/'out'/('again'+Path(name).suffix if name!='savedrecs_tab.txt' else 'again.tsv')
    convert_records([shapes/name], out)
    if out.suffix in ('.csv','.tsv'):
        kw = dict(dtype=str, keep_default_na=False, index_col=False)
        a,b = pd.read_csv(shapes/name, sep='\t' if out.suffix=='.tsv' else ',', quoting=3 if out.suffix=='.tsv' else 0, **kw),pd.read_csv(out, sep='\t' if out.suffix=='.tsv' else ',', **kw)
        if name=='asreview.csv': a = a.assign(included=['1','']).rename(columns=dict(record_id='id'))
        for c in a.loc[:,(a!='').any()]: assert b[c].tolist()==a[c].tolist(), c
    else:
        norm = lambda p: [l for l in p.read_text(encoding='utf-8-sig').splitlines() if l.strip()]
        assert [l.rstrip() for l in norm(out)][-20:]==[l.rstrip() for l in norm(shapes/name) if not l.startswith(('% made','@string','@comment'))][-20:] or name=='library.bib'
    for word in {'zotero.ris':('XX  - unknown','files/7/a.pdf','read by Ana'), 'library.bib':('x-unknown','{I}slands',':a.pdf:PDF'), 'savedrecs.txt':('CR Ode B, 2001','   Ito A, 2002'),
                 'zotero.csv':('chapter 4','2019-03-04','10.1234/AbC','English (US)'), 'scopus.csv':('Fauna','2-s2.0-1'), 'savedrecs_tab.txt':('FAUNA',)}.get(name,()):
        assert word in out.read_text(encoding='utf-8-sig'), word


def test_a_change_is_all_that_changes(shapes):
    "A filled abstract stands in the file; every other line is what it was."
    df = read_records(shapes/'zotero.ris', keep_all=True)
    write_records(df.assign(abstract='We count twice.'), shapes/'filled.ris')
    assert (shapes/'filled.ris').read_text().replace('We count twice.','We count.').strip()==SHAPES['zotero.ris'].strip()


def test_what_no_model_may_read_is_kept_only_on_request(shapes):
    assert 'Manual Tags' not in read_records(shapes/'zotero.csv') and read_records(shapes/'zotero.csv',keep_all=True)['Manual Tags'].tolist()==['chapter 4']
    assert 'original' not in read_records(shapes/'zotero.ris') and read_records(shapes/'zotero.ris',keep_all=True).original[0].startswith('TY  - JOUR')


def test_a_folder_of_all_formats_and_preprocess(shapes):
    (shapes/'readme.txt').write_text('Dear all, these are the files.')
    (shapes/'notes.md').write_text('x')
    df = read_records(shapes)
    assert len(df)==sum(len(read_records(shapes/n)) for n in SHAPES) and not df.drop(columns='year').isna().any().any()
    assert sum(len(b) for b in iter_records(shapes, 1))==len(df)
    a = preprocess({'A':[shapes/'zotero.ris',shapes/'library.bib']}, [shapes/n for n in SHAPES if n not in ('zotero.ris','library.bib')], shapes/'out'/'data.csv', ['A'], keep_title_only=True, progress=False)
    assert a.n_read==len(df) and a.labels=={'A':1}
    assert sorted(read_records(shapes/'out'/'data.csv').title.str.strip('."'))==['Ants of Islands','Bees'] or a.n_kept==2


def test_labels_in_notes_reach_preprocess(tmp_path):
    rows = [dict(title=f'Title number {w}', abstract=w*60, A=l) for w,l in zip('xyz','101')]
    write_records(pd.DataFrame(rows), tmp_path/'a.ris')
    a = preprocess({}, [tmp_path/'a.ris'], tmp_path/'out.csv', ['A'], progress=False)
    assert a.labels=={'A':2} and read_records(tmp_path/'out.csv', labels=['A']).A.tolist()==[1,0,1]


def test_no_cell_of_a_workbook_is_a_formula(tmp_path):
    evil = ['=HYPERLINK("http://x.y")','+1+1','-1','@SUM(A1)','=cmd|\'/c calc\'!A0','{=1}','http://x.y','mailto:a@b.c','\t=1']
    write_records(pd.DataFrame(dict(title=evil, **{'=1+1':evil})), tmp_path/'a.xlsx')
    with zipfile.ZipFile(tmp_path/'a.xlsx') as z: xml = ''.join(z.read(n).decode() for n in z.namelist() if n.endswith(('.xml','.rels')))
    assert not re.search(r'<f\b|<hyperlink|relationships/hyperlink|t="str"', xml)
    assert read_records(tmp_path/'a.xlsx')['=1+1'].tolist()==evil


# bytes of any kind

def reads(path):
    "Records, or one sentence that names the file; warnings about encodings are no error."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: df = read_records(path)
        except (ValueError,OSError) as e:
            said = str(e)
            assert path.name in said and len(said)<1500 and '\n' not in said.strip(), said
            return None
    assert not df[['title','abstract']].isna().any().any()
    return df


STARTS = [b'',b'\x1f\x1c',b'TY  - ',b'TY  - JOUR\nTI  - ',b'@article{',b'@article{a,\n title = {',b'FN x\nVR 1.0\nPT J\nTI ',b'PMID- 1\nTI  - ',b'{"id": "https://openalex.org/W1", ',b'PT\tTI\tUT\n',b'title,abstract\n',b'title\tabstract\n',
          b'PK\x03\x04',b'PAR1',b'\x1f\x8b\x08\x00',b'\xff\xfe',b'\xef\xbb\xbf',b'Authors,Title,Source title,EID\n',b'"title","']


@examples(250)
@given(st.sampled_from(STARTS), st.binary(max_size=200), st.sampled_from(['a.csv','a.ris','a.bib','a.txt','a.xlsx','a.parquet','a.jsonl','a']))
def test_any_bytes_end_in_records_or_one_sentence(tmp_path, start, data, name):
    (tmp_path/name).write_bytes(start+data)
    reads(tmp_path/name)


@examples(200)
@given(st.data())
def test_a_damaged_file_of_each_format(tmp_path, data):
    "Bytes of a good file are cut, doubled, dropped or changed."
    name = data.draw(st.sampled_from([*SHAPES,'a.xlsx','a.ris.gz','a.parquet']))
    good = GOOD.setdefault(name, _good(name,tmp_path))
    i,j = sorted((data.draw(st.integers(0,len(good))),data.draw(st.integers(0,len(good)))))
    bad = data.draw(st.sampled_from([good[:i], good[i:], good[:i]+good[j:], good[:j]+good[i:], good[:i]+data.draw(st.binary(min_size=1,max_size=4))+good[i+1:]]))
    (tmp_path/name).write_bytes(bad)
    reads(tmp_path/name)


GOOD:dict[str,bytes] = {}

def _good(name, folder):
    if name in SHAPES: return SHAPES[name].encode()
    if name=='a.ris.gz': return gzip.compress(SHAPES['zotero.ris'].encode(), mtime=0)
    return write_records(pd.DataFrame(dict(title=['Ants','Bees'], abstract=['a','b'])), folder/name).read_bytes()


@pytest.mark.parametrize('name,content', [
    ('one_line.ris', b'TY  - JOUR\nTI  - '+b'a'*(70<<20)), ('one_line.ris.gz', gzip.compress(b'TY  - JOUR\nTI  - '+b'a'*(70<<20),1)), ('braces.bib', b'@article{a, title = '+b'{'*(1<<20)),
    ('no_end.ris', b'TY  - JOUR\n'+b'TI  - a\n'*4_000_000), ('deep.jsonl', b'{"id": "https://openalex.org/W1", "topics": '+b'['*(1<<20)), ('quote.tsv', b'PT\tTI\tUT\nJ\t"'+b'a\tb\n'*100_000)])
def test_large_nonsense_ends_soon(tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    df = reads(tmp_path/name)
    assert df is None or len(df)<=100_001


def test_xml_is_never_expanded(tmp_path):
    "A workbook whose sheet defines entities that grow a billionfold, and one that asks for a file of this machine."
    write_records(pd.DataFrame(dict(title=['Ants'])), tmp_path/'good.xlsx')
    laughs = '<!DOCTYPE x ['+''.join(f'<!ENTITY l{i} "{f"&l{i-1};"*10 if i else "lol"}">' for i in range(10))+']>'
    for name,doctype,entity in (('laughs.xlsx',laughs,'&l9;'),('file.xlsx','<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>','&f;')):
        with zipfile.ZipFile(tmp_path/'good.xlsx') as src, zipfile.ZipFile(tmp_path/name,'w') as z:
            for n in src.namelist():
                xml = src.read(n).decode()
                if n.endswith(('sheet1.xml','sharedStrings.xml')): xml = xml.replace('?>\n','?>\n'+doctype,1).replace('Ants',entity)
                z.writestr(n, xml)
        df = reads(tmp_path/name)
        assert df is None or all(len(s)<20 and 'root' not in s for s in df.title)


# commands

@pytest.fixture
def ipbes(tmp_path, monkeypatch, capsys):
    "A function that runs a command in this process: exit code, output, error output."
    import sys
    from ipbes_classifier.cli import main
    monkeypatch.setenv('IPBES_ENV','')
    monkeypatch.chdir(tmp_path)
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['ipbes',*map(str,args)])
        try: main()
        except SystemExit as e: return (e.code or 0,*capsys.readouterr())
        return (0,*capsys.readouterr())
    return run


def test_ipbes_records_says_what_it_read(shapes, ipbes):
    code,out,err = ipbes('records', 'zotero.ris', 'savedrecs_tab.txt', '-o', 'both.xlsx', '--layout', 'zotero')
    assert (code,out)==(0,'3 records: both.xlsx\n') and err=='1 record of RIS: zotero.ris\n2 records of tab-separated text: savedrecs_tab.txt\n'
    assert tables.read_header('both.xlsx')[:3]==['Key','Item Type','Publication Year'] and read_records('both.xlsx').doi.tolist()==['10.1234/abc']*2+['']
    assert ipbes('records', 'both.xlsx', '-o', 'both.csv')[0]==0 and Path('both.csv').read_text().startswith('"Key","Item Type"')
    assert ipbes('records', 'zotero.csv', '-o', 'plain.csv', '--layout', 'records')[0]==0 and Path('plain.csv').read_text().startswith('"id","doi","title"')


@pytest.mark.parametrize('args,says', [
    (['zotero.ris','-o','zotero.ris'], 'would be written over'), (['zotero.ris','-o','a.doc'], "unknown suffix '.doc'"), (['zotero.ris','-o','a.csv','-l','endnote'], "unknown layout 'endnote'; known are zotero"),
    (['zotero.ris','-o','a.bib','-l','zotero'], 'a layout is for tables'), (['nowhere.ris','-o','a.csv'], 'nowhere.ris: no such file'), (['.','-o','a.csv'], 'would stand in the folder'),
    (['labels.csv','-o','a.ris'], "included is 'maybe'"), (['long.csv','-o','a.xlsx'], 'Excel at most 32,767')])
def test_ipbes_records_refuses_in_one_sentence(shapes, ipbes, args, says):
    Path('labels.csv').write_text('title,included\na,maybe\n')
    Path('long.csv').write_text('title,abstract\na,'+'b'*40_000+'\n')
    before = {p.name:p.read_bytes() for p in shapes.iterdir() if p.is_file()}
    code,out,err = ipbes('records',*args)
    lines = [l for l in err.splitlines() if l.startswith('ipbes: ')]
    assert code==1 and not out and len(lines)==1 and says in lines[0], err
    assert {p.name:p.read_bytes() for p in shapes.iterdir() if p.is_file()}==before


def test_an_old_encoding_is_read_and_said(shapes, ipbes):
    Path('old.ris').write_bytes('TY  - JOUR\nTI  - Vögel Åland\nER  - \n'.encode('cp1252'))
    code,out,err = ipbes('records', 'old.ris', '-o', 'new.csv')
    assert code==0 and err.count('it is read as cp1252')==1 and read_records('new.csv').title.tolist()==['Vögel Åland']


def test_a_bucket_is_read_like_a_file(shapes, ipbes, monkeypatch):
    "Works in an S3 bucket, by the function and through preprocess; the server is moto's on this machine."
    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    try:
        host,port = server.get_host_and_port()
        for k,v in dict(AWS_ENDPOINT_URL=f'http://{host}:{port}', AWS_ACCESS_KEY_ID='a', AWS_SECRET_ACCESS_KEY='b', AWS_DEFAULT_REGION='us-east-1').items(): monkeypatch.setenv(k,v)
        from pyarrow.fs import S3FileSystem
        fs = S3FileSystem(endpoint_override=f'{host}:{port}', scheme='http', access_key='a', secret_key='b', allow_bucket_creation=True)
        fs.create_dir('lake')
        with fs.open_output_stream('lake/data/works/updated_date=2026-01-01/part_0000.gz', compression=None) as f: f.write(gzip.compress(SHAPES['works.jsonl'].encode()))
        assert read_records('s3://lake/data/works').id.tolist()==['W1']
        assert ipbes('records', 's3://lake/data', '-o', 'works.ris')[0]==0 and read_records('works.ris').title.tolist()==['Ants of islands']
        code,out,err = ipbes('preprocess', '--positives', 'A=zotero.ris', '--corpus', 's3://lake/data/works', '-o', 'data.csv', 'labels=[{name: A, description: ants}]', 'data.keep_title_only=true')
        assert code==0, err
        assert read_records('data.csv', labels=['A']).A.tolist()==[1]
    finally: server.stop()
