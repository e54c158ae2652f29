# Everything is installed into .venv, and the tests run against the package there, not against the source tree.
PYTHON ?= python3
# The torch that .venv gets, when it is made: any release from 2.11 on.
TORCH ?= torch==2.13.0
# What `make test-wheel` tries a wheel with.
PYTHONS ?= $(PYTHON)
TORCHES ?= torch==2.11.0,torch

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# Of torch, which a wheel finds where it is installed.
EXCLUDED := --exclude libc10.so --exclude libtorch_cpu.so --exclude libtorch.so
SOURCES := pyproject.toml setup.py $(shell find build_tools ausam_ext csrc ! -path '*/__pycache__*' ! -name '*.so')
CXX_FILES := $(shell find csrc -type f)

.PHONY: docs wheel test-wheel sdist wheels release demo test test-install test-cuda-build test-sanitized gpu gpu-accuracy test-frameworks bench bench-gate evidence papers lint format clean
.NOTPARALLEL:

demo: .venv/with-demo .venv/installed
	$(BIN)/python -m benchmarks.demo

test: .venv/with-test .venv/installed
	$(BIN)/pytest

# Builds and installs the package in environments of its own, with two other releases of torch: takes 8 GB of disk.
test-install: .venv/with-test .venv/installed
	$(BIN)/pytest -m install -rP

# Compiles the CUDA kernels for every architecture that nvcc knows; needs nvcc, and no GPU. Registers and occupancy
# have to be those of tests/cuda_build/kernel_resources.txt, which `python tests/cuda_build/kernel_resources.py`
# writes anew.
test-cuda-build: .venv/with-test .venv/installed
	$(BIN)/pytest -m cuda_build -rP tests/cuda_build

# The operators' tests on the CPU kernels and on emulated CUDA kernels, with AddressSanitizer and
# UndefinedBehaviorSanitizer.
test-sanitized: .venv/with-test .venv/installed
	$(BIN)/pytest -m sanitize -rP

# Builds in place, tests and times the CUDA kernels on this machine's GPU, with the Python that is there and no
# network: under 9 minutes, or half of it at a time (python -m benchmarks.gpu --help). Needs pytest, hypothesis,
# numpy, matplotlib, Pillow, setuptools and ninja.
gpu:
	$(PYTHON) -m benchmarks.gpu

# All methods on Fashion-MNIST on this machine's GPU: DATA is the folder that has it in a folder Fashion-MNIST.
gpu-accuracy:
	$(PYTHON) -m benchmarks.gpu.accuracy --data "$(DATA)" --minutes $(or $(MINUTES),9)

# The bridges to frameworks, and examples/, with the released packages, in an environment of their own.
test-frameworks: .venv-frameworks/ready
	.venv-frameworks/bin/pytest tests/integrations/frameworks tests/examples

# Every figure of benchmarks/results, and what is drawn from them: docs/benchmarks.md and bench-results/.
bench: .venv/with-test .venv/installed
	$(BIN)/python -m benchmarks.operators
	$(BIN)/pytest --benchmark-only -q --benchmark-columns=median,iqr,rounds benchmarks/operators/test_table.py
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.steps.scaling
	$(BIN)/python -m benchmarks.steps.memory
	-$(BIN)/python -m benchmarks.steps.peers  # installs them from PyPI, into build/peers
	$(BIN)/python -m benchmarks.report

# What docs/choosing.md and docs/measurements.md say: goes on if it was stopped, and takes an hour of one core from nothing.
evidence: .venv/with-test .venv/installed
	$(BIN)/python -m benchmarks.evidence.start_rate
	$(BIN)/python -m benchmarks.evidence.ramp
	$(BIN)/python -m benchmarks.evidence.bounded
	$(BIN)/python -m benchmarks.evidence.gradient_error
	$(BIN)/python -m benchmarks.evidence.accuracy
	$(BIN)/python -m benchmarks.evidence.rho
	$(BIN)/python -m benchmarks.evidence.choosing

# Every table of both papers from small made files: half an hour of one core, and nothing about accuracy.
papers: .venv/with-test .venv/installed
	for table in ausam-1 ausam-2 ausam-3 ausam-4 ausam-5 ausam-6 vsam-1 vsam-2 vsam-3 vsam-4 vsam-5; do \
	  $(BIN)/python -m benchmarks.papers run $$table --made --seeds 1 --data build/made --out build/papers || exit 1; \
	done

# The documentation site, in build/docs; a warning is an error.
docs: .venv/with-docs .venv/installed
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

# A wheel for every Python in dist/, which needs torch and brings nothing of it.
wheel: .venv/with-wheel .venv/installed
	rm -rf build/wheel dist/*.whl && $(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair $(EXCLUDED) -w dist build/wheel/*.whl
	$(BIN)/twine check --strict dist/*.whl

# The wheel in a fresh environment for each Python and torch, one at a time: 5 GB and a minute each.
test-wheel: wheel
	$(BIN)/python tests/packaging/try_wheel.py dist/*.whl $(PYTHONS) $(TORCHES)

sdist: .venv/with-wheel
	$(BIN)/python -m build --sdist
	$(BIN)/twine check --strict dist/*.tar.gz

# The wheel of this platform, in wheelhouse/, tried with every Python: on Linux in containers.
wheels: .venv/with-wheel
	$(BIN)/cibuildwheel --output-dir wheelhouse

# On GitHub, with what is in dist/: make release TAG=v0.1.0
release:
	gh release create "$(TAG)" dist/* --notes "See CHANGELOG.md."

# Whether a compiled kernel lost a quarter of its lead over the reference: half a minute.
bench-gate: .venv/with-test .venv/installed
	$(BIN)/python -m benchmarks.operators.gate

lint: .venv/with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy

format: .venv/with-lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf .venv .venv-frameworks build dist *.egg-info

# With the build's own tools (pyproject.toml's build-system.requires), so that a rebuild compiles only what changed.
.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install '$(TORCH)' setuptools ninja
	touch $@

# What one of pyproject.toml's optional-dependencies names.
.venv/with-%: pyproject.toml | .venv/torch
	$(BIN)/pip install -q --no-build-isolation '.[$*]'
	touch $@

.venv/installed: $(SOURCES) | .venv/torch
	$(BIN)/pip install -q --no-build-isolation --no-deps .
	touch $@

.venv-frameworks/ready: $(SOURCES)
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/pip install -q '$(TORCH)' setuptools ninja
	.venv-frameworks/bin/pip install -q --no-build-isolation '.[frameworks]'
	touch $@
