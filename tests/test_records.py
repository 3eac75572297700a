"""What the page on records need not show: odd bytes, odd types, random text."""
import os
import subprocess
import sys
import unicodedata

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from ipbes_classifier.records import (FIELDS, clean_text, convert_records, iter_records, normalise_doi, normalise_language, normalise_title, read_records,
                                      to_records, write_records)

dirt = st.lists(st.sampled_from(['<i>','</i>','<jats:p>','</jats:p>','<',' > ','&amp;','&lt;','&#8211;','&','\x00','\u200b','e\u0301','\xa0','Ã©','â€™','\n',
                                 '<tex-math>','</tex-math>','<!--','-->',']]>','<br/>','"','\ud800','\x85','Abstract','n','words ','ﬁ','<p class="a>"','北京'])
                | st.text(max_size=5), max_size=20).map(''.join)


@settings(max_examples=300, deadline=None)
@given(dirt)
def test_clean_text_is_one_line_of_plain_text(s):
    t = clean_text(s)
    assert t==' '.join(t.split()) and unicodedata.normalize('NFC',t)==t
    assert not any(unicodedata.category(c) in ('Cc','Cs') for c in t)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_keys_never_fail_and_are_stable(s):
    for f in (normalise_title,normalise_doi): assert f(f(s))==f(s)
    assert normalise_language(s)=='' or len(normalise_language(s))==2


@pytest.mark.parametrize('s,t', [
    ('p < 0.05 and n > 3','p < 0.05 and n > 3'), ('p<0.05, n>3','p<0.05, n>3'), ('p &lt; 0.05 &amp;&amp; n &gt; 3','p < 0.05 && n > 3'),
    ('a<sup>2</sup>','a2'), ('<p>one</p><p>two</p>','one two'), ('one<br/>two','one two'), ('<I>Rattus</I>&nbsp;sp.','Rattus sp.'),
    ('<span style="font-variant:small-caps;">dna</span>','dna'), ('<img alt="a > b" src="x"/>end','end'), ('x <i/> y','x y'), ('open <i>tag','open tag'),
    ('<tex-math>$x$','$x$'), ('<![CDATA[inside]]>','inside'), ('AT&T','AT&T'), ('5 &micro;m','5 µm'),
    ('<jats:title>Abstract</jats:title><jats:sec><jats:title>Aim</jats:title><jats:p>We ask.</jats:p></jats:sec>','Aim We ask.'),
    ('<mml:math><mml:mi>x</mml:mi><mml:mo>&lt;</mml:mo><mml:mn>3</mml:mn></mml:math>','x<3')])
def test_markup(s, t): assert clean_text(s)==t


@pytest.mark.parametrize('s', ['[No abstract available]','No abstract available.','No abstract','<p>No abstract was provided</p>','Abstract not available.','Abstract: Not available','N/A','n.a.','NA','None','nan','...','\u2014'])
def test_a_sentence_in_place_of_an_abstract_is_none(s, tmp_path):
    assert clean_text(s)=='' and clean_text(f'We ask. {s}')!=''
    write_records(pd.DataFrame({'Title':['Pines'],'EID':['2-s2.0-1'],'Abstract':[s]}), tmp_path/'scopus.csv')
    df = read_records(tmp_path/'scopus.csv', keep_all=True)
    write_records(df, tmp_path/'a.ris')
    assert read_records(tmp_path/'a.ris').abstract.map(clean_text).tolist()==['']
    write_records(df, tmp_path/'again.csv', 'scopus')
    assert pd.read_csv(tmp_path/'again.csv', keep_default_na=False).Abstract.tolist()==[s], 'a table goes back as it was'


@pytest.mark.parametrize('s', ['No abstract concept is needed.','None of the sites was grazed.','NA+ channels of wheat','Nan Madol is a ruined city.','Not available to goats.'])
def test_a_short_abstract_stays(s): assert clean_text(s)==s


def test_the_error_for_a_missing_file_names_what_is_there(tmp_path):
    for name in ('.locks','.zotero_IAS.sqlite','zotero_ias.csv','corpus.parquet'): (tmp_path/name).write_text('x')
    with pytest.raises(FileNotFoundError) as e: read_records(tmp_path/'zotero_IAS.csv')
    assert str(e.value).endswith(f"zotero_IAS.csv: no such file; {tmp_path} holds corpus.parquet, zotero_ias.csv. Did you mean zotero_ias.csv?")
    with pytest.raises(FileNotFoundError, match='holds corpus.parquet, zotero_ias.csv$'): read_records(tmp_path/'plants.ris')


def test_numbers_lists_and_missing_values_become_strings():
    raw = pd.DataFrame(dict(id=[7,8.], title=['a',None], keywords=[['x','y'],None], year=[2001.0,None], abstract=[float('nan'),'b']))
    r = to_records(raw)
    assert r.id.tolist()==['7','8'] and r.title.tolist()==['a',''] and r.keywords.tolist()==['x; y',''] and r.abstract.tolist()==['','b']
    assert r.year.isna().tolist()==[False,True] and r.columns.tolist()==FIELDS


