# make demo   set up and run the main job (make demo DATA=<folder of NW-UCLA JSON files> for the real set)
# make test   set up and run the tests
# TORCH=2.13.0 TRITON=3.7.1 name the torch to install and the triton made for it; PYTHON=python3.12 the interpreter of a new .venv.
# WORKERS=2 is how many processes run the tests.

TORCH ?= 2.13.0
TRITON ?= 3.7.1
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINNED := torch==$(TORCH) 'triton==$(TRITON); platform_system == "Linux"'
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup demo test lint clean

demo: setup
	$(BIN)/skelops demo $(if $(DATA),--data "$(DATA)")

test: setup lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

setup: $(VENV)/native

# torch and its triton come first, and are named again below, so that nothing that asks for them puts others in their place.
$(VENV)/torch-$(TORCH)-$(TRITON):
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PINNED)
	rm -f $(VENV)/torch-* && touch $@

$(VENV)/packages: pyproject.toml .ci/constraints.txt $(VENV)/torch-$(TORCH)-$(TRITON)
	$(PIP) install -q -c .ci/constraints.txt setuptools ninja pybind11
	$(PIP) install -q -c .ci/constraints.txt --no-build-isolation $(PINNED) -e '.[triton,train,bench,dev]'
	touch $@

$(VENV)/native: $(VENV)/packages setup.py $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -m skelops info
	touch $@

clean:
	rm -rf $(VENV) build skelops/lib/*.so skelops/lib/build.json
