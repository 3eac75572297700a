"What a person gets wrong, through the command and through the function: one sentence, exit code 1, nothing half-written."
import contextlib
import ctypes
import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ipbes_classifier.config import load_config
from ipbes_classifier.files import file_hash
from ipbes_classifier.project import sample_project, split_project
from ipbes_classifier.records import read_records
from ipbes_classifier.results import read_results
from ipbes_classifier.screen import Screener, predict
from ipbes_classifier.train import read_dataset, train

DATA,FOLDS,MODELS = 'data/cleaned_dataset.csv','data/folds','results/final_model'
LOGREG,SVM,MINILM = (f'{MODELS}/best_model_cross_val_{x}_fold-0' for x in ('logloss_tfidf-logreg','hinge_tfidf-svm','BCE_minilm'))
QUIET = ['logging.progress=false','logging.tensorboard=false','folds.n_folds=2']
TINY = ['input.max_length=16','models={minilm: {num_train_epochs: 1, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, optional_negatives: 20}}']
IPBES = Path(sys.executable).with_name('ipbes')
ENV = os.environ|dict(COLUMNS='120', FORCE_COLOR='', PY_COLORS='', TERM='dumb', IPBES_ENV='', TQDM_DISABLE='1', OMP_NUM_THREADS='1')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A project in which two baselines and an encoder were trained."
    s = sample_project(tmp_path_factory.mktemp('made')/'p', n=300, overrides=QUIET)
    for model in ('tfidf-logreg','tfidf-svm'): train(model, settings=s)
    train('minilm', settings=load_config(root=s.root, overrides=[*QUIET,*TINY], env=''))
    return Path(s.root)


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    "A copy of it without the encoder, to be broken."
    shutil.copytree(made, tmp_path/'p', ignore=shutil.ignore_patterns('*minilm*','nbs','tensorboard'))
    monkeypatch.chdir(tmp_path/'p')
    monkeypatch.setenv('IPBES_ENV','')
    return tmp_path/'p'


def contents(folder):
    "Every file with its hash, hidden ones included; locks are no content."
    return {str(p.relative_to(folder)):file_hash(p) for p in sorted(folder.rglob('*')) if p.is_file() and '.locks' not in p.parts}


def ipbes(*args):
    "Run a command in this process: exit code and what it said."
    from ipbes_classifier.cli import main
    out,argv = io.StringIO(),sys.argv
    sys.argv = ['ipbes',*map(str,args)]
    try:
        with contextlib.redirect_stdout(out),contextlib.redirect_stderr(out): main()
        return 0,out.getvalue()
    except SystemExit as e: return e.code,out.getvalue()
    finally: sys.argv = argv


def refused(*args, says=''):
    "The sentence of a command that must end in one, with exit code 1, and change nothing."
    before = contents(Path.cwd())
    code,out = ipbes(*args)
    assert code==1 and len(out.strip().splitlines())==1 and out.startswith('ipbes: ') and says in out, (code,out)
    assert contents(Path.cwd())==before
    return out.strip()


def said(f, *args, **kwargs):
    "The message of a Python function that must refuse."
    with pytest.raises((ValueError,OSError)) as e: f(*args, **kwargs)
    return str(e.value)


# files of records

