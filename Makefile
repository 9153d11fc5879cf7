# Two commands for a new checkout: `make demo` and `make test`. Each makes what it needs in .venv and nothing elsewhere.
# `make lint`, `make docs` and `make packages` need neither torch nor the tests' packages, and make .venv-lint.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINT := .venv-lint
UV ?=
# `make UV=uv` installs with uv, three times as fast; it does not read pip's configuration, so pip is the default.
# Neither writes bytecode: Python compiles what is imported, a tenth of it.
install_into = $(if $(UV),$(UV) pip install --quiet --python $(1)/bin/python,$(1)/bin/python -m pip install --no-compile)

.PHONY: demo install test test-all lint docs packages packages-all clean

demo: $(VENV)/demo.stamp
	$(BIN)/clipmlu run demo

install: $(VENV)/test.stamp

test: $(VENV)/test.stamp
	@echo "make test: all tests but the slow and the full_size ones, which 'make test-all' and 'pytest -m full_size' run"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/test.stamp
	@echo "make test-all: all tests, the slow ones too, but those marked full_size"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not full_size'

lint: $(LINT)/lint.stamp
	$(LINT)/bin/ruff check .
	$(LINT)/bin/ruff format --check .
	$(LINT)/bin/mypy
	$(LINT)/bin/basedpyright --pythonpath $(LINT)/bin/python
	$(LINT)/bin/codespell $$(git ls-files '*.md' '*.py' '*.c' '*.toml' '*.yml' '*.yaml' '*.Dockerfile' Makefile)
	$(LINT)/bin/hadolint docker/*.Dockerfile

docs: $(LINT)/lint.stamp
	$(LINT)/bin/zensical build --clean --strict

packages: $(LINT)/lint.stamp
	$(LINT)/bin/python tools/check_packages.py

packages-all: $(LINT)/lint.stamp
	$(LINT)/bin/python tools/check_packages.py --extras all

$(VENV)/demo.stamp: pyproject.toml
	@echo "make demo: installing into $(VENV), with torch, which is about 5.8 GB from the index (README: a smaller one); some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install_into,$(VENV)) --editable '.[export,report]'
	touch $@

$(VENV)/test.stamp: pyproject.toml
	@echo "make test: installing into $(VENV), with torch, which is about 5.8 GB from the index (README: a smaller one); some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install_into,$(VENV)) --editable '.[test]'
	touch $@ $(VENV)/demo.stamp

$(LINT)/lint.stamp: pyproject.toml
	test -x $(LINT)/bin/python || $(PYTHON) -m venv $(LINT)
	$(call install_into,$(LINT)) --editable '.[docs,lint]'
	touch $@

clean:
	rm -rf $(VENV) $(LINT) clipmlu-run
