"Upload and download over HTTP, by the real client, against a stand-in for the hub on this machine."
import json
import os
import shutil
import socket
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hub_server import running_hub
from huggingface_hub import ModelCard, constants

from ipbes_classifier.cli import main
from ipbes_classifier.ensemble import ensemble
from ipbes_classifier.hub import CHECKPOINT_FILES
from ipbes_classifier.models import model_version
from ipbes_classifier.project import sample_project
from ipbes_classifier.screen import Screener
from ipbes_classifier.train import train

REPO = 'ada/alien-species'
TINY = "models={minilm: {num_train_epochs: 1, optional_negatives: 20, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}}"
SETTINGS = ['folds.n_folds=2','logging.progress=false','logging.tensorboard=false','input.max_length=16',TINY]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A project with a baseline, an encoder and their ensemble; checkpoints by name."
    s = sample_project(tmp_path_factory.mktemp('hub')/'project', n=300, overrides=SETTINGS)
    found = {m:train(m, settings=s).files['checkpoint'] for m in ('tfidf-logreg','minilm')}
    found['ensemble'] = ensemble(list(found), settings=s).files['checkpoint']
    for folder in found.values():
        card = ModelCard.load(folder/'README.md')
        card.data.license = 'mit'
        card.save(folder/'README.md')
    return found


@pytest.fixture
def hub():
    with running_hub() as h: yield h


def client(hub, cache, token='hf_writer'):
    "Environment of somebody with a token and an empty cache."
    return dict(HF_ENDPOINT=hub.url, HF_TOKEN=token, HF_HOME=str(cache), HF_HUB_CACHE=str(cache/'hub'), HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1', NO_PROXY='127.0.0.1',
                HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_TELEMETRY='1', OMP_NUM_THREADS='1', COLUMNS='200')


@pytest.fixture
def ipbes(hub, tmp_path, monkeypatch, capsys):
    "Run the command in this process, which is quicker: huggingface_hub reads its settings once, so they are set where it keeps them."
    monkeypatch.chdir(tmp_path)
    def run(*args, token='hf_writer', cache='cache', offline=False, endpoint=None):
        for k,v in client(hub,tmp_path/cache,token).items(): monkeypatch.setenv(k, v)
        at = endpoint or hub.url
        for k,v in dict(ENDPOINT=at, HUGGINGFACE_CO_URL_TEMPLATE=at+'/{repo_id}/resolve/{revision}/{filename}', HF_HUB_OFFLINE=offline, HF_HUB_DISABLE_XET=True,
                        HF_HUB_CACHE=str(tmp_path/cache/'hub'), HF_TOKEN_PATH=str(tmp_path/'none')).items(): monkeypatch.setattr(constants, k, v)
        monkeypatch.setattr(sys, 'argv', ['ipbes',*map(str,args)])
        capsys.readouterr()
        code = 0
        try: main()
        except SystemExit as e: code = e.code or 0
        out,err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)
    return run


def refused(done, *words):
    "One sentence, exit code 1, no trace, no token."
    assert done.returncode==1, done.stdout+done.stderr
    lines = [o for o in done.stderr.splitlines() if o.strip() and '%|' not in o]  # but for bars of uploads
    assert len(lines)==1 and lines[0].startswith('ipbes: '), done.stderr
    assert 'hf_' not in done.stdout+done.stderr
    for w in words: assert w in lines[0], lines[0]


def unseen(path):
    "Two records of nobody."
    pd.DataFrame(dict(title=['Invasive plants on islands','Concrete under load'],abstract=['Alien plants spread.','A bridge was tested.'])).to_csv(path, index=False)
    return path


