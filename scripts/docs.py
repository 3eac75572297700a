"""Build the docs site into _docs/ from the notebooks, the modules and the sample reports, and check its links.

Nothing is run again: a page shows the outputs that its notebook holds. The site opens from the folder, without server or network.
"""
import argparse
import ast
import base64
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from urllib.parse import unquote, urlsplit

import nbformat

from readme import shown

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'ipbes_classifier'
PARTS = {'0':'Settings and files', '1':'From libraries to folds', '2':'Measures, models, training', '3':'Screening', '4':'Pipeline and demo',
         '5':'On real papers', '9':'Command line'}
HOWTO = ('6','95')                  # numbers of the pages that answer "how do I"
LOADED = {'script':'src', 'img':'src', 'iframe':'src', 'link':'href', 'source':'src', 'video':'src'}


def pages(root:Path)->list[Path]:
    "The pages in reading order."
    return sorted(p for p in (root/'nbs').glob('[0-9]*.ipynb'))


def is_howto(page:Path)->bool:
    "Whether a page answers how something is done, rather than define a module."
    return page.name.startswith(HOWTO)


def address(page:Path)->str:
    "Where a page lies in the site."
    return f"{'howto' if is_howto(page) else 'pages'}/{page.stem}.md"


def public(module:Path)->list[ast.FunctionDef|ast.ClassDef]:
    "The definitions that a module offers, as its `__all__` lists them."
    tree = ast.parse(module.read_text(encoding='utf-8'))
    names:list[str] = next((ast.literal_eval(o.value) for o in tree.body if isinstance(o,ast.Assign) and ast.unparse(o.targets[0])=='__all__'), [])
    return [o for o in tree.body if isinstance(o,(ast.FunctionDef,ast.ClassDef)) and o.name in names]


@cache
def modules(root:Path)->list[Path]:
    "The exported modules, in the order of their pages."
    found = [re.search(r'"#\|\s*default_exp\s+(\w+)', p.read_text(encoding='utf-8')) for p in pages(root)]
    return [root/PACKAGE/f'{m[1]}.py' for m in found if m]


@cache
def targets(root:Path)->dict[str,str]:
    "What prose names in backticks, and where the site explains it: pages by name, functions as `module.function`."
    known = {p.stem:address(p) for p in pages(root)}
    for m in modules(root):
        known[f'{PACKAGE}.{m.stem}'] = f'reference/{m.stem}.md'
        known |= {f'{m.stem}.{o.name}':f'reference/{m.stem}.md#{o.name.lower()}' for o in public(m)}
    return known


@cache
def files(root:Path)->dict[str,str]:
    "Files of the tree that prose links to, and where the site has them; the last part of a path is enough."
    known = {p.name:address(p) for p in pages(root)}
    return known|{'index.ipynb':'index.md', 'README.md':'index.md', 'CONTRIBUTING.md':'contributing.md', 'CHANGELOG.md':'changelog.md', 'sample':'reports/index.md', 'examples':'howto/examples.md'}


def up(here:str)->str:
    "From a file of the site back to its top."
    return '../'*here.count('/')


def formulas(text:str)->str:
    "A line of Markdown whose TeX formulas are MathML, which browsers draw by themselves; code is left alone."
    from latex2mathml.converter import convert
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p if p.startswith('`') else re.sub(r'\$([^$\n]+)\$', lambda m: convert(m[1]), p) for p in parts)


def relink(text:str, here:str, root:Path)->str:
    "Markdown whose links lead to the site's own files, whose formulas are MathML, and in which a page's or function's name in backticks is a link."
    names,tree = targets(root),files(root)
    def name(m:re.Match)->str: return f'[`{m[1]}`]({up(here)}{names[m[1]]})' if m[1] in names else m[0]
    def link(m:re.Match)->str:
        path,_,anchor = m[1].partition('#')
        if '://' in path or not path: return m[0]
        if 'images/' in path: return f']({up(here)}images/{Path(path).name})'
        if Path(path).name not in tree: raise ValueError(f'{here}: the link {m[1]} leads to nothing that the site has')
        return f"]({up(here)}{tree[Path(path).name]}{'#'*bool(anchor)}{anchor})"
    lines,fenced = [],False
    for l in text.splitlines():
        edge = l.lstrip().startswith(('```','~~~'))
        if edge: fenced = not fenced
        if not fenced and not edge:
            l = formulas(re.sub(r'\]\(([^()\s]+)\)', link, l))
            if not l.startswith('#'): l = re.sub(r'(?<![\[`])`([\w.]+)`(?![\]`])', name, l)
        lines.append(l)
    return '\n'.join(lines)


def fence(text:str, kind:str)->str:
    "A code block that its own text cannot end."
    ticks = '`'*max(3, 1+max((len(m) for m in re.findall('`+',text)), default=0))
    return f'{ticks}{kind}\n{text.rstrip()}\n{ticks}'


