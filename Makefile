# Each target does its own set-up: Python >= 3.10 is all it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash

.PHONY: help quickstart test gpu-check clean

help:
	@echo "make quickstart   the whole recipe on the embedded world: base, dSFT, feedback, dDPO, evaluation"
	@echo "make test         the test suite"
	@echo "make gpu-check    the GPU tests, with the Python that has torch: make gpu-check GPU_PYTHON=python3"
	@echo "make clean        remove $(VENV) and runs/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: Python >= 3.10 is wanted, $(PYTHON) is $$($(PYTHON) --version 2>&1)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python setup.cfg constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

GPU_PYTHON ?= python3
gpu-check:
	DS_ACCELERATOR=cuda $(GPU_PYTHON) -m pytest tests/gpu -p no:cacheprovider -rs

clean:
	rm -rf $(VENV) runs
