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


@pytest.fixture
def benchmark(root):
    "The benchmark of models that fit two cores, and its rows by part, model and label."
    path = root/'benchmarks/results/benchmark.json'
    if not path.exists(): pytest.skip(f'{path.name} was not made yet')
    q = json.loads(path.read_text())
    return q,{(part,r['model'],r['label']):r for part,v in q['parts'].items() for r in v['table']}


def test_the_benchmark_is_of_full_size_and_whole(benchmark):
    "Every record was tested once, and each part has every model, label and measure, with counts that fit."
    q,rows = benchmark
    labels,models = [k for k in q['counts']['records'] if k!='n'],{'Ensemble','source only',*q['models']}
    assert not q['quick'] and q['command']=='python benchmarks/quality.py' and q['n_boot']>=1000
    assert q['counts']['tested']==q['counts']['records']['n']==rows['all','Ensemble','macro']['n']>26_000
    assert set(rows)=={(p,m,l) for p in ('all','without_suspects','one_export','without_flagged','time_records','time') for m in models for l in (*labels,'macro')}
    for r in rows.values():
        assert r['prevalence']*r['n']*(len(labels) if r['label']=='macro' else 1)==pytest.approx(r['positives'])
        for m in q['measures']:
            if r[m] is None: assert r['model']=='source only' and m.startswith('precision'), (r['model'],r['label'],m)  # where it selects nothing
            else:
                assert (0 if m!='WSS95' else -1)<=r[m]<=1, (r['model'],r['label'],m)
                if r[f'{m}_low'] is not None: assert r[f'{m}_low']<=r[m]<=r[f'{m}_high'], (r['model'],r['label'],m)
    for l in labels: assert rows['all','tfidf-titles',l]['positives']==q['counts']['records'][l]
    assert len({tuple(rows[p,m,'macro'][k] for k in ('n','positives')) for p in ('time','time_records') for m in models})==1


def test_readme_quotes_the_benchmark(root, benchmark):
    "Each line `| model | label | AP (low to high) | F1 | recall / share selected | WSS@95 | AP without suspects | AP at 1 % | prevalence | n |`."
    readme,(_,rows) = (root/'README.md').read_text(),benchmark
    if 'benchmarks/results/benchmark.json' not in readme: pytest.skip('README does not quote the benchmark')
    lines = re.findall(r'^\| ([\w -]+) \| (\w+) \| ([\d.]+ \([\d.]+ to [\d.]+\)) \| ([\d.]+) \| ([\d.]+ / [\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| (\d+) \|$', readme, re.M)
    assert {m for m,*_ in lines}=={m for _,m,_ in rows}
    for model,label,*shown in lines:
        r,clean = rows['all',model,label],rows['without_suspects',model,label]
        assert shown==[f"{r['AP']:.3f} ({r['AP_low']:.3f} to {r['AP_high']:.3f})", f"{r['f1']:.3f}", f"{r['recall95']:.3f} / {r['selected95']:.3f}", f"{r['WSS95']:.3f}", f"{clean['AP']:.3f}", f"{r['AP_at_0.01']:.3f}",
                       f"{100*r['prevalence']:.2f}", str(r['n'])], (model,label)


def test_no_text_of_a_paper_is_in_a_benchmark_file(root):
    for p in (root/'benchmarks/results').glob('*.json'):
        for key in ('"title"','"abstract"','"doi"'): assert key not in p.read_text(), p


@pytest.fixture
def search_benchmark(monkeypatch, root):
    "The script as a module."
    monkeypatch.syspath_prepend(str(root/'benchmarks'))
    return pytest.importorskip('search')


def test_early_stopping_is_counted_as_the_trainer_counts_it(search_benchmark):
    "Patience counts epochs in a row without a new best; equal is not better."
    stop = search_benchmark.early_stop
    assert stop([.1,.2,.2,.1,.9],2)==4 and stop([.3,.2,.4,.3,.3],2)==5 and stop([.1,.2,.3],2)==3
    assert stop([.9,.1,.1,.1],0)==4


def test_figures_of_a_search_are_those_of_its_epochs(search_benchmark):
    import pandas as pd
    epochs = pd.DataFrame(dict(trial=[1,1,2], epoch=[1,2,1], value=[.1,.5,.4]))
    assert search_benchmark.figures(epochs, 3.21, 'value')==dict(epochs=3, seconds=3.2, best=.5, best_trial=1, best_epoch=2)


