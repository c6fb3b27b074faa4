# Every target does all its set-up: a machine with Python 3.11 and the package registries is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help dev check lint fix test test-without-events demo bench hostile fuzz soak mutations arrivals clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 22

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

test-without-events: $(READY)  ## the tests, where the repeated scan alone finds what is new
	TEST_WITHOUT_EVENTS=1 $(BIN)/pytest

arrivals: $(READY)  ## checkpoints arrive in every style, with stalls: most of an hour; COUNT=50 SEED=1
	PYTHONPATH=tests $(BIN)/python tests/arrivals_table.py --count $(or $(COUNT),50) --seed $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python tests/arrivals_table.py --count $(or $(COUNT),50) --seed $(or $(SEED),1) --same-user

demo: $(READY)  ## train, fold, compare with plain averaging, roll back; about a minute
	$(BIN)/python benchmarks/demo

bench: $(READY)  ## measure memory, late folds, near-copies and the disk of adapters; GB=2, FOLDS=100, PAIRS=1000 and SEED=0 set the sizes
	$(BIN)/python benchmarks/memory.py --gb $(or $(GB),2)
	$(BIN)/python benchmarks/steady.py --folds $(or $(FOLDS),100)
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/near_copies.py --pairs $(or $(PAIRS),1000) --seed $(or $(SEED),0)

hostile: $(READY)  ## the corpus of hostile checkpoints: each verdict, and what the worst cost
	cd tests && ../$(BIN)/python -m hostile.judging

fuzz: $(READY)  ## mutated headers against an independent reader; COUNT=10000 and SEED=1 set how many, and which
	cd tests && ../$(BIN)/python -m hostile.fuzz --count $(or $(COUNT),10000) --seed $(or $(SEED),1)

soak: $(READY)  ## many folds by one daemon: memory, files, threads, disk; COUNT=1000 and SEED=1, and WARM_UP=1000 before
	cd tests && ../$(BIN)/python -m journeys.soak --count $(or $(COUNT),1000) --warm-up $(or $(WARM_UP),1000) --seed $(or $(SEED),1)

mutations: $(READY)  ## checkpoints changed during their folds by a real daemon; COUNT=200 and SEED=1
	cd tests && ../$(BIN)/python -m hostile.mutations --count $(or $(COUNT),200) --seed $(or $(SEED),1)

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist .demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
