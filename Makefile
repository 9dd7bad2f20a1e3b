# Each target sets up .venv on first use. Needs Python 3.11+, make and PyPI.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Without its dependencies: fastembed 0.9 asks for a huggingface_hub below 2, and runs with the one that is pinned.
FASTEMBED := fastembed loguru mmh3 py-rust-stemmers

# A file at a time to each worker, so that what a file sets up is set up once; models compute with one thread each.
# Compiled files are written, whatever the environment says: without them each worker compiles everything anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-ray fast lint docs bench bench-real bench-serving clean

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(READY)  ## set up .venv with everything the demo and the tests need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 install"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[embedded,words,ocr,edge,onnx,export,formats,video,triton,watch,serve,telemetry,mcp,langchain,haystack,bench,docs,dev]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -c constraints.txt $(FASTEMBED)
	@touch $(READY)

demo: $(READY)  ## ingest and search the photographs that ship: prints a table and writes build/demo/index.html
	$(BIN)/soir demo --out build/demo

test: $(READY)  ## all tests
	$(PYTEST)

test-ray: $(READY)  ## the tests with Ray actors, which the others leave out: adds the extra ray to .venv (500 MB)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]'
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest tests/test_scale.py tests/test_scale_options.py

fast: $(READY)  ## the tests that load no model
	$(PYTEST) -m 'not slow'

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/type_stub.py

docs: $(READY)  ## the site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## what an image costs in plain passes of the encoder, and ratios of the refinement, written to build/
	$(BIN)/python benchmarks/image_cost.py --out build/image-cost.json
	$(BIN)/python benchmarks/refine.py --out build/bench.json

bench-real: $(READY)  ## PHOTOS=DIR: search and detection on photographs, written to build/real.md; COMPOSED="DIR DIR", PROFILES="NAME FILE"
	@test -n "$(PHOTOS)" || { echo "say where the photographs are: make bench-real PHOTOS=DIR (see docs/how-to/evaluation.md)"; exit 2; }
	$(BIN)/python benchmarks/real.py $(PHOTOS) $(if $(COMPOSED),--composed $(COMPOSED)) $(foreach p,$(PROFILES),--profile $(p)) --out build/real.json

bench-serving: $(READY)  ## onnxruntime and Triton against torch, written to build/bench-serving.json
	$(BIN)/python benchmarks/serving.py --out build/bench-serving.json

clean:
	rm -rf build .venv .pytest_cache .mypy_cache .ruff_cache
