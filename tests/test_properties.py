"What holds for any input: configuration, files of records, folds, measures."
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ipbes_classifier.config import KNOWN, Settings, load_config, to_yaml
from ipbes_classifier.files import atomic_path, read_json, write_json
from ipbes_classifier.folds import SPLITS, Fold, check_fold, make_folds, read_fold, write_folds
from ipbes_classifier.records import read_records, write_records

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


@settings(max_examples=400)
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
    df = pd.DataFrame(rows, columns=['id','title','abstract','keywords'], dtype='str').assign(**{c:'x, "y"' for c in others})
    back = read_records(write_records(df, tmp_path/f'a{suffix}'))
    assert back[list(df.columns)].values.tolist()==df.values.tolist()