@pytest.mark.parametrize('name', ['Manual Tags','manual_tags','Automatic Tags','tags','Collections','Date Added','Notes Added','File Attachments'])
@pytest.mark.parametrize('suffix', ['.csv','.parquet'])
def test_what_a_librarian_did_is_never_read(tmp_path, name, suffix):
    write_records(pd.DataFrame({'id':['1'],'title':['t'],name:['chapter 4']}), tmp_path/f'a{suffix}')
    assert 'chapter 4' not in read_records(tmp_path/f'a{suffix}').to_csv()


def test_other_columns_are_kept(tmp_path):
    write_records(pd.DataFrame(dict(title=['t'], licence=['CC0'], A=[1])), tmp_path/'a.csv')
    df = read_records(tmp_path/'a.csv', labels=['A'])
    assert df.licence.tolist()==['CC0'] and df.A.tolist()==[1]
    with pytest.raises(ValueError, match="no column 'B'"): read_records(tmp_path/'a.csv', labels=['B'])


def test_batches_are_bounded_and_equal_the_whole(tmp_path):
    df = pd.DataFrame(dict(id=[str(i) for i in range(25)], title=[f'title, "{i}"\nmore' for i in range(25)]))
    for name in ('a.csv','a.tsv','a.parquet'):
        write_records(df, tmp_path/name)
        batches = list(iter_records(tmp_path/name, 10))
        assert [len(b) for b in batches]==[10,10,5]
        pd.testing.assert_frame_equal(pd.concat(batches,ignore_index=True), read_records(tmp_path/name))


def test_the_wrong_byte_is_found_deep_in_a_file(tmp_path):
    good = ''.join(f'{i},title {i}\n' for i in range(200_000)).encode()
    (tmp_path/'a.csv').write_bytes(b'id,title\n'+good+'1,Café\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=f'offset {9+len(good)+5}, line 200002'): read_records(tmp_path/'a.csv')


def test_an_unclosed_quote_is_an_error_not_one_long_title(tmp_path):
    (tmp_path/'a.csv').write_text('id,title\n1,"never closed\n2,b\n')
    with pytest.raises(ValueError, match='a.csv is not a well-formed CSV'): read_records(tmp_path/'a.csv')


def test_rows_longer_than_the_header_are_refused(tmp_path):
    (tmp_path/'a.csv').write_text('id,title\n1,a,x\n2,b,y\n')
    with pytest.raises(ValueError, match='more fields than the header'): read_records(tmp_path/'a.csv')


def test_short_rows_end_in_empty_fields(tmp_path):
    (tmp_path/'a.csv').write_text('id,title,abstract\n1,a\n2,b,c\n')
    assert read_records(tmp_path/'a.csv').abstract.tolist()==['','c']


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_records(pd.DataFrame(dict(title=['old'])), tmp_path/'a.csv')
    with pytest.raises(ValueError, match="cannot be written"): write_records(pd.DataFrame(dict(title=[object()])), tmp_path/'a.csv')
    assert read_records(tmp_path/'a.csv').title.tolist()==['old'] and len(list(tmp_path.iterdir()))==1


def test_the_later_decision_of_asreview_counts_once(tmp_path):
    pd.DataFrame(dict(title=['a','b','c','d'],abstract=['x']*4,included=['1','0','','1'],asreview_label=['0','1','1',''])).to_csv(tmp_path/'v2.csv', index=False)
    for name in ('v2.ris','v2.bib'):
        convert_records([tmp_path/'v2.csv'], tmp_path/name)
        assert read_records(tmp_path/name).included.tolist()==['0','1','1','1'], name
    assert (tmp_path/'v2.ris').read_text().count('ASReview_')==4


def test_a_label_called_as_a_library_column_travels(tmp_path):
    df = pd.DataFrame(dict(title=['a'],abstract=['x'],GA=['1'],IS=['0'],remark=['read']))
    for name in ('a.ris','a.bib'):
        write_records(df, tmp_path/name)
        assert read_records(tmp_path/name)[['GA','IS','remark']].values.tolist()==[['1','0','read']]


def test_columns_come_in_the_same_order_in_each_process(tmp_path):
    (tmp_path/'a.ris').write_text('TY  - JOUR\nTI  - Ants\nAU  - Ito, A\nJO  - Life\nER  - \n')
    code = f"from ipbes_classifier.records import read_records; print(list(read_records({str(tmp_path/'a.ris')!r})))"
    said = {subprocess.run([sys.executable,'-c',code], env=os.environ|dict(PYTHONHASHSEED=str(n)), capture_output=True, text=True, check=True).stdout for n in range(3)}
    assert len(said)==1


@pytest.mark.parametrize('kind', ['patent','presentation','blogPost','preprint','magazineArticle','newspaperArticle','thesis','bookSection','conferencePaper'])
@pytest.mark.parametrize('name', ['a.ris','a.bib'])
def test_a_type_comes_back(name, kind, tmp_path):
    write_records(pd.DataFrame(dict(title=['a'],journal=['Life'],item_type=[kind])), tmp_path/name)
    assert read_records(tmp_path/name).item_type.tolist()==[kind]