@pytest.mark.parametrize('name', ['search','grid','training','stopping','screening'])
def test_committed_figures_are_of_full_size(root, name):
    "A quick run must not stand where figures of full size are quoted from."
    path = root/f'benchmarks/results/{name}.json'
    if not path.exists(): pytest.skip(f'{path.name} was not made yet')
    q = json.loads(path.read_text())
    assert not q['quick'] and f'benchmarks/{name}.py' in q['command'] and '--quick' not in q['command']
    if name=='training': assert q['ours']['peak_mb']>0 and q['n']>=700
    elif name=='stopping': assert all(r['reviews']>=200 and r['low']<=r['reached']<=r['high'] for r in q['rows']) and q['settings']['size']==20_000
    elif name=='screening': assert max(q['share_of_peak'].values())<1 and q['flipped_of']['torch']==0 and q['n_test']>4000
    elif name=='search': assert q['max_difference']==0 and q['epochs_compared']==q['asha']['epochs']<q['to_the_end']['epochs']
    else: assert all(q['seconds'][way][x]>0 for way in q['seconds'] for x in ('cold','all'))


def test_costs_in_readme_are_those_of_the_benchmarks(root):
    "Of searching, training and reports."
    readme = (root/'README.md').read_text()
    search,training,grid = (json.loads((root/f'benchmarks/results/{n}.json').read_text()) for n in ('search','training','grid'))
    a,b,c = search['asha'],search['to_the_end'],search['early_stopping_alone']
    assert a['best']==b['best']==c['best']
    assert f"{a['epochs']} of {b['epochs']} epochs, {search['share_of_seconds']:.2f} of the seconds, equal best dev AP (macro {a['best']:.3f})" in readme
    assert f"{a['epochs']} of {c['epochs']} epochs, {search['share_of_seconds_of_early_stopping']:.2f} of the seconds" in readme
    shares = [f'{100*p:.1f}' for p in search['prevalence_dev'].values()]
    assert f"{search['n_train']} real records to train on, dev n {search['n_dev']}, prevalence {', '.join(shares[:-1])} and {shares[-1]} %" in readme
    r,ours,plain = training['ours_to_plain'],training['ours'],training['plain']
    assert f"{r['samples_per_second']:.1f} times the records a second ({r['samples_per_cpu_second']:.1f} times a processor second), {r['peak_mb']:.2f} of the memory; dev AP {ours['dev_AP_weighted']:.3f} and {plain['dev_AP_weighted']:.3f}" in readme
    n = list(training['dev_positives'].values())
    assert f"{training['n']} real records of up to {training['max_length']} tokens, {training['epochs']} epochs; dev n {training['n_dev']} with {n[0]}, {n[1]} and {n[2]} positives" in readme
    assert f"{grid['overhead']['here']['per_run']:.1f} s more a run for its report, {grid['overhead']['ray']['per_run']:.1f} s on Ray" in readme
    assert f"{grid['runs']} runs of two baselines on the synthetic sample, n {grid['n']:,}" in readme


def test_screening_in_readme_is_that_of_the_benchmark(root):
    "Ratios, flips and what a first pass loses."
    readme,q = (root/'README.md').read_text(),json.loads((root/'benchmarks/results/screening.json').read_text())
    r,flips,first,rates,peak,goes = q['ratios'],q['flipped_of'],q['cascade'],q['rates'],q['share_of_peak'],q['time_of_chosen']
    lost = next(x for x in first['test'] if x['label']=='any')
    int8,bf16 = (next(x for x in q['runtimes'] if x['runtime']==f'openvino-{n}') for n in ('int8','bf16'))
    assert q['numbers_of_chosen']=='int8' and max(peak.values())<1
    for says in (f"{r['chosen_to_loop']:.1f} times the records a second, {flips['chosen']} of {flips['decisions']} decisions other; on inputs of {q['max_length']['trained']} tokens, as the model was trained, {r['chosen_short_to_loop']:.1f} times, {flips['chosen_short']} of {flips['decisions']}, and {q['flipped_of_test']['chosen']} of {q['flipped_of_test']['decisions']:,} on {q['n_test']:,} test records",
                 f"sorted by length in small batches | {r['torch_to_loop']:.1f} times", f"of transformers | {r['chosen_to_pipeline']:.1f} times", f"{rates['chosen']['records']} abstracts of",
                 f"{r['cascade_to_loop']:.1f} times ({r['cascade_irrelevant_to_loop']:.1f} where nothing is relevant); {first['read_of_test']:.0%} are read, {lost['lost']} of {lost['selected']} selected papers lost, {lost['relevant_lost']} of {lost['relevant_selected']} relevant ones",
                 f"float32: one by one {peak['loop']:.0%}, sorted batches {peak['torch']:.0%}; {q['numbers_of_chosen']}: OpenVINO {peak['chosen']:.0%} | {q['gflop_per_record']:.1f} GFLOP a record", ', '.join(f"{q['peak_gflop_per_second'][k]:.0f} {'GFLOP/s '*(k=='float32')}in {k}" for k in ('float32','bf16','int8')),
                 f"bf16 alone was {bf16['rate']/bf16['torch_rate']:.1f} times as fast and flipped {'none' if not bf16['flipped'] else bf16['flipped']}", f"{100*int8['again']:.1f} % of the records being read again in bf16",
                 f"{100*goes['matrices']:.0f} % goes into products with weights, which reach {100*goes['matrices_of_peak']:.0f} % of its peak; {100*goes['attention']:.0f} % into attention, {100*goes['rest']:.0f} % into norms, sums and transpositions, {100*goes['tokenising']:.0f} % into tokenising", ', '.join(f'{l} {x:.2f}' for l,x in q['test_AP'].items()),
                 f"int8 was {int8['rate']/int8['torch_rate']:.1f} times as fast", f"it flipped {int8['flipped']} of {int8['decisions']:,} decisions"): assert says in readme, says


