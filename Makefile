# Everything from a bare clone: `make demo`, `make test`. See README.md.
# The first Python that runs and is new enough; a version manager's shim may be on the path and not run.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$name; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
SECONDS = 20
SEED = 0
LOADED = --dist loadfile --no-loadscope-reorder --max-worker-restart 0  # or what hangs would be tried again and again
PARALLEL = -n 3 $(LOADED)  # more than two processors: many tests wait for servers
# Tests' folders lie in memory where 6 GB are free: on a disk they take half as long again. Nightly ones lie on the disk.
FOLDERS := $(shell [ "$$(df -kP /dev/shm 2>/dev/null | awk 'NR == 2 {print $$4}')" -gt 6000000 ] 2>/dev/null \
	&& echo /dev/shm || echo "$${TMPDIR:-/tmp}")

.PHONY: demo test nightly protocol storages check fix bench fuzz clean

$(VENV)/.ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "pharmabackup needs Python 3.11 or newer: install one, or run make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]" --group dev
	touch $@

demo: $(VENV)/.ready  ## back up a sample pharmacy, let a day pass, restore it and compare every byte
	$(BIN)/python examples/demo.py

test: $(VENV)/.ready  ## all tests, three files at a time
	sh tests/setup.sh
	PYTEST_DEBUG_TEMPROOT="$(FOLDERS)" PYTHONHASHSEED=0 $(BIN)/python -m pytest $(PARALLEL)  # sets in one order: the simulation does the same each time

NIGHT = PHARMABACKUP_PROFILE=nightly PHARMABACKUP_SEED=$(SEED) PYTHONHASHSEED=0 $(BIN)/python -m pytest --timeout 5400

nightly: protocol storages  ## both, one after the other

AT_ANY_CALL = $(shell grep -l any_call tests/verbs/test_*.py)

protocol: $(VENV)/.ready  ## an hour of model, killed processes, verbs that die at each call, simulation; SEED=1000 begins with that machine
	$(NIGHT) -n 2 $(LOADED) tests/simulation tests/model tests/verbs/test_kill_any.py $(AT_ANY_CALL)

storages: $(VENV)/.ready  ## an hour of weather, and lines that are cut at every byte
	sh tests/setup.sh
	$(NIGHT) tests/storage

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

fuzz: $(VENV)/.ready  ## every parser of the storage format; SECONDS for each, only the TARGETS that are named
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: atheris || { \
		echo "make fuzz needs atheris, which has no wheel for this system and Python: use Linux on x86-64."; exit 1; }
	$(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) $(TARGETS)

clean:
	rm -rf $(VENV) build dist demo-pharmacy .mypy_cache .ruff_cache .pytest_cache .hypothesis
