# `make verify` and `make test` do everything, from nothing; a second call starts at once. `make help` lists the rest.
# Variables may be given on the command line: make verify VENV= PYTHON=python3.12

# Interpreter to start from; empty: the first of python3, python3.12, python3.13, python3.11 that is 3.11 or newer.
PYTHON ?=
# The virtual environment; empty: install into PYTHON itself and use it (a machine whose Python already has torch for its GPU).
VENV ?= .venv
# Installed where torch is missing. Without an NVIDIA GPU it comes from PyTorch's CPU index, if that answers.
TORCH ?= torch==2.13.0
# Package index for torch, e.g. https://download.pytorch.org/whl/cu128 for an older driver.
TORCH_INDEX ?=
# More extras of pyproject.toml, comma-separated: gpu,accuracy,distributed
EXTRAS ?=
# Handed on: make verify ARGS="gdn_decode --seed 7"; make test ARGS="-k metadata -x"
ARGS ?=
TIER ?= premerge

ifeq ($(VENV),)
PY := $(or $(PYTHON),python3)
BIN = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
STAMPS := .setup
else
PY := $(VENV)/bin/python
BIN := $(VENV)/bin
STAMPS := $(VENV)/.setup
endif

comma := ,
SETUP = PYTHON="$(if $(VENV),$(PYTHON),$(PY))" VENV="$(VENV)" TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)"
# One stamp a set of extras, so that asking for another set installs it.
BASE := $(STAMPS)/base$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))
DEV := $(BASE)+dev

.DEFAULT_GOAL := help
# Two targets at once would set up the same environment twice.
.NOTPARALLEL:
.PHONY: help setup verify accuracy serve faults compile test lint format bench clean

help:  ## this list
	@echo "Sluicegate. Targets:"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables (now):"
	@echo "  PYTHON=$(PYTHON)        interpreter to start from, 3.11 or newer"
	@echo "  VENV=$(VENV)     virtual environment; VENV= uses PYTHON itself, with the torch that it has"
	@echo "  TORCH=$(TORCH), TORCH_INDEX=$(TORCH_INDEX)   what is installed where torch is missing, and from which index"
	@echo "  EXTRAS=$(EXTRAS)        also install these: gpu,accuracy,distributed"
	@echo "  TIER=$(TIER), ARGS=$(ARGS)   handed to verify; ARGS also to serve, faults, compile, test and bench"
	@echo "A CUDA machine without a network: ci/gpu.sh, see ci/README.md."

setup: $(DEV)  ## the environment with the development tools, and nothing else

verify: $(BASE)  ## the main job: every registered kernel on what this machine has, and without ARGS the miniature (report: out/latest/report.html)
	$(PY) -m harness.cli verify --tier $(TIER) $(ARGS)
	$(if $(ARGS),,$(PY) -m accuracy.miniature.verify)

accuracy: $(BASE)  ## does the full model still answer: ARGS="--model DIR --against references" (report: out/accuracy)
	$(PY) -m harness.cli accuracy $(ARGS)

serve: $(BASE)  ## requests through the engine, every step and answer compared (report: out/serve)
	$(PY) -m harness.cli serve $(ARGS)

faults: $(BASE)  ## plant every known fault and see that it is found (report: out/faults/matrix.html)
	$(PY) -m harness.cli faults $(ARGS)

compile: $(BASE)  ## every kernel for every architecture, without a GPU: registers, spills, shared memory
	$(PY) -m harness.cli compile --baseline ci/compile_baseline.json $(ARGS)

test: $(DEV)  ## the tests of Sluicegate itself; a skip that tests/skips.txt does not allow is an error
	@mkdir -p out
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n auto --junitxml=out/tests.xml $(ARGS)
	@$(PY) ci/require_tests.py out/tests.xml --allow tests/skips.txt

lint: $(DEV)  ## format, lint, types, layers, workflows; changes nothing
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/zizmor --offline .github/workflows

format: $(DEV)  ## let ruff format and fix what it safely can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

bench: $(BASE)  ## what it costs: every operator beside its baseline and its peers
	$(PY) -m benchmarks $(ARGS)

clean:  ## remove reports and caches; the virtual environment stays
	rm -rf out .setup .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The stamps. The development set holds the base set, so `make verify` after `make test` has nothing to install.
$(BASE): pyproject.toml ci/setup.sh
	@$(SETUP) EXTRAS="$(EXTRAS)" ci/setup.sh
	@mkdir -p $(@D) && touch $@

$(DEV): pyproject.toml ci/setup.sh
	@$(SETUP) EXTRAS="dev$(if $(EXTRAS),$(comma)$(EXTRAS))" ci/setup.sh
	@mkdir -p $(@D) && touch $(BASE) $@
