"Models, losses and measures of a user's own: trained, saved and reloaded elsewhere; a checkpoint alone imports nothing."
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ipbes_classifier import extensions, metrics, models
from ipbes_classifier.config import Training, load_config, project_path
from ipbes_classifier.files import read_json, write_json
from ipbes_classifier.losses import make_loss
from ipbes_classifier.models import load_model
from ipbes_classifier.pipeline import run_grid, train_tasks
from ipbes_classifier.project import sample_project
from ipbes_classifier.screen import Screener
from ipbes_classifier.train import own_code, train

TINY = ('{minilm: {num_train_epochs: 1, optional_negatives: 10, per_device_train_batch_size: 8, gradient_accumulation_steps: 1}}')
QUICK = ['folds.n_folds=2','logging.progress=false','logging.tensorboard=false','input.max_length=16',f'models={TINY}']


@pytest.fixture(scope='module')
def made(tmp_path_factory, root):
    "A project with the three examples beside its `configs/`; made once, copied by `project`."
    s = sample_project(tmp_path_factory.mktemp('own')/'p', n=300, overrides=QUICK)
    for p in (root/'examples').glob('my_*.py'): shutil.copy(p, s.root)
    return s.root


def forget_modules():
    "Those of the examples and of each test have the same names."
    for name in [m for m in sys.modules if m.startswith('my_')]: del sys.modules[name]


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    "The path of a project of one's own; what it registers is forgotten afterwards."
    shutil.copytree(made, tmp_path/'p')
    monkeypatch.setattr(metrics, 'METRICS', dict(metrics.METRICS))
    before = set(extensions.named)
    monkeypatch.setattr(extensions, '_loaded', {})
    monkeypatch.delenv('IPBES_MODULES', raising=False)
    forget_modules()
    yield tmp_path/'p'
    forget_modules()
    extensions.named.intersection_update(before)


def settings(project, *overrides): return load_config(root=project, env='', overrides=[*QUICK,*overrides])


def ipbes(*args, cwd, **env):
    "The command in a process of its own."
    return subprocess.run([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*map(str,args)],
                          cwd=cwd, env=os.environ|dict(OMP_NUM_THREADS='1')|env, capture_output=True, text=True, timeout=300)


