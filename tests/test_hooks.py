"What scripts/hooks.py sets up: notebooks merge cell by cell, are saved clean, and nothing outside the checkout changes."
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
install = runpy.run_path(str(ROOT/'scripts'/'hooks.py'))['install']


def git(repo, *args, check=True):
    env = os.environ|dict(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, HOME=str(repo.parent))
    who = ('-c','user.name=Ada','-c','user.email=ada@example.org')
    return subprocess.run(['git',*who,*args], cwd=repo, env=env, capture_output=True, text=True, check=check)


def page(source, output, second='x = 1'):
    "A notebook of two cells, the first with an output."
    out = new_output('execute_result', data={'text/plain':output}, execution_count=1)
    nb = new_notebook(cells=[new_code_cell(source, id='a', outputs=[out], execution_count=1), new_code_cell(second, id='b')])
    nb.metadata.kernelspec = dict(name='python3', language='python', display_name='python3')
    return nb


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "A checkout with one page, as `make setup` leaves it."
    repo = tmp_path/'repo'
    (repo/'nbs').mkdir(parents=True)
    for name in ('settings.ini','.gitattributes'): (repo/name).write_bytes((ROOT/name).read_bytes())
    (repo/'.venv').mkdir()
    (repo/'.venv'/'bin').symlink_to(Path(sys.executable).parent)
    nbformat.write(page('1+1','2'), repo/'nbs'/'p.ipynb')
    for k,v in dict(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull).items(): monkeypatch.setenv(k, v)
    git(repo, 'init', '-q', '-b', 'main')
    install(repo, repo/'.venv')
    git(repo, 'add', 'nbs', 'settings.ini', '.gitattributes')
    git(repo, 'commit', '-qm', 'start')
    return repo


def merged(repo, ours, theirs):
    "Whether git merged two versions of the page by itself, and the page after it."
    git(repo, 'checkout', '-qb', 'theirs')
    for branch,nb in (('theirs',theirs),('main',ours)):
        git(repo, 'checkout', '-q', branch)
        nbformat.write(nb, repo/'nbs'/'p.ipynb')
        git(repo, 'commit', '-qam', branch)
    done = git(repo, 'merge', '--no-edit', 'theirs', check=False)
    return not done.returncode, nbformat.read(repo/'nbs'/'p.ipynb', 4)


def test_outputs_never_conflict(repo):
    alone,nb = merged(repo, page('1+1','2 here'), page('1+1','2 there','x = 2'))
    assert alone and nb.cells[0].outputs[0]['data']['text/plain']=='2 here'
    assert nb.cells[1].source=='x = 2', 'what the other branch changed is in'


def test_a_conflict_leaves_a_notebook_that_opens(repo):
    alone,nb = merged(repo, page('1+2','3'), page('1+3','4'))
    assert not alone
    text = '\n'.join(c.source for c in nb.cells)
    assert '<<<<<<<' in text and '1+2' in text and '1+3' in text


def test_without_nbdev_git_merges_as_ever(repo):
    (repo/'.venv'/'bin').unlink()
    done = git(repo, 'status')
    assert not done.returncode
    alone,nb = merged(repo, page('1+1','2','x = 2'), page('1+1 ','2'))
    assert alone and nb.cells[0].source=='1+1 ' and nb.cells[1].source=='x = 2'


def test_twice_is_once_and_nobodys_hook_is_replaced(repo):
    hook = repo/'.git'/'hooks'/'post-merge'
    before = hook.read_bytes(),git(repo,'config','--local','-l').stdout
    install(repo, repo/'.venv')
    assert before==(hook.read_bytes(),git(repo,'config','--local','-l').stdout) and os.access(hook, os.X_OK)
    hook.write_text('#!/bin/sh\necho mine\n')
    assert 'left as it is' in install(repo, repo/'.venv')[-1] and 'mine' in hook.read_text()


def test_an_archive_inside_somebodys_checkout_is_left_alone(repo):
    inside = repo/'unpacked'
    inside.mkdir()
    before = git(repo,'config','--local','-l').stdout
    assert install(inside, sys.prefix)==['no git checkout: git was left as it is']
    assert before==git(repo,'config','--local','-l').stdout


def test_jupyterlab_saves_pages_clean(repo):
    "Ask the server's own contents manager, with the configuration that was written."
    from jupyter_server.services.contents.filemanager import FileContentsManager
    from traitlets.config.loader import PyFileConfigLoader
    config = PyFileConfigLoader('jupyter_server_config.py', path=str(repo/'.venv'/'etc'/'jupyter')).load_config()
    manager = FileContentsManager(root_dir=str(repo), config=config)
    nb = page('1+1','2')
    nb.cells[0].execution_count = 7
    nb.cells[0].metadata = dict(scrolled=True, tags=['parameters'])
    manager.save(dict(type='notebook', format='json', content=nb), 'nbs/p.ipynb')
    saved = nbformat.read(repo/'nbs'/'p.ipynb', 4).cells[0]
    assert saved.execution_count is None and saved.metadata==dict(tags=['parameters'])
