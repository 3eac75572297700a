"What holds for any input: configuration, files of records, folds, measures."
import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipbes_classifier.config import KNOWN, load_config, to_yaml
from ipbes_classifier.folds import SPLITS, check_fold, make_folds, read_fold, write_folds
from ipbes_classifier.metrics import evaluate, plain_measures
from ipbes_classifier.records import read_records, write_records
from ipbes_classifier.results import Run, add_result, result_row

pytestmark = [pytest.mark.filterwarnings('ignore::ipbes_classifier.renamed.OldSetting'), pytest.mark.filterwarnings('ignore::UserWarning:sklearn')]

settings.register_profile('ipbes', derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile('ipbes')


# files of records

pieces = st.sampled_from([b'id,title,abstract\n', b'1,a,b\n', b'title', b',', b';', b'\t', b'"', b'""', b'\n', b'\r\n', b'\r', b' ', b'\xef\xbb\xbf', b'\xff\xfe',
                          b'\x00', b'\xe9', 'é'.encode(), b'2,"x\ny",z\n', b'a,b,c,d,e\n', b'NA', b'1', b'\x1a', b'\\', b"'", b'#'])
csv_bytes = st.lists(pieces | st.binary(max_size=6), max_size=25).map(b''.join) | st.lists(pieces, max_size=25).map(lambda p: b'id,title,abstract\n'+b''.join(p))


def read_or_refuse(path):
    "Records, or None if the file is refused by one sentence that names it."
    try: return read_records(path)
    except ValueError as e:
        assert path.name in str(e) and '\n' not in str(e), str(e)
        return None


@settings(max_examples=250)
@given(csv_bytes)
def test_any_bytes_are_records_or_refused_by_name(tmp_path, data):
    (tmp_path/'a.csv').write_bytes(data)
    r = read_or_refuse(tmp_path/'a.csv')
    if r is not None: assert list(r.columns[:3])==['id','doi','title'] and '\x00' not in r.to_csv()


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_parquet_file_is_read_or_refused_by_name(tmp_path, data):
    good = write_records(pd.DataFrame(dict(id=['a','b'], title=['one','two'], abstract=['x'*50,'y'], IAS=[1,0])), tmp_path/'a.parquet').read_bytes()
    bad = bytearray(good[:data.draw(st.integers(0,len(good)))] if data.draw(st.booleans()) else good)
    for i in data.draw(st.lists(st.integers(0,max(len(bad)-1,0)), max_size=8)):
        if bad: bad[i] = data.draw(st.integers(0,255))
    (tmp_path/'b.parquet').write_bytes(bad)
    read_or_refuse(tmp_path/'b.parquet')


text = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\x00'), max_size=12) | st.sampled_from(['"','""','a,b','a;b','a\tb','\r','\r\n','a\nb',' x ','NA','null','0','1e5','=1+1','\ufeff','#'])
names = st.lists(st.sampled_from(['note','comment','A','B','Publisher']), unique=True, max_size=3)


@settings(max_examples=200)
@given(st.lists(st.tuples(text,text,text,text), max_size=8), names, st.sampled_from(['.csv','.tsv','.parquet']))
def test_any_table_survives_writing_and_reading(tmp_path, rows, others, suffix):
    df = pd.DataFrame(rows, columns=['id','title','abstract','keywords'], dtype='str').assign(**dict.fromkeys(others, 'x, "y"'))
    back = read_records(write_records(df, tmp_path/f'a{suffix}'))
    assert back[list(df.columns)].values.tolist()==df.values.tolist()


# configuration

scalars = st.none() | st.booleans() | st.integers(-3,10**6) | st.floats(allow_nan=True) | st.text(max_size=8) | st.sampled_from(['A','pair','BCE','${seed}','${nothing}','???','1e-4','0.15'])
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), v, max_size=3), max_leaves=6)
keys = st.sampled_from(sorted(k for k in KNOWN if '*' not in k)+['labels','nothing','training','models','models.minilm','labels.name','folds.n_fold'])
LABELS = dict(labels=[dict(name='A'),dict(name='B')])


def nested(pairs):
    "A dict of dicts from dotted keys."
    out = {}
    for key,value in pairs:
        d,*last = out,*key.split('.')
        for k in last[:-1]: d = d.setdefault(k,{}) if isinstance(d.get(k,{}),dict) else d
        d[last[-1]] = value
    return out