def output(o:dict, image:Path)->str:
    "An output as Markdown: a picture becomes a file, a table keeps its HTML without pandas' own look."
    if o['output_type']=='stream': return fence(o['text'], ' { .text .output }')
    if o['output_type']=='error': return fence('\n'.join(o['traceback']), ' { .text .output }')
    data = o['data']
    if 'image/png' in data:
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(base64.b64decode(data['image/png']))
        return f'![What the cell above draws]({image.parent.name}/{image.name})'
    if 'text/markdown' in data: return data['text/markdown']
    if 'text/html' in data: return '<div class="frame">\n'+plain_table(data['text/html'])+'\n</div>'
    return fence(data['text/plain'], ' { .text .output }')


def plain_table(html:str)->str:
    "A data frame's HTML in the site's look: no style of its own, no blank line, which would end an HTML block in Markdown."
    html = re.sub(r'<style scoped>.*?</style>', '', html, flags=re.S).replace(' border="1" class="dataframe"','').replace(' style="text-align: right;"','')
    return '\n'.join(l.strip() for l in html.splitlines() if l.strip())


def notebook(path:Path, here:str, site:Path, root:Path)->str:
    "A notebook as Markdown: prose, code with the module's name where it is exported, outputs."
    nb,parts,module = nbformat.read(path, as_version=4),[],None
    for c in (c for c in nb.cells if shown(c)):
        if c.cell_type=='markdown':
            if text := c.source.rstrip().removesuffix('## Export -').rstrip(): parts.append(relink(text, here, root))
            continue
        flags = [l for l in c.source.splitlines() if l.startswith('#|')]
        code = '\n'.join(l for l in c.source.splitlines() if not l.startswith('#|')).strip()
        module = next((f.split()[-1] for f in flags if 'default_exp' in f), module)
        exported = any(re.match(r'#\|\s*exporti?\b',f) for f in flags)
        if code: parts.append(fence(code, f'python title="{module}.py"' if exported else 'python'))
        for o in c.outputs: parts.append(output(o, (site/here).parent/path.stem/f'{len(parts)}.png'))
    text = '\n\n'.join(parts)
    where = f'<span class="where">Notebook `nbs/{path.name}`' + (f' · module [`{PACKAGE}.{module}`]({up(here)}reference/{module}.md)' if module else '') + '</span>'
    return re.sub(r'\A(# .*\n)', lambda m: f'{m[1]}\n{where}\n', text) if path.stem!='index' else text


Definition = ast.FunctionDef|ast.ClassDef


def signature(node:Definition, lines:list[str])->str:
    "A definition without its body: names, types, defaults and the comments that explain them; of a class, its fields or `__init__`."
    top,body = lines[min([node.lineno,*(d.lineno for d in node.decorator_list)])-1:node.body[0].lineno], node.body[0]
    last = top.pop()
    if last[:body.col_offset].strip(): top.append(last[:body.col_offset].rstrip())
    if isinstance(node,ast.ClassDef):
        for o in node.body:
            if isinstance(o,ast.AnnAssign): top += lines[o.lineno-1:o.end_lineno]
            if isinstance(o,ast.FunctionDef) and o.name=='__init__': top.append(signature(o,lines))
    return '\n'.join(top)


def entry(node:Definition, lines:list[str], level:int=2, owner:str='')->Iterator[str]:
    "A definition in the reference, and below a class its public methods."
    name = f'{owner}.{node.name}' if owner else node.name
    yield f"{'#'*level} {name} {{ #{name.lower()} }}"
    if doc := ast.get_docstring(node): yield doc
    yield fence(dedent(signature(node,lines)), ' { .python .signature }')
    if isinstance(node,ast.ClassDef):
        for o in node.body:
            if isinstance(o,ast.FunctionDef) and not o.name.startswith('_'): yield from entry(o, lines, level+1, name)


def reference(module:Path, here:str, root:Path)->str:
    "What a module offers, from its source."
    text = module.read_text(encoding='utf-8')
    page = re.search(r'File to edit: \.\./nbs/(.+?)\.ipynb', text)
    parts = [f'# {module.stem}', ast.get_docstring(ast.parse(text)) or '', f'Defined, explained and tested on the page `{page[1]}`.' if page else '']
    for node in public(module): parts += entry(node, text.splitlines())
    return relink('\n\n'.join(parts), here, root)


def commands(root:Path)->str:
    "All commands and their options, by Typer."
    done = subprocess.run([sys.executable,'-m','typer',f'{PACKAGE}.cli','utils','docs','--name','ipbes','--title','The ipbes command'], cwd=root,
                          capture_output=True, text=True, check=True)
    return re.sub(r'\*\*Commands\*\*:\n\n(\* .*\n)+', '', done.stdout, count=1) # their first words, cut off; the contents list them too


