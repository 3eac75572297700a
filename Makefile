# Plain make: works with GNU make and BSD make. `make` alone lists the targets.
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
# compiling every module of every package takes as long as all the rest; Python compiles what it imports
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt
STATED = settings.ini setup.py pyproject.toml constraints.txt scripts/hooks.py
N = 20000

help:
	@echo 'make demo       install what the demo needs, run the whole way on a synthetic sample (about 10 minutes on 2 cores)'
	@echo 'make test       install what developing needs, run all tests but the long ones'
	@echo 'make test-long  run the long tests'
	@echo 'make check      ruff and mypy, which make test runs too'
	@echo 'make lab        open the pages in JupyterLab'
	@echo 'make docs       build the docs site into _docs/ and check its links'
	@echo 'make readme     write README.md from nbs/index.ipynb'
	@echo 'make export     write ipbes_classifier/ from nbs/, and clean the notebooks'
	@echo 'make bench      run the benchmarks, small (N=20000 records), into results/benchmarks/'
	@echo 'make setup      install into .venv what the demo needs (PYTHON=python3.12 chooses the Python); git merges notebooks cell by cell'
	@echo 'make setup-dev  install into .venv what developing needs'
	@echo 'make pins       write constraints.txt from .venv'
	@echo 'make clean      remove .venv and what tools leave behind; data, results and reports stay'

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

# a stamp tells whether the environment still fits what settings.ini and the rest state
$(VENV)/.installed: $(STATED)
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info>=(3,11) else "Python 3.11 or later is needed, this is "+sys.version.split()[0]+": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[train,minilm]'
	$(BIN)/python scripts/hooks.py
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev,docs]'
	touch $@

demo: setup
	$(BIN)/ipbes demo

# a test that hangs, or takes its process with it, ends the run with its name; a new process in its place has hung for good.
# OpenVINO gets a process of its own: one that had run twenty other files before, Ray among them, ended within its tests without a word
test: setup-dev
	$(BIN)/python -m pytest -m 'not long' --timeout 600 tests/test_runtimes.py
	$(BIN)/python -m pytest -m 'not long' -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --timeout 600 --ignore tests/test_runtimes.py

test-long: setup-dev
	$(BIN)/python -m pytest -m long

check: setup-dev
	$(BIN)/ruff check
	$(BIN)/mypy

lab: setup-dev
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: setup-dev
	$(BIN)/python scripts/docs.py

readme: setup-dev
	$(BIN)/python scripts/readme.py

export: setup-dev
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

# the figures of full size stand in benchmarks/results/; a small run must not replace them
bench: setup-dev
	$(BIN)/python benchmarks/preprocess.py --n $(N) --results results/benchmarks/preprocess.json
	$(BIN)/python benchmarks/grid.py --quick --results results/benchmarks/grid.json
	test -z "$$IPBES_REAL_DATA" || $(BIN)/python benchmarks/training.py --quick --results results/benchmarks/training.json
	test -z "$$IPBES_REAL_DATA" || $(BIN)/python benchmarks/search.py --quick --work results/search_quick --results results/benchmarks/search.json
	test -z "$$IPBES_REAL_DATA" || $(BIN)/python benchmarks/screening_growth.py --quick --results results/benchmarks/screening_growth.json
	test -z "$$IPBES_REAL_DATA" || $(BIN)/python benchmarks/quality.py --quick --work results/quality_quick --results results/benchmarks/quality.json

pins: setup-dev
	(grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools --exclude wheel \
		| sed 's/+.*//') > constraints.tmp
	mv constraints.tmp constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	rm -rf _docs _proc
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup setup-dev demo test test-long check lab docs readme export bench pins clean
