# The commands of the project. `make test` needs nothing but Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile# what a file's tests share is made once
DEMO ?= quick

.PHONY: help test test-all notebooks check format docs demo bench bench-model clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

test: $(STAMP)  ## make .venv, install with constraints, run the fast tests
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

test-all: notebooks  ## every test, the slow ones and the notebooks too
	$(BIN)/python -m pytest $(PARALLEL)

NOTEBOOKS := $(VENV)/notebooks-installed
$(NOTEBOOKS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks]'
	touch $(NOTEBOOKS)

examples/%.ipynb: examples/notebooks/%.py | $(NOTEBOOKS)
	$(BIN)/jupytext --quiet --to ipynb --output $@ $<

notebooks: $(patsubst examples/notebooks/%.py,examples/%.ipynb,$(wildcard examples/notebooks/*.py))  ## make examples/*.ipynb of examples/notebooks/*.py, and run them, a minute each at most
	$(BIN)/python -m pytest -o addopts= -W default --nbmake --nbmake-timeout=60 examples/*.ipynb

check: $(STAMP)  ## format, lint, types, package, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	rm -rf build/dist && $(BIN)/python -m build --outdir build/dist . >/dev/null && $(BIN)/twine check --strict build/dist/*
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

format: $(STAMP)  ## let ruff format and sort imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

DOCS := $(VENV)/docs-installed
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS)

docs: $(DOCS)  ## build the documentation into site/, strictly; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

demo: $(STAMP)  ## experts on a laptop, ratio sweeps, curves and a report in demo-quick/ (DEMO=full: from nothing)
	$(BIN)/unival-merge demo demo-$(DEMO) --preset $(DEMO)

bench: $(STAMP)  ## measure merging against cat, cp and a minimal loop
	$(BIN)/python benchmarks/merging.py

bench-model: $(STAMP)  ## measure the model's forward pass and generation
	$(BIN)/python benchmarks/model.py

clean:  ## remove what the commands above made
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis benchmarks/data site demo-quick demo-full