def reports(site:Path, root:Path)->str:
    "The executed reports of the demo, copied beside a page that lists them."
    rows = []
    for p in sorted((root/'papermill_runs'/'sample').glob('*.html')):
        (site/'reports').mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, site/'reports'/p.name)
        name,*of = p.stem.split('__')
        rows.append(f'- [{": ".join([name,*[", ".join(of)]*bool(of)])}]({p.name})')
    return ('# Sample reports\n\nEach run of a grid is an executed notebook and an HTML page that needs neither Jupyter nor a network. These are what '
            '`ipbes demo` made on its **synthetic** sample, and what `ipbes report` made of a screening of another: their figures say that things work, not how well a model finds real papers.\n\n'+'\n'.join(rows))


def examples(root:Path)->str:
    "The files that a user could have written, whole."
    parts = [f'## {p.name}\n\n'+fence(p.read_text(encoding='utf-8'), 'python') for p in sorted((root/'examples').glob('*.py'))]
    return '# Examples\n\nFiles to copy to the root of a project, next to `configs/`, and to change there.\n\n'+'\n\n'.join(parts)


def gather(site:Path, root:Path=ROOT)->list:
    "Write the site's Markdown below `site`; its navigation."
    def put(here:str, text:str)->str:
        (site/here).parent.mkdir(parents=True, exist_ok=True)
        (site/here).write_text(text+'\n', encoding='utf-8')
        return here
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(root/'docs', site)
    shutil.copytree(root/'nbs'/'images', site/'images')
    put('index.md', '---\nhide: [navigation]\n---\n\n'+notebook(root/'nbs'/'index.ipynb', 'index.md', site, root))
    done = {p:put(address(p), notebook(p, address(p), site, root)) for p in pages(root)}
    read = [{title:[a for p,a in done.items() if not is_howto(p) and p.name[0]==n]} for n,title in PARTS.items()]
    ref = [put(f'reference/{m.stem}.md', reference(m, f'reference/{m.stem}.md', root)) for m in modules(root)]
    more = [put(f'{n.lower()}.md', relink((root/f'{n}.md').read_text(encoding='utf-8'), f'{n.lower()}.md', root)) for n in ('CONTRIBUTING','CHANGELOG')]
    return [{'Start':'index.md'}, {'How to':[*(a for p,a in done.items() if is_howto(p)),put('howto/examples.md', examples(root))]}, {'Pages':[o for o in read if next(iter(o.values()))]},
            {'Reference':[{'Command line':put('reference/commands.md', commands(root))},{'Modules':ref}]},
            {'Reports':put('reports/index.md', reports(site, root))}, {'Project':more}]


def build(site:Path, out:Path, nav:list, root:Path=ROOT)->None:
    "Run MkDocs, strictly: a warning ends it. Its page for wrong addresses looks for its style at a server's top and is left out."
    from mkdocs.commands.build import build as run
    from mkdocs.config import load_config
    logging.getLogger('mkdocs').setLevel(logging.WARNING)
    run(load_config(str(root/'mkdocs.yml'), docs_dir=str(site), site_dir=str(out), nav=[o for o in nav if next(iter(o.values()))], strict=True))
    (out/'404.html').unlink(missing_ok=True)


def links(page:Path)->tuple[list[str],list[str],set[str]]:
    "What an HTML page links to, what it loads, and the anchors that it has."
    from selectolax.lexbor import LexborHTMLParser
    tree = LexborHTMLParser(page.read_text(encoding='utf-8'))
    goes = [v for n in tree.css('a[href]') if (v:=n.attributes['href'])]
    loads = [v for tag,key in LOADED.items() for n in tree.css(f'{tag}[{key}]') if n.attributes.get('rel')!='canonical' and (v:=n.attributes[key])]
    return goes,loads,{v for n in tree.css('[id]') if (v:=n.attributes['id'])}|{v for n in tree.css('a[name]') if (v:=n.attributes['name'])}


def broken(out:Path)->list[str]:
    "A line for each link of the built site that leads nowhere, and for each thing that it would load from elsewhere."
    found = {p.resolve():links(p) for p in sorted(out.rglob('*.html'))}
    wrong = []
    for page,(goes,loads,_) in found.items():
        at = page.relative_to(out.resolve())
        for v in goes+loads:
            parts = urlsplit(v)
            if parts.scheme or parts.netloc:
                if v in loads and parts.scheme!='data': wrong.append(f'{at}: loads {v} from elsewhere')
                continue
            goal = (page.parent/unquote(parts.path)).resolve() if parts.path else page
            if goal.is_dir(): goal = goal/'index.html'
            if not goal.exists(): wrong.append(f'{at}: {v} leads to no file')
            elif parts.fragment and goal in found and unquote(parts.fragment) not in found[goal][2]: wrong.append(f'{at}: {v} leads to no such place')
    return wrong


def main(argv:list[str]|None=None)->int:
    "Build and check; the exit code."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=ROOT/'_docs', help='where the site goes')
    args = parser.parse_args(argv)
    site = ROOT/'_proc'/'docs'
    build(site, args.out, gather(site))
    wrong = broken(args.out)
    print(*wrong, sep='\n', file=sys.stderr)
    print(f'{len(list(args.out.rglob("*.html")))} pages in {args.out}: open {args.out}/index.html')
    return bool(wrong)


if __name__=='__main__': sys.exit(main())
