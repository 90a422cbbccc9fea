PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Two processes, a file of tests to each at a time.
PYTEST = $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: demo test test-all lint

# One environment for every target; made again when the dependencies change.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,parity,dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/saccade demo --out=demo

test: $(VENV)/installed
	$(PYTEST)

test-all: $(VENV)/installed
	$(PYTEST) -m 'not gpu and not tpu'

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
