"The commands, as a person types them, on the synthetic sample: from raw files to scored papers."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ipbes_classifier.metrics import read_predictions
from ipbes_classifier.sample import write_sample

QUIET = dict(COLUMNS='120', FORCE_COLOR='', PY_COLORS='', TERM='dumb', IPBES_ENV='')
TINY = ['models={minilm: {num_train_epochs: 1, per_device_train_batch_size: 16, gradient_accumulation_steps: 1, optional_negatives: 40}}',
        'input.max_length=32','logging.progress=false']


def ipbes(*args, cwd, code=0):
    "Run a command; its output. The exit code must be `code`."
    p = subprocess.run([Path(sys.executable).with_name('ipbes'),*map(str,args)], cwd=cwd, capture_output=True, text=True, env=os.environ|QUIET, timeout=600)
    assert p.returncode==code, f'{args}\n{p.stdout}\n{p.stderr}'
    assert 'Traceback' not in p.stderr
    return p.stdout+p.stderr


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A project in which the whole job was done by commands."
    root = tmp_path_factory.mktemp('work')/'project'
    ipbes('init', root, cwd=root.parent)
    raw = write_sample(root/'raw', n=400)
    given = [x for l,p in raw['positives'].items() for x in ('--positives',f'{l}={p}')]
    ipbes('preprocess', *given, '--corpus', raw['corpus'], '-o', 'data/cleaned_dataset.csv', cwd=root)
    ipbes('folds', '--n-folds', 2, '--test-size', .2, '--dev-size', .2, cwd=root)
    ipbes('train', '-m', 'tfidf-logreg', '-f', 0, cwd=root)
    ipbes('train', '-m', 'minilm', '-f', 0, '-r', 0, '-l', 'BCE', '-t', *TINY, cwd=root)
    ipbes('ensemble', '-f', 0, '-l', 'BCE', '-t', *TINY, cwd=root)
    return root


def test_results_hold_a_row_per_run(project):
    r = pd.read_csv(project/'results/metrics/results.csv')
    assert sorted(r.model_name)==['Ensemble','minilm','tfidf-logreg']
    assert r.AP_macro.between(0,1).all() and (r.n==r.n[0]).all()


def test_a_first_pass_for_a_model(project):
    "Few records promise nothing, which is said; a runtime that was not measured is refused, as everywhere."
    models = project/'results/final_model'
    linear,encoder = models/'best_model_cross_val_logloss_tfidf-logreg_fold-0',models/'best_model_cross_val_BCE_minilm_fold-0'
    out = ipbes('cascade', '-m', linear, '--n-train', 20, '--test', cwd=project)
    assert 'everything is read: ' in out and 'on test, where 100.0% is read:' in out and len(list(linear.glob('cascade/*/cascade.json')))==1
    shutil.rmtree(linear/'cascade')
    refused = ipbes('cascade', '-m', encoder, '--runtime', 'openvino-int8', cwd=project, code=1)
    assert 'openvino-int8' in refused and not (encoder/'cascade').exists()


def test_checkpoints_hold_what_the_contract_lists(project):
    folder = project/'results/final_model/best_model_cross_val_BCE_minilm_fold-0'
    config = json.loads((folder/'config.json').read_text())
    assert config['problem_type']=='multi_label_classification' and set(config['id2label'].values())=={'IAS','SUA','VA'}
    for name in ('model.safetensors','thresholds.json','calibration.json','recipe.json','provenance.json'): assert (folder/name).exists(), name
    provenance = json.loads((folder/'provenance.json').read_text())
    assert provenance['inputs'] and provenance['versions']['torch'] and provenance['settings']['seed']==42


def test_predict_gives_a_row_per_record_in_order(project):
    out = ipbes('predict', 'raw/unseen.csv', '-m', 'results/final_model/best_model_cross_val_BCE_Ensemble_fold-0', '-o', 'scored.csv', cwd=project)
    a,papers = pd.read_csv(project/'scored.csv'), pd.read_csv(project/'raw/unseen.csv')
    assert 'scored.csv' in out and list(a['id'])==list(papers['id'])
    assert 'selected: '+', '.join(f"{l} {a[f'{l}_pred'].sum()}" for l in ('IAS','SUA','VA')) in out
    assert a.filter(like='_score').notna().all(axis=None) and a['model'].nunique()==1


def test_predict_reads_a_zotero_export(project):
    library = next((project/'raw').glob('zotero_*.csv'))
    ipbes('predict', library, '-m', 'results/final_model/best_model_cross_val_logloss_tfidf-logreg_fold-0', '-o', 'scored.parquet', cwd=project)
    raw = pd.read_csv(library, dtype=str, keep_default_na=False)
    assert list(pd.read_parquet(project/'scored.parquet')['id'])==list(raw['Key'])


def test_a_tag_in_a_library_never_reaches_a_model(project, tmp_path):
    library = next((project/'raw').glob('zotero_*.csv'))
    raw = pd.read_csv(library, dtype=str, keep_default_na=False)
    raw.assign(**dict.fromkeys(('Manual Tags','Notes','Date Added','File Attachments','Automatic Tags'), 'IAS Chapter 4; cited')).to_csv(tmp_path/'tagged.csv', index=False)
    model = project/'results/final_model/best_model_cross_val_logloss_tfidf-logreg_fold-0'
    for name,path in (('a',library),('b',tmp_path/'tagged.csv')): ipbes('predict', path, '-m', model, '-o', tmp_path/f'{name}.csv', cwd=project)
    assert (tmp_path/'a.csv').read_bytes()==(tmp_path/'b.csv').read_bytes()


