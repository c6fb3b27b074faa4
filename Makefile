# Every target does all its set-up: a machine with Python 3.11 and the package registries is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The packages that mergd is held against, each in an environment of its own; fusion-bench's OPCM needs transformers 4.
PEERS := .peers
MERGEKIT := mergekit==0.1.5
FUSION_BENCH := fusion-bench==0.2.33 transformers<5

.PHONY: help dev check lint fix test test-long test-systemd test-without-events test-hub-clients hub-kills demo quality quality-quick bench bench-scale bench-quick bench-others hostile fuzz mutations kills arrivals faults full-disk powercut \
  flips machine soak peers clean
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

# One more than there are cores: many tests wait for a daemon.
WORKERS = $(shell echo $$(( $$(nproc) < 3 ? $$(nproc) + 1 : 4 )))

test: $(READY)  ## the tests, but for the long ones; warnings as errors
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not long"

test-long: $(READY)  ## the long tests: kills, faults, the Hub, benchmarks; each of them short
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m long

test-systemd: $(READY)  ## an installed service under a real systemd, booted in namespaces: some minutes; needs root
	TEST_SYSTEMD=1 $(BIN)/pytest -q tests/systemd

test-without-events: $(READY)  ## the tests, where the repeated scan alone finds what is new
	TEST_WITHOUT_EVENTS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

CLIENT ?= huggingface_hub>=1.22,<2
HUB_TESTS = tests/hub_server tests/plugins/hooks/test_hub_push.py $(wildcard tests/plugins/sources/test_hub_*.py tests/journeys/test_hub_*.py)

test-hub-clients: $(READY)  ## the Hub's tests with the other major version of its client: CLIENT='huggingface_hub>=1.22,<2'
	rm -rf .peers/hub-client
	$(BIN)/pip install -q --target .peers/hub-client '$(CLIENT)'
	TEST_ALL_HUB=1 PYTHONPATH=.peers/hub-client $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal $(HUB_TESTS)

hub-kills: $(READY)  ## kill -9 while checkpoints come from a Hub, are folded, and versions are pushed; COUNT=50 and SEED=1
	cd tests && ../$(BIN)/python -m journeys.hub_kills --count $(or $(COUNT),50) --seed $(or $(SEED),1)

arrivals: $(READY)  ## checkpoints arrive in every style, with stalls: most of an hour; COUNT=50 SEED=1
	PYTHONPATH=tests $(BIN)/python tests/arrivals_table.py --count $(or $(COUNT),50) --seed $(or $(SEED),1)
	PYTHONPATH=tests $(BIN)/python tests/arrivals_table.py --count $(or $(COUNT),50) --seed $(or $(SEED),1) --same-user

demo: $(READY)  ## train, fold, compare with plain averaging, roll back; about a minute
	$(BIN)/python benchmarks/demo

JOBS ?= $(shell nproc)
QUALITY = cd benchmarks && nice ../$(BIN)/python -m quality --jobs $(JOBS)

quality: $(READY) $(PEERS)/fusion-bench/.ready  ## train, fold and measure every rule on every set, and write docs/quality.md: many hours; resumable; JOBS=2 SETS='vision-8 text-8'
	$(QUALITY) $(if $(SETS),--sets $(SETS))

quality-quick: $(READY)  ## the same of a few rules on digits, and nothing is written: minutes
	$(QUALITY) --quick --where ../.quality/quick

bench: $(READY) $(PEERS)/mergekit/.ready $(PEERS)/fusion-bench/.ready  ## mergd beside fusion-bench, mergekit and a plain copy, by turns; ROUNDS=3, GB=2, N='2 8 32', BACKLOG=20
	$(BIN)/python benchmarks/side_by_side.py --rounds $(or $(ROUNDS),3) --gb $(or $(GB),2) --n $(or $(N),2 8 32) \
	  --backlog $(or $(BACKLOG),20)

bench-scale: $(READY)  ## a fold's cost against folds, parameters, the largest matrix; LAYERS=144 of the largest model, 170 MB of disk each
	$(BIN)/python benchmarks/scale.py --largest $(or $(LAYERS),144)

