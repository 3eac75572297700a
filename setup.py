"Install from settings.ini, which nbdev and this file share. Extras are the `*_requirements` there."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

extras = {k.removesuffix('_requirements'): v.split() for k,v in cfg.items() if k.endswith('_requirements')}
extras['search'] += extras['train']
extras['all'] = sorted({r for k,rs in extras.items() if k not in ('dev','docs') for r in rs})
extras['dev'] += extras['all']

# `configs/`, `nbs/reports/` and `app/` stand once in the tree; the wheel carries them inside the package
folders = {'ipbes_classifier':'ipbes_classifier', 'ipbes_classifier.configs':'configs', 'ipbes_classifier.reports':'nbs/reports', 'ipbes_classifier.app_files':'app'}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='MIT', license_files=['LICENSE'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=list(folders), package_dir=folders,
    package_data={'ipbes_classifier':['py.typed'], 'ipbes_classifier.configs':['*.yaml'], 'ipbes_classifier.reports':['*.ipynb'],
                  'ipbes_classifier.app_files':['*.html','*.css','*.js','*.svg']},
    exclude_package_data={'ipbes_classifier.configs':['best_hpo.yaml']},  # what a search in this checkout found
    python_requires='>='+cfg['min_python'], install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts':cfg['console_scripts'].split()},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Natural Language :: English',
                 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12', 'Programming Language :: Python :: 3.13'],
    zip_safe=False,
)