def load_or_refuse(path, **kwargs):
    "Settings, or None if they are refused by an error that says where the mistake is."
    try: return load_config(path, root=path.parent, env='', **kwargs)
    except ValueError as e:
        assert str(path) in str(e) or str(e).startswith('configuration') or 'command line' in str(e), str(e)
        return None


def round_trip(s, path):
    "Settings written as YAML and read again are the same."
    path.write_text(to_yaml(s), encoding='utf-8')
    again = load_config(path, root=path.parent, env='')
    assert to_yaml(again)==to_yaml(s)


@settings(max_examples=60)
@given(st.text(st.sampled_from('abtrueslk:-{}[]\n #"\'&*!|>%@`,.0123456789é\t\x00'), max_size=40) | st.binary(max_size=20))
@example('a: &x [*x]')
@example('labels: !!python/object:os.system {}')
@example('\ufeffseed: 1')
def test_any_text_is_settings_or_one_error(tmp_path, text):
    (tmp_path/'c.yaml').write_bytes(text if isinstance(text,bytes) else text.encode())
    s = load_or_refuse(tmp_path/'c.yaml', overrides=['labels=[{name: A}]'])
    if s is not None: round_trip(s, tmp_path/'back.yaml')


@settings(max_examples=80)
@given(st.lists(st.tuples(keys,values), max_size=4))
@example([('modules',[2265])])
def test_any_value_of_a_known_key_is_a_setting_or_one_error(tmp_path, pairs):
    (tmp_path/'c.yaml').write_text(yaml.safe_dump(LABELS|nested(pairs), allow_unicode=True), encoding='utf-8')
    s = load_or_refuse(tmp_path/'c.yaml')
    if s is not None: round_trip(s, tmp_path/'back.yaml')


@settings(max_examples=50)
@given(keys, st.text(max_size=12) | scalars.map(str))
def test_any_override_is_a_setting_or_one_error(tmp_path, key, value):
    (tmp_path/'c.yaml').write_text(yaml.safe_dump(LABELS))
    s = load_or_refuse(tmp_path/'c.yaml', overrides=[f'{key}={value}'])
    if s is not None: round_trip(s, tmp_path/'back.yaml')


# folds