@pytest.mark.parametrize('name', ['tfidf-logreg','minilm','ensemble'])
def test_what_is_uploaded_scores_as_here(name, trained, hub, ipbes, tmp_path):
    folder = trained[name]
    done = ipbes('push', folder, REPO)
    assert not done.returncode, done.stderr
    assert f'{hub.url}/{REPO}/commit/' in done.stdout and model_version(folder) in done.stdout
    repo = hub.repos[REPO]
    assert repo.private and len(repo.commits)==2, 'all in one commit after the first'
    there = repo.commits[repo.branches['main']]
    members = [p for n,p in trained.items() if name=='ensemble' and n!=name]
    for p in folder.iterdir():
        if p.name!='provenance.json': assert there[p.name]==p.read_bytes(), p.name
    for m in members:
        for p in m.iterdir():
            if p.name!='provenance.json': assert there[f'{m.name}/{p.name}']==p.read_bytes(), p.name
    out = ipbes('predict', unseen(tmp_path/'new.csv'), '-m', REPO, '-o', tmp_path/'scored.csv')
    assert not out.returncode, out.stderr
    got,here = pd.read_csv(tmp_path/'scored.csv'),Screener.load(folder).score(pd.read_csv(tmp_path/'new.csv'))
    figures = [c for c in here if c.endswith(('_score','_pred','_probability'))]
    assert figures
    assert set(got['model'])=={model_version(folder)}, 'the same bytes have the same version'
    pd.testing.assert_frame_equal(got[figures], here[figures], check_dtype=False, rtol=1e-6)
    again = ipbes('predict', tmp_path/'new.csv', '-m', REPO, '-o', tmp_path/'again.csv', offline=True)
    assert not again.returncode and (tmp_path/'again.csv').read_bytes()==(tmp_path/'scored.csv').read_bytes(), 'from the cache'


@pytest.mark.long
def test_the_command_in_processes_of_its_own(trained, hub, tmp_path):
    "As in a shell: the address of the hub and the token come from the environment."
    env = {k:v for k,v in os.environ.items() if k!='HUGGINGFACE_HUB_CACHE'}|client(hub,tmp_path/'cache')
    def run(*args): return subprocess.run([sys.executable,'-c','from ipbes_classifier.cli import main; main()',*map(str,args)], cwd=tmp_path, env=env, capture_output=True, text=True,
                                          timeout=200, stdin=subprocess.DEVNULL, check=False)
    done = run('push', trained['tfidf-logreg'], REPO)
    assert not done.returncode and f'{hub.url}/{REPO}/commit/' in done.stdout, done.stderr
    done = run('predict', unseen(tmp_path/'new.csv'), '-m', REPO, '-o', tmp_path/'scored.csv')
    assert not done.returncode and len(pd.read_csv(tmp_path/'scored.csv'))==2, done.stderr


def test_nothing_private_leaves(trained, hub, ipbes):
    folder = trained['ensemble']
    assert not ipbes('push', folder, REPO).returncode
    files = hub.repos[REPO].commits[hub.repos[REPO].branches['main']]
    secrets = [str(folder.parents[2]),str(Path.home())+'/',socket.gethostname(),'cleaned_dataset','hf_writer','zotero']
    for name,content in files.items():
        if name.endswith('.json') and not name.endswith('tokenizer.json'):
            facts = json.loads(content)
            assert not {'host','platform','started','paths','data'}&set(facts), name
            texts = set(str(facts).replace('"',"'").split("'"))
            found = [s for s in secrets if any(t==s or (len(s)>8 and s in t) for t in texts)]
            assert not found, f'{name} tells {found}'
    kept = json.loads(files['provenance.json'])
    assert kept['versions'] and kept['settings']['labels'] and kept['inputs']


def test_a_dry_run_asks_nobody(trained, hub, ipbes):
    done = ipbes('push', trained['tfidf-logreg'], REPO, '--dry-run', token='')
    assert not done.returncode, done.stderr
    assert 'model.skops' in done.stdout and 'licence mit' in done.stdout and not hub.asked


def test_a_branch_keeps_the_old_model(trained, hub, ipbes, tmp_path):
    "And a new checkpoint leaves no file of the one before."
    for folder,more in ((trained['tfidf-logreg'],()),(trained['minilm'],('--revision','encoder'))): assert not ipbes('push', folder, REPO, *more).returncode
    repo = hub.repos[REPO]
    old,new = (set(repo.commits[repo.branches[b]]) for b in ('main','encoder'))
    assert 'model.skops' in old and 'vocabulary.txt' in old
    assert 'model.safetensors' in new and not {'model.skops','vocabulary.txt'}&new and '.gitattributes' in new
    for name,kind in ((REPO,'tfidf-logreg'),(f'{REPO}@encoder','minilm')):
        assert not ipbes('predict', unseen(tmp_path/'new.csv'), '-m', name, '-o', tmp_path/'scored.csv').returncode
        assert pd.read_csv(tmp_path/'scored.csv')['model'][0].startswith(kind)