HEAD = b'id,title,abstract\n'
BAD = {  # name: bytes, and what the sentence says
    'empty.csv':(b'', 'is empty'), 'blank.csv':(b'\n \n', 'is empty'), 'no_title.csv':(b'id,name\n1,x\n', "no column 'title'"),
    'utf16_no_bom.csv':('id,title\n1,a\n'.encode('utf-16-le'), 'UTF-16'),
    'latin1.csv':(HEAD+'1,Café,x\n'.encode('latin-1'), 'not UTF-8: byte 0xe9 at offset 23, line 2'),
    'nul.csv':(HEAD+b'1,a\x00b,c\n', 'NUL byte at offset 21, line 2'), 'nul_at_the_end.csv':(HEAD+b'1,a,b\n'+bytes(4096), 'NUL byte at offset 24, line 3'),
    'header_twice.csv':(b'id,title,title\n1,a,b\n', "'title' stands more than once"), 'long_header.csv':(b'id,title,'+b'x'*2_000_000+b'\n1,a,b\n', 'no header'),
    'too_many.csv':(HEAD+b'1,a,b\n2,c,d,e\n', 'line 3 has 4 fields, and the header names 3 columns'), 'all_too_many.csv':(HEAD+b'1,a,b,c\n', 'more fields than the header'),
    'cut.csv':(HEAD+b'1,a,b\n2,"cut in the middle, of a fi', 'row 2 never ends; was the file cut off?'), 'no_rows.csv':(HEAD, 'a header and no rec'),
    'workbook.csv':(b'PK\x03\x04'+bytes(30), 'an Excel workbook (.xlsx)'), 'old_workbook.csv':(b'\xd0\xcf\x11\xe0\xa1\xb1', 'an old Excel workbook'),
    'gzip.csv':(b'\x1f\x8b\x08\x00', 'compressed by gzip'), 'login.csv':(b'<!doctype html>\n<p>Please log in', 'a web page'), 'json.csv':(b'[{"title": "a"}]', 'JSON'),
    'cut.parquet':(b'PAR1'+bytes(100), 'not a parquet file'), 'sheet.xlsx':(b'PK', "plain text that begins with 'PK'"),
    'cut.xlsx':(b'PK\x03\x04'+bytes(30), 'an Excel workbook (.xlsx), and damaged'), 'half_utf16.csv':((HEAD+b'1,a,b\n').decode().encode('utf-16')[:-1], 'is not UTF-16 throughout'),
    'letter.ris':(b'Dear all,\nplease find attached\n', "no column 'title'"), 'cut.ris.gz':(gzip.compress(b'TY  - JOUR\nTI  - a\nER  - \n')[:-9], 'is compressed by gzip, and damaged'),
    'nul.ris':(b'TY  - JOUR\nTI  - a\x00b\nER  - \n', 'NUL byte in line 2'), 'works.jsonl':(b'{"id": "https://openalex.org/W1"}\n{"id": \n', 'line 2')}


@pytest.mark.parametrize('name', BAD)
def test_a_file_that_is_no_table_of_records(project, name):
    content,says = BAD[name]
    Path(name).write_bytes(content)
    out = refused('predict', name, '-m', LOGREG, '-o', 'scored.csv', says=says)
    assert name in out and name in said(predict, name, [LOGREG], 'scored.csv')
    if name!='no_rows.csv':
        assert says in said(read_records, name)
        assert says in refused('preprocess', '--positives', f'IAS={name}', '-o', 'data/new.csv', *QUIET)


def test_a_folder_or_nothing_where_a_file_should_be(project):
    Path('folder.csv').mkdir()
    refused('predict', 'folder.csv', '-m', LOGREG, '-o', 'scored.csv', says='a folder of records holds .parquet files')
    refused('predict', 'nowhere.csv', '-m', LOGREG, '-o', 'scored.csv', says='nowhere.csv: no such file')


def test_what_is_taken_as_meant(project):
    "A field of two megabytes, a byte order mark, UTF-16, Windows line ends, semicolons, short rows, a table under a wrong name."
    long = 'word, '*350_000
    Path('long.csv').write_text(f'id,title,abstract\n1,ants,"{long}"\n2,bees,few\n', encoding='utf-8')
    Path('excel.csv').write_bytes('\ufeffid;title;abstract;;\r\n1;ants, bees;few;;\r\n2;wasps\r\n'.encode())
    Path('unicode.csv').write_bytes('id\ttitle\n1\tants, bees\n2\twasps\n'.encode('utf-16'))
    Path('renamed.parquet').write_bytes(b'id,title\n1,"ants, bees"\n2,wasps\n')
    for name in ('long.csv','unicode.csv','renamed.parquet','excel.csv'):
        code,out = ipbes('predict', name, '-m', LOGREG, '-o', 'scored.csv')
        assert code==0 and len(pd.read_csv('scored.csv'))==2, out
    assert 'of 2 records, 1 without an abstract' in out
    assert all(read_records(f).title.tolist()==['ants, bees','wasps'] for f in ('excel.csv','unicode.csv','renamed.parquet')) and len(read_records('long.csv').abstract[0])==len(long)


def test_records_without_text_are_not_scored_in_silence(project):
    Path('new.csv').write_text('id,title,abstract\n1,,\n2,ants,\n3,ants,few\n')
    code,out = ipbes('predict', 'new.csv', '-m', LOGREG, '-o', 'scored.csv')
    assert code==0 and '1 without any text, left unscored and 1 without an abstract' in out
    scored = pd.read_csv('scored.csv', keep_default_na=False)
    assert scored.note.tolist()==['no text','no abstract',''] and (scored.filter(like='_score').iloc[0]=='').all()


