# make setup | quickstart | results | test | unit | lint | clean. LOCK=gpu installs a GPU machine's lock; FROM=sft starts from the shipped SFT checkpoints.
LOCK ?= cpu
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(LOCK)

.PHONY: setup quickstart results test unit lint clean

setup: $(READY)

$(READY): locks/$(LOCK).txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $$(grep -c == locks/$(LOCK).txt) packages into $(VENV): some minutes, and some gigabytes with CUDA"
	$(BIN)/pip install --no-deps --disable-pip-version-check -r locks/$(LOCK).txt
	$(BIN)/pip install --no-deps --no-build-isolation --disable-pip-version-check --quiet -e .
	touch $@

quickstart: setup
	$(BIN)/python -m apr.cli quickstart $(if $(FROM),start=$(FROM) out=runs/quickstart_from_$(FROM))

results: setup
	$(BIN)/python benchmarks/study.py --publish $(ROW)

lint: setup
	$(BIN)/ruff format --check apr envs solvers rl tests benchmarks docs examples
	$(BIN)/ruff check apr envs solvers rl tests benchmarks docs examples
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest tests/unit

test: lint
	$(BIN)/python -m pytest -m "not gpu"

clean:
	rm -rf $(VENV)
