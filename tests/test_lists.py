"Reading lists of a screening: safe to open, whole or not there, the records that were screened; and the report beside them."
import codecs
import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rispy
from python_calamine import CalamineWorkbook
from typer.testing import CliRunner

from ipbes_classifier.audit import draw, write_sample
from ipbes_classifier.cli import app
from ipbes_classifier.config import load_config
from ipbes_classifier.formats import open_text
from ipbes_classifier.lists import COLUMNS, FORMATS, read_screening, write_lists
from ipbes_classifier.models import make_model
from ipbes_classifier.records import clean_text, layout_of, read_records, write_records
from ipbes_classifier.results import write_decisions
from ipbes_classifier.screen import Screener
from ipbes_classifier.screen_corpus import PUT_ASIDE, screen
from ipbes_classifier.screen_figures import expected_relevant, read_sample, reading_effort, score_figures
from ipbes_classifier.screen_report import bad_files, find_models, top_papers
from ipbes_classifier.single_report import report_screening
from ipbes_classifier.thresholds import Calibration

IPBES = Path(sys.executable).with_name('ipbes')
ODD = '=SUM/../"x" <b>$1'  # a label
EVIL = ['=HYPERLINK("http://x.y","z")','+1+1','-2','@SUM(A1)','\t=1','\r=1','=cmd|\'/c calc\'!A0','<script>alert(1)</script> & more']
WORDS = 'ants beetles rivers roads fields woods coast values people trade harvest dust orbit star bone river'.split()


def papers(n=40, seed=0):
    "Made-up records; every other is on ants, and some have titles that a spreadsheet would run."
    rng = np.random.default_rng(seed)
    rows = [dict(id=f'p{i}', doi=f'10.5555/{i}', title=EVIL[i] if i<len(EVIL) else ' '.join(rng.permutation(WORDS)[:6]),
                 abstract=('ants ' if i%2==0 else 'dust ')+' '.join(rng.choice(WORDS,60)), author=EVIL[i] if i<7 else 'Lovelace, A.', journal='Made-up Letters', year=2000+i%20) for i in range(n)]
    return pd.DataFrame(rows)


class Half:
    "A first pass that keeps all but every fourth record."
    version = 'half@0'
    def keep(self, records): return np.arange(len(records))%4!=3


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('m')/'toy'
    folder.mkdir()
    s = load_config(env='', overrides=['labels=[{name: A},{name: B}]'])
    toy = papers(80,1).assign(A=lambda d: d.abstract.str.startswith('ants').astype(int), B=lambda d: d.abstract.str.contains('values').astype(int))
    model = make_model('tfidf-logreg', s).fit(toy)
    model.labels[:] = ['A',ODD]
    model.save(folder)
    write_decisions(folder, {'A':.5,ODD:.5}, {l:Calibration(1.,0.,'logit') for l in ('A',ODD)})
    return folder


@pytest.fixture
def lake(tmp_path, monkeypatch):
    "Two files: a table, and RIS with a paper of the table once more."
    monkeypatch.chdir(tmp_path)
    df = papers()
    df.to_csv('a.csv', index=False, quoting=csv.QUOTE_ALL)
    again = df.iloc[[20]].assign(id='again', doi='10.5555/other')
    write_records(pd.concat([papers(10,5).iloc[8:].assign(id=['x','y'],doi=['10.5555/x','10.5555/y']),again]), tmp_path/'b.ris')
    return [Path('a.csv'),Path('b.ris')]


@pytest.fixture
def found(lake, checkpoint): return screen(lake, [checkpoint], 'found', batch_size=7).folder


def csv_rows(path):
    with open(path, newline='', encoding='utf-8-sig') as f: return list(csv.reader(f))


def ipbes(*args, **kw): return subprocess.run([IPBES,*map(str,args)], capture_output=True, text=True, env=os.environ|dict(COLUMNS='120',OMP_NUM_THREADS='1'), timeout=300, **kw)


def test_no_cell_starts_a_formula(found):
    for l in write_lists(found, 100):
        for path in (p for p in l.files if p.suffix=='.csv'):
            cells = [c for row in csv_rows(path) for c in row]
            assert not [c for c in cells if c.lstrip(' ')[:1] in ('=','+','-','@','\t','\r')], path
            assert any(c.startswith("'=HYPERLINK") for c in cells)
        book = next(p for p in l.files if p.suffix=='.xlsx')
        import zipfile
        with zipfile.ZipFile(book) as z: xml = ''.join(z.read(n).decode() for n in z.namelist() if n.endswith('.xml'))
        assert '<f>' not in xml and '<hyperlink' not in xml


