# Commands of the project. `make quickstart` and `make test` need only a clean clone, Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
AUDIT := .audit
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MLFLOW_DISABLE_TELEMETRY = true
# Tests start hundreds of processes, which would otherwise compile our modules again and again.
unexport PYTHONDONTWRITEBYTECODE

# Tests often wait for servers and for processes that they start, hence one process more than there are cores.
PROCESSES := $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	[ $$cores -lt 8 ] && echo $$((cores + 1)) || echo 8)
PYTEST := $(BIN)/pytest -n $(PROCESSES) --dist loadscope

.PHONY: help install quickstart test test-all test-numeric check audit format bench gpu gpu-wheels ui clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(STAMP)  ## set up .venv with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is needed; name another with: make PYTHON=python3 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install  ## find a model for scikit-learn's digits (studies/quickstart.yaml)
	$(BIN)/vitsearch run studies/quickstart.yaml

test: install  ## run all tests except the slow ones
	$(PYTEST) -m 'not slow'

test-all: install  ## run all tests
	$(PYTEST)

# These settings change the order of sums in torch's kernels, in oneDNN and in MKL, and thereby results on some CPUs.
WITHOUT_VECTORS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
WITH_AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2
# The modules are named because importing all the others takes longer than these tests.
NUMERIC := $(PYTEST) -m 'numeric and not slow' $$(grep -rl 'tests[.]rounding' tests --include='test_*.py')

test-numeric: install  ## repeat the numeric tests as on other CPUs: fewer instructions, two threads
	$(WITHOUT_VECTORS) $(NUMERIC)
	$(WITH_AVX2) VITSEARCH_TEST_THREADS=2 OMP_WAIT_POLICY=passive $(NUMERIC)

check: install  ## check lint, format, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# In an environment of its own, because it needs other versions than vitsearch. `--strict` fails if a package is unknown.
audit: $(AUDIT)/bin/pip-audit  ## look up known vulnerabilities of the pinned packages at PyPI
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

$(AUDIT)/bin/pip-audit:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit

format: install  ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two more need PostgreSQL and tens of minutes: benchmarks.scale and benchmarks.service_load.
BENCHMARKS := $(filter-out benchmarks/scale.py benchmarks/service_load.py,$(wildcard benchmarks/[a-z]*.py))

bench: install  ## run the benchmarks, except scale and service_load
	for file in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

# `make gpu` runs on another machine, with its own Python, which has PyTorch.
GPU_PYTHON ?= python3
GPU_RESULTS ?= .gpu-results

gpu:  ## measure on a GPU, in 8 minutes and without a network; give CIFAR-10 with DATA=FOLDER
	$(GPU_PYTHON) -m benchmarks.gpu run $(GPU_RESULTS) \
		$(if $(wildcard .gpu-wheels/*.whl),--wheels .gpu-wheels) $(if $(DATA),--data $(DATA))

gpu-wheels: install  ## download what a machine with PyTorch lacks for `make gpu`, into .gpu-wheels
	$(BIN)/python -m benchmarks.gpu.wheels .gpu-wheels $(if $(HAS),--has $(HAS))

ui: install  ## start MLflow on the local studies
	$(BIN)/vitsearch ui

clean:  ## remove .venv, build outputs and caches; keep studies
	rm -rf $(VENV) $(AUDIT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
