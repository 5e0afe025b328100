# One command each. Every target makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-slow check coverage bench bench-gate conformance clean

help:
	@echo "make demo         an embedded MCP server behind the proxy, real traffic, what it found"
	@echo "make test         the test suite, without the slow ones"
	@echo "make test-slow    the slow tests: real clients, Node servers, 200 sessions"
	@echo "make check        ruff, mypy --strict"
	@echo "make coverage     branch coverage of protocol, pool and connection"
	@echo "make conformance  the official MCP conformance suites through the proxy (needs Node 20 and npm)"
	@echo "make bench        what pooling saves, and the speed floor against nginx (needs wrk and nginx)"

$(VENV)/.demo: pyproject.toml tools/setup-venv
	@sh tools/setup-venv "$(PYTHON)" $(VENV)
	@touch $@

$(VENV)/.ready: pyproject.toml tools/setup-venv
	@sh tools/setup-venv "$(PYTHON)" $(VENV) test check
	@touch $(VENV)/.demo $@

setup: $(VENV)/.ready

demo: $(VENV)/.demo
	@$(BIN)/mcpdiag demo

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

test-slow: setup
	sh tools/setup-node
	sh tools/setup-clients "$(PYTHON)"
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: setup
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -m "not slow" tests/protocol tests/pool tests/connection
	$(BIN)/coverage report --include="mcpdiag/protocol/*,mcpdiag/pool/*,mcpdiag/connection/*" --fail-under=95

conformance: setup
	sh tools/setup-node
	sh tools/setup-clients "$(PYTHON)"
	$(BIN)/python tools/conformance.py

bench: setup
	$(BIN)/python benchmarks/pool_modes.py
	$(BIN)/python benchmarks/speed_floor.py

bench-gate: setup
	$(BIN)/python benchmarks/pool_modes.py --seconds 3 --repeat 3 --check
	$(BIN)/python benchmarks/speed_floor.py --seconds 2 --repeat 3

clean:
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache
