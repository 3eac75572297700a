"Figures that stand in README come from a committed file, to the digit."
import json
import re

import pytest


@pytest.fixture
def rows(root):
    q = json.loads((root/'benchmarks/results/quality.json').read_text())
    return {(part,r['model'],r['label']):r for part in ('all','without_suspects') for r in q[part]['table']}


def test_readme_figures_are_those_of_the_benchmark(root, rows):
    "Each line `| model | label | AP | F1 | WSS@95 | AP without suspects | prevalence | n |` of the table."
    lines = re.findall(r'^\| ([\w-]+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| (\d+) \|$', (root/'README.md').read_text(), re.M)
    assert {(m,l) for m,l,*_ in lines}=={(m,l) for part,m,l in rows if part=='all' and m in ('tfidf-logreg','minilm','Ensemble')}
    for model,label,ap,f1,wss,clean,prevalence,n in lines:
        r = rows['all',model,label]
        shown = [f"{r[k]:.3f}" for k in ('AP','f1','WSS95')]+[f"{rows['without_suspects',model,label]['AP']:.3f}",f"{100*r['prevalence']:.2f}",str(r['n'])]
        assert [ap,f1,wss,clean,prevalence,n]==shown, (model,label)


def test_no_text_of_a_paper_is_in_a_benchmark_file(root):
    for p in (root/'benchmarks/results').glob('*.json'):
        for key in ('"title"','"abstract"','"doi"'): assert key not in p.read_text(), p
