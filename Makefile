# Two targets are all that a user needs: `make run` and `make test`. A system Python 3.11 to 3.13 with venv is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A strict editable install links every file: it has to be made again when one appears.
SOURCES := $(shell find envs policies runtime training -name '*.py' -o -name '*.toml' -o -name '*.c' -o -name '*.npz' | LC_ALL=C sort)

.PHONY: run test lint unit soak test-lab soak-lab clean FORCE

run: $(VENV)/.lean
	$(BIN)/foreshare run --policy champion --report out/report.html

test: lint unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A test that hangs where no signal reaches it (inside a library) ends the run, and says where.
unit: $(VENV)/.dev
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -m "not lab and not soak" --cov --cov-report=term:skip-covered \
	  -o faulthandler_timeout=1300 -o faulthandler_exit_on_timeout=true

# Inside small guests with a kernel of their own, one for each file (monitoring ids run out); see tests/lab/README.md.
# 125: the guest itself ended early, as one without KVM may on a busy machine. That says nothing about us: again.
test-lab: LAB = $(filter-out %_soak.py,$(wildcard tests/lab/test_*.py))
soak-lab: LAB = $(wildcard tests/lab/test_*_soak.py)
soak-lab: export FORESHARE_LAB_TICKS ?= 2000
test-lab soak-lab: $(VENV)/.dev
	$(BIN)/python -m compileall -q $$($(BIN)/python -c 'import foreshare; print(*foreshare.__path__)') # a guest is slow at it
	for file in $(LAB); do for vendor in intel amd; do \
	  for attempt in 1 2 3; do \
	    echo "$$vendor $$file"; \
	    tests/lab/run --vendor $$vendor --seconds 900 -- $(BIN)/python -m pytest -p no:cacheprovider --no-header -q --durations 3 $$file; \
	    status=$$?; [ $$status = 125 ] || break; \
	  done; [ $$status = 0 ] || exit 1; \
	done; done

soak: $(VENV)/.dev
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest -m soak --timeout 3600

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A development install has all that a run needs, and links to the tree; without one, install the tree as it is now.
$(VENV)/.lean: pyproject.toml constraints.txt $(shell find envs policies runtime training -type f -not -path '*/__pycache__/*') \
    | $(VENV)/bin/python
	mkdir -p out
	test -f $(VENV)/.dev || $(PIP) '.[report]'
	touch $@

# Changes when a file comes or goes, not when one is edited.
$(VENV)/.files: FORCE | $(VENV)/bin/python
	@echo '$(SOURCES)' | cmp -s - $@ || echo '$(SOURCES)' > $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.files $(wildcard */compiled/* */*/compiled/*) | $(VENV)/bin/python
	$(PIP) 'setuptools>=77'
	$(PIP) --no-build-isolation --config-settings editable_mode=strict --editable '.[report,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist out $(wildcard */*.so */*/*.so) .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
