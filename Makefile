# `make` lists the targets. Everything is installed into .venv, once, in the versions of constraints.txt.

PYTHON ?= python3
# The build of torch: `torch` is the pinned version as your package index serves it.
TORCH ?= torch
# Handed to pytest by `make test`: make test ARGS='-k journal'
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow storm check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/run.stamp  ## train a small policy on the demonstrations in experiments/data (CPU, minutes)
	$(BIN)/vlatrack run experiments/quickstart.yaml

test: $(VENV)/dev.stamp  ## run the tests (no network)
	$(BIN)/python -m pytest $(ARGS)

slow: $(VENV)/dev.stamp  ## run the tests that take whole runs and real servers (minutes)
	$(BIN)/python -m pytest -m slow $(ARGS)

storm: $(VENV)/dev.stamp  ## break trackers and processes at random, show what is lost (an hour; ARGS='--storms 2')
	$(BIN)/python tests/storms $(ARGS)

check: $(VENV)/dev.stamp  ## ruff, mypy --strict, the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:  ## remove .venv, builds and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find vlatrack tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt
	@echo "installing vlatrack and what it runs on into $(VENV) (once)..."
	@$(INSTALL) --no-build-isolation '$(TORCH)' -e '.[wandb]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing the test and check tools into $(VENV) (once)..."
	@$(INSTALL) --no-build-isolation -e '.[wandb,tensorboard,dev]'
	@touch $@

# The pinned setuptools comes first: with it, pip builds no package in a hidden environment of unpinned tools.
$(VENV)/venv.stamp:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no '$(PYTHON)': apt install python3-venv, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: '$(PYTHON)' is older than Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: '$(PYTHON)' cannot make virtual environments: apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV) (once)..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) setuptools
	@touch $@