def test_asymmetric_loss_by_hand_and_in_the_limit(root):
    loss = make_loss('my_losses:asymmetric', Training(), ['a'], root/'examples')
    z = torch.tensor([[2.],[2.],[-4.]])
    p = 1/(1+np.exp(-2.))
    by_hand = [-(1-p)*np.log(p), -(p-.05)**4*np.log(1-p+.05), 0.]
    np.testing.assert_allclose(loss(z, torch.tensor([[1.],[0.],[0.]])).ravel(), by_hand, atol=1e-6)
    plain = make_loss('my_losses:asymmetric', Training(loss_settings={'my_losses:asymmetric':dict(gamma_neg=0,gamma_pos=0,margin=0)}), ['a'], root/'examples')
    rng = torch.Generator().manual_seed(42)
    z,y = torch.randn(500,3,generator=rng)*3, (torch.rand(500,3,generator=rng)<.3).float()
    torch.testing.assert_close(plain(z,y), make_loss('BCE',Training(),['a'])(z,y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('given', [dict(), dict(gamma_neg=0.5,gamma_pos=0.5,margin=0), dict(gamma_neg=0,gamma_pos=0,margin=0)])
def test_asymmetric_loss_has_finite_gradients_at_the_extremes(root, given):
    loss = make_loss('my_losses:asymmetric', Training(loss_settings={'my_losses:asymmetric':given}), ['a'], root/'examples')
    for y in (0.,1.):
        z = torch.tensor([[-100.],[-3.],[0.],[100.]], requires_grad=True)
        terms = loss(z, torch.full_like(z,y))
        terms.sum().backward()
        assert terms.isfinite().all() and z.grad.isfinite().all() and (terms>=0).all()


def test_a_loss_and_a_measure_of_ones_own_train_and_the_checkpoint_needs_them_no_more(project):
    s = settings(project, 'training.loss_settings={my_losses:asymmetric: {gamma_neg: 2}}', 'modules=[my_metrics]')
    own = train('minilm', loss='my_losses:asymmetric', best_metric='eval_F3_macro', settings=s)
    assert own.files['checkpoint'].name=='best_model_cross_val_asymmetric_minilm_fold-0'
    assert pd.read_csv(own.files['results']).loss_type.tolist()==['asymmetric'] and any('eval_F3_macro' in e for e in own.log)
    assert list(read_json(own.files['checkpoint']/'provenance.json')['code'])==['my_losses','my_metrics']
    assert 'code of the project' in (own.files['checkpoint']/'README.md').read_text()
    for name in ('my_losses','my_metrics'):
        (project/f'{name}.py').unlink()
        sys.modules.pop(name)
    np.testing.assert_allclose(load_model(own.files['checkpoint']).scores(own.test.records), own.test.scores, atol=1e-6)


def test_a_model_of_ones_own_is_reloaded_in_another_process_and_folder(project, tmp_path):
    done = ipbes('train','-m','my_models:KnnModel','models.my_models:KnnModel={model_settings: {n_neighbors: 7}}', cwd=project)
    assert not done.returncode, done.stderr
    checkpoint = project/'results/final_model/best_model_cross_val_neighbours_KnnModel_fold-0'
    assert read_json(checkpoint/'recipe.json')['settings']==dict(n_neighbors=7)
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    pd.DataFrame(dict(id=['a','b'], title=['Ants on islands','Reef fish'], abstract=['Invaders spread.','Fishers know.'])).to_csv(elsewhere/'new.csv', index=False)
    predict = 'predict','new.csv','-m',checkpoint,'-o','out.csv'
    refused = ipbes(*predict, cwd=elsewhere)
    assert refused.returncode==1 and len(refused.stderr.strip().splitlines())==1 and 'a checkpoint alone imports nothing' in refused.stderr
    scored = ipbes(*predict, cwd=elsewhere, IPBES_MODULES=str(project/'my_models.py'))
    assert not scored.returncode, scored.stderr
    table = pd.read_csv(elsewhere/'out.csv')
    assert len(table)==2 and table.filter(like='_score').notna().all().all()


@pytest.mark.parametrize('named', ['modules: [my_models]','models: {"my_models:KnnModel": {}}'])
def test_the_settings_of_the_project_here_name_a_module(project, monkeypatch, named):
    t = train('my_models:KnnModel', settings=settings(project))
    (project/'configs/train.yaml').write_text(f'{named}\n')
    extensions.named.discard('my_models')
    sys.modules.pop('my_models')
    monkeypatch.chdir(project.parent)
    with pytest.raises(ValueError, match='a checkpoint alone imports nothing'): load_model(t.files['checkpoint'])
    monkeypatch.chdir(project)
    scores = Screener.load(t.files['checkpoint']).score(t.test.records).filter(like='_score').to_numpy()
    np.testing.assert_array_equal(scores, t.test.scores)


def test_a_downloaded_checkpoint_runs_no_code(tmp_path, monkeypatch):
    "Neither a module beside the weights nor one in the current folder or on the search path is imported because a recipe says so."
    checkpoint = tmp_path/'download'
    checkpoint.mkdir()
    for folder in (checkpoint,tmp_path): (folder/'my_trap.py').write_text(f'open({str(tmp_path/"sprung")!r},"w")\nclass Trap: pass\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for reference in ('my_trap:Trap','os:system','subprocess:Popen','ipbes_classifier.files:write_text'):
        write_json(checkpoint/'recipe.json', {'kind':'own','class':reference,'name':'x','labels':['A'],'loss':'own','input':{},'settings':{},'seed':1,'code':{}})
        with pytest.raises(ValueError, match='a checkpoint alone imports nothing'): load_model(checkpoint)
    assert not (tmp_path/'sprung').exists()


def test_changed_code_of_a_model_is_told_when_it_is_loaded(project):
    t = train('my_models:KnnModel', settings=settings(project))
    (project/'my_models.py').write_text((project/'my_models.py').read_text()+'\n# changed\n')
    extensions.load_module('my_models', project)
    with pytest.warns(UserWarning, match='has changed since'): load_model(t.files['checkpoint'])


def test_a_registered_measure_is_everywhere(project, monkeypatch):
    s = settings(project, 'modules=[my_metrics]')
    t = train('tfidf-logreg', settings=s)
    row = pd.read_csv(t.files['results']).iloc[0]
    assert row.F3_macro==pytest.approx(t.measures['F3_macro']) and list(read_json(t.files['checkpoint']/'provenance.json')['code'])==['my_metrics']
    (project/'configs/train.yaml').write_text('modules: [my_metrics]\n')
    shown = ipbes('metrics',t.files['test'],'--json', cwd=project)
    assert '"F3_macro"' in shown.stdout, shown.stderr
    monkeypatch.chdir(project.parent)
    assert '"F3_macro"' not in ipbes('metrics',t.files['test'],'--json', cwd=project.parent).stdout


@pytest.mark.parametrize('args,said', [
    (['-m','my_model:KnnModel'], 'my_model.py, and no installed package of that name'),
    (['-m','my_models:Knn'], 'it defines: KnnModel'),
    (['-m','my_models:KnnModel','models.my_models:KnnModel={model_settings: {k: 3}}'], 'no such setting; it has: n_neighbors'),
    (['-m','my_models:np'], 'not a class'),
    (['-m','minilm','-l','my_losses:asymetric'], 'it defines: asymmetric'),
    (['-m','minilm','-l','my_broken:loss'], 'my_broken.py cannot be imported: SyntaxError'),
    (['-m','minilm','-l','my_odd:mean_of_records'], 'it should give a tensor of shape (2, 3), or their mean'),
    (['-m','minilm','-l','my_odd:focal'], "which is another loss; rename it"),
    (['-m','minilm','training.loss_settings={my_losses:asymmetric: {gama: 1}}','-l','my_losses:asymmetric'], 'it has: gamma_neg, gamma_pos, margin'),
    (['-m','minilm','modules=[my_metricks]'], "no module 'my_metricks'"),
    (['-m','minilm','-bm','eval_F4_macro'], 'nearest: '),
])
def test_mistakes_are_one_sentence_before_any_training(project, monkeypatch, capsys, args, said):
    from ipbes_classifier.cli import main
    (project/'my_broken.py').write_text('def loss(:\n')
    (project/'my_odd.py').write_text('def mean_of_records(logits, y): return (logits-y).pow(2).mean(1)\ndef focal(logits, y): return logits-y\n')
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, 'argv', ['ipbes','train',*args])
    with pytest.raises(SystemExit) as stopped: main()
    err = capsys.readouterr().err.strip()
    assert stopped.value.code==1 and said in err and len(err.splitlines())==1, err
    assert not (project/'results').exists()


@pytest.mark.long
def test_registered_names_come_with_the_modules_of_the_settings(project, tmp_path):
    "In a process of its own: the module is imported because the settings name it, then its names are known."
    (project/'my_names.py').write_text('from ipbes_classifier.losses import register_loss\nfrom ipbes_classifier.models import register_model\n'
        'from my_losses import asymmetric\nfrom my_models import KnnModel\nregister_loss("asl")(asymmetric)\nregister_model("knn")(KnnModel)\n')
    (project/'configs/train.yaml').write_text('modules: [my_names]\nmodels: {knn: {model_settings: {n_neighbors: 4}}}\n')
    done = ipbes('train','-m','knn', cwd=project)
    assert not done.returncode, done.stderr
    checkpoint = project/'results/final_model/best_model_cross_val_neighbours_knn_fold-0'
    assert {k:read_json(checkpoint/'recipe.json')[k] for k in ('name','class','settings')}=={'name':'knn','class':'my_models:KnnModel','settings':{'n_neighbors':4}}
    (tmp_path/'one.csv').write_text('id,title,abstract\na,Ants,They spread.\n')
    done = ipbes('predict',tmp_path/'one.csv','-m',checkpoint,'-o',tmp_path/'out.csv', cwd=project)
    assert not done.returncode, done.stderr
    unknown = ipbes('train','-m','minilm','-l','alsl', cwd=project)
    assert unknown.returncode==1 and 'known: BCE, focal, asl' in unknown.stderr, unknown.stderr


def test_two_of_one_name_are_refused(project):
    s = settings(project)
    shutil.copy(project/'my_losses.py', project/'my_other.py')
    with pytest.raises(ValueError, match="two losses are called 'asymmetric'"):
        run_grid(s, ['minilm'], [0], ['my_losses:asymmetric','my_other:asymmetric'], parameters=dict(overrides=QUICK))
    shutil.copy(project/'my_models.py', project/'my_third.py')
    with pytest.raises(ValueError, match="two models are called 'KnnModel'"): run_grid(s, ['my_models:KnnModel','my_third:KnnModel'], [0], parameters=dict(overrides=QUICK))


def test_the_grid_takes_code_from_its_project_and_not_from_here(project, tmp_path, monkeypatch):
    "Another file of that name lies in the current folder; and settings that were made by hand name a module that nothing has imported yet."
    here = tmp_path/'here'
    here.mkdir()
    (here/'my_models.py').write_text('class KnnModel:\n    loss = "of-here"\n    def fit(self, train, dev): ...\n    def scores(self, records): ...\n    save = load = scores\n')
    monkeypatch.chdir(here)
    assert train_tasks(['my_models:KnnModel'], [0], ['BCE'], [0], project)[0].loss=='neighbours'
    (project/'my_names.py').write_text('from ipbes_classifier.models import register_model\nfrom my_models import KnnModel\nregister_model("knn-by-hand")(KnnModel)\n')
    monkeypatch.setattr(models, 'MODELS', dict(models.MODELS))
    s = replace(settings(project), modules=['my_names'])
    assert list(own_code(s,'knn-by-hand'))==['my_models','my_names']
    with pytest.raises(ValueError, match='other settings than the grid'): run_grid(s, ['knn-by-hand'], [0])


@pytest.mark.parametrize('given', ['from my_gamma import GAMMA','import my_gamma; GAMMA = my_gamma.GAMMA','from my_gamma import *'])
@pytest.mark.parametrize('loss', ['partial(power, g=GAMMA)','Power()','make(GAMMA)'])
def test_an_edit_is_seen_however_a_loss_was_made(project, given, loss):
    (project/'my_gamma.py').write_text('GAMMA = 2\n')
    (project/'my_maker.py').write_text('def make(g):\n    def made(logits, y): return (logits.sigmoid()-y).abs()**g\n    return made\n')
    own = (f'from functools import partial\nimport torch\nfrom my_maker import make\n{given}\ndef power(logits, y, g): return (logits.sigmoid()-y).abs()**g\n'
           f'class Power(torch.nn.MSELoss):\n    def forward(self, x, y): return super().forward(x.sigmoid(), y)*GAMMA\nloss = {loss}\n')
    (project/'my_p.py').write_text(own)
    s = settings(project)
    before = own_code(s, 'minilm', 'my_p:loss')
    assert list(before)==['my_gamma','my_maker','my_p'] and own_code(s,'minilm','my_p:loss')==before
    (project/'my_gamma.py').write_text('GAMMA = 4\n')
    after = own_code(s, 'minilm', 'my_p:loss')
    assert [k for k in before if before[k]!=after[k]]==['my_gamma'] and sys.modules['my_p'].GAMMA==4
    (project/'my_p.py').write_text(own+'# edited\n')
    assert own_code(s, 'minilm', 'my_p:loss')['my_p']!=before['my_p']


@pytest.mark.long
def test_reports_run_own_code_and_run_again_when_it_changes(project, monkeypatch):
    "In the kernel of a report, started at the root."
    monkeypatch.setenv('IPBES_ENV', '')
    (project/'configs/train.yaml').write_text('modules: [my_metrics]\nlogging: {progress: false, tensorboard: false}\n')
    s = load_config(root=project, env='')
    def run(): return run_grid(s, ['my_models:KnnModel'], [0], with_compare=False, say=lambda line: None)
    first = run()
    assert first.done==['train__KnnModel__neighbours__fold-0__run-0'] and not first.failed, first.failed
    assert 'F3' in (first.folder/f'{first.done[0]}.html').read_text()
    assert run().skipped==first.done
    (project/'my_models.py').write_text((project/'my_models.py').read_text().replace('n_neighbors:int=10','n_neighbors:int=3'))
    assert run().done==first.done
    assert 'F3_macro' in pd.read_csv(project_path(s,'results/metrics/results.csv'))


@pytest.mark.long
def test_a_grid_of_own_and_built_in_models_with_ensemble_and_comparison(project):
    (project/'configs/train.yaml').write_text(f'logging: {{progress: false, tensorboard: false}}\ninput: {{max_length: 16}}\nmodels: {TINY}\n')
    s = load_config(root=project, env='')
    grid = run_grid(s, ['tfidf-logreg','my_models:KnnModel','minilm'], [0], ['my_losses:asymmetric'], say=lambda line: None)
    assert not grid.failed and len(grid.done)==5, grid.failed
    ensemble = project_path(s,s.paths.final_model_dir)/'best_model_cross_val_asymmetric_Ensemble_fold-0'
    assert set(read_json(ensemble/'recipe.json')['members'])=={'tfidf-logreg','my_models:KnnModel','minilm'}
    card = (ensemble/'README.md').read_text()
    assert 'minimised asymmetric, negatives: 10 of the papers' in card and 'minimised neighbours, negatives: all' in card and '| train, before members drew their negatives |' in card