# the data set

def with_data(change):
    "Change the cleaned data set."
    change(pd.read_csv(DATA, dtype=str, keep_default_na=False)).to_csv(DATA, index=False)


@pytest.mark.parametrize('change,says', [
    (lambda d: d.assign(IAS='0'), 'no record carries label IAS'), (lambda d: d.assign(IAS='1'), 'every record carries label IAS'),
    (lambda d: d.assign(IAS=['1']+['0']*(len(d)-1)), 'label IAS has 1 papers'), (lambda d: d[d.IAS=='1'][:1], 'every record carries label IAS'), (lambda d: d[:0], 'a header and no records'),
    (lambda d: d.assign(title='', abstract=' '), 'title and abstract of all'), (lambda d: d.drop(columns='VA'), "no column 'VA'"),
    (lambda d: d.assign(id='7'), "rows 0 and 1 have the same id '7'"), (lambda d: d.assign(VA='2'), "row 1 says '2'; a label is 0, 1 or empty"),
    (lambda d: d.assign(VA=['0','yes']+['0']*(len(d)-2)), "row 2 says 'yes'")], ids=lambda x: x if isinstance(x,str) else 'data')
def test_a_data_set_that_cannot_be_learnt_from(project, change, says):
    with_data(change)
    assert DATA in refused('folds', *QUIET, says=says) or 'label IAS has 1 papers' in says
    assert says in said(split_project, load_config(overrides=QUIET))
    refused('train', *QUIET, says=says if 'has 1 papers' not in says else 'was made for a data set')


def test_folds_of_another_data_set(project):
    with_data(lambda d: d[::-1])
    assert 'clusters.parquet was made for a data set' in refused('train', *QUIET)
    assert 'Make new folds' in said(train, 'tfidf-logreg', overrides=QUIET)


@pytest.mark.parametrize('name,content,says', [
    ('train0_run-0.csv', b'', 'no table of row numbers'), ('dev0_run-0.csv', b'\x00\x00', 'needs a column `index`'), ('test0_run-0.csv', b'index\n1\nx\n', "line 3: 'x' is not a row number"),
    ('test0_run-0.csv', b'index\n-1\n', 'negative'), ('test0_run-0.csv', b'index\n99999999999999999999\n', 'is not a row number'), ('test0_run-0.csv', b'index\n7000\n', 'outside the data set'),
    ('train0_run-0.csv', b'index\n1,2\n3,4\n', 'more fields'), ('train0_run-0.csv', 'index\n1\n'.encode('utf-16'), 'no table of row numbers'), ('train0_run-0.csv', b'index\n"1\n', 'no table of row numbers'),
    ('clusters.parquet', b'', 'no list of clusters'), ('clusters.parquet', b'hello', 'no list of clusters')])
def test_damaged_fold_files(project, name, content, says):
    (Path(FOLDS)/name).write_bytes(content)
    assert name in refused('train', *QUIET, says=says) and says in said(train, 'tfidf-logreg', overrides=QUIET)


@pytest.mark.parametrize('content,says', [(b'hello\n', 'no column model_name'), (b'"cut', 'is no table of results'), ('model_name\n'.encode('utf-16'), 'is not UTF-8')])
def test_a_damaged_table_of_results_is_noticed_before_training(project, content, says):
    Path('results/metrics/results.csv').write_bytes(content)
    assert 'results.csv' in refused('train', *QUIET, says=says)


# checkpoints

