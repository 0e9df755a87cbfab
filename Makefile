# The two commands of the README: `make demo` and `make test`. Both set up all they need.
PYTHON = .venv/bin/python
PYTEST = $(PYTHON) -m pytest -q -n 2
# A test that meets a machine that is busy or short of something runs once more, and is counted as "rerun" in the summary. Unit tests meet none.
AGAIN = --reruns 1

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
	$(PYTEST) tests/unit

integration: setup
	$(PYTEST) $(AGAIN) tests/integration

peer: setup
	$(PYTEST) $(AGAIN) tests/peer

bench: setup
	$(PYTHON) -m pytest benchmarks --benchmark-only

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis build *.egg-info
