"Folds: every planted duplicate is found, splits never share a paper, and broken files are refused by name."
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipbes_classifier.files import file_hash, read_json
from ipbes_classifier.folds import (SPLITS, check_fold, fold_file, jaccard, make_folds, near_duplicate_clusters, read_clusters, read_fold,
                                    shingles, write_folds)
from ipbes_classifier.sample import write_sample


def labels(n, rates=(0.1,0.05), seed=0): return (np.random.default_rng(seed).random((n,len(rates)))<rates).astype(int)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    "All rows of a synthetic sample as one table, with the pairs planted in it as row numbers."
    sample = write_sample(tmp_path_factory.mktemp('sample'), n=600)
    names = {'Key':'id', 'DOI':'doi', 'Title':'title', 'Abstract Note':'abstract'}
    parts = [pd.read_csv(p).rename(columns=names).assign(file=p.name) for p in sample['positives'].values()]
    parts.append(pd.read_parquet(sample['corpus']).assign(file='corpus.parquet'))
    table = pd.concat([p[['file','id','doi','title','abstract']] for p in parts], ignore_index=True)
    at = {key:i for i,key in enumerate(zip(table.file,table.id))}
    pairs = [(p['kind'],at[tuple(p['a'])],at[tuple(p['b'])]) for p in read_json(sample['planted'])['pairs']]
    return table,pairs


@pytest.fixture
def written(tmp_path):
    "A folder of folds with clusters of two rows, and what they were made from."
    y,clusters,data = labels(400),np.arange(400)//2*2,tmp_path/'data.csv'
    data.write_text('title\n'+'x\n'*400)
    write_folds(make_folds(y, clusters, n_folds=3), tmp_path/'folds', clusters, data, dict(n_folds=3))
    return tmp_path/'folds',data,clusters


def test_every_planted_pair_is_one_cluster(rows):
    table,pairs = rows
    clusters = near_duplicate_clusters(table)
    assert {'same_doi','same_title','same_abstract','near_duplicate','two_libraries'}<={k for k,_,_ in pairs}
    assert not [(k,a,b) for k,a,b in pairs if clusters[a]!=clusters[b]]


def test_no_strangers_are_merged(rows):
    table,pairs = rows
    clusters = near_duplicate_clusters(table)
    together = np.arange(len(table))
    for _,a,b in pairs: together[together==together[b]] = together[a]
    assert all(len(set(together[clusters==c]))==1 for c in np.flatnonzero(np.bincount(clusters)>1))


