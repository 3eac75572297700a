"""Render README.md from nbs/index.ipynb; with --check, exit 1 and show a diff if README.md is not what it would be.

Cells whose first line is `#| hide` disappear, other `#|` lines are stripped, outputs are kept as text. A link to a file is relative to the
notebook, so that it works in JupyterLab; here it becomes relative to the root.
"""
import argparse
import difflib
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert.exporters import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'''(?:(?<=\]\()|(?<=\bsrc=")|(?<=\bhref="))(?!#|\w+:)[^()\s"]+''')


def shown(cell):
    "False for a cell that begins with `#| hide`, and for one without any text."
    lines = cell.source.strip().splitlines()
    return bool(lines) and re.fullmatch(r'#\|\s*hide\s*', lines[0]) is None


def prepared(cell):
    "A cell as a reader of README.md sees it: no directives, outputs as text, images found from the root."
    if cell.cell_type=='markdown': cell.source = LINK.sub(lambda m: posixpath.normpath(f'nbs/{m[0]}'), cell.source)
    if cell.cell_type!='code': return cell
    cell.source = '\n'.join(l for l in cell.source.splitlines() if not l.startswith('#|')).strip()
    for o in cell.outputs:
        if 'data' in o: o.data = {k:v for k,v in o.data.items() if k in ('text/markdown','text/plain')}
    return cell


def render(path):
    "The text of README.md."
    nb = nbformat.read(path, as_version=4)
    nb.cells = [prepared(c) for c in nb.cells if shown(c)]
    nb.metadata.setdefault('language_info', {'name':'python'})
    kinds = Config(NbConvertBase=dict(display_data_priority=['text/markdown','text/plain']))
    text,_ = MarkdownExporter(config=kinds).from_notebook_node(nb)
    text = '\n'.join(l.rstrip() if not l.strip() else l for l in text.splitlines())
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n'


def main(argv=None):
    "Write or check; the exit code."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if README.md differs')
    parser.add_argument('--index', type=Path, default=ROOT/'nbs'/'index.ipynb', help='the notebook')
    parser.add_argument('--readme', type=Path, default=ROOT/'README.md', help='the file to write or check')
    args = parser.parse_args(argv)
    new = render(args.index)
    if not args.check: args.readme.write_text(new, encoding='utf-8'); return 0
    old = args.readme.read_text(encoding='utf-8') if args.readme.exists() else ''
    if old==new: return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), args.readme.name, args.index.name))
    print(f'{args.readme.name} differs from {args.index.name}; write it again with: python scripts/readme.py', file=sys.stderr)
    return 1


if __name__=='__main__': sys.exit(main())