@st.composite
def labelled_rows(draw):
    "Labels (n,L) and clusters (n,) of a data set; copies of a paper mostly share its labels."
    rng,n = np.random.default_rng(draw(st.integers(0,10**6))), draw(st.integers(1,400))
    rates = draw(st.lists(st.sampled_from([0.,.01,.05,.2,.5,1.]), min_size=1, max_size=4))
    size = draw(st.sampled_from([1,1,2,5,50]))
    y = (rng.random((n,len(rates)))<rates).astype(int)
    return y, rng.permutation(np.arange(n)//size)


def share_of_clusters(rows, clusters): return len(np.unique(clusters[rows]))/len(np.unique(clusters))


@settings(max_examples=120)
@given(labelled_rows(), st.integers(2,6), st.sampled_from([.05,.1,.15,.2,.3,.5]), st.sampled_from([.05,.15,.3]), st.integers(0,3))
def test_folds_keep_every_rule_or_are_refused(data, n_folds, test_size, dev_size, seed):
    y,clusters = data
    try: folds = make_folds(y, clusters, n_folds, test_size, dev_size, seed)
    except ValueError as e:
        assert str(e)
        return
    assert len(folds)==n_folds
    tested = np.concatenate([f.test for f in folds])
    assert len(tested)==len(set(tested.tolist()))
    for f in folds:
        check_fold(f, clusters)
        assert sorted(np.concatenate(list(f.splits.values())).tolist())==list(range(len(y)))
        for rows in f.splits.values(): assert (0<y[rows].sum(0)).all() and (y[rows].sum(0)<len(rows)).all()
        slack = .03+(2+2*y.shape[1])/len(np.unique(clusters))
        for split,size in (('test',test_size),('dev',dev_size)): assert abs(share_of_clusters(f.splits[split],clusters)-size)<=slack
    for f,g in zip(folds, make_folds(y, clusters, n_folds, test_size, dev_size, seed)): np.testing.assert_array_equal(f.test, g.test)


@settings(max_examples=80)
@given(st.data())
def test_damaged_fold_files_are_read_as_they_were_or_refused(tmp_path, data):
    y,clusters = np.eye(2,dtype=int)[np.arange(60)%2], np.arange(60)//2*2
    (tmp_path/'data.csv').write_text('title\n'+'x\n'*60)
    fold = make_folds(y, clusters, 2)[0]
    write_folds([fold], tmp_path/'folds', clusters, tmp_path/'data.csv')
    path = tmp_path/'folds'/data.draw(st.sampled_from([fold.file(s) for s in SPLITS]+['clusters.parquet']))
    good = bytearray(path.read_bytes())
    good[data.draw(st.integers(0,len(good)-1))] = data.draw(st.sampled_from([*b'0123456789,"\n-x\x00\xff']))
    path.write_bytes(good[:data.draw(st.integers(0,len(good)))] if data.draw(st.booleans()) else good)
    try: back = read_fold(tmp_path/'folds', 0, 0, tmp_path/'data.csv')
    except (ValueError,FileNotFoundError) as e: assert '\n' not in str(e) and ('.csv' in str(e) or '.parquet' in str(e)), str(e)
    else: check_fold(back, clusters)


# measures

@st.composite
def decisions(draw):
    "Labels, scores and decisions, each (n,L); scores have ties."
    n,labels = draw(st.integers(1,30)), draw(st.integers(1,3))
    rng = np.random.default_rng(draw(st.integers(0,10**6)))
    rate = draw(st.sampled_from([0.,.1,.5,1.]))
    return (rng.random((n,labels))<rate).astype(int), rng.integers(0,draw(st.sampled_from([1,4,10**6]))+1,(n,labels))/10**6, (rng.random((n,labels))<draw(st.sampled_from([0.,.5,1.]))).astype(int)


@given(decisions(), st.integers(0,10**6))
def test_measures_do_not_depend_on_the_order_of_records_or_labels(data, seed):
    y,s,d = data
    names = list('ABC')[:y.shape[1]]
    m = evaluate(y, s, d, names)
    rows,cols = np.random.default_rng(seed).permutation(len(y)), np.random.default_rng(seed+1).permutation(y.shape[1])
    again = evaluate(y[rows][:,cols], s[rows][:,cols], d[rows][:,cols], [names[j] for j in cols])
    for k,v in m.items(): assert again[k]==pytest.approx(v, rel=1e-9, abs=1e-12, nan_ok=True), k


@given(decisions())
def test_measures_are_those_of_scikit_learn_or_undefined(data):
    from sklearn import metrics as sk
    y,s,d = data
    names = list('ABC')[:y.shape[1]]
    m = evaluate(y, s, d, names)
    for j,l in enumerate(names):
        both,some = 0<y[:,j].sum()<len(y), y[:,j].any()
        expected = {f'AP_{l}':sk.average_precision_score(y[:,j],s[:,j]) if some else math.nan, f'roc_auc_{l}':sk.roc_auc_score(y[:,j],s[:,j]) if both else math.nan,
                    f'f1_{l}':sk.f1_score(y[:,j],d[:,j],zero_division=np.nan), f'precision_{l}':sk.precision_score(y[:,j],d[:,j],zero_division=np.nan),
                    f'recall_{l}':sk.recall_score(y[:,j],d[:,j],zero_division=np.nan), f'TP_{l}':int((y[:,j]&d[:,j]).sum())}
        for k,v in expected.items(): assert m[k]==pytest.approx(v, nan_ok=True), k
        if not some: assert math.isnan(m[f'recall_{l}']) and math.isnan(m[f'WSS95_{l}']) and math.isnan(m[f'AP_{l}'])
    assert m['accuracy']==pytest.approx(sk.accuracy_score(y,d))


@settings(max_examples=30)
@given(decisions())
def test_an_undefined_measure_is_an_empty_field_and_not_zero(tmp_path, data):
    y,s,d = data
    names = list('ABC')[:y.shape[1]]
    m = evaluate(y, s, d, names)
    (tmp_path/'r.csv').unlink(missing_ok=True)
    row = pd.read_csv(add_result(tmp_path/'r.csv', result_row(Run('m','BCE'), m), names), dtype=str, keep_default_na=False).iloc[0]
    assert all((row[k]=='')==math.isnan(v) for k,v in m.items())
    assert json.loads(json.dumps(plain_measures(m), allow_nan=False)).keys()==m.keys()
