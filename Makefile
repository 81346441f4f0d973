# VENV is relative to this folder, so that the path of the checkout may contain spaces.
VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
GPU_PYTHON ?= python3
GPU_OUT ?= build/gpu
GPU_ARGS ?=

# What this checkout is built for where nvcc is found: this machine's GPU, or one kind, to see that it compiles.
# A wheel takes the list in CMakeLists.txt.
export CUDAARCHS ?= $(if $(shell nvidia-smi -L 2>/dev/null),native,90-real)

PY := $(VENV)/bin/python
DOCS := $(VENV)-docs
PIP := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
SOURCES := pyproject.toml CMakeLists.txt constraints.txt $(wildcard csrc/* kernels/cuda/*.cu kernels/cuda/*.cuh)

.DEFAULT_GOAL := help
.PHONY: help demo bench test test-all lint format docs clean gpu gpu-wheel
.DELETE_ON_ERROR:

help:
	@echo "make demo    train a network with ConFIG and draw the result (DEMO_ARGS='--steps 500')"
	@echo "make bench   time everything beside a memory floor and the peers (BENCH_ARGS='--quick --plot bench.png')"
	@echo "make test    lint, then the tests (PYTEST_ARGS='-k gram -x', JOBS=2)"
	@echo "make test-all  the tests that make test leaves out, and the compiled code under sanitizers"
	@echo "make docs    build the documentation as a site in build/docs; fails for a broken link"
	@echo "make gpu     build, test and measure on a CUDA GPU in nine minutes, without network (GPU_OUT=folder,"
	@echo "             GPU_ARGS=--dry-run for all that needs no GPU)"
	@echo "make gpu-wheel  build the wheel that make gpu installs and fetch the peers, where there is a network, into"
	@echo "             wheels/ (GPU_PYTHON=python3.12)"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff format and fix"
	@echo "make clean   remove the virtual environment and everything built"
	@echo "PYTHON=$(PYTHON) (3.10 or newer) makes the virtual environment VENV=$(VENV)."

demo: $(READY)
	@"$(PY)" -m fastconfig demo $(DEMO_ARGS)

bench: $(VENV)/.bench-ready
	@"$(PY)" -m fastconfig bench $(BENCH_ARGS)

test: lint
	@"$(PY)" -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

test-all: $(READY)
	@"$(PY)" -m pytest -n $(JOBS) --dist worksteal -m slow $(PYTEST_ARGS)

lint: $(READY)
	@"$(VENV)/bin/ruff" check .
	@"$(VENV)/bin/ruff" format --check .
	@"$(PY)" -m mypy

format: $(READY)
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

docs: $(DOCS)/.ready
	@NO_MKDOCS_2_WARNING=1 "$(DOCS)/bin/python" -m mkdocs build --quiet
	@echo "Open build/docs/index.html."

gpu:
	@"$(GPU_PYTHON)" benchmarks/gpu --out "$(GPU_OUT)" $(GPU_ARGS)

gpu-wheel: GPU_PYTHON = python3.12
gpu-wheel:
	@"$(GPU_PYTHON)" -c "" || { echo "make gpu-wheel: $(GPU_PYTHON) does not run; GPU_PYTHON=... names a Python 3.12" >&2; exit 1; }
	@"$(GPU_PYTHON)" benchmarks/gpu/wheel.py

clean:
	@rm -rf "$(VENV)" "$(DOCS)" wheels build dist .mypy_cache .pytest_cache .ruff_cache
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

# The site is made from the sources alone, so its tools have an environment without torch and a compiler.
$(DOCS)/.ready: pyproject.toml
	@"$(PYTHON)" -m venv "$(DOCS)"
	@"$(DOCS)/bin/python" -c 'from pip._vendor import tomli; \
		print(*tomli.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> "$(DOCS)/docs.txt"
	@"$(DOCS)/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt -r "$(DOCS)/docs.txt"
	@touch "$@"

$(VENV)/.bench-ready: $(READY)
	@$(PIP) -e ".[bench]"
	@touch "$@"
