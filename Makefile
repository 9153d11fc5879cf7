# Two commands for a new checkout: `make demo` and `make test`. Each makes what it needs in .venv and nothing elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/clipmlu run demo

test: $(VENV)/test.stamp
	@echo "make test: all tests but the slow and the full_size ones, which 'make test-all' and 'pytest -m full_size' run"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/test.stamp
	@echo "make test-all: all tests, the slow ones too, but those marked full_size"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not full_size'

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/demo.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	touch $@

$(VENV)/test.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) clipmlu-run
