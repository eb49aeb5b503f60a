# make demo   the paper's story on a laptop, offline after set-up: open demo/report.html at the end
# make test   all quick tests; make test-slow the others
# make test-engines   vLLM and transformers serve against our own engine, in .venv-engines (3.5 GB), and DeepSpeed's ZeRO,
#                     in .venv-deepspeed (1.5 GB); no part of .ci/run
# make docs   the docs site into site/, by tools of its own in .venv-docs
# make gpu    on a machine with a GPU: all that docs/gpu.md has no figure for; begun again, it goes on
# They set themselves up in .venv (Python 3.11 or newer, pip).

PYTHON ?= python3
VENV ?= .venv
DOCS_VENV ?= .venv-docs
MODELS ?= tiny-rft
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin

.PHONY: setup demo demo-controls test test-slow test-engines docs gpu lint clean

setup: $(VENV)/ready

# pip takes torch's CPU build where an index offers one; the pinned version keeps it from drawing in CUDA packages.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "surgery-r1 needs Python 3.11 or newer; say which with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	$(BIN)/surgery-r1 demo --out demo

demo-controls: setup
	$(BIN)/surgery-r1 demo --out demo --controls

# A file of tests is one process's, so that what its tests share is made once; a process has one thread (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

test: setup
	$(PYTEST) -m 'not slow'

test-slow: setup
	$(PYTEST) -m slow

test-engines: setup
	PYTHON=$(BIN)/python scripts/setup_engines.sh
	PYTHON=$(BIN)/python scripts/setup_deepspeed.sh
	$(BIN)/python scripts/test_engines.py --models $(MODELS); engines=$$?; \
		$(BIN)/python scripts/test_deepspeed.py && exit $$engines

# The extra alone: the reference is read from the source, so that neither torch nor the package is needed.
$(DOCS_VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])' \
		| xargs $(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
	@touch $@

# --strict: a link that leads nowhere, a page that is in no menu or loads from elsewhere, is an error.
docs: $(DOCS_VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

gpu: setup
	$(BIN)/surgery-r1 gpu --out docs/gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-engines .venv-deepspeed $(DOCS_VENV) site demo
