# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else; all else they install into .venv.
# the first that runs and is 3.11 or 3.12: a name on PATH may be a shim of a version that is not installed
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
		&& echo $$python && break; done)
BIN := .venv/bin
export PYTHONPATH := $(CURDIR)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-slow lint install clean

demo: install
	@$(BIN)/python -m recipes.pipeline --config configs/pipelines/demo.yaml
	@echo && cat out/demo/chat/answer.txt && echo
	@$(BIN)/python -m recipes.evaluation.report out/demo/report.json
	@echo && echo "with loss curves and all answers: out/demo/report.html"

# Tests mostly wait for the processes they start: two at a time, one thread each, keep two cores busy.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: install
	$(PYTEST) $(PYTEST_ARGS)

test-slow: install
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

install: .venv/installed

# torch first and alone, so that a CPU wheel at hand is taken before a dependency asks for another build
.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 on PATH; install one, or name it: make PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --progress-bar off -e ".[dev,llama3-tokenizer]"
	touch $@

clean:
	rm -rf out
