# Two commands do everything on a fresh machine with Python 3.11 or newer: `make run` and `make test`.
# `make help` lists the rest. Tools live in $(VENV); nothing outside this folder is touched.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PROTOS := $(wildcard protos/catraca/v1/*.proto)
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

COVERAGE = COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
COVERED := tests/unit tests/client $(filter-out %/test_state_machine.py,$(wildcard tests/contract/test_*.py))
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help run demo test test-long coverage check audit sbom fmt proto bench lock clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Start the service on 127.0.0.1:50051 with its embedded store (ARGS="--port 50052")
	@exec $(BIN)/catraca serve $(ARGS)

demo: $(VENV)/.run ## Play a session's life against a service of its own
	@exec $(BIN)/catraca demo $(ARGS)

test: $(VENV)/.tools ## Run every test (ARGS="-k lifetime" narrows it; REST=1: those that coverage does not run)
	$(PYTEST) $(if $(REST),$(addprefix --ignore=,$(COVERED))) $(ARGS)

test-long: $(VENV)/.tools ## Run every test with the long runs of seeds and storms
	CATRACA_TEST_LONG=1 $(BIN)/pytest $(ARGS)

# Of the tests that run the code in their own process. On Python 3.11 coverage doubles their CPU time, so `make test` is
# without it; from 3.12 on there is a cheaper way.
coverage: $(VENV)/.tools ## Run the unit, contract and client tests, and show how much of the code they cover
	$(COVERAGE) $(PYTEST) $(COVERED) --cov --cov-report=term $(ARGS)

check: $(VENV)/.dev $(VENV)/.proto ## Format, lint, types, import contracts, API lint and breakage, freshness of the stubs, licences, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf lint
	tools/api_breaking.sh $(BIN)/buf
	tools/stubs.sh $(VENV)/proto --check
	$(BIN)/python tools/supply.py licences
	$(BIN)/python tools/supply.py audit

audit: $(VENV)/.dev ## Look for known vulnerabilities in what is locked; here, to be unable to ask is a failure
	$(BIN)/python tools/supply.py audit --required

sbom: $(VENV)/.dev ## Write the bill of materials to build/sbom.json (CycloneDX)
	$(BIN)/python tools/supply.py sbom build/sbom.json

fmt: $(VENV)/.dev ## Format the code and the protos
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

proto: $(VENV)/.proto ## Regenerate client/catraca/v1 from protos/
	tools/stubs.sh $(VENV)/proto

bench: $(VENV)/.bench ## Measure, side by side in one run (ARGS="--quick", "--against COMMIT", validation, life, door, client, peers, engines, overload, scale or revocations)
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/.dev ## Take the newest allowed versions into requirements/*.txt
	$(COMPILE) --upgrade pyproject.toml --extra server requirements/run.in -o requirements/run.txt
	$(COMPILE) --upgrade pyproject.toml --extra server --extra otel requirements/run.in requirements/dev.in -c requirements/run.txt -o requirements/dev.txt
	$(COMPILE) --upgrade requirements/bench.in -c requirements/dev.txt -o requirements/bench.txt
	$(COMPILE) --upgrade requirements/proto.in -o requirements/proto.txt

clean: ## Remove everything made here
	rm -rf .venv build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. A stamp stands for "installed as locked"; a changed lock or pyproject.toml installs again.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "catraca needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r requirements/run.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/.bench: requirements/bench.txt $(VENV)/.dev
	$(PIP) install --quiet --require-hashes -r requirements/bench.txt
	@touch $@

$(VENV)/.proto: requirements/proto.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/proto
	$(VENV)/proto/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/proto.txt
	@touch $@

# Tools some tests want and no Python package brings. Where one cannot be had, the tests that need it say so and skip.
$(VENV)/.tools: tools/optional.sh $(VENV)/.dev
	tools/optional.sh $(BIN)
	@touch $@
