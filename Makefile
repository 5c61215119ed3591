# Everything runs in .venv; the first target that needs it makes it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo-run
DEMO_GRAPH ?= demo-graph-run

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo demo-graph test lint types tests test-slow docs bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $@

install: $(VENV)/.installed ## Install ragtrain into .venv, with the tested versions
install-dev: $(VENV)/.installed-dev ## Install the test and lint tools as well

demo: install ## Fetch, index, train, evaluate and compare on the built-in demo set
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh $(DEMO)

demo-graph: install ## The same for a graph model: make the graph, pre-train, fine-tune, evaluate
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo_graph.sh $(DEMO_GRAPH)

test: lint types tests ## Lint, types and tests: what has to pass before anything lands

lint: install-dev ## Style and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_docs.py --check

types: install-dev ## Strict types
	$(BIN)/mypy

tests: install-dev ## The tests, without the slow ones
	$(BIN)/python -m pytest

test-slow: install-dev ## The slow tests
	$(BIN)/python -m pytest -m slow --timeout 1800

docs: install-dev ## Generate docs/cli.md and docs/config.md
	$(BIN)/python scripts/build_docs.py

bench: install-dev ## Run the benchmarks at their small size; docs/benchmarks.md has the large ones
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean: ## Remove what the targets made
	rm -rf $(VENV) $(DEMO) $(DEMO_GRAPH) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
