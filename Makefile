# Every target can be the first one on a fresh clone: each begins with the environment in .venv (see setup.sh).
# `make help` lists them.

.DEFAULT_GOAL := help
.PHONY: help setup up down clean ps demo test lint check test-components test-e2e kill-matrix fault-table bench lock

BIN := .venv/bin
FAST := $(wildcard tests/unit tests/contract)
ALL := $(FAST) $(wildcard tests/dags tests/operators tests/api)
LIVE := $(firstword $(wildcard tests/e2e/test_smoke.py) tests/e2e/test_platform_up.py)
PYTEST := $(BIN)/pytest
# The parallel runs stop early: a broken machine should not take an hour to say so.
PARALLEL := -n auto --maxfail=50
BENCH ?= training

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv what the lock file says
	@MAKECMDGOALS="$(MAKECMDGOALS)" PYTHON="$(PYTHON)" ./setup.sh

up: setup ## start the platform; returns once it is healthy
	@$(BIN)/fermion up

down: setup ## stop every process of it, running trainings included
	@$(BIN)/fermion down

clean: setup ## stop it and forget everything it made (run/)
	@$(BIN)/fermion clean

ps: setup ## show its programs
	@$(BIN)/fermion ps

demo: setup ## train a real model through the whole pipeline
	@$(BIN)/fermion demo

test: setup ## all tests that need nothing but Python packages, with one live run of the platform
	$(PYTEST) $(PARALLEL) $(ALL)
	$(PYTEST) $(LIVE)

lint: setup ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## the same and the fast tests
	$(PYTEST) $(PARALLEL) $(FAST)

test-components: setup ## tests against real servers (see docs/operations.md for what they need)
	@$(BIN)/python tests/components/go_programs.py
	$(PYTEST) tests/components

test-e2e: setup ## whole trainings on a live platform
	$(PYTEST) tests/e2e

kill-matrix: setup ## kill one thing after the other and see what happens; SMOKE=1 for five rows
	$(BIN)/python -m tests.e2e.kill_matrix $(if $(SMOKE),--smoke)

fault-table: setup ## break one thing after the other while a service is asked, see what its users saw; SMOKE=1 for five rows
	$(BIN)/python -m tests.e2e.fault_table $(if $(SMOKE),--smoke)

bench: setup ## benchmarks, one JSON object a line; BENCH=training or serving
	@$(BIN)/python -m tests.benchmarks.$(BENCH)

lock: setup ## pin everything again after a change of a requirements file
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 requirements.txt -o requirements.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 -c requirements.lock requirements-dev.txt -o requirements-dev.lock
	$(BIN)/uv pip compile -q --universal --generate-hashes --no-header --python-version 3.11 requirements-build.txt -o requirements-build.lock
