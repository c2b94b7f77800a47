# `make` lists the targets. Everything is installed into .venv, once, in the versions of constraints.txt.

PYTHON ?= python3
# The build of torch, as pip takes it: torch==2.13.0+cpu, or a wheel file. Another one than last time is installed over it.
# Empty: the build that is installed stays; if there is none, the pinned version as your package index serves it.
TORCH ?=
# Handed to pytest by `make test`: make test ARGS='-k journal'
ARGS ?=
# How often `make damage` damages each kind of file.
TRIALS ?= 1000
# How many test files run at the same time. Empty: as is fastest on two cores, three for `make test`, whose tests wait for the
# processes that they start, and two for `make slow`, whose tests compute.
WORKERS ?=
# What writes the list of packages.
CYCLONEDX ?= cyclonedx-bom==7.5.0

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
PARALLEL := --dist loadfile --max-worker-restart 0
INSTALLED_TORCH = $(BIN)/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' 2>/dev/null

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow simulators storm damage check packages notes sbom clean always

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/run.stamp  ## train a small policy on the demonstrations in experiments/data (CPU, minutes)
	$(BIN)/vlatrack run experiments/quickstart.yaml

test: $(VENV)/dev.stamp  ## run the tests (no network)
	$(BIN)/python -m pytest -n $(or $(WORKERS),3) $(PARALLEL) --no-loadscope-reorder $(ARGS)

slow: $(VENV)/dev.stamp  ## run the tests that take whole runs and real servers (minutes)
	$(BIN)/python -m pytest -m slow --durations 40 -n $(or $(WORKERS),2) $(PARALLEL) $(ARGS)

simulators: $(VENV)/run.stamp  ## install Meta-World and LIBERO into .venv (2 GB; rendering needs OpenGL: docs/evaluate.md)
	@$(INSTALL) --no-build-isolation -e '.[metaworld,libero]'

storm: $(VENV)/dev.stamp  ## break trackers and processes at random, show what is lost (an hour; ARGS='--storms 2')
	$(BIN)/python tests/storms $(ARGS)

damage: $(VENV)/dev.stamp  ## damage files of LeRobot, HDF5 and RLDS datasets at random, show what is not told in one line (an hour)
	@failed=0; for format in lerobot hdf5 rlds; do \
		$(BIN)/python tests/storms/$${format}_storm.py --trials $(TRIALS) || failed=1; done; exit $$failed

check: $(VENV)/dev.stamp  ## ruff, mypy --strict, the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

packages: $(VENV)/venv.stamp  ## build sdist and wheel of the last commit, in dist/
	@rm -rf dist build/packages && mkdir -p dist build/packages
	@git archive HEAD | tar x -C build/packages
	@cd build/packages && $(CURDIR)/$(BIN)/python -c 'import setuptools.build_meta as b; b.build_sdist("$(CURDIR)/dist")' > log
	@$(BIN)/python -m pip --disable-pip-version-check -q wheel --no-deps --no-index --no-build-isolation -w dist dist/*.tar.gz
	@ls -l dist

notes:  ## print the release notes of VERSION, or what has to be set before it can be tagged (docs/releasing.md)
	@$(PYTHON) .ci/release_notes.py '$(VERSION)'

# The tool is no part of the project: it has an environment of its own.
sbom:  ## list the pinned packages as a CycloneDX document, build/sbom.cdx.json
	@[ -x build/sbom/bin/cyclonedx-py ] || { $(PYTHON) -m venv build/sbom && \
		build/sbom/bin/python -m pip --disable-pip-version-check install -qq $(CYCLONEDX); }
	build/sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.cdx.json constraints.txt

clean:  ## remove .venv, builds and caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find vlatrack tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The installed torch is named, so that a new pin of torch is an error and not a silent exchange of a CPU for a CUDA build.
$(VENV)/run.stamp: $(VENV)/torch.stamp pyproject.toml constraints.txt
	@echo "installing vlatrack and what it runs on into $(VENV) (once)..."
	@torch=$$($(INSTALLED_TORCH) || echo torch); $(INSTALL) --no-build-isolation "$$torch" -e '.[wandb]' || \
		{ echo "error: pip failed, see above; $(VENV) has or wants $$torch: make TORCH=... chooses another, make clean starts anew" >&2; exit 1; }
	@touch $@

# Holds the TORCH that was asked for last. It is looked at each time; only another TORCH changes it.
$(VENV)/torch.stamp: $(VENV)/venv.stamp always
	@if [ ! -e $@ ] && [ -z '$(TORCH)' ]; then touch $@; fi
	@if [ -n '$(TORCH)' ] && [ "$$(cat $@ 2>/dev/null)" != '$(TORCH)' ]; then \
		echo "installing $(TORCH) into $(VENV)..."; \
		$(INSTALL) --force-reinstall --no-deps '$(TORCH)' && echo '$(TORCH)' > $@; \
	fi

always:

# openpi-client says that it needs NumPy 1, and works with 2.
$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing the test and check tools into $(VENV) (once)..."
	@$(INSTALL) --no-build-isolation -e '.[wandb,tensorboard,scale,serve,submit,sweep,rlds,dev]'
	@$(INSTALL) --no-deps openpi-client
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
