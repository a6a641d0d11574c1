# Everything a newcomer needs: `make demo`, then `make test`. Both install what they need into .venv.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test lint bench molecule lock clean

venv: $(VENV)/.installed

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none of python3, python3.11, ... is"; exit 1; }
	@bin/make-venv "$(PYTHON)" "$(VENV)"
	@"$(BIN)/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@"$(BIN)/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: venv  ## A catalogue of 1,000 goods arrives in three child accounts, before your eyes
	@"$(BIN)/moysklad-worker" demo $(ARGS)

test: venv lint  ## Everything
	@bin/browser
	@"$(BIN)/python" -m pytest $(ARGS)

lint: venv
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(BIN)/mypy"

bench: venv  ## Requests, time and memory of a sync against their theoretical minimum
	@"$(BIN)/python" -m bench.sync $(ARGS)

molecule: venv
	@echo "no molecule scenario exists yet" >&2; exit 1

lock:  ## New versions within pyproject's bounds; hashes, no addresses
	@"$(BIN)/pip" install --quiet uv
	@"$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --output-file requirements/base.txt --upgrade pyproject.toml
	@"$(BIN)/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --extra test --constraint requirements/base.txt \
		--output-file requirements/dev.txt --upgrade pyproject.toml

clean:
	@rm -rf "$(VENV)" build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