def test_what_spreadsheets_and_reference_managers_read_is_what_was_screened(found):
    done, = write_lists(found, 100, ['A'])
    by = {p.name:p for p in done.files}
    screened = papers().set_index('id')
    sheet = CalamineWorkbook.from_path(str(by['A.xlsx'])).get_sheet_by_index(0).to_python()
    assert tuple(sheet[0])==COLUMNS
    at = {c:i for i,c in enumerate(sheet[0])}
    for row in sheet[1:]:
        if row[at['id']] in screened.index: assert row[at['title']]==clean_text(screened.title[row[at['id']]], title=True)
    assert [row[at['rank']] for row in sheet[1:]]==sorted(row[at['rank']] for row in sheet[1:])
    with open(by['A.ris']) as f: refs = rispy.load(f)
    assert len(refs)==len(sheet)-1==done.papers
    assert {r['title'].strip() for r in refs}>={EVIL[0],EVIL[1],EVIL[3]}
    assert all(any('ipbes_A_score' in n for n in r['notes']) for r in refs)
    back = read_records(by['A.ris'])
    assert back.A_rank.astype(int).tolist()==[int(row[at['rank']]) for row in sheet[1:]]
    assert np.allclose(back.A_score.astype(float), [row[at['score']] for row in sheet[1:]], atol=1e-5)


def test_openpyxl_finds_texts_only(found):
    openpyxl = pytest.importorskip('openpyxl')
    done, = write_lists(found, 100, ['A'], ['xlsx'])
    sheet = openpyxl.load_workbook(done.files[0]).active
    assert {c.data_type for row in sheet.iter_rows() for c in row}<={'s','n'}


def test_asreview_gets_its_columns_and_keeps_a_decision(found, checkpoint, tmp_path):
    done, = write_lists(found, 100, ['A'], ['asreview'])
    header = csv_rows(done.files[0])[0]
    assert header[:8]==['title','abstract','authors','keywords','doi','year','journal','url'] and 'included' not in header
    papers().assign(included=1).to_csv(tmp_path/'decided.csv', index=False, quoting=csv.QUOTE_ALL)
    again = screen([tmp_path/'decided.csv'], [checkpoint], tmp_path/'again').folder
    path = write_lists(again, 100, ['A'], ['asreview'])[0].files[0]
    assert layout_of(path)=='asreview' and set(read_records(path).included)=={'1'}


def test_a_paper_that_stands_twice_is_listed_once_with_the_other_named(found):
    done, = write_lists(found, None, ['A'], ['csv'])
    table = pd.read_csv(done.files[0], keep_default_na=False)
    ids = set(table.id)
    assert done.folded==1 and len({'p20','again'}&ids)==1
    line = table[table.id.isin({'p20','again'})].iloc[0]
    assert (line.duplicates,line.duplicate_ids)==(1,({'p20','again'}-ids).pop())
    both = pd.concat(pd.read_parquet(p) for p in (found/'ranked'/'A').glob('*'))
    assert line['rank']==both[both.id.isin(['p20','again'])]['rank'].min()


def test_odd_labels_name_files_and_notes(found):
    odd = next(l for l in write_lists(found, 5) if l.label==ODD)
    assert all(p.parent==found/'lists' and p.exists() for p in odd.files)
    assert len(read_records(next(p for p in odd.files if p.suffix=='.ris')))==odd.papers


def test_selected_and_empty_lists(lake, checkpoint, tmp_path):
    pd.DataFrame(dict(title=['Dust','Orbit'],abstract=['dust and dust','dust dust'])).to_csv('none.csv', index=False)
    out = screen(['none.csv'], [checkpoint], 'none').folder
    done, = write_lists(out, None, ['A'])
    assert done.papers==0 and all(p.exists() for p in done.files)
    assert csv_rows(done.files[0])==[list(COLUMNS)]
    all_ = screen(lake, [checkpoint], 'all').folder
    done, = write_lists(all_, None, ['A'], ['csv'])
    assert done.papers+done.folded==read_screening(all_)['selected']['A']>3