def test_only_what_an_earlier_checkpoint_left_is_removed(trained, hub, ipbes):
    "And it is said, by a dry run beforehand."
    assert not ipbes('push', trained['ensemble'], REPO).returncode
    repo,members = hub.repos[REPO],[trained[n].name for n in ('tfidf-logreg','minilm')]
    others = {'other_model/config.json':b'{}', 'other_model/recipe.json':b'{}', 'onnx/model.safetensors':b'x', 'data/vocab.txt':b'x', f'{members[0]}/more/vocab.txt':b'x', 'notes.txt':b'x'}
    repo.commit('main', repo.commits[repo.branches['main']]|others|{'vocab.txt':b'x'})
    before = set(repo.commits[repo.branches['main']])
    told = ipbes('push', trained['tfidf-logreg'], REPO, '--dry-run')
    assert set(repo.commits[repo.branches['main']])==before and not told.returncode
    done = ipbes('push', trained['tfidf-logreg'], REPO)
    after = set(repo.commits[repo.branches['main']])
    assert set(others)<=after and 'vocab.txt' not in after and not [n for n in after-set(others) if n.startswith(tuple(members))]
    said = lambda out, words: {l.removeprefix(words) for l in out.stdout.splitlines() if l.startswith(words)}
    assert said(done,'removed there: ')==said(told,'would be removed there: ')==before-after


def test_a_dry_run_where_nothing_stands(trained, hub, ipbes):
    done = ipbes('push', trained['tfidf-logreg'], REPO, '--dry-run', '--revision', 'v2')
    assert not done.returncode and 'removed' not in done.stdout+done.stderr and not hub.repos
    done = ipbes('push', trained['tfidf-logreg'], REPO, '--dry-run', offline=True)
    assert not done.returncode and 'was not asked for' in done.stderr


def test_every_member_names_its_licence(trained, hub, ipbes, tmp_path):
    for n in trained: shutil.copytree(trained[n], tmp_path/'models'/trained[n].name)
    member = tmp_path/'models'/trained['minilm'].name/'README.md'
    member.write_text(member.read_text().replace('license: mit','license: unknown'))
    refused(ipbes('push', tmp_path/'models'/trained['ensemble'].name, REPO), str(member), 'names no licence')
    assert not hub.asked


def test_a_checkpoint_is_loaded_once(trained, hub, ipbes, monkeypatch):
    from ipbes_classifier import hub as module
    loaded,load = [],module.load_model
    monkeypatch.setattr(module, 'load_model', lambda folder: loaded.append(folder) or load(folder))
    assert not ipbes('push', trained['tfidf-logreg'], REPO).returncode
    assert len(loaded)==1


def test_pushing_twice_changes_nothing(trained, hub, ipbes):
    first,second = (ipbes('push', trained['tfidf-logreg'], REPO) for _ in range(2))
    assert first.returncode==second.returncode==0
    a,b = list(hub.repos[REPO].commits.values())[-2:]
    assert a==b or len(hub.repos[REPO].commits)==2


ERRORS = [
    ('a wrong token', dict(token='hf_nobody'), {}, ['does not accept the token','hf auth login']),
    ('no right to write', dict(token='hf_reader'), {}, ['forbids it','write permission']),
    ('no token', dict(token=''), {}, ['no token for the hub','HF_TOKEN']),
    ('no room', {}, {'/preupload/':(403,'Private repository storage limit reached, please upgrade your plan')}, ['enough room','storage limit reached']),
    ('somebody else', {}, {'/commit/':(409,'A commit has happened since')}, ['somebody else changed it','A commit has happened since']),
    ('too large', {}, {'/lfs/objects/batch':(413,'Payload too large')}, ['too large']),
    ('broken', {}, {'/commit/':(500,'Internal error')}, ['answered 500','try again later']),
    ('a plan without this', {}, {'/api/repos/create':(402,'Payment required')}, ['asks for payment']),
    ('forbidden offline', dict(offline=True), {}, ['HF_HUB_OFFLINE is set']),
    ('nobody there', dict(endpoint='http://127.0.0.1:9'), {}, ['no answer from http://127.0.0.1:9']),
]

