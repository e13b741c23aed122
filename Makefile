# Each target installs what it needs into .venv first; all it takes is Python and make.
PYTHON ?= python3
BIN := .venv/bin
LIBRARY ?= numpy
ARGUMENTS ?=
BACKEND ?=
WORKERS ?= auto
SECONDS ?= 600
SEED ?= 0
# Tests of one file mostly share a process, and so its compiled kernels.
PARALLEL := -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-cuda predictions gpu gpu-conformance unit conformance conformance-all fuzz mutants \
	bench bench-quick lint clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: .venv/installed ## run a sentence encoder on every installed array library
	$(BIN)/python examples/minilm.py

test: unit conformance-all ## run all tests: the library's own, then the conformance suite

test-cuda: ## test the CUDA kernels on the CPU, without a GPU; needs a C++ compiler
	$(MAKE) --no-print-directory -C tests/cuda_on_cpu

predictions: .venv/installed ## predict the speed of the CUDA kernels, into docs/
	$(MAKE) --no-print-directory -C tests/ptx predictions
	$(BIN)/python tests/ptx/plot.py docs/predicted-speed

gpu: ## on a GPU: check conformance and speed, into docs/gpu-report.md; 2 minutes with ARGUMENTS=--quick
	cd benchmarks && $(PYTHON) -m gpu $(ARGUMENTS)

gpu-conformance: ## on a GPU: run the conformance suite only, in at most 6 minutes
	cd benchmarks && $(PYTHON) -m gpu --conformance-only $(ARGUMENTS)

# Only the coverage of ln_array_api is measured, since it makes kernels compile 1.5 times as long.
unit: .venv/installed ## run the library's own tests and doctests
	$(BIN)/pytest -m timing tests
	$(BIN)/pytest $(PARALLEL) -m "not timing" --doctest-modules tests/backends backends
	$(BIN)/pytest $(PARALLEL) -m "not timing" --doctest-modules --ignore tests/backends \
		tests ln_array_api --cov --cov-fail-under=95

conformance: .venv/installed ## run the conformance suite on LIBRARY=numpy, and on BACKEND= if given
	$(BIN)/pytest $(PARALLEL) --pyargs ln_array_api_conformance --library $(LIBRARY) \
		$(if $(BACKEND),--backend $(BACKEND))

conformance-all: .venv/installed
	for each in numpy: numpy:generic torch: jax: strict: dask:; do \
		$(MAKE) --no-print-directory conformance LIBRARY=$${each%:*} BACKEND=$${each#*:} || exit; done

fuzz: .venv/installed ## run random calls on LIBRARY=numpy for SECONDS=600, starting with SEED=0
	$(BIN)/pytest -q --pyargs ln_array_api_conformance --library $(LIBRARY) -k test_random_calls \
		$(if $(BACKEND),--backend $(BACKEND)) --fuzz $(SECONDS) --fuzz-seed $(SEED) -s

mutants: .venv/installed ## plant one fault at a time, and check that a test catches it
	$(BIN)/python tests/mutants/run.py $(ARGUMENTS)

bench: .venv/installed ## compare the speed with torch, onnxruntime, JAX and NumPy, into docs/
	$(BIN)/python benchmarks/compare.py --threads 2 --output docs/benchmarks
	$(BIN)/python benchmarks/compare.py --threads 1 --output docs/benchmarks-1-thread
	$(BIN)/python benchmarks/bandwidth.py --threads 2 --output docs/bandwidth
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-columns=min,median,iqr

bench-quick: .venv/installed ## check that every benchmark runs; the figures mean nothing
	$(BIN)/asv machine --yes > /dev/null
	$(BIN)/asv run --python=same --quick --show-stderr --dry-run \
		--bench "Overhead|Dtypes|Memory|Axes|Out|Busy|Pauses|FirstCall|Family|Torch|JAX"
	$(BIN)/python benchmarks/compare.py --threads 2 --rounds 1 --shapes 8x64
	$(BIN)/python benchmarks/bandwidth.py --rounds 1 --shapes 8x64 16x64x56x56
	$(BIN)/pytest benchmarks --benchmark-disable -q

lint: .venv/installed ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## remove .venv and the files of the tools and of Numba
	find ln_array_api backends -name '*.nb[ic]' -delete
	rm -rf .venv .cuda_on_cpu .benchmarks .asv .coverage* .hypothesis .*_cache build dist

.venv/installed: requirements.txt pyproject.toml
	@echo "Installing the exact versions of requirements.txt into .venv: a minute or two, 2 GB."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps \
		$$(sed -n 's/^# no-deps: //p' requirements.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
