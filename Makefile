# Two commands matter to a newcomer: `make demo` and `make test`. All are safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the models here are small, and threads that wait for each other waste the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-long lint format docs site clean setup
.DEFAULT_GOAL := help

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/:/'

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else "mmx needs Python 3.11 to 3.13, not %d.%d; make PYTHON=python3.12 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.made  ## Make the virtual environment.

demo: setup  ## Run the quick-start sweep offline and say where to look.
	$(BIN)/mmx run sweeps/quickstart.yaml --offline
	@echo
	@echo "Robustness curves:   $(BIN)/mmx ui"
	@echo "Your own sweep:      $(BIN)/mmx init my-sweep.yaml && $(BIN)/mmx run my-sweep.yaml"

test: setup  ## Run all tests.
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal --quiet

test-long: setup  ## Run all tests, those of crashes and clusters that take long included.
	MMX_LONG_TESTS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal --quiet

lint: setup  ## Check style, types and the floors of the house.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## Write the generated pages of docs/ anew.
	$(BIN)/python docs/generate.py

site: setup  ## Build the site of docs/ into site/; a link that leads nowhere is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file .mkdocs.yml
	@echo "The site: site/index.html"

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) site mlflow.db optuna.db mlartifacts .mmx .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
