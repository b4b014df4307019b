# Needs Python 3.11 or newer (with its venv module), make, and a package index.
#
#   make run     a mail server of your own on ports 2525 and 4650, with its own PostgreSQL
#   make test    every test, against a real PostgreSQL
#   make lint    ruff and mypy --strict
#   make soak    the tests that run for a long time
#   make bench   measurements; nothing is asserted
#   make clean   removes what the targets above have made, but no mail

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet

# An editable install must be in compat mode: the default one hides twisted/plugins from twistd.
EDITABLE := --config-settings editable_mode=compat -e

# A .venv that was moved, whose Python is gone or too old, or that another PYTHON was asked for, is made anew.
WANTED := $(if $(filter file undefined default,$(origin PYTHON)),,$(PYTHON))
VENV_WORKS := $(shell test "$$(cat $(VENV)/.place 2>/dev/null)" = "$(CURDIR)" \
	&& $(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11); print(sys.version_info[:2])' 2>/dev/null)
ifneq ($(WANTED),)
WANTED_VERSION := $(shell $(PYTHON) -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)
ifneq ($(VENV_WORKS),$(WANTED_VERSION))
VENV_WORKS :=
endif
endif

.PHONY: run test lint soak bench clean FORCE
.DELETE_ON_ERROR:

run: $(VENV)/.embedded
	exec $(BIN)/twistd --nodaemon --pidfile= mailgate --config etc/quickstart.toml

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

soak: $(VENV)/.test
	$(BIN)/python -m pytest -m soak

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist mailgate.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f twisted/plugins/dropin.cache
	find mailgate tests benchmarks twisted -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.place:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mailgate needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@echo "$(CURDIR)" > $@

ifeq ($(VENV_WORKS),)
$(VENV)/.place: FORCE
endif

$(VENV)/.embedded: EXTRAS := embedded
$(VENV)/.test: EXTRAS := embedded,test
$(VENV)/.dev: EXTRAS := embedded,test,dev

# twistd reads its list of plugins from dropin.cache; it is written here, for the service may not be allowed to.
$(VENV)/.embedded $(VENV)/.test $(VENV)/.dev: $(VENV)/.place setup.cfg pyproject.toml
	$(PIP) install $(EDITABLE) '.[$(EXTRAS)]'
	rm -f twisted/plugins/dropin.cache
	$(BIN)/python -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
	@touch $@

FORCE:
