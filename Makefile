# Every target does all its set-up: a machine with Python 3.11 and the package registries is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help dev check lint fix test demo bench clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

dev: $(READY)  ## make the virtual environment with everything that development needs
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

check: lint test  ## all that CI checks: format, lint, types, layers, tests

lint: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

fix: $(READY)  ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## the tests, warnings as errors
	$(BIN)/pytest

demo: $(READY)  ## train, fold, compare with plain averaging, roll back; about a minute
	$(BIN)/python benchmarks/demo

bench: $(READY)  ## measure memory, late folds and near-copies; GB=2, FOLDS=100, PAIRS=1000 and SEED=0 set the sizes
	$(BIN)/python benchmarks/memory.py --gb $(or $(GB),2)
	$(BIN)/python benchmarks/steady.py --folds $(or $(FOLDS),100)
	$(BIN)/python benchmarks/near_copies.py --pairs $(or $(PAIRS),1000) --seed $(or $(SEED),0)

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist .demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