def test_a_very_long_abstract_is_cut_in_the_workbook_alone(checkpoint, tmp_path):
    pd.DataFrame(dict(title=['Long'],abstract=['ants '*20_000])).to_csv(tmp_path/'long.csv', index=False)
    done, = write_lists(screen([tmp_path/'long.csv'], [checkpoint], tmp_path/'out').folder, 5, ['A'])
    cell = read_records(done.files[1]).abstract[0]
    assert len(cell)==32_767 and cell.endswith('…')
    assert len(read_records(done.files[0]).abstract[0])==99_999


# what can be wrong

def test_wrong_input_is_one_sentence(found, lake, tmp_path, monkeypatch):
    text = lake[0].read_bytes()
    lake[0].write_bytes(text.replace(b'Lovelace',b'Hopper'))
    done = ipbes('lists','found')
    assert done.returncode==1 and len(done.stderr.splitlines())==1 and 'a.csv has changed since it was screened' in done.stderr
    lake[0].write_bytes(text)
    os.utime(lake[0], (1,1))
    assert write_lists(found, 5, ['A'], ['csv'], tmp_path/'touched')[0].files[0].exists()
    (tmp_path/'other').mkdir()
    monkeypatch.chdir(tmp_path/'other')
    with pytest.raises(FileNotFoundError, match='is not there, seen from .*; give the command in the folder'): write_lists('../found')
    assert not (tmp_path/'found/lists').exists()
    with pytest.raises(FileNotFoundError, match='is not there, seen from .*; give the command in the folder'): report_screening('../found')
    assert not (tmp_path/'found/report').exists()


def test_excel_knows_the_encoding_of_what_people_open(found):
    done, = write_lists(found, 100, ['A'], ['csv'])
    write_sample(draw(found,30), found, 's.csv')
    for path in (done.files[0],'s.csv'):
        assert Path(path).read_bytes().startswith(codecs.BOM_UTF8)
        assert [c for c in pd.read_csv(path) if not c.isascii()]==[]
        assert next(csv.reader(open_text(path)))[0] in ('rank','file')


def test_a_screening_under_way_is_refused(found):
    path = found/'_manifest.json'
    path.write_text(path.read_text().replace('"complete": true','"complete": false'))
    for f in (write_lists,report_screening,score_figures):
        with pytest.raises(ValueError, match='is not complete; the same `ipbes screen` goes on'): f(found)


def in_child(f, *args):
    p = multiprocessing.get_context('fork').Process(target=f, args=args)
    p.start()
    p.join(60)
    return p.exitcode


def killed_at(n, found):
    "Write lists, and die when the n-th file gets its name."
    replace,calls = os.replace,[0]
    def dying(*args):
        calls[0] += 1
        if calls[0]==n: os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
    os.replace = dying
    write_lists(found, 20)


def without_room(found):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000,3000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try: write_lists(found, 20)
    except OSError as e: os._exit(7 if 'the disk is full' in str(e) else 8)
    os._exit(9)


def test_a_kill_or_a_full_disk_leaves_whole_files(found):
    write_lists(found, 20)
    place = found/'lists'
    whole = {p.name:p.read_bytes() for p in place.iterdir()}
    assert len(whole)==2*len(FORMATS)
    for p in place.iterdir(): p.unlink()
    assert in_child(killed_at, 4, found)==-signal.SIGKILL
    assert {p.name:p.read_bytes() for p in place.iterdir() if p.name[0]!='.'}.items()<=whole.items()
    assert in_child(without_room, found)==7
    assert {p.name:p.read_bytes() for p in place.iterdir() if p.name[0]!='.'}.items()<=whole.items()
    write_lists(found, 20)
    assert {p.name:p.read_bytes() for p in place.iterdir()}==whole


# the report

def test_figures_do_not_depend_on_how_many_parts_there_are(lake, checkpoint):
    a,b = (score_figures(screen(lake, [checkpoint], f'size{n}', batch_size=n, first_pass=Half()).folder)['A'] for n in (8,1000))
    assert (a.records,b.records)==(43,43) and a.put_aside>0
    whole = score_figures(screen(lake, [checkpoint], 'plain', batch_size=4, first_pass=False).folder)['A']
    rows = pd.concat(pd.read_parquet(p) for p in Path('plain/scores').glob('*'))
    assert (whole.counts.sum(0)==np.histogram(rows.A_score,bins=50,range=(0,1))[0]).all()
    assert whole.selected==rows.A_pred.sum() and b.put_aside==(pd.concat(pd.read_parquet(p) for p in Path('size1000/scores').glob('*')).note==PUT_ASIDE).sum()
    curve = reading_effort('plain','A',whole.scored,.5,.1,[10])
    assert curve['read'].iloc[-1]==whole.scored and curve.recall.is_monotonic_increasing


