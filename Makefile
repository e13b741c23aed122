# Each target installs what it needs into .venv first; all it takes is Python and make.
PYTHON ?= python3
BIN := .venv/bin
LIBRARY ?= numpy
ARGUMENTS ?=
BACKEND ?=
WORKERS ?= auto
SECONDS ?= 600
SEED ?= 0
# Neighbours share a process, and so what it has compiled.
PARALLEL := -n $(WORKERS) --dist worksteal

.PHONY: help demo test test-cuda predictions gpu gpu-conformance unit conformance conformance-all fuzz mutants \
	bench bench-quick lint clean
.DEFAULT_GOAL := help

help: ## tell what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: .venv/installed ## run a real sentence encoder on every installed array library
	$(BIN)/python examples/minilm.py

test: unit conformance-all ## run every test: the library's own, then the conformance suite

test-cuda: ## test the CUDA kernels on the CPU, without a GPU; needs a C++ compiler
	$(MAKE) --no-print-directory -C tests/cuda_on_cpu

predictions: .venv/installed ## predict the speed of the CUDA kernels anew, into docs/
	$(MAKE) --no-print-directory -C tests/ptx predictions
	$(BIN)/python tests/ptx/plot.py docs/predicted-speed

gpu: ## on a GPU: conformance and speed, into docs/gpu-report.md; ARGUMENTS=--quick in two minutes
	cd benchmarks && $(PYTHON) -m gpu $(ARGUMENTS)

gpu-conformance: ## on a GPU: the conformance suite only, in at most six minutes
	cd benchmarks && $(PYTHON) -m gpu --conformance-only $(ARGUMENTS)

# Coverage is measured of ln_array_api alone; with it, kernels take half as long again to compile.
unit: .venv/installed ## run the library's own tests and its doctests
	$(BIN)/pytest -m timing tests
	$(BIN)/pytest $(PARALLEL) -m "not timing" --doctest-modules tests/backends backends
	$(BIN)/pytest $(PARALLEL) -m "not timing" --doctest-modules --ignore tests/backends \
		tests ln_array_api --cov --cov-fail-under=95

conformance: .venv/installed ## hold LIBRARY=numpy and BACKEND= (whatever it chooses) to the contract
	$(BIN)/pytest $(PARALLEL) --pyargs ln_array_api_conformance --library $(LIBRARY) \
		$(if $(BACKEND),--backend $(BACKEND))

conformance-all: .venv/installed
	for each in numpy: numpy:generic torch: jax: strict: dask:; do \
		$(MAKE) --no-print-directory conformance LIBRARY=$${each%:*} BACKEND=$${each#*:} || exit; done

fuzz: .venv/installed ## try random calls of LIBRARY=numpy for SECONDS=600, from SEED=0 on
	$(BIN)/pytest -q --pyargs ln_array_api_conformance --library $(LIBRARY) -k test_random_calls \
		$(if $(BACKEND),--backend $(BACKEND)) --fuzz $(SECONDS) --fuzz-seed $(SEED) -s

mutants: .venv/installed ## plant one fault after the other, and see which test catches it
	$(BIN)/python tests/mutants/run.py $(ARGUMENTS)

bench: .venv/installed ## time NumPy arrays next to torch, onnxruntime, JAX and NumPy, into docs/
	$(BIN)/python benchmarks/compare.py --threads 2 --output docs/benchmarks
	$(BIN)/python benchmarks/compare.py --threads 1 --output docs/benchmarks-1-thread
	$(BIN)/python benchmarks/bandwidth.py --threads 2 --output docs/bandwidth
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-autosave --benchmark-columns=min,median,iqr

bench-quick: .venv/installed ## see that every benchmark runs, without believing its figures
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

clean: ## remove .venv and whatever the tools and Numba have left
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
