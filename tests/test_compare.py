"Comparisons: weights say what repeated rows say, names are told apart, and both reports run in a small project."
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ipbes_classifier.cli import main
from ipbes_classifier.compare import (MEASURES, Comparison, _fold_draws, agreement, draw_weights, find_predictions, leaderboard, paired_difference,
                                      parse_name, read_comparison, readable, record_clusters, source_traits, with_source_only)
from ipbes_classifier.config import load_config, project_path
from ipbes_classifier.files import read_json
from ipbes_classifier.folds import make_folds, write_folds
from ipbes_classifier.metrics import Predictions, evaluate
from ipbes_classifier.pipeline import Grid
from ipbes_classifier.report_html import notebook_to_html
from ipbes_classifier.results import Run
from ipbes_classifier.train import train

LABELS = ['ants','kelp']
TOPICS = ['invasive ants spread fast in cities','kelp forests feed many fishes','dust in a far galaxy']


def write_data(root, n=240):
    "A data set of made-up papers on two labels."
    rng = np.random.default_rng(42)
    def text(i): return ' '.join(rng.permutation(' '.join([TOPICS[i%3],TOPICS[rng.integers(3)],TOPICS[rng.integers(3)]]).split()))
    (root/'configs').mkdir(parents=True)
    (root/'configs/config.yaml').write_text(f"labels: [{{name: {LABELS[0]}}},{{name: {LABELS[1]}}}]\nbaseline: {{min_df: 1}}\nlogging: {{progress: false}}\n")
    s = load_config(root=root, env='')
    path = project_path(s, s.paths.dataset)
    path.parent.mkdir()
    pd.DataFrame([dict(id=f'r{i}', doi='', title=f'Paper <script>{i}</script>', abstract=text(i), year=2000+i%20, ants=int(i%3==0), kelp=int(i%3==1))
                  for i in range(n)]).to_csv(path, index=False)
    return s


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "Two baselines trained on two folds; every twelfth record counts as a copy of the one before."
    s = write_data(tmp_path_factory.mktemp('compare')/'project')
    path,y = project_path(s,s.paths.dataset),np.array([[i%3==0,i%3==1] for i in range(240)])
    clusters = np.arange(240)-(np.arange(240)%12==11)
    write_folds(make_folds(y,clusters,n_folds=2), project_path(s,s.paths.folds_dir), clusters, path)
    for fold in (0,1):
        for m in ('tfidf-logreg','tfidf-svm'): train(m, fold=fold, settings=s)
    return s


def execute(root, s, name, out, **parameters):
    "Run a report as `ipbes run` does: through papermill, from the project's folder."
    import papermill
    papermill.execute_notebook(str(root/f'nbs/reports/{name}.ipynb'), str(out), parameters=dict(root='',**parameters), cwd=s.root,
                               kernel_name='python3', progress_bar=False, log_output=False)
    return notebook_to_html(out).read_text(encoding='utf-8')


