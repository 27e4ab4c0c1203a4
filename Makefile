# `make help` lists the targets. Everything runs in .venv, which is made once per change of pyproject or constraints.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
BENCHMARKS := $(filter-out %/common.py %/report.py,$(sort $(wildcard benchmarks/*.py)))
# A thread count inherited from the shell would slow down training and skew figures; a recipe sets engine.threads.
unexport OMP_NUM_THREADS

.PHONY: help install demo test test-slow check bench
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deepspeed]'
	touch $@

install: $(STAMP)  ## Make .venv and install rlkit into it

demo: $(STAMP)  ## Train and evaluate a recommender from scratch, in a few minutes on two CPU cores
	$(BIN)/rlkit run recipes/minionerec_grpo.yaml

test: $(STAMP)  ## Run the tests that take seconds each
	$(BIN)/python -m pytest -q

test-slow: $(STAMP)  ## Run the tests that take minutes
	$(BIN)/python -m pytest -q -m 'slow and not gpu'

check: $(STAMP)  ## Lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## Measure every claim, each beside its peer on one thread
	for script in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/report.py
