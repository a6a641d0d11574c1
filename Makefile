# Everything a newcomer needs: `make demo`, then `make test`. Both install what they need into .venv.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test lint bench molecule controllers lock clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none of python3, python3.11, ... is"; exit 1; }
	@bin/make-venv "$(PYTHON)" "$(VENV)"
	@"$(BIN)/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@"$(BIN)/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: venv  ## A catalogue of 1,000 goods arrives in three child accounts, before your eyes
	@"$(BIN)/moysklad-worker" demo $(ARGS)

# Scenarios that `make test` runs too: both families from bare to busy, and deploys under load with every way one can fail.
# `make molecule` runs all.
TEST_SCENARIOS ?= single rolling

test: venv lint  ## Everything
	@bin/browser
	@bin/servers
	@"$(BIN)/python" -m pytest $(ARGS)
	@$(if $(ARGS),,$(if $(TEST_SCENARIOS),bin/molecule --if-possible $(TEST_SCENARIOS)))

SHELL_SCRIPTS = $(shell grep -lE '^#!(/usr/bin/env (ba)?sh|/bin/(ba)?sh)' *.sh bin/* .ci/* $$(find molecule -type f))

lint: venv
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/mypy"
	@"$(BIN)/shellcheck" $(SHELL_SCRIPTS)
	@"$(BIN)/yamllint" --strict .
	@PATH="$(CURDIR)/$(BIN):$$PATH" "$(BIN)/ansible-lint" --offline -q

bench: venv  ## Requests, time and memory of a sync against their theoretical minimum
	@"$(BIN)/python" -m bench.sync $(ARGS)

molecule: venv  ## Roles, playbooks and deploys on hosts in containers; SCENARIO=single for one
	@bin/molecule $(SCENARIO)

controllers: venv  ## Syntax of playbooks and inventories on every Python and ansible-core the controller may have
	@bin/controllers

lock:  ## New versions within pyproject's bounds; hashes, no addresses
	@"$(BIN)/pip" install --quiet uv
	@"$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra redis --output-file requirements/base.txt --upgrade pyproject.toml
	@"$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra test --constraint requirements/base.txt \
		--output-file requirements/dev.txt --upgrade pyproject.toml
	@printf 'ansible-core>=2.19\njinja2>=3.1\n' | "$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--constraint requirements/dev.txt --output-file requirements/ansible.txt --upgrade -

clean:
	@rm -rf "$(VENV)" build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
