# The commands that people and CI run. `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test unit lint types protos protos-check format clean evaluate lmms-eval
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install everything into it

$(STAMP): pyproject.toml
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.13,<2.14'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install ## Start the whole system, ask about a drawn scene, print what was saved
	$(BIN)/fsr demo

test: install ## Every test
	$(BIN)/python -m pytest tests

unit: install ## Only the tests that start no server
	$(BIN)/python -m pytest tests/unit

lint: install ## Style, and the proto files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/buf lint

types: install ## Static types
	$(BIN)/mypy

PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) protos/fsr/v1/*.proto

protos: install ## Generate the stubs from the proto files
	$(call PROTOC,protos)

protos-check: install ## Fail if the committed stubs are not what the proto files give
	@out=$$(mktemp -d) && $(call PROTOC,$$out) && for f in $$out/fsr/v1/*; do \
		diff -q $$f protos/fsr/v1/$$(basename $$f) || { echo "stub drift: run make protos"; exit 1; }; done; rm -r $$out

evaluate: install ## Every method on the frozen sets: tables and plots into runs/evaluate (about an hour)
	$(BIN)/fsr evaluate

# An environment of its own: what lmms-eval pins (protobuf below 7) clashes with the services.
LMMS := .venv-lmms
lmms-eval: install ## Test the lmms-eval plugin, in an environment of its own
	test -x $(LMMS)/bin/lmms-eval || (python3 -m venv $(LMMS) && $(LMMS)/bin/python -m pip install --quiet \
		--disable-pip-version-check 'torch>=2.13,<2.14' 'transformers>=5.16,<6' 'lmms-eval>=0.7.3,<0.8' && \
		$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .)
	$(BIN)/python -m pytest tests/integration/test_lmms_eval.py

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info
