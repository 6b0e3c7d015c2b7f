# Everything a developer types. `make run` and `make test` do all their own set-up.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
export PATH := $(CURDIR)/.tools/bin:$(CURDIR)/$(BIN):$(PATH)
# The sandbox in which a test listens may have no other address.
export NO_PROXY := 127.0.0.1,localhost

.PHONY: help setup run test lint format bench chaos ha-demo ha-drill fuzz proto lock clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.complete ## Make the virtual environment (the others do it themselves)

$(VENV)/.complete: requirements.lock pyproject.toml scripts/make_venv.sh
	@PYTHON="$(PYTHON)" UV_VERSION=$(UV_VERSION) scripts/make_venv.sh $(VENV)
	@touch $@

run: setup ## Start broker and worker, run one sample task, say what to try next
	@exec $(BIN)/tq dev

test: setup .tools/.complete examples/javascript/node_modules/.complete ## Run every test
	$(BIN)/python -m pytest -n 3

.tools/.complete: scripts/debian_tools.sh
	@scripts/debian_tools.sh .tools
	@touch $@

examples/javascript/node_modules/.complete: examples/javascript/package-lock.json | setup
	@cd examples/javascript && $(CURDIR)/$(BIN)/npm ci --no-audit --no-fund --loglevel=error
	@touch $@

lint: setup ## Format check, rules, layers, types, lock
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python scripts/check_lock.py
	scripts/generate_proto.sh --check

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Measure rates and latencies on this machine (BENCH_ARGS="--only drain")
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

chaos: setup ## Kill broker and workers at random and check that nothing is lost (CHAOS_ARGS="--kills 100")
	$(BIN)/python -m tests.chaos.run $(CHAOS_ARGS)

ha-demo: setup .tools/.complete ## Run three PostgreSQL nodes, three brokers and workers (HA_ARGS="--seconds 60")
	@exec $(BIN)/python -m examples.ha $(HA_ARGS)

ha-drill: setup .tools/.complete ## Kill them one after the other and check that nothing is lost (HA_ARGS="--rounds 1")
	$(BIN)/python -m tests.ha.drill $(HA_ARGS)

fuzz: setup ## Send anything to every port, for some minutes
	$(BIN)/python -m tests.fuzz.resp --inputs 1000000
	$(BIN)/python -m tests.fuzz.rest --cases 5000
	$(BIN)/python -m tests.fuzz.grpc --calls 50000

proto: setup ## Generate the gRPC code anew from proto/
	scripts/generate_proto.sh

lock: setup ## Resolve the dependencies anew
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --python-version 3.11 \
	  --all-extras --group dev --upgrade -q -o requirements.lock pyproject.toml

clean: ## Remove everything that was made
	rm -rf $(VENV) .tools examples/javascript/node_modules benchmarks/results build dist \
	  .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis taskqueue-data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
