# Everything runs in .venv, which is created on first use. `make PYTHON=/path/to/python` uses another Python.
.PHONY: help demo test lint format docs docs-serve bench bench-flink fuzz chaos lock image sbom clean
.DEFAULT_GOAL := help

VENV = .venv
BIN = $(VENV)/bin
PYTHON ?= $(shell for candidate in python3.13 python3.12 python3.11 python3; do \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$candidate"; break; fi; done)
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

help:
	@echo "make demo    replay the sample day and explain its alert"
	@echo "make test    run all tests, with a real Kafka broker (Java and Kafka are installed by pip)"
	@echo "make lint    run ruff and mypy"
	@echo "make format  format the code with ruff"
	@echo "make docs    build the documentation site into build/site; make docs-serve: serve it and rebuild on changes"
	@echo "make bench   run the benchmarks, results to benchmarks/results.md; make bench-flink: the one against Flink SQL, installs 850 MB"
	@echo "make fuzz    feed a million mutated and random records; takes half an hour"
	@echo "make chaos   kill the run 200 times against a real broker, for each kind of sink; takes half an hour"
	@echo "make lock    update the pinned packages of the image; requires Python 3.11"
	@echo "make image   build the image streamdetect:dev"
	@echo "make sbom    list the packages of the image in dist/sbom.cdx.json (CycloneDX)"
	@echo "make clean   remove generated files and .venv"

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "No Python 3.11 or newer found. Install one, or name its path: make PYTHON=/path/to/python" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments: its ensurepip is missing." >&2; \
	  echo "Install it (Debian, Ubuntu: apt-get install python3-venv), then run make again." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/installed-docs: pyproject.toml $(BIN)/python
	$(PIP) install --editable '.[docs]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-test: pyproject.toml $(BIN)/python
	$(PIP) install --editable '.[test]'
	@touch $@ $(VENV)/installed $(VENV)/installed-docs

demo: $(VENV)/installed
	@$(BIN)/python scripts/demo.py

# One worker more than there are cores, because many tests wait for a broker.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder --durations 15

lint: $(VENV)/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# mkdocs.yml is strict: a warning fails the build.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(VENV)/installed-test
	@rm -f benchmarks/results.md
	@for script in benchmarks/bench_*.py; do \
	  echo "== $$script"; BENCH_RESULTS=benchmarks/results.md $(BIN)/python "$$script" || exit 1; done

# Not part of `bench`, because it installs 850 MB.
bench-flink: $(VENV)/installed-test
	$(BIN)/python benchmarks/flink_live.py

fuzz: $(VENV)/installed-test
	$(BIN)/python scripts/fuzz.py

chaos: $(VENV)/installed-test
	$(BIN)/python scripts/run_chaos.py --kills 200 --sink kafka
	$(BIN)/python scripts/run_chaos.py --kills 200 --sink file
	STREAMDETECT_EXAMPLES=500 $(BIN)/python -m pytest tests/service/live/test_commit.py

LOCK = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate --no-header

lock: $(VENV)/installed-test
	$(LOCK) --output-file docker/requirements.lock pyproject.toml
	$(LOCK) --build-deps-for wheel --only-build-deps --output-file docker/build.lock pyproject.toml

image:
	docker build -f docker/Dockerfile -t streamdetect:dev --build-arg REVISION=$$(git rev-parse HEAD) .

sbom: $(VENV)/installed-test
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements docker/requirements.lock --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o dist/sbom.cdx.json

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
