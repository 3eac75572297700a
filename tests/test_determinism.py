"Equal work gives equal bytes: the demo in two folders, and with its runs in another order, differs in provenance.json and in what trainings cost alone."
import json
from pathlib import Path

import pytest

from ipbes_classifier import demo

BASELINES = ['tfidf-logreg','tfidf-svm']


def without_cost(path):
    "The cells of an executed comparison, but for the section on seconds and memory."
    cells,kept,keep = json.loads(path.read_text(encoding='utf-8'))['cells'],[],True
    for c in cells:
        text = ''.join(c['source'])
        if c['cell_type']=='markdown' and text.startswith('## '): keep = 'cost' not in text.splitlines()[0]
        if keep: kept.append(c)
    assert len(kept)<len(cells), 'the section has another name now'
    return kept


def files(root):
    "Bytes by path below `root`; provenance.json holds times, and a comparison shows them."
    def content(p): return without_cost(p) if p.match('compare__*.ipynb') else p.read_bytes()
    paths = [p for p in sorted(root.rglob('*')) if p.is_file() and p.name!='provenance.json' and p.parent.name!='Cost']
    return {str(p.relative_to(root)):content(p) for p in paths if not p.match('compare__*.html')}


def run(folder, mp, models, folds, n):
    "A demo with these runs, in this order."
    mp.setattr(demo, 'MODELS', models)
    mp.setattr(demo, 'FOLDS', folds)
    grid = demo.run_demo(folder, n, lambda line: None)
    assert not grid.failed, grid.failed
    return files(Path(folder))


def differing(a, b):
    "Paths that only one has, or whose bytes differ."
    return sorted(p for p in a.keys()|b.keys() if a.get(p)!=b.get(p))


@pytest.mark.long
def test_baselines_in_another_folder_and_order(tmp_path, monkeypatch):
    a = run(tmp_path/'a', monkeypatch, BASELINES, [0,1], 400)
    b = run(tmp_path/'elsewhere'/'b', monkeypatch, BASELINES[::-1], [1,0], 400)
    assert len(a)>100 and not differing(a,b)


@pytest.mark.long
def test_the_demo_twice_and_once_in_another_order(tmp_path, monkeypatch):
    models,folds = demo.MODELS,demo.FOLDS
    a = run(tmp_path/'a', monkeypatch, models, folds, 1500)
    assert any(p.endswith('model.safetensors') for p in a)
    assert not differing(a, run(tmp_path/'b', monkeypatch, models, folds, 1500))
    assert not differing(a, run(tmp_path/'c', monkeypatch, models[::-1], folds[::-1], 1500))