def test_samples_come_from_workbooks_and_references_too(found, lake, tmp_path):
    m = read_screening(found)
    table = pd.DataFrame(dict(file='a.csv', row=range(10), title=[f't{i}' for i in range(10)], A=['1','0']*4+['','?'], B=''))
    for name in ('s.csv','s.xlsx','s.ris'):
        write_records(table, tmp_path/name)
        assert read_sample(tmp_path/name, m).A.tolist()==[1,0]*4+[-1,-1], name
    (tmp_path/'s.csv').write_text((tmp_path/'s.csv').read_text().replace(',',';'))
    sample = read_sample(tmp_path/'s.csv', m)
    e = expected_relevant(score_figures(found)['A'], .4, sample)
    assert (e.judged,e.relevant,e.best)==(8,4,(.5,'labelled sample'))


def test_titles_are_escaped_and_words_marked(found, checkpoint):
    page = top_papers(found, 'A', 40, Screener.load(checkpoint))
    assert '<script' not in page and '&amp; more' in page and '=HYPERLINK(&quot;' in page
    assert 'near-duplicate folded' in page and '<mark' in page
    assert '<b>$1' not in top_papers(found, ODD, 2, Screener.load(checkpoint))


def test_the_checkpoint_is_found_or_said_to_be_gone(found, checkpoint):
    m = read_screening(found)
    assert find_models(found,m)==([checkpoint],'')
    (found/'provenance.json').unlink()
    assert 'name them by `-m`' in find_models(found,m)[1]
    assert find_models(found,m,[checkpoint])==([checkpoint],'')
    assert len(bad_files(m))==0


def test_a_report_of_a_screening(found, checkpoint, tmp_path):
    pd.DataFrame(dict(file='a.csv', row=range(20), A=[1,0]*10)).to_csv('labelled.csv', index=False)
    done = CliRunner().invoke(app, ['report','found','--label-sample','labelled.csv','--prevalence','A=.5','-n','10','--top','2'])
    assert done.exit_code==0 and done.stdout.strip()=='found/report/screen.html', done.exception
    page = (found/'report/screen.html').read_text()
    for text in ('43 papers were screened','probabilities and their sum are too high','Saerens','labelled sample','data:image/png','&lt;b&gt; $1'): assert text in page.replace('&gt;$1','&gt; $1'), text
    assert '<b>$1' not in page and '<script' not in page and 'Traceback' not in page
    assert sorted(p.name for p in (found/'report').iterdir() if p.name[0]!='.')==['screen.html','screen.ipynb']


def test_a_report_weights_a_stratified_sample(found):
    write_sample(draw(found,30,'A'), found, 's.csv')
    table = pd.read_csv('s.csv', keep_default_na=False)
    table = table.assign(A=table.abstract.str.startswith('ants').astype(int))
    table[1:].to_csv('s.csv', index=False, quoting=csv.QUOTE_ALL)
    with pytest.raises(ValueError, match='was drawn and is missing'): report_screening(found, 's.csv')
    table.to_csv('s.csv', index=False, quoting=csv.QUOTE_ALL)
    page = report_screening(found, 's.csv', n=10, top=1).read_text()
    for text in ('recall (95 %)','first 10','drawn by the scores of A'): assert text in page, text
    assert 'by the sample (95 %)' not in page


def test_a_report_is_refused_before_a_kernel_starts(found):
    with pytest.raises(ValueError, match="a.csv has no column 'file'"): report_screening(found, 'a.csv')
    with pytest.raises(ValueError, match="no label 'C' in the screening"): report_screening(found, prevalence={'C':.5})
    with pytest.raises(ValueError, match='a prevalence is a share above 0 and below 1'): report_screening(found, prevalence={'A':1})
    with pytest.raises(FileNotFoundError): report_screening(found, models=['nowhere'])
    assert not (found/'report').exists()


def test_records_without_text_are_not_expected_to_be_relevant():
    "The scores speak for 7.5 % of the thousand that have a text; a sample speaks for all."
    from ipbes_classifier.screen_figures import Expected
    from ipbes_classifier.screen_report import expected_table
    e = Expected('A', 2000, 78., .1, .075, (.06,.09), judged=400, relevant=15, no_text=1000)
    assert expected_table([e]).loc['A','corrected by the scores (95 %)']=='75 (60–90)' and not e.contradicted