@pytest.mark.parametrize('env,fail,words', [pytest.param(*o, id=i) for i,*o in ERRORS])
def test_a_refusal_is_one_sentence(env, fail, words, trained, hub, ipbes):
    hub.fail = fail
    refused(ipbes('push', trained['tfidf-logreg'], REPO, **env), *words)
    assert all(len(r.commits)==1 for r in hub.repos.values()), 'nothing was committed'


def test_a_private_upload_never_ends_in_a_public_repository(trained, hub, ipbes):
    assert not ipbes('push', trained['tfidf-logreg'], REPO, '--public').returncode
    assert not hub.repos[REPO].private
    n = len(hub.repos[REPO].commits)
    refused(ipbes('push', trained['minilm'], REPO), 'is public')
    assert len(hub.repos[REPO].commits)==n


def test_what_may_not_go_is_named_before_anything_is_asked(trained, hub, ipbes, tmp_path):
    def changed(change):
        folder = tmp_path/'checkpoint'
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained['tfidf-logreg'], folder)
        change(folder)
        return ipbes('push', folder, REPO)
    card = trained['tfidf-logreg'].joinpath('README.md').read_text()
    refused(changed(lambda f: (f/'README.md').unlink()), 'no model card')
    refused(changed(lambda f: (f/'README.md').write_text(card.replace('license: mit\n',''))), 'names no licence')
    refused(changed(lambda f: (f/'papers.csv').write_text('title\n')), 'papers.csv is no part of a checkpoint')
    refused(changed(lambda f: (f/'pytorch_model.bin').write_bytes(b'')), 'pytorch_model.bin is no part of a checkpoint')
    refused(changed(lambda f: (f/'thresholds.json').unlink()), 'has no thresholds.json')
    for path in ('/mnt/shared/ada/papers.csv','/data/alice/zotero/ias.csv','~/secret/ias.csv','D:\\alice\\ias.csv'):
        refused(changed(lambda f,path=path: (f/'README.md').write_text(card+f'\nSee `{path}`.\n')), 'names a folder of this machine')
    refused(ipbes('push', tmp_path, REPO), 'is no checkpoint')
    assert not hub.asked
    refused(changed(lambda f: (f/'README.md').write_text(card.replace('license: mit','license: nonsense'))), 'must be one of the list')


@pytest.mark.parametrize('name,token,words', [('ada/nothing','hf_writer',['ada/nothing','no such repository']), (REPO,'',['which is no folder here']),
                                              (f'{REPO}@none','hf_writer',['no such repository or revision'])])
def test_a_model_that_cannot_be_had(name, token, words, trained, hub, ipbes, tmp_path):
    assert not ipbes('push', trained['tfidf-logreg'], REPO).returncode
    refused(ipbes('predict', unseen(tmp_path/'new.csv'), '-m', name, '-o', tmp_path/'scored.csv', token=token, cache='other'), *words)
    assert not (tmp_path/'scored.csv').exists()


def test_only_files_of_a_checkpoint_are_fetched(trained, hub, ipbes, tmp_path):
    "Whatever else somebody put into the repository."
    assert not ipbes('push', trained['tfidf-logreg'], REPO).returncode
    repo = hub.repos[REPO]
    repo.commit('main', repo.commits[repo.branches['main']]|{'pytorch_model.bin':b'x','modeling.py':b'raise SystemExit','data/papers.csv':b'title\n'})
    assert not ipbes('predict', unseen(tmp_path/'new.csv'), '-m', REPO, '-o', tmp_path/'scored.csv').returncode
    fetched = {p.split('/resolve/')[1].split('/',1)[1] for m,p,_ in hub.asked if m=='GET' and '/resolve/' in p}
    assert {'model.skops','recipe.json'}<=fetched and not {'pytorch_model.bin','modeling.py','data/papers.csv','.gitattributes'}&fetched


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(hub, ipbes, tmp_path):
    (tmp_path/'results').mkdir()
    refused(ipbes('predict', unseen(tmp_path/'new.csv'), '-m', 'results/nothing', '-o', tmp_path/'scored.csv'), 'results/nothing')
    assert not hub.asked


def test_the_list_of_files_holds_no_way_to_run_code():
    names = ['pytorch_model.bin','model.pt','model.pkl','model.joblib','modeling.py','papers.csv','papers.parquet','tokenizer.py','vocab.pkl','notes.txt','.env']
    assert not [n for n in names if any(fnmatch(n,w) for w in CHECKPOINT_FILES)]
