# The two commands of the README: `make demo` and `make test`. Both set up all they need.
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest -q

.PHONY: demo test setup setup-demo lint unit integration peer bench clean

demo: setup-demo
	@tools/demo.sh

test: setup lint unit integration peer

setup:
	@tools/setup.sh test

setup-demo:
	@tools/setup.sh demo

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

unit: setup
	$(PYTEST) tests/unit -n 2

integration: setup
	$(PYTEST) tests/integration -n 2

peer: setup
	$(PYTEST) tests/peer -n 2

bench: setup
	$(PYTHON) -m pytest benchmarks --benchmark-only

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis build *.egg-info
