# Everything a developer does. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where the package index carries only the CUDA build of torch, take CPU wheels from PyTorch's own index:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP_TORCH := torch==2.13.0 $(if $(TORCH_INDEX),torchvision==0.28.0 --index-url $(TORCH_INDEX),)
READY := $(VENV)/.ready
# Much of a test's time is waiting, so three processes share them, also on two cores; one of them has all that lease cores
# (tests/conftest.py).
SPREAD := --numprocesses 3 --dist loadgroup

# Also where the environment says no: each of the many processes would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-all test-isa stores tools browser pictures spec-page lint format bench bench-peers chaos clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

venv: $(READY) ## make .venv with everything a developer needs

# torch first and by itself: it is pinned exactly, and nothing installed later may pull another build of it.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(PIP_TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY) ## the whole job on this machine, in about a minute: data, training, INT8, gate, scoring, verify
	$(BIN)/stint demo

test: $(READY) ## the test suite, without the slow campaigns
	$(BIN)/pytest $(SPREAD) -m "not slow"

stores: $(READY) ## fetch the object stores that the slow tests start (Ceph from Debian, azurite from npm) into .stores/
	$(BIN)/python -m tests.objectstore.packages

tools: $(READY) ## fetch what people write and read data with (datasets, Polars, Daft, …) into .stores/, for their tests
	$(BIN)/python -m tests.tools.packages

browser: $(READY) ## install Debian's Chromium, in which the pages are tested, where it is absent
	$(BIN)/python -m tests.support.browser

pictures: browser ## the pictures of the docs, of real runs of the demo's job, in docs/pictures/
	$(BIN)/python -m tests.support.pictures

spec-page: $(READY) ## docs/SPEC.md: every key of the spec, from the models that check it
	$(BIN)/python -m tests.jobs.spec.spec_page

# Clusters, which are measured or killed at the right moment, have the machine to themselves.
test-slow: $(READY) ## the slow campaigns, which `make test` leaves out
	$(BIN)/pytest $(SPREAD) -m "slow and not ray"
	$(BIN)/pytest -m "slow and ray"

test-all: test test-slow ## the test suite with the slow campaigns

# Of another class than a machine with VNNI, see workers/host/cpu.py; without, the lowest with which OpenVINO runs LayerNorm.
ISA ?= $(if $(filter avx512_vnni avx_vnni,$(shell grep -m1 ^flags /proc/cpuinfo)),AVX2,AVX)
test-isa: $(READY) ## the tests of INT8 once more, with oneDNN held to the instructions of another kind of CPU (ISA=AVX2)
	ONEDNN_MAX_CPU_ISA=$(ISA) $(BIN)/pytest $(SPREAD) -m "int8 and not slow"

lint: $(READY) ## ruff, the strict type checker, and hadolint on the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: $(READY) ## let ruff put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## decode, INT8 recipe, engines, the job against bare processes, its start, its memory, malloc; all alternating
	$(BIN)/python -m tests.benchmarks.bench_decode
	$(BIN)/python -m tests.benchmarks.bench_recipe
	$(BIN)/python -m tests.benchmarks.bench_engines
	$(BIN)/python -m tests.benchmarks.bench_job
	$(BIN)/python -m tests.benchmarks.bench_start
	$(BIN)/python -m tests.benchmarks.bench_memory
	$(BIN)/python -m tests.benchmarks.bench_malloc

PEERS := $(VENV)/.peers
$(PEERS): $(READY)
	$(BIN)/pip install --quiet --editable '.[peers]'
	touch $@

bench-peers: $(PEERS) ## the job beside Ray Data, Daft, bare processes and OpenVINO where installed, alternating
	$(BIN)/python -m tests.benchmarks.bench_peers

CHAOS_MINUTES ?= 10
CHAOS_SEEDS ?=
chaos: $(READY) ## kill workers, nodes, GCS, drivers, everything on a real cluster, for CHAOS_MINUTES or CHAOS_SEEDS rounds
	$(BIN)/python -m tests.chaos $(if $(CHAOS_SEEDS),--seeds $(CHAOS_SEEDS),--minutes $(CHAOS_MINUTES))

clean: ## remove what the targets made, but not .venv
	rm -rf demo-out bench-out artifacts build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