def test_a_model_that_is_its_own_first_pass_in_readme_is_that_of_the_benchmark(root):
    readme,q = (root/'README.md').read_text(),json.loads((root/'benchmarks/results/screening_vectors.json').read_text())
    r,first = q['ratios'],q['cascade']
    lost = next(x for x in first['test'] if x['label']=='any')
    assert not q['quick'] and q['command']=='python benchmarks/screening_vectors.py' and q['n_test']>4000 and q['largest_difference_of_scores']['model']<1e-4
    int8,bf16 = (next(x for x in q['runtimes'] if x['runtime']==f'openvino-{n}') for n in ('int8','bf16'))
    row = next(l for l in readme.splitlines() if 'benchmarks/screening_vectors.py' in l)
    for text in (f"{r['model_to_loop']:.1f} times the records a second; in int8, which was chosen, {r['fast_to_loop']:.1f} times ({int8['flipped']} of {int8['decisions']:,} decisions other);", f"{r['cascade_to_loop']:.1f} times ({first['read_of_test']:.0%} are read)", f"{r['cascade_irrelevant_to_loop']:.1f} times ({first['read_of_irrelevant']:.0%})",
                 f"{lost['lost']} of {lost['selected']} selected papers lost, {lost['relevant_lost']} of {lost['relevant_selected']} relevant ones"): assert text in row, text
    assert f"{first['cut']['read']:.1%} of the records that set the cut are read" in readme and f"{q['rates']['cascade_irrelevant']['rate']:,.0f} in one process" in readme
    assert q['runtime'].startswith('openvino-int8') and int8['flipped']==bf16['flipped']==0
    assert f"int8 had {int8['rate']/int8['torch_rate']:.2f} times the rate of PyTorch, bf16 {bf16['rate']/bf16['torch_rate']:.2f} times; neither flipped one of {int8['decisions']:,} decisions" in readme
    assert r['model_to_loop']>=4 and r['cascade_to_loop']>=40 # which README calls reached


def test_growth_behind_a_first_pass_in_readme_is_that_of_the_benchmark(root):
    readme,q = (root/'README.md').read_text(),json.loads((root/'benchmarks/results/screening_growth_cascade.json').read_text())
    last,e = q['sizes'][-1],q['estimate']
    assert not q['quick'] and [x['records'] for x in q['sizes']]==[10_000,100_000,1_000_000] and q['cut']['share']==.99
    for text in (f"{q['ms_of_another_record']:.2f} ms another record, {last['records_per_second']:,.0f} records a second from start to ranked lists ({last['read']:.1%} are read), {q['memory_of_last_to_one_before']:.2f} times the memory ({last['peak_mb']/1000:.1f} GB",
                 f"({last['records_per_second']:,.0f} by two workers for a million records, of {last['seconds']:,.0f} seconds {last['seconds']-last['seconds_after_loading']:.0f} to load the model;", f"({q['records_per_cpu_second']:,.0f} records a processor second) 250 million works are {e['core_hours']:.0f} hours of one processor, {60*e['hours']:.0f} minute{'s'*(round(60*e['hours'])!=1)} of {e['cores']:,}"): assert text in readme, text


def test_terms_in_the_readme_are_those_of_the_benchmark(root):
    readme,q = (root/'README.md').read_text(),json.loads((root/'benchmarks/results/terms.json').read_text())
    assert not q['quick'] and q['command']=='python benchmarks/terms.py'
    row = next(l for l in readme.splitlines() if 'benchmarks/terms.py' in l)
    for text in (f"{q['ratio']:.1f} times", f"{q['n']:,} records", ' and '.join(f'{n:,}' for n in q['terms'])): assert text in row, text
