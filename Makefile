# The main targets are `make demo` and `make test`. Both create the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
STAMP := $(VENV)/.installed
NEWEST ?= python3.13
NEWEST_TESTS := tests/integration/test_search.py tests/unit/test_api.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test minimal newest check format pictures screenshots reference docs bench package lock clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Create .venv and install the project with pinned dependencies

# Compile bytecode once. Otherwise, each process compiles MLflow, Prefect and PyTorch again, for 13 s, if Python is
# configured to write no bytecode, as in many containers.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Thawline needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## Fine-tune, compare and register a digit classifier (a minute on 2 CPU cores)
	$(BIN)/thawline demo

test: setup  ## Run the whole test suite
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadgroup
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m gpu tests/gpu

minimal: setup  ## Install the package without extras in a separate environment, and test that no module needs an extra
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-minimal
	$(BIN)/uv pip install --quiet --python $(VENV)-minimal/bin/python --constraint requirements.lock .
	cd $(VENV)-minimal && bin/python -c 'from thawline.data import write_digits; import pathlib; write_digits(pathlib.Path("digits"))'
	cd $(VENV)-minimal && bin/python -W error -c 'import thawline; print("thawline", thawline.__version__)'
	cd $(VENV)-minimal && bin/thawline --help >/dev/null && bin/thawline check digits >/dev/null
	cd $(VENV)-minimal && bin/python -c 'import thawline.cli, thawline.flows.search, thawline.deployments, thawline.serving'
	rm -rf $(VENV)-minimal

newest: setup  ## Install with another Python (NEWEST=python3.13), and run a search and part of the unit tests
	$(BIN)/uv venv --quiet --clear --python $(NEWEST) $(VENV)-newest
	$(BIN)/uv pip install --quiet --python $(VENV)-newest/bin/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(VENV)-newest/bin/python --no-deps --no-build-isolation --editable .
	PYTHONDONTWRITEBYTECODE= $(VENV)-newest/bin/python -m pytest -n 2 --dist loadgroup $(NEWEST_TESTS)
	rm -rf $(VENV)-newest

check: setup  ## Lint, phrases, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/phrases.py
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: setup  ## Create README's images in docs/images/ from a run of the demo; needs Chromium
	$(BIN)/python tools/pictures.py

screenshots: setup  ## Take screenshots of every page of the latest study, light, dark and printed; needs Chromium
	$(BIN)/python tools/pictures.py --pages

reference: setup  ## Generate docs/configuration.md, the recipes' JSON schema and docs/cli.md
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/commands.py

docs: setup  ## Build the documentation site into site/, in strict mode
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: setup  ## Run the benchmarks of docs/benchmarks.md at a small size, in about 15 minutes
	$(BIN)/python benchmarks/search.py --train 100 --validation 50 --peer-trials 6 --designs usual exact default "default, halving"
	$(BIN)/python benchmarks/memory.py --images 300
	$(BIN)/python benchmarks/serving.py --seconds 6 --clients 1 32
	$(BIN)/python benchmarks/samplers.py --batches --repetitions 1
	$(BIN)/python benchmarks/large_study.py --trials 200
	$(BIN)/python benchmarks/ranking.py --tasks 0 --images 10 --epochs 2

package: setup  ## Build dist/ for a package index (REPOSITORY=https://HOST/PATH)
	$(BIN)/python tools/package.py $(REPOSITORY)

lock: setup  ## Pin the newest versions that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate \
		--python-version 3.11 --group dev --upgrade --output-file requirements.lock pyproject.toml

clean:  ## Remove the environment and caches; keeps .thawline
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build site *.egg-info src/*.egg-info
