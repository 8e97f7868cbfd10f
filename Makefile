# Everything a developer runs. A fresh clone needs git, make and Python >= 3.11, nothing else:
# the first target called makes the virtual environment, and a changed pyproject.toml remakes it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported. Most of those that are installed never are.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile

# Two processes, or up to four where there are more cores. A file of tests runs in one process, so
# that its kernels are compiled once.
PARALLEL := --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

INSTALLING = echo "Installing nlsq_dask[$(EXTRAS)] into $(VENV): JAX, SciPy and Dask are some hundred megabytes. This may take minutes, and pip is silent meanwhile."

GALLERY := diffusion_maps gaussian_beam hyperspectral_peak light_curve object_store packed_netcdf t2_relaxation xpcs

# Without files of bytecode each process of the tests would compile all of them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo gallery check test test-thorough mutations lint format docs bench environment clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      fit 24 million rows from a Zarr store on a local cluster and plot the fit"
	@echo "make gallery   run the scripts of the gallery and draw the pictures of the documentation"
	@echo "make check     run the tests that are quick: none that is slow or starts worker processes"
	@echo "make test      run the test suite"
	@echo "make test-thorough   run the cases that make test leaves out, and more examples"
	@echo "make mutations break the package on purpose, and see that the suite notices"
	@echo "make lint      check style, types and the layers of the package"
	@echo "make format    rewrite the code in the project's style"
	@echo "make docs      build the documentation into docs/_build/html"
	@echo "make bench     run the benchmarks"
	@echo "make environment   install what all targets need, at one time"
	@echo "make clean     remove the environment and all that was built"

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

gallery: $(VENV)/.test
	for name in $(GALLERY); do \
		$(BIN)/python examples/$$name.py --out docs/images/$$name.png || exit 1; \
	done

check: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not cluster and not thorough"

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) -m "not thorough"

test-thorough: $(VENV)/.test
	$(BIN)/python -m pytest $(PARALLEL) -m "thorough or hypothesis" --hypothesis-profile=thorough

mutations: $(VENV)/.test
	$(BIN)/python -m tests.mutations

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

# The package index is searched once, and not for each extra.
environment: EXTRAS := docs,lint,test
environment: $(VENV)/.made
	@$(INSTALLING)
	$(INSTALL) --editable ".[$(EXTRAS)]"
	@touch $(VENV)/.demo $(VENV)/.docs $(VENV)/.lint $(VENV)/.test

clean:
	rm -rf $(VENV) docs/_build docs/generated build dist
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# One environment, filled with an extra the first time that a target needs it.
$(VENV)/.demo: EXTRAS := plot
$(VENV)/.test: EXTRAS := test
$(VENV)/.lint: EXTRAS := lint
$(VENV)/.docs: EXTRAS := docs
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.docs: $(VENV)/.made
	@$(INSTALLING)
	$(INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v.major}.{v.minor} is too old: nlsq_dask needs 3.11 or newer; name one with make PYTHON=python3.12")'
	@echo "Making a virtual environment in $(VENV), with a new pip from the package index. This may take a minute."
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --upgrade pip
	@touch $@
