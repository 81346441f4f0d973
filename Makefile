# VENV is relative to this folder, so that the path of the checkout may contain spaces.
VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
GPU_PYTHON ?= python3
GPU_JSON ?= benchmarks/results/gpu.json
GPU_ARGS ?=

# What this checkout is built for where nvcc is found: this machine's GPU, or one kind, to see that it compiles.
# A wheel takes the list in CMakeLists.txt.
export CUDAARCHS ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,90-real)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/* kernels/*.cu kernels/*.cuh)

.DEFAULT_GOAL := help
.PHONY: help demo bench test lint format clean gpu gpu-wheels
.DELETE_ON_ERROR:

help:
	@echo "make demo    train a network with ConFIG and draw the result (DEMO_ARGS='--steps 500')"
	@echo "make bench   time everything beside a memory floor and the peers (BENCH_ARGS='--quick --plot bench.png')"
	@echo "make test    lint, then the tests (PYTEST_ARGS='-k gram -x', JOBS=2)"
	@echo "make gpu     build, test and measure on a CUDA GPU, without network (GPU_JSON=gpu.json, GPU_ARGS='--quick')"
	@echo "make gpu-wheels  fetch what make gpu needs beside torch and triton into wheels/, where there is a network"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff format and fix"
	@echo "make clean   remove the virtual environment and everything built"
	@echo "PYTHON=$(PYTHON) (3.10 or newer) makes the virtual environment VENV=$(VENV)."

demo: $(READY)
	@"$(PY)" -m fastconfig demo $(DEMO_ARGS)

bench: $(VENV)/.bench-ready
	@"$(PY)" -m fastconfig bench $(BENCH_ARGS)

test: lint
	@"$(PY)" -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(READY)
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(PY)" -m mypy

format: $(READY)
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

gpu:
	@"$(GPU_PYTHON)" benchmarks/gpu.py --json "$(GPU_JSON)" $(GPU_ARGS)

gpu-wheels: $(READY)
	@"$(PY)" -m pip download -qq --disable-pip-version-check --no-deps -d wheels pytest pluggy iniconfig packaging \
		pytest-xdist execnet pygments rich markdown-it-py mdurl conflictfree torchjd

clean:
	@rm -rf "$(VENV)" .venv-gpu wheels build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; \
		v >= (3, 10) or sys.exit("fastconfig needs Python 3.10 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.x" % v[:2])'
	@"$(PYTHON)" -m venv "$(VENV)"

# torch comes first and alone, so that nothing else decides which build of it is installed.
$(READY): $(SOURCES) | $(PY)
	@echo "Setting up $(VENV); the first time takes a few minutes."
	@$(PIP) torch
	@$(PIP) -e ".[test,demo]"
	@touch "$@"

$(VENV)/.bench-ready: $(READY)
	@$(PIP) -e ".[bench]"
	@touch "$@"