def half(p): p.write_bytes(p.read_bytes()[:p.stat().st_size//2])
def edit(**new): return lambda p: p.write_text(json.dumps(json.loads(p.read_text())|new))
def set_to(o): return lambda p: p.write_text(json.dumps(o))
def pickled(p): p.rename(p.with_name('pytorch_model.bin' if p.suffix=='.safetensors' else 'model.joblib'))


CHECKPOINTS = [
    (LOGREG,'model.skops',Path.unlink,'holds no weights'), (LOGREG,'model.skops',half,'damaged or incomplete'), (LOGREG,'model.skops',pickled,'model.joblib is pickled'),
    (LOGREG,'vocabulary.txt',Path.unlink,'vocabulary.txt'), (LOGREG,'vocabulary.txt',half,'terms, and the model knows'), (LOGREG,'recipe.json',Path.unlink,'is no checkpoint'),
    (LOGREG,'recipe.json',half,'is not JSON'), (LOGREG,'recipe.json',set_to([1]),'should hold a JSON object'), (LOGREG,'recipe.json',set_to({}),'lacks kind, name, labels'),
    (LOGREG,'recipe.json',edit(input=dict(nonsense=1)),'damaged or incomplete'), (LOGREG,'recipe.json',edit(labels=['A','B']),'names 2 labels (A, B), and the weights have 3 outputs'),
    (LOGREG,'recipe.json',edit(labels=['A','B','C']),'thresholds.json lacks A, B, C'), (LOGREG,'recipe.json',edit(kind='oracle'),"`kind` is 'oracle'"),
    (LOGREG,'thresholds.json',Path.unlink,'has no thresholds.json'), (LOGREG,'thresholds.json',set_to('x'),'should hold a JSON object'),
    (LOGREG,'thresholds.json',edit(IAS='half'),"threshold of IAS is 'half'"), (LOGREG,'calibration.json',set_to({'A':1}),'calibration.json lacks'), (LOGREG,'calibration.json',half,'is not JSON'),
    (MINILM,'model.safetensors',Path.unlink,'holds no weights'), (MINILM,'model.safetensors',half,'not a complete encoder'), (MINILM,'model.safetensors',pickled,'`ipbes convert'),
    (MINILM,'config.json',half,'not a complete encoder'), (MINILM,'tokenizer.json',Path.unlink,'is tokenizer.json missing?'), (MINILM,'tokenizer.json',half,'not a complete encoder'),
    (MINILM,'recipe.json',edit(labels=['A','B']),'names 2 labels (A, B), and the weights have 3 outputs')]


@pytest.mark.parametrize('folder,name,change,says', CHECKPOINTS, ids=lambda x: getattr(x,'__name__',None))
def test_a_checkpoint_that_is_damaged_or_another(project, made, folder, name, change, says):
    if folder==MINILM: shutil.copytree(made/MINILM, MINILM)
    change(Path(folder)/name)
    assert Path(folder).name in refused('predict', 'data/raw/unseen.csv', '-m', folder, '-o', 'scored.csv', says=says)
    assert says in said(Screener.load, folder)


def test_checkpoints_of_different_labels(project):
    edit(labels=['A','B','C'])(Path(SVM)/'recipe.json')
    for name in ('thresholds','calibration'):
        p = Path(SVM)/f'{name}.json'
        p.write_text(json.dumps(dict(zip('ABC',json.loads(p.read_text()).values()))))
    refused('predict', 'data/raw/unseen.csv', '-m', LOGREG, '-m', SVM, '-o', 'scored.csv', says='different labels: IAS, SUA, VA and A, B, C')


def test_no_checkpoint_at_all(project):
    Path('empty').mkdir()
    for name,says in (('empty','neither recipe.json nor config.json'), ('nowhere','nowhere'), (f'{LOGREG}/recipe.json','recipe.json')):
        refused('predict', 'data/raw/unseen.csv', '-m', name, '-o', 'scored.csv', says=says)


# what cannot be written

JOBS = {'preprocess':['preprocess',*QUIET], 'folds':['folds',*QUIET,'seed=7'], 'train':['train',*QUIET,'baseline.C=7'], 'train an encoder':['train','-m','minilm',*QUIET,*TINY,'seed=7'],
        'predict':['predict','data/cleaned_dataset.csv','-m',LOGREG,'-o','results/scored.csv']}


def finish(args, cwd, before=None):
    "A command in a process of its own: exit code and what it said."
    p = subprocess.run([IPBES,*args], cwd=cwd, capture_output=True, text=True, env=ENV, timeout=300, preexec_fn=before)
    return p.returncode, p.stdout+p.stderr


def whole(project):
    "Can everything that stands in a project still be read?"
    s = load_config(root=project, overrides=QUIET, env='')
    read_dataset(s)
    for f in (LOGREG,SVM): assert len(Screener.load(project/f).score('ants'))==1
    assert read_results(project/'results/metrics/results.csv').AP_macro.notna().all()
    train('tfidf-svm', settings=s)
    assert not [p for p in project.rglob('.*') if p.name not in ('.locks','.training') and p.name[0]=='.' and '.training' not in p.parts]


def no_room():
    "Let a process write no file above 3 kB, as a disk would that is full."
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000,3000))


