# make demo | make test: each creates the virtual environment, installs what is needed, builds, runs; a second call skips what is fresh.
#
#   TORCH="torch==2.11.0"                 another torch (any >= 2.11; pip's own settings say where wheels come from)
#   CUDA=1 | 0                            compile the CUDA sources even for a CPU torch | never (default: if torch and nvcc agree)
#   CONSTRAINTS=.ci/constraints.txt       the exact versions that CI uses
#   PYTHON=python3.12  VENV=.venv  TESTS="tests -k focal"  DEMO_FLAGS=--quick

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11
CUDA ?= $(or $(NEARLINEAR_CUDA),auto)
CONSTRAINTS ?=
TESTS ?= tests
DEMO_FLAGS ?=

BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
# a stamp is fresh for one choice of versions and of CUDA; the key names the choice
KEY := $(shell printf '%s' '$(PYTHON) $(TORCH) $(CONSTRAINTS)' | cksum | cut -d' ' -f1)
ENV := $(VENV)/env-$(KEY).stamp
BUILD := $(VENV)/build-$(CUDA).stamp

.PHONY: help demo test build lint docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6; echo "targets: demo test build lint docs clean"

demo: $(BUILD) $(VENV)/demo.stamp
	$(BIN)/python examples/language_model.py $(DEMO_FLAGS)
	$(BIN)/python examples/noisy_labels.py $(DEMO_FLAGS)
	$(BIN)/python examples/face_recognition.py $(DEMO_FLAGS)
	$(BIN)/python examples/auc_training.py $(DEMO_FLAGS)
	$(BIN)/python examples/vessel_segmentation.py $(DEMO_FLAGS)
	$(BIN)/python examples/triple_detection.py $(DEMO_FLAGS)

test: $(BUILD) $(VENV)/demo.stamp $(VENV)/test.stamp
	$(BIN)/python -m pytest -q $(TESTS)

build: $(BUILD)
	$(BIN)/python -m nearlinear env

# mypy reads the packages that plots and demos use
lint: $(ENV) $(VENV)/demo.stamp $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy
	$(BIN)/codespell --ignore-words-list fpr,metrix,nd csrc python triton_kernels tests bench docs examples .ci *.md *.toml *.py Makefile

docs: $(BUILD) $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

clean:
	rm -rf $(VENV) build dist *.egg-info python/*.egg-info python/nearlinear/_C*.so

$(ENV): $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/*.stamp
	$(PIP) "setuptools>=77" wheel ninja pybind11 numpy "$(TORCH)"
	touch $@

$(BUILD): $(ENV) $(SOURCES)
	rm -f $(VENV)/build-*.stamp
	PATH="$(BIN):$$PATH" NEARLINEAR_CUDA=$(CUDA) $(PIP) --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/demo.stamp: $(ENV) examples/requirements.txt
	$(PIP) --requirement examples/requirements.txt
	touch $@

# a CPU torch brings no triton; its interpreter runs the GPU kernels here
$(VENV)/test.stamp: $(ENV) tests/requirements.txt
	$(PIP) --requirement tests/requirements.txt "triton>=3.6"
	touch $@

$(VENV)/lint.stamp: $(ENV) .ci/lint.txt
	$(PIP) --requirement .ci/lint.txt
	touch $@

$(VENV)/docs.stamp: $(ENV) docs/requirements.txt
	$(PIP) --requirement docs/requirements.txt
	touch $@
