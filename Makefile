# make demo: run the main job on real data.   make test: run the whole test suite.
# Both make their own environment in .venv from nothing but Python 3.11 and make.
# make bench: every benchmark beside its peers, in .venv-bench.   make bench-quick: a smaller round, under five minutes.
# make linkcheck: the links of the documentation, those to other sites too.
# make docs: the documentation into docs/_build/html, its examples executed, in .venv-docs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint env bench bench-quick bench-env docs linkcheck docs-env clean

demo: env
	$(BIN)/python examples/quickstart.py

test: env
	$(BIN)/python -m pytest -n 2

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: .venv/.complete

.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

bench: bench-env
	.venv-bench/bin/python benchmarks/suite.py

bench-quick: bench-env
	.venv-bench/bin/python benchmarks/suite.py --quick

bench-env: .venv-bench/.complete

docs: docs-env
	.venv-docs/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

linkcheck: docs-env
	.venv-docs/bin/python -m sphinx -b linkcheck -q -D plot_gallery=0 docs docs/_build/linkcheck

docs-env: .venv-docs/.complete

.venv-%/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q -c constraints.txt torch
	.venv-$*/bin/python -m pip install -q -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf .venv .venv-bench .venv-docs docs/_build docs/gallery docs/api/generated docs/sg_execution_times.rst examples/build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
