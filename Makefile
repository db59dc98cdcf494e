# `make run` and `make test` set everything up themselves; each makes .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := profile,report,calibrate,web,dev
OUT ?= out

.PHONY: help run track baseline test lint types layers check clean

help:
	@echo "make run    smoke suite: measured on a CUDA GPU, else traced; compared; HTML report in $(OUT)/"
	@echo "make track  the smoke suite, traced, against the baseline under version control"
	@echo "make baseline  takes the present figures over as that baseline"
	@echo "make test   every test that needs no GPU"
	@echo "make check  lint, types and layer contracts"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpumem needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

run: $(STAMP)
	$(BIN)/gpumem run smoke --source auto -o $(OUT)/smoke
	$(BIN)/gpumem compare estimates $(OUT)/smoke --report $(OUT)/smoke.html

# Traced, whatever the machine: the baseline is a trace, and a trace is the same everywhere.
track: $(STAMP)
	$(BIN)/gpumem run smoke --source trace -o $(OUT)/smoke
	$(BIN)/gpumem compare --baseline smoke $(OUT)/smoke

baseline: $(STAMP)
	$(BIN)/gpumem run smoke --source trace -o $(OUT)/smoke
	$(BIN)/gpumem baseline save smoke $(OUT)/smoke --replace

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

layers: $(STAMP)
	$(BIN)/lint-imports

check: lint types layers

clean:
	rm -rf $(VENV) $(OUT)