@pytest.mark.parametrize('job', [pytest.param(j, marks=pytest.mark.long) if j=='train an encoder' else j for j in JOBS])
def test_no_room_for_a_file(project, job):
    before = {k:v for k,v in contents(project).items() if '.training' not in k}
    code,out = finish(JOBS[job], project, no_room)
    assert code==1 and 'cannot be written: the disk is full' in out and 'Traceback' not in out, out
    assert {k:v for k,v in contents(project).items() if '.training' not in k and 'tensorboard' not in k}==before
    whole(project)


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 3 MB; skips where none can be mounted."
    (tmp_path/'disk').mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=3m','tmpfs',tmp_path/'disk'], capture_output=True).returncode: pytest.skip('no right to mount a disk')
    yield tmp_path/'disk'
    subprocess.run(['umount','-l',tmp_path/'disk'], check=True)


@pytest.mark.parametrize('job', ['preprocess',*(pytest.param(j, marks=pytest.mark.long) for j in ('folds','train','predict'))])
def test_a_full_disk(made, small_disk, job):
    shutil.copytree(made, small_disk/'p', ignore=shutil.ignore_patterns('*minilm*','nbs','tensorboard','.locks'))
    used = contents(small_disk/'p')
    with open(small_disk/'filler','wb',buffering=0) as f:
        with contextlib.suppress(OSError):
            for size in (65536,4096):
                while f.write(bytes(size)): pass
    code,out = finish(JOBS[job], small_disk/'p')
    assert code==1 and 'cannot be written: the disk is full' in out and 'Traceback' not in out, out
    assert contents(small_disk/'p')==used
    (small_disk/'filler').unlink()
    assert finish(JOBS[job], small_disk/'p')[0]==0


def no_privilege():
    "Take the right to write everywhere from a process of root; for others nothing changes."
    for capability in (1,2): ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform!='linux', reason='capabilities are of Linux')
@pytest.mark.parametrize('job', ['preprocess','folds','train','predict'])
def test_a_folder_that_may_not_be_written_to(project, job):
    before = contents(project)
    for d in ('data','data/folds','results','results/final_model'): (project/d).chmod(0o555)
    try: code,out = finish(JOBS[job], project, no_privilege)
    finally:
        for d in ('data','data/folds','results','results/final_model'): (project/d).chmod(0o755)
    assert code==1 and 'no permission to write in' in out and len(out.strip().splitlines())==1, out
    assert contents(project)==before


def test_a_file_where_a_folder_should_be(project):
    shutil.rmtree('results')
    Path('results').write_text('a note')
    refused('train', *QUIET, says='results is a file, and a folder is needed there')
    refused('predict', 'data/raw/unseen.csv', '-m', 'nowhere', '-o', 'data/cleaned_dataset.csv/scored.csv')
    Path('scored.csv').mkdir()
    refused('folds', *QUIET, 'paths.folds_dir=results/folds', says='results is a file')


# two at once

def together(*commands, cwd):
    "Several commands at the same time: exit code and words of each."
    started = [subprocess.Popen([IPBES,*c], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV) for c in commands]
    return [(p.wait(timeout=400),p.stdout.read()) for p in started]


def test_two_trainings_of_one_model(project):
    "Both end well, or one is refused in a sentence; what stands there is of one of them."
    done = together(*[['train','-m','tfidf-logreg',*QUIET,f'baseline.C={c}'] for c in (1,50)], cwd=project)
    assert 0 in [code for code,_ in done]
    for code,out in done: assert code==0 or (code==1 and 'another process is training' in out and len(out.strip().splitlines())==1), out
    results = read_results('results/metrics/results.csv')
    assert len(results)==3 and results.AP_macro.notna().all()
    made_of = json.loads((Path(LOGREG)/'predictions.json').read_text())
    for split in ('dev','test'): assert made_of[split]==file_hash(next(Path(f'results/{split}_preds/bert').glob('*logreg*')))
    assert len(Screener.load(LOGREG).score('ants'))==1


@pytest.mark.long
def test_two_runs_of_one_experiment(project):
    "The second is refused in a sentence while the first works; if it comes late, it finds all done. Nothing is executed twice."
    run = ['run','-m','tfidf-logreg','-f','0','--no-compare',*QUIET]
    done = together(run, run, cwd=project)
    first,second = sorted(done, key=lambda x: (x[0],'1 executed' not in x[1]))
    assert first[0]==0 and '1 executed' in first[1], done
    if second[0]: assert second[1].startswith("ipbes: another process runs the experiment 'main'"), done
    else: assert '0 executed, 1 done before' in second[1], done
    assert len(read_results('results/metrics/results.csv'))==3 and list((project/'papermill_runs/main').glob('train*.html'))
