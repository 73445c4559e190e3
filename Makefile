# The two commands for a fresh machine: `make train` and `make test`. Both set up everything first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# One thread per operator: runs are reproducible bit for bit and leave a core to the uploader.
export OMP_NUM_THREADS ?= 1

.PHONY: setup train test lint format clean

setup: $(STAMP)

# pip, not uv: pip takes the CPU build of torch where the constraints name it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev-s3.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev-s3,dev]'
	touch $@

train: setup
	$(BIN)/wmtp train --config configs/config.dev-s3.yaml --recipe configs/recipe.yaml --resume auto

test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
