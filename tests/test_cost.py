"What a training wrote down of its cost is what the table shows, an ensemble's and an interrupted encoder's included."
import numpy as np
import pytest

from ipbes_classifier.compare import find_predictions
from ipbes_classifier.cost import cost_table, read_cost, readable_cost, run_costs
from ipbes_classifier.encoders import Encoder
from ipbes_classifier.ensemble import ensemble
from ipbes_classifier.files import read_json
from ipbes_classifier.project import sample_project
from ipbes_classifier.train import train

SMALL = ['folds.n_folds=2','logging.progress=false','logging.tensorboard=false','baseline.n_estimators=5']


@pytest.fixture(scope='module')
def s(tmp_path_factory): return sample_project(tmp_path_factory.mktemp('p')/'p', n=300, overrides=SMALL)


def test_an_ensemble_costs_what_its_members_cost(s):
    models = ['tfidf-logreg','tfidf-random-forest']
    made = [train(m, fold=k, settings=s) for k in (0,1) for m in models]
    for k in (0,1): both = ensemble(models, fold=k, settings=s)
    each = run_costs(s, find_predictions(s)).set_index(['model','fold'])
    assert each.loc[('Ensemble',1),'parameters']==sum(t.cost['parameters'] for t in made[2:])
    own = read_json(both.files['checkpoint']/'provenance.json')['seconds']
    assert each.loc[('Ensemble',1),'seconds']==pytest.approx(own+sum(t.cost['fit_seconds'] for t in made[2:]))
    table = cost_table(s, find_predictions(s)).set_index('model')
    assert table['n'].tolist()==[2,2,2] and set(table.index)=={*models,'Ensemble'}
    assert table.loc['Ensemble','records_per_second']<table.loc[models,'records_per_second'].min()
    assert table.loc['tfidf-logreg','seconds']==pytest.approx(np.mean([t.cost['fit_seconds'] for t in made[::2]]))
    assert 'GPU memory' not in readable_cost(table.reset_index()) or table['gpu_peak_mb'].notna().any()


def test_the_seconds_before_a_kill_count(s, tmp_path, monkeypatch):
    import transformers
    from ipbes_classifier.train import read_dataset
    data = read_dataset(s).iloc[:40]
    data = data.assign(**{l.name:[int(i%3==j) for i in range(40)] for j,l in enumerate(s.labels)})
    def encoder():
        from ipbes_classifier.config import load_config
        quick = load_config(root=s.root, env='', overrides=[*SMALL,'input.max_length=16','models={}','training.num_train_epochs=2','training.early_stopping_patience=0'])
        return Encoder.pretrained('minilm', quick)
    save = transformers.Trainer._save_checkpoint
    def save_and_stop(self, *a, **k):
        save(self, *a, **k)
        raise KeyboardInterrupt
    monkeypatch.setattr(transformers.Trainer, '_save_checkpoint', save_and_stop)
    with pytest.raises(KeyboardInterrupt): encoder().fit(data, data, work_dir=tmp_path, progress=False)
    monkeypatch.undo()
    clock = read_json(next(tmp_path.glob('checkpoint-*'))/'trainer_state.json')['stateful_callbacks']['TrainingClock']
    again = encoder().fit(data, data, work_dir=tmp_path, progress=False)
    assert again.seconds_before==pytest.approx(clock['args']['before']) and again.seconds_before>0


def test_nobody_knows_what_an_unknown_checkpoint_cost(tmp_path):
    cost = read_cost(tmp_path)
    assert all(np.isnan(v) for k,v in cost.items() if k!='device') and cost['device']==''
