# The two commands: `make study` and `make test`.  Everything they need is installed into .venv from pinned versions.
SHELL := /bin/bash
PYTHON ?= python3
STUDY ?= quick
DATA ?=
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PY := .venv/bin/python
OUT := build/test
NBVAL = STDA_BATCH=1 STDA_THREADS=1 OMP_NUM_THREADS=1 $(PY) -m pytest -c pyproject.toml --nbval-kernel-name python3 -p no:cacheprovider
# the executed notebooks of the ci study again, outputs compared; and those of the repository, run from top to bottom
STRICT = STDA_RUNS="$(CURDIR)/$(OUT)/runs-nbval" STDA_REPORTS="$(CURDIR)/$(OUT)/reports-nbval" \
    $(NBVAL) --nbval --nbval-sanitize-with tests/nbval.cfg "$(OUT)/reports/ci"
LAX = STDA_RUNS="$(CURDIR)/$(OUT)/runs-lax" STDA_REPORTS="$(CURDIR)/$(OUT)/reports-lax" $(NBVAL) --nbval-lax notebooks

.PHONY: help study test lab environment clean

help:
	@echo "make study                         the quick study on the built-in phantom data set"
	@echo "make study STUDY=name DATA=folder  another study of params/, on a folder of images"
	@echo "make test                          style, unit tests, notebook hygiene, the ci study as a batch, nbval"
	@echo "make lab                           open JupyterLab on the notebooks"
	@echo "make clean                         remove build/ and the caches of the tests (runs/ and .venv stay)"

study: .venv/.installed
	@$(PY) -m stda run "$(STUDY)" $(if $(DATA),--data "$(DATA)") --cores $(CORES)

# STDA_THREADS=1 is what the batch gives each of its jobs on two cores: equal threads, equal sums, equal outputs
test: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2
	rm -rf "$(OUT)"
	STDA_RUNS="$(CURDIR)/$(OUT)/runs" STDA_REPORTS="$(CURDIR)/$(OUT)/reports" $(PY) -m stda run ci --cores 2
	cp -r "$(OUT)/runs" "$(OUT)/runs-nbval"
	@( exec env $(LAX) > "$(OUT)/lax.log" 2>&1 ) & lax=$$!; \
	    $(STRICT) || { kill $$lax; exit 1; }; \
	    echo "The notebooks as they are stored, on the quick study, checked meanwhile:"; \
	    wait $$lax || { cat "$(OUT)/lax.log"; exit 1; }; tail -n 1 "$(OUT)/lax.log"
	@echo "All tests passed; the report of the ci study is $(OUT)/reports/ci/index.html"

lab: .venv/.installed
	$(PY) -m jupyterlab notebooks

environment: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "stda needs Python 3.11, 3.12 or 3.13; call make with PYTHON=python3.12, for example."; exit 2; }
	@echo "Installing the pinned packages into .venv (some minutes and 6 GB, once)."
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lab]"
	@touch .venv/.installed

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis
