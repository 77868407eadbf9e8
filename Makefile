# Evensong needs Python 3.11, make and a package index; `make help` lists what this file can do.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
INSTALLED := $(VENV)/.installed
# Installing takes minutes: uv says what it does, but not in a log that nobody watches.
QUIET := $(if $(CI),--quiet)
# uv does not read pip's configuration. Where pip finds packages is handed on as uv's own variables while a recipe runs,
# unless they are set; of several indexes uv then takes the best version, as pip does.
AS_PIP = pip="$$($(BIN)/python -m pip config list 2>/dev/null)"; \
	said() { echo $$(printf '%s\n' "$$pip" | sed -nE "s/^[^.]*\.$$1='(.*)'$$/\1/p" | head -n 1 | sed 's/\\n/ /g'); }; \
	give() { [ -n "$$(printenv $$1)" ] || [ -z "$$2" ] || export "$$1=$$2"; }; \
	give UV_DEFAULT_INDEX "$$(said index-url)"; \
	give UV_INDEX "$$(said extra-index-url)"; \
	give UV_INDEX_STRATEGY "$${UV_INDEX:+unsafe-best-match}"; \
	give UV_FIND_LINKS "$$(said find-links | tr ' ' ,)"
# Numeric libraries that each take every core only disturb one another here.
export OMP_NUM_THREADS ?= 2
# Without bytecode every process of Airflow and of the tests compiles its libraries anew, about half of its start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-slow feast-suite lint programs bench docs lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# An environment that a kill left half made is made anew: of itself uv would take the Python that it was made from.
install: $(INSTALLED) ## the environment in .venv, from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml Makefile
	@command -v $(PYTHON) >/dev/null || { echo "Evensong needs Python 3.11: no $(PYTHON) on the PATH. Install it (Debian: apt install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Evensong needs Python 3.11, $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 2; }
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3.11-venv)" >&2; rm -rf $(VENV); exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==$(UV_VERSION)'
	@$(AS_PIP); $(BIN)/uv pip install $(QUIET) --python $(BIN)/python --requirement requirements.lock
	@$(AS_PIP); $(BIN)/uv pip install $(QUIET) --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## a simulated shop, three nights through Airflow, a champion, recommendations
	$(BIN)/evensong demo

up: $(INSTALLED) ## Airflow, MLflow and the service, supervised; Ctrl-C ends all
	@exec $(BIN)/evensong up

lint: $(INSTALLED) ## style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(INSTALLED) programs lint ## everything that is checked, but for the tests that take minutes
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED) programs ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

# What the modules import that Feast's tests share, and the plugins that its pytest.ini names, without which pytest refuses it.
FEAST_TESTS_NEED := minio==7.2.20 testcontainers==4.15.0 docker==7.2.0 wrapt==2.5.2 pycryptodome==4.4.0 argon2-cffi==25.1.0 \
	argon2-cffi-bindings==26.2.0 python-keycloak==7.1.1 jwcrypto==1.6.1 deprecation==2.1.0 aiofiles==25.1.0 async-property==0.2.2 \
	requests-toolbelt==1.0.0 pytest-asyncio==1.5.0 pytest-env==1.8.5

feast-suite: $(INSTALLED) ## Feast's own offline-store tests on ours: make feast-suite FEAST=a checkout of v0.67.0
	@test -d "$(FEAST)/sdk/python/tests/universal/offline_store" || { echo "Feast ships its tests in no package: git clone --branch v0.67.0 https://github.com/feast-dev/feast, then make feast-suite FEAST=path/to/feast" >&2; exit 2; }
	@$(AS_PIP); $(BIN)/uv pip install $(QUIET) --python $(BIN)/python --target "$(FEAST)/.suite" --no-deps $(FEAST_TESTS_NEED)
	cd "$(FEAST)/sdk/python" && FULL_REPO_CONFIGS_MODULE=evensong_offline_stores FEAST_IS_LOCAL_TEST=True FEAST_USAGE=False \
		PYTHONPATH="$(CURDIR)/src:$(CURDIR)/tests/feast_suite:$$PWD:$(abspath $(FEAST))/.suite" \
		"$(abspath $(BIN))/python" -m pytest --integration tests/universal/offline_store --ignore tests/universal/offline_store/test_dqm_validation.py

# What tests run that no Python package brings: installed where the platform is Debian and the user may, else said plainly.
PROGRAMS := chromium docker-compose
test-slow: PROGRAMS += mariadbd
programs:
	@lacks() { case $$1 in chromium) ! command -v chromium && ! command -v google-chrome;; *) ! command -v $$1;; esac >/dev/null 2>&1; }; \
	package() { case $$1 in mariadbd) echo mariadb-server;; *) echo $$1;; esac; }; \
	wanted=""; for program in $(PROGRAMS); do if lacks $$program; then wanted="$$wanted $$(package $$program)"; fi; done; \
	if [ -z "$$wanted" ]; then exit 0; fi; \
	if command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then may=yes; become=""; elif sudo -n true 2>/dev/null; then may=yes; become="sudo -n"; else may=no; fi; \
		if [ $$may = yes ]; then \
			echo "Installing$$wanted for the tests"; \
			{ $$become apt-get update -qq; for package in $$wanted; do \
				$$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package; done; } >/dev/null 2>&1 || true; \
		fi; \
	fi; \
	for program in $(PROGRAMS); do if lacks $$program; then \
		echo "No $$program here and none could be installed: THE TESTS THAT NEED $$(echo $$program | tr a-z A-Z) WILL BE SKIPPED (Debian: apt install $$(package $$program))"; \
	fi; done

bench: $(INSTALLED) ## every benchmark, or one: make bench NAME=nightly
	@for name in $(or $(NAME),$$($(BIN)/python -c 'import benchmarks, pkgutil; print(*sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")))')); do $(BIN)/python -m benchmarks $$name || exit 1; done

docs: $(INSTALLED) ## write the settings guide anew
	$(BIN)/python -m evensong.cli settings --markdown > docs/guides/settings.md

lock: ## resolve pyproject.toml anew into requirements.lock
	@$(AS_PIP); $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --extra dev --extra text --no-annotate --no-header pyproject.toml --output-file requirements.lock.new
	@# the local label of a CPU build exists only where that file is at hand
	{ echo "# The environment that runs. \`make lock\` writes this file anew; \`make install\` installs it."; sed -E 's/^([a-z0-9-]+==[^+ ]+)\+[a-z0-9]+/\1/; /^(nvidia|cuda|triton)-?/d' requirements.lock.new; } > requirements.lock
	@rm requirements.lock.new

clean: ## remove the environment and what tools cached; never ./var
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info
