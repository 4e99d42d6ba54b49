# Two targets are all that a user needs: `make run` and `make test`. A system Python 3.11 to 3.13 with venv is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A strict editable install links every file: it has to be made again when a module appears.
SOURCES := $(shell find envs policies runtime -name '*.py' -o -name '*.toml' -o -name '*.c' | LC_ALL=C sort)

.PHONY: run test lint check unit soak test-lab clean

run: $(VENV)/.lean
	$(BIN)/foreshare run --report out/report.html

test: lint unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -m "not lab and not soak" --cov --cov-report=term:skip-covered

# Inside a small guest with a kernel of its own; see tests/lab/README.md.
test-lab: $(VENV)/.dev
	tests/lab/run --vendor intel
	tests/lab/run --vendor amd

soak: $(VENV)/.dev
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -m soak --timeout 3600

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lean: $(VENV)/bin/python pyproject.toml constraints.txt
	mkdir -p out
	test -f $(VENV)/.dev || $(PIP) '.[report]'
	touch $@

$(VENV)/.sources: $(VENV)/bin/python
	@mkdir -p $(VENV)
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

.PHONY: $(VENV)/.sources.check
$(VENV)/.sources.check: $(VENV)/.sources

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt $(SOURCES)
	$(PIP) 'setuptools>=77'
	$(PIP) --no-build-isolation --config-settings editable_mode=strict --editable '.[report,dev]'
	touch $@ $(VENV)/.lean

clean:
	rm -rf $(VENV) build dist out .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