def test_metrics_of_a_prediction_file_are_its_row_of_results(project):
    file = next((project/'results/test_preds/bert').glob('*minilm*.csv'))
    m = json.loads(ipbes('metrics', file, '--json', cwd=project))
    row = pd.read_csv(project/'results/metrics/results.csv').set_index('model_name').loc['minilm']
    for k in ('AP_macro','f1_IAS','MCC','TP_VA','brier_SUA'): assert m[k]==pytest.approx(row[k], rel=1e-12), k
    assert read_predictions(file).labels==['IAS','SUA','VA']
    table,legend = ipbes('metrics', file, cwd=project).split('95 in a name')
    told = {'read95','precision95','TNR95','WSS95','read99','recall100','AP','roc_auc','brier','ECE'}
    assert told<={l.split()[0] for l in table.splitlines() if l.strip()} and all(n in legend for n in told)


@pytest.mark.long
def test_run_skips_what_is_done_and_goes_on_past_a_failure(project):
    args = ['run','-m','tfidf-logreg','-m','tfidf-svm','-f','0','-f','1','--experiment','first','folds.n_folds=2','logging.progress=false']
    assert '7 executed, 0 done before, 0 failed' in ipbes(*args, cwd=project)
    assert '0 executed, 7 done before, 0 failed' in ipbes(*args, cwd=project)
    broken = project/'broken'
    broken.mkdir()
    (broken/'config.json').write_text('{}')
    out = ipbes(*args, '-m', './broken', cwd=project, code=1)
    assert 'failed: train__broken__BCE__fold-0__run-0' in out and 'which failed' in out and '4 done before' in out
    assert (project/'papermill_runs/first/compare__all__all__fold-all__run-0.html').exists() and 'failed: compare' not in out
    assert (project/'papermill_runs/first/train__broken__BCE__fold-0__run-0.failed.ipynb').exists()


@pytest.mark.parametrize('args,says', [
    (['train','-m','minlm'], 'known: tfidf-logreg'),
    (['train','-f','9'], 'ipbes folds'),
    (['train','trainin.seed=1'], 'nearest known'),
    (['train','-l','hinge','-m','minilm'], 'known: BCE, focal'),
    (['train','-m','no-such/encoder'], 'model hub'),
    (['ensemble','-f','1','-m','tfidf-svm','-m','tfidf-random-forest'], 'ipbes train'),
    (['predict','raw/unseen.csv','-m','results','-o','x.csv'], 'is no checkpoint'),
    (['predict','raw/unseen.csv','-m','results/final_model','-o','x.csv'], 'checkpoints in it: best_model_cross_val_'),
    (['predict','raw/unseen.csv','-m','results/final_model/best_model_cross_val_logloss_tfidf-logregg_fold-0','-o','x.csv'], 'Did you mean results/final_model/best_model_cross_val_logloss_tfidf-logreg_fold-0?'),
    (['train','labels=wetland'], "'labels=[{name: wetland},{name: bog}]'"),
    (['predict','nowhere.csv','-m','results/final_model/best_model_cross_val_logloss_tfidf-logreg_fold-0','-o','x.csv'], 'nowhere.csv'),
    (['preprocess','--positives','ias.csv'], 'LABEL=FILE'),
    (['preprocess','--positives','XXX=ias.csv'], 'no label XXX'),
    (['metrics','raw/unseen.csv'], 'unseen.csv'),
    (['init','.'], 'exists already'),
])
def test_a_mistake_ends_in_one_sentence(project, args, says, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT','http://127.0.0.1:9')
    out = ipbes(*args, cwd=project, code=1)
    assert says in out and len(out.strip().splitlines())==1
    assert not (project/'x.csv').exists()


def test_help_answers_without_heavy_imports():
    p = subprocess.run([sys.executable,'-X','importtime',Path(sys.executable).with_name('ipbes'),'--help'], capture_output=True, text=True, env=os.environ|QUIET)
    assert p.returncode==0 and not [m for m in ('torch','transformers','pandas','sklearn','papermill') if f' {m}\n' in p.stderr]


@pytest.mark.parametrize('args,asked,says', [(['folds'],'ipbes_classifier.project.split_project','ipbes: interrupted'),
    (['fill','five.csv','-o','out.csv'],'ipbes_classifier.fill.fill_file','ipbes: interrupted; what was done is kept, and the same command goes on')])
def test_an_interrupted_command_says_whether_it_goes_on(tmp_path, monkeypatch, capsys, args, asked, says):
    from ipbes_classifier.cli import main
    def interrupt(*args, **kw): raise KeyboardInterrupt
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asked, interrupt)
    monkeypatch.setattr(sys, 'argv', ['ipbes',*args])
    (tmp_path/'five.csv').write_text('title,abstract,doi\na,,10.1000/a\n')
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code==130 and capsys.readouterr().err.strip().splitlines()[-1]==says
