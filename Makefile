# Everything from a bare clone: `make demo`, `make test`. See README.md.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check fix bench fuzz clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pharmabackup needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[cli]" --group dev
	touch $@

demo: $(VENV)/.ready  ## back up a sample pharmacy, let a day pass, restore it and compare every byte
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready  ## all tests
	sh tests/setup.sh
	$(BIN)/python -m pytest

check: $(VENV)/.ready  ## formatting, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy examples benchmarks
	$(BIN)/lint-imports

fix: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready  ## side by side with restic and Borg; writes docs/performance.md
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) build dist demo-pharmacy .mypy_cache .ruff_cache .pytest_cache .hypothesis