def test_lsh_finds_what_comparing_all_pairs_finds():
    rng,words = np.random.default_rng(1),[f'w{i}' for i in range(400)]
    base = [list(rng.choice(words,110)) for _ in range(40)]
    texts = []
    for b in base:
        for changes in (0,1,2,3,5):
            t = list(b)
            for i in rng.integers(0,110,changes): t[i] = str(rng.choice(words))
            texts.append(' '.join(t))
    table = pd.DataFrame(dict(title=[f'study number {i}' for i in range(len(texts))], abstract=texts))
    sets = [shingles(f'{t} {a}') for t,a in zip(table.title,table.abstract)]
    close = {(i,j) for i in range(len(sets)) for j in range(i) if jaccard(sets[i],sets[j])>=0.8}
    clusters = near_duplicate_clusters(table)
    found = {(i,j) for i,j in close if clusters[i]==clusters[j]}
    assert len(close)>50 and len(found)>=0.97*len(close)
    assert all(i//5==j//5 for i in range(len(sets)) for j in range(i) if clusters[i]==clusters[j])


def test_clusters_do_not_depend_on_row_order(rows):
    table,_ = rows
    a = near_duplicate_clusters(table)
    order = np.random.default_rng(0).permutation(len(table))
    b = near_duplicate_clusters(table.iloc[order].reset_index(drop=True))
    back = np.empty_like(b)
    back[order] = b
    assert len(set(zip(a,back)))==len(set(a))==len(set(back))
    assert (a<=np.arange(len(a))).all() and (a[a]==a).all()


def test_empty_keys_link_nothing():
    table = pd.DataFrame(dict(doi=['',None,'n/a'], title=['',None,'...'], abstract=['',np.nan,' ']))
    assert list(near_duplicate_clusters(table))==[0,1,2]


@settings(max_examples=25, deadline=None)
@given(n=st.integers(150,400), n_folds=st.integers(2,5), size=st.sampled_from([0.1,0.15,0.2]), seed=st.integers(0,9), dup=st.integers(1,4))
def test_folds_never_share_a_cluster(n, n_folds, size, seed, dup):
    y,clusters = labels(n,(0.3,0.4),seed),np.arange(n)//dup*dup
    folds = make_folds(y, clusters, n_folds=n_folds, test_size=size, dev_size=size, seed=seed, n_runs=2)
    assert len(folds)==2*n_folds
    for f in folds:
        check_fold(f, clusters)
        assert sorted(np.concatenate(list(f.splits.values())))==list(range(n))
    for run in range(2):
        tested = np.concatenate([f.test for f in folds if f.run==run])
        assert len(tested)==len(set(tested))
    assert not np.array_equal(folds[0].test, folds[n_folds].test)


@pytest.mark.parametrize('n_labels', [1,4])
def test_other_numbers_of_labels(n_labels):
    y = labels(500, (0.1,)*n_labels)
    for f in make_folds(y[:,0] if n_labels==1 else y, np.arange(500)): assert all(y[rows].any(0).all() for rows in f.splits.values())


def test_sizes_are_exact_and_many_unlabelled_rows_are_quick():
    y = np.zeros((100_000,2))
    y[:50,0] = y[25:90,1] = 1
    for f in make_folds(y, np.arange(100_000), test_size=0.2, dev_size=0.1):
        assert [len(r) for r in f.splits.values()]==pytest.approx([70_000,10_000,20_000], abs=5)
        assert [y[r,0].sum() for r in f.splits.values()]==pytest.approx([35,5,10], abs=2)


def test_same_folds_same_bytes(written, tmp_path):
    folder,data,clusters = written
    write_folds(make_folds(labels(400), clusters, n_folds=3), tmp_path/'again', clusters, data, dict(n_folds=3))
    assert {p.name:file_hash(p) for p in folder.iterdir()}=={p.name:file_hash(p) for p in (tmp_path/'again').iterdir()}


def test_read_gives_what_was_written(written):
    folder,data,clusters = written
    for f in make_folds(labels(400), clusters, n_folds=3):
        g = read_fold(folder, f.fold, f.run, data, 400)
        assert all(np.array_equal(getattr(f,s),getattr(g,s)) for s in SPLITS)
    assert read_clusters(folder, data)[1]['settings']==dict(n_folds=3)


def _predecessor(n, seed=0):
    "Train and dev as positions inside the part that is not test."
    rng = np.random.default_rng(seed)
    test = np.sort(rng.permutation(n)[:n//5])
    positions = rng.permutation(n-len(test))
    return dict(train=positions[len(positions)//5:], dev=positions[:len(positions)//5], test=test)


@pytest.mark.parametrize('allow_unclustered', [False,True])
def test_predecessors_folds_are_refused(written, allow_unclustered):
    folder,data,_ = written
    for split,rows in _predecessor(400).items(): pd.DataFrame({'index':rows}).to_csv(folder/fold_file(split,0,0), index=False)
    if allow_unclustered: (folder/'clusters.parquet').unlink()
    with pytest.raises(ValueError, match=r'train0_run-0\.csv and test0_run-0\.csv share \d+ rows, \d+% of test: .*positions inside the non-test part'):
        read_fold(folder, 0, 0, None if allow_unclustered else data, allow_unclustered=allow_unclustered)


def test_one_copy_on_the_other_side_is_refused(written):
    folder,data,clusters = written
    f = read_fold(folder, 0)
    row = next(r for r in f.test if clusters[r]==r)
    with pytest.raises(ValueError, match=f'share 1 clusters .*cluster {row}: rows {row} in train, {row+1} in test'):
        check_fold(replace(f, test=f.test[f.test!=row], train=np.append(f.train,row)), clusters)


def test_broken_files_are_named(written):
    folder,data,_ = written
    file = folder/'dev0_run-0.csv'
    for text,says in {'index\n1\nx\n':"line 3: 'x' is not a row number", 'index\n\n1.0\n':"'1.0' is not a row number", 'row\n1\n':'needs a column `index`',
                      'index\n-4\n':'negative row numbers: -4', 'index\n400\n':'outside the data set of 400', 'index\n':'holds no rows'}.items():
        file.write_text(text)
        with pytest.raises(ValueError, match='dev0_run-0.csv') as e: read_fold(folder, 0, 0, data)
        assert says in str(e.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match='dev0_run-0.csv is missing.*ipbes folds'): read_fold(folder, 0, 0, data)


def test_folds_of_another_data_set_are_refused(written):
    folder,data,_ = written
    data.write_text(data.read_text()+'y\n')
    with pytest.raises(ValueError, match=f'sha256 [0-9a-f]{{64}}, but .*{data.name} has [0-9a-f]{{64}}'): read_fold(folder, 0, 0, data)
    (folder/'clusters.parquet').unlink()
    with pytest.raises(FileNotFoundError, match='near-duplicates'): read_fold(folder, 0, 0, data)


@pytest.mark.skipif(not os.path.isdir('/dev/shm') or not os.access('/dev/shm',os.W_OK), reason='needs a second disk')
def test_folds_on_another_disk_are_replaced(written, tmp_path):
    "`data/folds` may be a link to a larger disk."
    folder,data,clusters = written
    before = {p.name:p.read_bytes() for p in folder.iterdir()}
    with TemporaryDirectory(dir='/dev/shm') as other:
        (tmp_path/'linked').symlink_to(other)
        for n in (2,3): write_folds(make_folds(labels(400), clusters, n_folds=n), tmp_path/'linked', clusters, data, dict(n_folds=3))
        assert (tmp_path/'linked').is_symlink() and {p.name:p.read_bytes() for p in Path(other).iterdir()}==before
