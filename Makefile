PYTHON ?= python3
VENV ?= .venv
# What `make test` runs.
TESTS ?= tests
# Passed on: to `pagedbench check` by run and `compile` by compile, to pytest by test and bench, to their scripts by engines,
# peers and gate-power, to mypy by types.
ARGS ?=
# Engines that need an environment of their own.
ENGINES ?= vllm sglang transformers
# What `make test-triton` runs, and with which release: whatever imports Triton.
TRITON ?= 3.6.0
TRITON_TESTS ?= tests/unit/kernels/interpreter tests/unit/kernels/compiled tests/property/test_kernels.py tests/property/test_cache_ops.py \
	tests/property/test_memory_checker.py tests/meta/test_kernel_bugs.py tests/meta/test_detectors.py
# Passed on to pip, for example an extra index that holds CPU builds of torch.
PIP_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Triton before 3.10 fuses multiply-add unless told not to, and warns when told nothing. Say it once, for every target.
export TRITON_DEFAULT_FP_FUSION := 1

# One stamp per step: the interpreter and torch are installed anew only when the pinned runtime changes.
RUNTIME := $(VENV)/.stamp-runtime
PROJECT := $(VENV)/.stamp-project
DEV := $(VENV)/.stamp-dev

.DEFAULT_GOAL := help
.PHONY: help venv run test test-long test-triton test-triton36 bench asv gate-power compile engines peers releases incidents gpu lint format types changelog clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nVariables: PYTHON=%s  VENV=%s  TESTS=%s  ARGS="..."  PIP_ARGS="..."\n' \
		'$(PYTHON)' '$(VENV)' '$(TESTS)'

venv: $(PROJECT) $(DEV) ## build the virtual environment from the pinned requirements

run: $(PROJECT) ## cross-check, time and account: pagedbench check
	$(BIN)/pagedbench check $(ARGS)

# The interpreter's work is single-threaded numpy on small tiles: more threads only get into each other's way.
test: $(PROJECT) $(DEV) ## every test but the micro-benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal \
		--ignore tests/benchmarks $(TESTS) $(ARGS)

test-long: override ARGS += --hypothesis-profile=long
test-long: test ## the same with twenty times the examples, for a night

# An earlier Triton goes in front of the environment's own, in a folder of its own: nothing is installed over.
OTHER_TRITON := .triton/$(TRITON)
test-triton: $(PROJECT) $(DEV) $(OTHER_TRITON)/.stamp ## the tests of kernels, interpreter and compiled figures, with TRITON=3.6.0
	PYTHONPATH=$(abspath $(OTHER_TRITON)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal \
		$(TRITON_TESTS) $(ARGS)

test-triton36: ## the same with Triton 3.6.0, the earliest that is supported
	$(MAKE) test-triton TRITON=3.6.0

# One thread, and the median: means and maxima tell of the machine's other work. One table for each group of like with like.
bench: $(PROJECT) $(DEV) ## micro-benchmarks (pytest-benchmark)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --benchmark-enable --benchmark-only \
		--benchmark-columns=min,median,iqr,rounds tests/benchmarks $(ARGS)

asv: $(PROJECT) $(DEV) ## run asv's suite on the current commit and publish the history
	$(BIN)/python scripts/run_asv.py

# Hours for the whole series: end it at any time, and it goes on where it was.
gate-power: $(PROJECT) $(DEV) ## false alarms and power of the gate, beside asv and pytest-benchmark
	$(BIN)/python studies/gate_power.py $(ARGS)

compile: $(PROJECT) ## compile every kernel for every target, and compare with the stored figures
	$(BIN)/pagedbench compile $(ARGS)

engines: $(PROJECT) ## build the engines' environments, fuzz their allocators, race them against ours
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python scripts/build_engine.py $(ENGINES)
	$(BIN)/python scripts/run_engines.py $(ARGS)

peers: $(PROJECT) ## build what they need, check other people's kernels
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python scripts/build_engine.py vllm
	$(BIN)/python scripts/run_peers.py $(ARGS)

# An hour or two: end it at any time, and it goes on where it was.
releases: $(PROJECT) ## measure released engines' allocators, and write docs/releases.md
	$(BIN)/python scripts/run_releases.py $(ARGS)

# Two seconds of processor time each, 405 in all: end it at any time, and it goes on where it was.
incidents: $(PROJECT) ## record vLLM with known faults, on a virtual clock, into .incidents
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python scripts/build_engine.py vllm
	$(BIN)/python scripts/make_incidents.py $(ARGS)

# On the torch that PYTHON has: a GPU machine's own is the one that works there.
gpu: ## everything that needs a GPU, in steps of minutes; writes docs/performance.md
	$(PYTHON) -m scripts.gpu.run $(ARGS)

# One of the environments: make engine-vllm.
engine-%: $(RUNTIME)
	PIP_ARGS='$(PIP_ARGS)' $(BIN)/python scripts/build_engine.py $*

lint: $(DEV) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## ruff: fix what can be fixed, then format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(PROJECT) $(DEV) ## mypy --strict
	$(BIN)/mypy $(ARGS)

changelog: $(DEV) ## show the next release's section, from changelog.d
	$(BIN)/towncrier build --draft

release: $(DEV) ## cut a release: make release VERSION=0.1.0; then commit and tag it
	@test -n '$(VERSION)' || { echo 'say which: make release VERSION=0.1.0'; exit 2; }
	sed -i 's/^version = ".*"/version = "$(VERSION)"/' pyproject.toml
	$(BIN)/towncrier build --yes --version '$(VERSION)'

clean: ## remove the environments and caches; keeps benchmark results and failing examples
	rm -rf .asv/env .asv/html .triton .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	@if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi

# A missing stamp means that the environment is absent or half-built: start over rather than repair.
$(RUNTIME): requirements/runtime.txt requirements/triton.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "pagedbench needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is" \
			"$$($(PYTHON) -V 2>&1 || true). Name another one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@if [ -e '$(VENV)' ] && [ ! -f '$(VENV)/pyvenv.cfg' ]; then \
		echo "VENV='$(VENV)' exists and is not a virtual environment: remove it or choose another VENV" >&2; \
		exit 2; fi
	@echo "Building $(VENV) from pinned requirements. Once, about 2 GB of disk with a CPU build of torch."
	$(PYTHON) -m venv --clear $(VENV) || { \
		echo "python -m venv failed; on Debian and Ubuntu it is in the package python3-venv" >&2; exit 2; }
	$(PIP) install $(PIP_ARGS) -r requirements/runtime.txt
	$(PIP) install $(PIP_ARGS) --no-deps -r requirements/triton.txt
	@touch $@

$(OTHER_TRITON)/.stamp: $(RUNTIME)
	rm -rf $(OTHER_TRITON)
	$(PIP) install --quiet $(PIP_ARGS) --no-deps --target $(OTHER_TRITON) triton==$(TRITON)
	@touch $@

$(PROJECT): pyproject.toml $(RUNTIME)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	$(PIP) install $(PIP_ARGS) -r requirements/dev.txt
	@touch $@