bench-quick: $(READY)  ## every comparison in tiny, to see that it works; nothing is kept
	cd tests && TEST_ALL_BENCHMARKS=1 ../$(BIN)/python -m pytest -q -n 2 journeys/test_benchmarks.py

bench-others: $(READY)  ## the other figures: memory, decompositions, adapters' disk, rollbacks, near-copies; PAIRS=1000, SEED=0
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/directions.py
	$(BIN)/python benchmarks/adapters.py --matrices 1
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/rollback.py
	$(BIN)/python benchmarks/near_copies.py --pairs $(or $(PAIRS),1000) --seed $(or $(SEED),0)

hostile: $(READY)  ## the corpus of hostile checkpoints: each verdict, and what the worst cost
	cd tests && ../$(BIN)/python -m hostile.judging

fuzz: $(READY)  ## mutated headers against an independent reader; COUNT=10000 and SEED=1 set how many, and which
	cd tests && ../$(BIN)/python -m hostile.fuzz --count $(or $(COUNT),10000) --seed $(or $(SEED),1)

soak: $(READY)  ## many folds by one daemon: memory, files, threads, disk; COUNT=1000 and SEED=1, and WARM_UP=1000 before
	cd tests && ../$(BIN)/python -m journeys.soak --count $(or $(COUNT),1000) --warm-up $(or $(WARM_UP),1000) --seed $(or $(SEED),1)

mutations: $(READY)  ## checkpoints changed during their folds by a real daemon; COUNT=200 and SEED=1
	cd tests && ../$(BIN)/python -m hostile.mutations --count $(or $(COUNT),200) --seed $(or $(SEED),1)

kills: $(READY)  ## kill -9 at moments of chance, and at every call that changes the state; COUNT=1000 and SEED=1
	cd tests && ../$(BIN)/python -m faults --count $(or $(COUNT),1000) --seed $(or $(SEED),1)

faults: $(READY)  ## ENOSPC and EIO at every call of a fold, a rollback, a retention, a read-out, a re-merge; COUNT=0 (all of them) and SEED=1
	cd tests && ../$(BIN)/python -m faults.errors --count $(or $(COUNT),0) --seed $(or $(SEED),1)

full-disk: $(READY)  ## a disk that fills up under a daemon, also in the middle of folds; needs root
	cd tests && ../$(BIN)/python -m faults.filling --long

powercut: $(READY)  ## power cuts on a real ext4, and the control without fsync, which must fail; needs root; COUNT=150 and SEED=1
	cd tests && ../$(BIN)/python -m faults.powercut --count $(or $(COUNT),150) --seed $(or $(SEED),1)
	cd tests && ../$(BIN)/python -m faults.powercut --count $(or $(COUNT),150) --seed $(or $(SEED),1) --without-fsync

flips: $(READY)  ## one bit flipped in a state's files, again and again: is it found? COUNT=10000 and SEED=1
	cd tests && ../$(BIN)/python -m rot.flips --count $(or $(COUNT),10000) --seed $(or $(SEED),1)

machine: $(READY)  ## what people may do, with crashes in between, against a model in memory; STEPS=1000 and SEED=1
	MACHINE_STEPS=$(or $(STEPS),1000) MACHINE_SEED=$(or $(SEED),1) $(BIN)/pytest -q tests/journeys/test_machine.py

peers: $(READY) $(PEERS)/mergekit/.ready $(PEERS)/fusion-bench/.ready  ## hold the rules against mergekit and fusion-bench: writes docs/peers.md; COUNT=4 and SEED=1
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m peers --count $(or $(COUNT),4) --seed $(or $(SEED),1) --write

$(PEERS)/mergekit/.ready: WANTED := $(MERGEKIT)
$(PEERS)/fusion-bench/.ready: WANTED := $(FUSION_BENCH)
$(PEERS)/%/.ready: constraints.txt Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt $(foreach package,$(WANTED),'$(package)')
	touch $@

clean:  ## remove everything that was made here
	rm -rf $(VENV) $(PEERS) build dist .demo .quality .bench-* *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
