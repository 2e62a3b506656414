# Each target sets up `.venv` by itself; the stamp makes that happen once per change of what is installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECONDS ?= 300
WORKERS ?= 2
BENCHES = $(filter-out __init__ __main__,$(basename $(notdir $(wildcard tools/bench/[a-z]*.py))))

.PHONY: help setup quickstart smoke test test-fast test-faults test-slurm test-wheel fuzz lint bench docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)  ## the whole recipe on the island, to left and to right, with a report
	$(BIN)/lit-align pipeline --config configs/jumppads/quickstart.yaml

smoke: $(STAMP)  ## the same pipeline, tiny, under three minutes
	$(BIN)/lit-align pipeline --config configs/jumppads/smoke.yaml

test: lint  ## style, types, layers, then all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(STAMP)  ## all tests that take seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not faults and not slurm"

test-faults: $(STAMP)  ## every stage on every strategy, and what kills and hurts runs; minutes
	$(BIN)/python -m pytest -m faults

test-slurm: $(STAMP)  ## jobs on a real Slurm of one node, requeued and exactly resumed
	$(BIN)/python -m pytest tests/slurm -m slurm -rs

test-wheel: $(STAMP)  ## wheel and sdist, installed into an empty environment; minutes
	LIT_ALIGN_TEST_WHEEL=1 $(BIN)/python -m pytest tests/packaging

fuzz: $(STAMP)  ## six fuzzers over what comes from outside, SECONDS (300) each
	$(BIN)/python -m tools.fuzz --target all --seconds $(SECONDS)

lint: $(STAMP)  ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## every benchmark in tools/bench, results in outputs/bench
	@mkdir -p outputs/bench
	@for name in $(BENCHES); do echo "bench $$name"; $(BIN)/python -m tools.bench.$$name --json outputs/bench/$$name.json || exit 1; done

docs: $(STAMP)  ## the documentation as a site in outputs/site; a broken link is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[docs]'
	$(BIN)/mkdocs build --strict --site-dir outputs/site

clean:  ## remove caches and builds; outputs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find lit_align tests -name __pycache__ -type d -prune -exec rm -rf {} +
