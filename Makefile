# make demo   run the main job on the embedded synthetic people
# make test   lint, types and the fast tests; make test-slow adds the long ones
# make fuzz   2,000 damaged inputs of each kind (FACECROWD_FUZZ=N for N)
# make faults kills, full disks, damage, locks, a failing store, clock jumps: over 50 of them, counted (docs/faults.md)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-slow faults fuzz lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "facecrowd needs Python 3.11 or newer; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,s3]'
	@touch $@

demo: install
	$(BIN)/facecrowd demo --output demo-output

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

test-slow: lint
	$(BIN)/python -m pytest -m 'slow or not slow'

faults: install
	FACECROWD_FAULTS=build/faults.json $(BIN)/python -m pytest tests/faults -m 'slow or not slow'

fuzz: install
	FACECROWD_FUZZ=$${FACECROWD_FUZZ:-2000} $(BIN)/python -m pytest -m 'slow or not slow' tests/fuzz

clean:
	rm -rf .venv demo-output build *.egg-info
