# One command each. Every target makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where bench-gate leaves what it measured. Not exported, because mcpdiag takes each MCPDIAG_* for a setting of its own.
ARTIFACTS := $(or $(MCPDIAG_ARTIFACTS),artifacts)
unexport MCPDIAG_ARTIFACTS

.PHONY: help setup demo test test-slow check coverage bench bench-gate conformance docs notebooks notebooks-update soak clean

help:
	@echo "make demo         an embedded MCP server behind the proxy, real traffic, what it found"
	@echo "make test         the test suite, without the slow ones"
	@echo "make test-slow    the slow tests: real clients, Node servers, 200 sessions"
	@echo "make check        ruff, mypy --strict"
	@echo "make coverage     branch coverage of protocol, pool and connection"
	@echo "make conformance  the official MCP conformance suites through the proxy (needs Node 20 and npm)"
	@echo "make bench-gate   a short benchmark, kept in artifacts/bench and judged by benchmarks/targets.toml"
	@echo "make soak         a minute of steady load on the embedded server, and a verdict on leaks"
	@echo "make notebooks    executes the notebooks and compares their outputs with the stored ones"
	@echo "make docs         the documentation as a site in build/docs, strict and offline"
	@echo "make bench        what pooling saves, and the speed floor against nginx (needs wrk and nginx)"

$(VENV)/.demo: pyproject.toml tools/setup-venv
	@sh tools/setup-venv "$(PYTHON)" $(VENV)
	@touch $@

$(VENV)/.ready: pyproject.toml tools/setup-venv
	@sh tools/setup-venv "$(PYTHON)" $(VENV) test check
	@touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml tools/setup-venv
	@sh tools/setup-venv "$(PYTHON)" $(VENV) docs
	@touch $(VENV)/.demo $@

setup: $(VENV)/.ready

demo: $(VENV)/.demo
	@$(BIN)/mcpdiag demo

test: setup
	$(BIN)/python -m pytest -n 4 -m "not slow"

test-slow: setup
	sh tools/setup-node
	sh tools/setup-clients "$(PYTHON)"
	$(BIN)/python -m pytest -n 3 --dist loadfile -m slow

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

# Stores everything in $(ARTIFACTS)/bench, then judges it; about 2 minutes.
bench-gate: setup
	rm -rf $(ARTIFACTS)/bench && mkdir -p $(ARTIFACTS)/bench
	$(BIN)/mcpdiag bench run --clients 1,8 --output $(ARTIFACTS)/bench/matrix >$(ARTIFACTS)/bench/matrix.txt; \
		code=$$?; cat $(ARTIFACTS)/bench/matrix.txt; exit $$code
	$(BIN)/python benchmarks/sampling.py --rows 100000 \
		--json $(ARTIFACTS)/bench/sampling.json >$(ARTIFACTS)/bench/sampling.txt; \
		code=$$?; cat $(ARTIFACTS)/bench/sampling.txt; exit $$code
	$(BIN)/python benchmarks/speed_floor.py --seconds 2 --repeat 3 >$(ARTIFACTS)/bench/speed_floor.txt; \
		code=$$?; cat $(ARTIFACTS)/bench/speed_floor.txt; exit $$code
	$(BIN)/mcpdiag bench check $(ARTIFACTS)/bench/matrix --targets benchmarks/targets.toml \
		--extra $(ARTIFACTS)/bench/sampling.json >$(ARTIFACTS)/bench/check.txt; \
		code=$$?; cat $(ARTIFACTS)/bench/check.txt; exit $$code

# Every cell's output against the stored one; numbers with a unit are measurements, which notebooks/sanitize.cfg leaves out.
# Two notebooks at a time, each in one process: they wait more than they compute.
notebooks: setup
	$(BIN)/python -m pytest -p no:randomly -n 2 --dist loadfile --nbval --nbval-current-env \
		--nbval-sanitize-with notebooks/sanitize.cfg --nbval-cell-timeout 120 --timeout 180 notebooks

# A minute of steady load and a verdict on leaks; exit code 1 only for a confirmed one.
soak: setup
	rm -rf $(ARTIFACTS)/soak
	mkdir -p $(ARTIFACTS)
	$(BIN)/mcpdiag bench soak --for 60s --connections 100 --rate 200 --output $(ARTIFACTS)/soak

notebooks-update: setup
	$(BIN)/python tools/execute-notebooks

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -c docs -b html -j auto -q -W --keep-going . build/docs
	@$(BIN)/python docs/offline.py build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) .tools build artifacts .mypy_cache .ruff_cache .pytest_cache