def pictures(path): return sum('image/png' in o.get('data',{}) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs',[]))


def test_compare_report(root, project, tmp_path):
    html = execute(root, project, 'compare', tmp_path/'c.ipynb', n_boot=50, note='made up <script>alert(1)</script>')
    assert 'made up &lt;script&gt;' in html and '<script' not in html
    folder = project_path(project, 'results/metrics/compare_run-0')
    assert {p.name for p in folder.iterdir()}=={f'{n}.csv' for n in ('agreement','differences','folds','leaderboard','ranks')}|{'leaderboard.json','provenance.json'}
    board = read_json(folder/'leaderboard.json')['models']
    assert set(board)=={'tfidf-logreg','tfidf-svm','source only'}
    table = leaderboard(find_predictions(project,['tfidf-svm']), record_clusters(project), 50, project.seed)
    assert [board['tfidf-svm'][l]['AP_low'] for l in table.label]==table.AP_low.tolist()
    assert read_json(folder/'provenance.json')['parameters']['n_boot']==50
    assert pictures(tmp_path/'c.ipynb')==9
    made = sorted(p.relative_to(project_path(project,'plots')).as_posix() for p in project_path(project,'plots').glob('*/compare_*.png'))
    assert made==[*(f'{k}/compare_run-0.png' for k in ('Agreement','Cost','Leaderboard')), *(f'PR/compare_fold-{k}_run-0.png' for k in (0,1)),
                  *(f'ROC/compare_fold-{k}_run-0.png' for k in (0,1)), 'Reliability/compare_run-0.png', *(f'Reliability/compare_tfidf-{m}_run-0.png' for m in ('logreg','svm'))]
    first = [re.search(pattern, html).start() for pattern in ('<h2[^>]*>Leaderboard','<h2[^>]*>What it ran with','<summary>Parameters')]
    assert first==sorted(first), 'the leaderboard stands first, parameters last'
    ranked = pd.read_csv(folder/'ranks.csv')
    assert sorted(ranked.columns)==['ants','average rank','kelp','model'] and ranked['average rank'].sum()==3


def test_ensemble_report(root, project, tmp_path):
    html = execute(root, project, 'ensemble', tmp_path/'e.ipynb', n_boot=50, fold=1, method='stacking', models=['tfidf-logreg','tfidf-svm'])
    assert '<script' not in html and 'a constant' in html
    name = Run('Ensemble','BCE',1).predictions.removesuffix('.csv')
    shares = pd.read_csv(project_path(project,f'results/metrics/{name}/shares.csv'))
    assert np.allclose(shares.groupby('label').share.sum(), 1)
    assert {p.parent.name for p in project_path(project,'plots').glob(f'*/{name}.png')}=={'Confusion','Effort','Leaderboard','PR','ROC','Reliability','Thresholds'}
    assert pictures(tmp_path/'e.ipynb')==8
    found = [f for f in find_predictions(project,folds=[1]) if f[0].model!='Ensemble']
    assert len(found)==2 and len(find_predictions(project,['Ensemble']))==1


@pytest.mark.parametrize('name', ['compare','ensemble'])
def test_a_report_without_data_says_what_to_do(root, tmp_path, name):
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs/config.yaml').write_text('labels: [{name: ants}]')
    with pytest.raises(Exception, match='no data set .*ipbes preprocess') as e: execute(root, load_config(root=tmp_path,env=''), name, tmp_path/'r.ipynb')
    assert e.value.ename=='FileNotFoundError'


def test_a_comparison_before_any_training_says_what_to_do(root, tmp_path):
    with pytest.raises(Exception, match='no test predictions .*ipbes train'): execute(root, write_data(tmp_path/'p'), 'compare', tmp_path/'r.ipynb')


def test_command_says_which_folds_it_leaves_out(project, tmp_path, monkeypatch, capsys):
    "The report itself is left out here."
    monkeypatch.chdir(project.root)
    monkeypatch.setattr('ipbes_classifier.pipeline.run_tasks', lambda s,tasks,*more: Grid(tmp_path,[t.name for t in tasks]))
    def said():
        monkeypatch.setattr('sys.argv', ['ipbes','compare','-m','tfidf-logreg','-m','tfidf-svm'])
        with pytest.raises(SystemExit) as e: main()
        assert not e.value.code
        return capsys.readouterr().err.strip()
    assert said()==''
    hidden = next(project_path(project,'results/test_preds/bert').glob('fold-1_tfidf-svm_*.csv'))
    hidden.rename(tmp_path/hidden.name)
    try: assert said().splitlines()==['tfidf-logreg: fold 1 left out, since not all models have it']
    finally: (tmp_path/hidden.name).rename(hidden)


@pytest.mark.parametrize('name', ['benchmark','compare','ensemble'])
def test_reports_are_thin(root, name):
    "No developer's tool, no label of some assessment, no function of more than a few lines, no outputs."
    nb = json.loads((root/f'nbs/reports/{name}.ipynb').read_text())
    code = [''.join(c['source']) for c in nb['cells'] if c['cell_type']=='code']
    labels = [o['name'] for o in yaml.safe_load((root/'configs/config.yaml').read_text())['labels']]
    assert not re.search(rf"nbdev|fastcore|default_exp|\b({'|'.join(labels)})\b", '\n'.join(code))
    assert max(len(c.splitlines()) for c in code)<=20
    assert not [c for c in nb['cells'] if c.get('outputs')]
    assert nb['metadata']=={'kernelspec':dict(display_name='python3',language='python',name='python3')}


names = st.text('abz019._-', min_size=1, max_size=12)

@settings(max_examples=200, deadline=None)
@given(st.builds(Run, names, st.sampled_from(['BCE','focal','logloss','hinge','gini']), st.integers(0,99), st.integers(0,9), st.booleans(), st.booleans(),
                 st.integers(0,5000)))
def test_names_read_back(r):
    assert parse_name(r.predictions)==r


@settings(max_examples=60, deadline=None)
@given(st.integers(0,10**6), st.integers(2,40), st.integers(2,6), st.sampled_from([.05,.3,.9]))
def test_weights_say_what_repeated_rows_say(seed, n, levels, rate):
    "On few rows, with many ties and labels without positives."
    rng = np.random.default_rng(seed)
    y,s = (rng.random((n,2))<rate).astype(np.int8),rng.integers(0,levels,(n,2))/levels
    p = Predictions(LABELS, y, (s>.4).astype(np.int8), s, None, pd.DataFrame())
    w = draw_weights(rng.integers(0,n,n), 3, seed)
    got = _fold_draws(p, w)
    for b,weights in enumerate(w):
        rows = np.repeat(np.arange(n), weights)
        if not len(rows): continue
        m = evaluate(y[rows], s[rows], p.preds[rows], LABELS)
        for i,name in enumerate(MEASURES):
            if '_at_' not in name: np.testing.assert_allclose(got[i,:,b], [m[f'{name}_{l}'] for l in LABELS], atol=1e-12, err_msg=name)


def test_the_order_of_files_and_the_other_models_change_nothing(project):
    found,clusters = find_predictions(project,['tfidf-logreg','tfidf-svm']),record_clusters(project)
    both = leaderboard(found[::-1], clusters, 20)
    assert both.equals(leaderboard(found, clusters, 20))
    alone = leaderboard([f for f in found if f[0].model=='tfidf-svm'], clusters, 20)
    assert alone.equals(both[both.model=='tfidf-svm'].reset_index(drop=True))


def test_copies_make_no_interval_narrower(project):
    "Every record four times: rows would pretend to know twice as much, clusters do not."
    c = read_comparison(find_predictions(project,['tfidf-logreg'],[0]))
    p = c.models['tfidf-logreg'][0,0]
    four = Predictions(p.labels, *(np.tile(a,(4,1)) for a in (p.y,p.preds,p.scores)), None, pd.concat([p.frame]*4, ignore_index=True))
    def width(p, clusters=None):
        t = leaderboard(Comparison(c.labels, c.parts, dict(m={(0,0):p})), clusters, 300)
        return (t.AP_high-t.AP_low)[0]
    clustered,rows = width(four,{i:i for i in p.frame.id}),width(replace(four,frame=four.frame.drop(columns='id')))
    assert clustered>1.5*rows and width(four)==clustered


def test_swapping_two_models_swaps_the_sign(project):
    c = read_comparison(find_predictions(project,['tfidf-logreg','tfidf-svm']))
    a,b = c.models.values()
    there,back = paired_difference(a,b,n_boot=100),paired_difference(b,a,n_boot=100)
    assert there['difference']==-back['difference'] and there['p']==back['p']
    assert np.allclose([there['low'],there['high']], [-back['high'],-back['low']])


def test_predictions_of_other_folds_are_refused(project, tmp_path):
    "Folds were made again, predictions were not."
    other = write_data(tmp_path/'p')
    y,clusters = np.array([[i%3==0,i%3==1] for i in range(240)]),np.arange(240)
    write_folds(make_folds(y,clusters,n_folds=2,seed=7), project_path(other,other.paths.folds_dir), clusters, project_path(other,other.paths.dataset))
    c = read_comparison(find_predictions(project,['tfidf-svm']))
    with pytest.raises(ValueError, match='source only'): with_source_only(c, other)


def test_permuted_test_labels_change_no_score_of_the_source_classifier(project):
    from ipbes_classifier.compare import source_predictions
    from ipbes_classifier.folds import read_fold
    from ipbes_classifier.train import read_dataset
    data,fold = read_dataset(project),read_fold(project_path(project,project.paths.folds_dir),0)
    permuted = data.copy()
    permuted.loc[fold.test,LABELS] = data.loc[fold.test[::-1],LABELS].to_numpy()
    a,b = (source_predictions(d,fold,LABELS) for d in (data,permuted))
    assert (a.scores==b.scores).all() and (a.preds==b.preds).all() and (a.probs==b.probs).all()


@given(st.lists(st.tuples(st.text(max_size=30),st.text(max_size=30)), max_size=5))
@settings(max_examples=50, deadline=None)
def test_traits_are_finite(texts):
    traits = source_traits(pd.DataFrame(texts, columns=['title','abstract'], dtype=object))
    assert len(traits)==len(texts) and np.isfinite(traits.to_numpy(dtype=float)).all()


def test_published_predictions(real_data):
    "The predecessor's files: their names, and the macro AP that its results.csv gives."
    folder = real_data/'published_predictions'
    c = read_comparison(find_predictions(None, folder=folder))
    table = leaderboard(c, n_boot=20)
    published = pd.read_csv(folder/'results.csv').query("model_name!='Ensemble'").groupby('model_name').AP_macro.mean()
    np.testing.assert_allclose(table[table.label=='macro'].AP, sorted(published,reverse=True), atol=1e-9)
    assert len(readable(table))==20 and len(agreement(c))==30 and c.folds==[0,1,2]
