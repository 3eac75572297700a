"""Let git and JupyterLab treat the notebooks of this checkout well: merged cell by cell, trusted after a merge, saved clean.

This is what `nbdev_install_hooks` does, kept inside the checkout and its .venv: nothing in the home folder changes, and it works where .venv is
not activated. Where there is no checkout, as in an unpacked archive, only JupyterLab is set up. Run by `make setup`; a second run changes nothing.
"""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# %O is the ancestor, %A ours (and the result), %B theirs, %P the path; without nbdev git merges as it would any text
DRIVER = ("sh -c 'if test -x .venv/bin/nbdev_merge; then exec .venv/bin/nbdev_merge \"$@\"; else exec git merge-file \"$2\" \"$1\" \"$3\"; fi' "
          "nbdev-merge %O %A %B %P")

POST_MERGE = """#!/bin/sh
# written by scripts/hooks.py: outputs of merged pages are shown without a question
test ! -x .venv/bin/nbdev_trust || .venv/bin/nbdev_trust
"""

JUPYTER = """# written by scripts/hooks.py: JupyterLab saves pages as nbdev_clean leaves them, without counters and ids of a session
try: from nbdev.clean import clean_jupyter
except ImportError: pass
else: c.ContentsManager.pre_save_hook = clean_jupyter
"""


def git(root, *args):
    "Output of git in `root`; None where git is missing or refuses."
    try: done = subprocess.run(['git','-C',str(root),*args], capture_output=True, text=True, check=False)
    except OSError: return None
    return None if done.returncode else done.stdout.strip()


def write(path, text, mode=0o644):
    "Write a file unless somebody else's stands there; a line about it."
    if path.exists() and 'written by scripts/hooks.py' not in path.read_text(encoding='utf-8'): return f'{path} is not ours and was left as it is'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
    path.chmod(mode)
    return f'{path}: written'


def install(root=ROOT, prefix=sys.prefix):
    "Set up git in `root` and JupyterLab in the environment `prefix`; what was done, a line each."
    done = []
    if Path(prefix).resolve().is_relative_to(Path(root).resolve()): done.append(write(Path(prefix)/'etc'/'jupyter'/'jupyter_server_config.py', JUPYTER))
    top = git(root, 'rev-parse', '--show-toplevel')
    if top is None or Path(top).resolve()!=Path(root).resolve(): return [*done,'no git checkout: git was left as it is']
    git(root, 'config', '--local', 'merge.nbdev-merge.name', 'merge notebooks cell by cell')
    git(root, 'config', '--local', 'merge.nbdev-merge.driver', DRIVER)
    done.append('git merges notebooks cell by cell')
    if git(root, 'config', 'core.hooksPath'): return [*done,'core.hooksPath is set: no hook was written there']
    hooks = Path(root)/git(root, 'rev-parse', '--git-path', 'hooks')
    return [*done,write(hooks/'post-merge', POST_MERGE, 0o755)]


if __name__=='__main__':
    for line in install(): print(line)
