# `make demo` and `make test` need Python 3.11 or 3.12 and nothing else; all else they install into .venv.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
BIN := .venv/bin
export PYTHONPATH := $(CURDIR)
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test lint install clean

demo: install
	@$(BIN)/python -m recipes.pipeline --config configs/pipelines/demo.yaml
	@echo && cat out/demo/chat/answer.txt && echo
	@$(BIN)/python -m recipes.evaluation.report out/demo/report.json
	@echo && echo "with loss curves and all answers: out/demo/report.html"

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

install: .venv/installed

# torch first and alone, so that a CPU wheel at hand is taken before a dependency asks for another build
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "error: $$($(PYTHON) --version) is not supported; 3.11 or 3.12 is needed; call make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar off "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --progress-bar off -e ".[dev,llama3-tokenizer]"
	touch $@

clean:
	rm -rf out
