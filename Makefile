# The targets below are the whole vocabulary of this project; `make` prints them.
#
# Settings, on the command line:
#   PYTHON=python3.12      the Python to make the environment with (3.11, 3.12 or 3.13)
#   TORCH_INDEX=ADDRESS    where pip finds the CPU build of torch, as https://pytorch.org/get-started/locally shows
#   TORCH=torch            the package to install instead; default: the one with CUDA, several GB
#   QUICK=1                for bench: fewer texts and shorter measurements
#   PUBLISH=1              for bench: keep the numbers, and write them into README.md and docs/benchmarks.md
#   WORKERS=2              processes for unit tests, notebooks at a time for their check
#   NB=00_start_here       the notebooks for course and outputs; default: all
#   LIGHT=1                colab-check and kaggle-check without torch and the notebooks

SHELL := /bin/bash
.NOTPARALLEL:
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.installed
EXTRAS := course,rtx,ui,test
FIRST := 03_triton_in_a_notebook 14_a_chat_service_under_load
LONG := 10_versions_and_experiments 12_a_token_at_a_time 13_batches_that_breathe your_model 15_retrieve_rerank_generate
NBVAL := 00_start_here 03_triton_in_a_notebook
WORKERS := 2
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Machines without an NVIDIA GPU take the CPU build of torch; a Mac's only build is one.
TORCH_RANGE := torch>=2.10
TORCH_CPU := torch==2.13.0+cpu
has_gpu = { [ "$$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; }

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## make the environment in .venv and install the project

.PHONY: course
course: setup ## run the course's notebooks headless into out/; NB=more the further experiments
	@$(BIN)/python -m tools.notebooks $(NB)

.PHONY: check
check: lint types ## the quick part of the checks, before every commit: rules, format, types, quick unit tests
	@$(BIN)/python -m pytest tests/unit -m "not slow" -n $(WORKERS) -q

.PHONY: test
test: lint types unit integration ui-check fresh notebooks ## all checks, as CI runs them

.PHONY: format
format: setup ## let ruff mend what it can
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

.PHONY: packages
packages: ## Chromium, Prometheus and Alertmanager from Debian, which some checks need
	@$(install_packages)

.PHONY: lint
lint: setup ## ruff: rules and format, notebooks too; badges and set-up cells
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m tools.badges

.PHONY: types
types: setup ## mypy --strict
	@$(BIN)/mypy

.PHONY: unit
unit: setup ## tests that start no server, and the examples in docstrings; prints what the quick ones cover
	@$(BIN)/python -m pytest tests/unit accel_lib --doctest-modules --ignore-glob "accel_lib/triton/*backend.py" --ignore-glob "accel_lib/*/*_kernels.py" --ignore accel_lib/triton/generation_batching.py --ignore accel_lib/triton/parts.py -m "not slow" -n $(WORKERS) --cov --cov-report=term:skip-covered
	@$(BIN)/python -m pytest tests/unit -m slow -n $(WORKERS)  # coverage would take half as long again

.PHONY: integration
integration: setup ## tests on a real Triton
	@$(BIN)/python -m pytest tests/integration

.PHONY: models-check
models-check: setup ## try every family of docs/models.md as ONNX, FP16 and T4 engine, and write its table again (10 minutes)
	@$(BIN)/python -m tests.model_table

.PHONY: faults
faults: setup ## kill, unload, corrupt, starve and flood a gateway under load; a table of what was lost
	@$(BIN)/python -m tests.faults

.PHONY: fuzz
fuzz: setup ## ten thousand and more requests made from the OpenAPI document
	@$(BIN)/python -m tests.fuzz

.PHONY: soak
soak: setup ## half an hour at 80% of what the gateway can, then ten minutes of chats, many of them left in the middle
	@$(BIN)/python -m tests.soak

.PHONY: notebooks
notebooks: setup ## two from an empty cache, all others with what these converted, measuring briefly; two by nbval
	@$(BIN)/python -m tools.notebooks --fresh $(addprefix --first ,$(FIRST)) --brief --jobs $(WORKERS) \
	    $(addprefix --nbval ,$(NBVAL)) $(LONG) more course  # the long ones before the others, so that both cores end together

.PHONY: colab-check
colab-check: setup ## set-up, Triton and notebooks 00 to 04 in a fresh environment of Colab's shape (several GB)
	@$(BIN)/python -m tests.environments.check colab $(if $(LIGHT),--light)

.PHONY: kaggle-check
kaggle-check: setup ## the same for Kaggle, by its script kernel
	@$(BIN)/python -m tests.environments.check kaggle $(if $(LIGHT),--light)

.PHONY: environments
environments: setup ## the light form of both
	@$(MAKE) --no-print-directory colab-check kaggle-check LIGHT=1

.PHONY: fresh
fresh: setup ## environments beside deploy-check: each takes one core, for installations above all
	@mkdir -p build; $(MAKE) --no-print-directory environments > build/environments.log 2>&1 & made=$$!; \
	$(MAKE) --no-print-directory deploy-check; deployed=$$?; \
	wait $$made; made=$$?; cat build/environments.log; exit $$((deployed | made))

.PHONY: drift
drift: setup ## the unit tests with the newest and with the lowest allowed dependencies; says what broke
	@$(BIN)/python -m tests.environments.drift

.PHONY: gpu-check
gpu-check: setup ## on a machine with a GPU: engines, Triton, memory and tests, into out/gpu
	@$(BIN)/python -m benchmarks.gpu_check --output out/gpu

.PHONY: outputs
outputs: setup ## run notebooks and keep their outputs in notebooks/
	@$(BIN)/python -m tools.notebooks --write $(NB)

.PHONY: bench
bench: setup ## ours beside what you would pick instead, by quality class, with a verdict; QUICK=1 takes four minutes
	@$(BIN)/python -m benchmarks.encoders $(if $(QUICK),--quick) $(if $(PUBLISH),--publish)

.PHONY: lab
lab: setup ## open JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. notebooks/00_start_here.ipynb

.PHONY: ui
ui: setup ## the dashboard in a browser, port 3000, over a gateway that `accel serve` runs; ACCEL_UI_KEY holds its key
	@$(BIN)/accel ui

.PHONY: ui-check
ui-check: setup ## click through the dashboard in headless Chromium, on a real Triton; pictures in out/ui
	@$(BIN)/python -m pytest tests/ui

.PHONY: deploy-check
deploy-check: setup ## all that can be checked of deploy/ without a cluster: one table, the verdict last
	@$(BIN)/accel build embedding
	@$(BIN)/python deploy/check/check.py

.PHONY: clean
clean: ## remove what was built: out/, caches of tools, artifacts in the model repository
	rm -rf out build .pytest_cache .ruff_cache .mypy_cache model_repository/*/*/artifact
	find accel_lib tests colab model_repository -name __pycache__ -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(find_python)
	@$(BIN)/python -c 'from importlib.metadata import version; version("torch")' 2>/dev/null || { $(install_torch); }
	@$(BIN)/python -m pip install -qq --editable ".[$(EXTRAS)]"
	@$(BIN)/accel --version
	@touch $@

define find_python
for python in $(PYTHONS); do \
    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue; \
    echo "Setting up .venv with $$("$$python" --version); this takes a few minutes, once."; \
    exec "$$python" -m venv .venv; \
done; \
echo "No Python from 3.11 to 3.13 was found."; \
for python in $(PYTHONS); do echo "  seen: $$python: $$("$$python" --version 2>&1 | head -1)"; done; \
echo "  fix:  install one, then: make $(MAKECMDGOALS) PYTHON=<its path>"; \
exit 1
endef

define install_packages
missing=""; \
for pair in chromium:chromium promtool:prometheus amtool:prometheus-alertmanager; do \
    command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; \
done; \
[ -n "$$missing" ] || exit 0; \
[ "$$(id -u)" = 0 ] && root="" || root="sudo -n"; \
echo "Installing$$missing"; \
{ $$root apt-get update -qq && $$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
    >/dev/null 2>&1 || echo "Not to be installed here:$$missing. The checks that need them are skipped, and say so."
endef

define install_torch
if [ -n "$(TORCH)" ]; then wanted="$(TORCH)"; \
elif [ -n "$(TORCH_INDEX)" ] || $(has_gpu); then wanted="$(TORCH_RANGE)"; \
else wanted="$(TORCH_CPU)"; fi; \
echo "Installing $$wanted"; \
$(BIN)/python -m pip install -qq $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$wanted" && exit; \
echo "torch could not be installed."; \
echo "  seen: $$wanted for $$($(BIN)/python --version)"; \
echo "  fix:  make $(MAKECMDGOALS) TORCH_INDEX=<index address of the CPU build, from https://pytorch.org/get-started/locally>"; \
echo "        or the default build, which brings several GB of CUDA along: make $(MAKECMDGOALS) TORCH=torch"; \
exit 1
endef
