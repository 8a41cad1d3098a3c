# Halftone. `make demo` and `make test` need nothing but Python 3.10 to 3.13 and this file (GNU make 3.81 or newer);
# on a Mac, Apple Silicon.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.halftone-installed
DEMO   := demo-report
STUDY  := runs/study
# tests of one file stay together, since they share models
SIDE_BY_SIDE := -n auto --dist loadfile

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
INTEL_MAC := import platform, sys; sys.exit((sys.platform, platform.machine()) == ("darwin", "x86_64"))
NATIVE    := src/halftone/native/libhalftone_native

.PHONY: help install demo test quality study train-bundled clean

help:
	@echo "make demo           quantize a small bundled model and write a report to $(DEMO)/"
	@echo "make test           run the tests"
	@echo "make quality        ruff, mypy, import-linter"
	@echo "make study          measure all recipes anew for docs/results.md, for hours; resumes (results in $(STUDY)/)"
	@echo "make train-bundled  make the bundled models from nothing"
	@echo "make clean          remove caches and build output (keeps $(VENV))"

install: $(STAMP)

# A $(VENV) that is already there is kept and completed; the stamp says that it holds what these files ask for.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard src/halftone/native/src/*)
	@if test -x $(BIN)/python; then python=$(BIN)/python; else python="$(PYTHON)"; fi; \
	"$$python" -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "Halftone needs Python 3.10 to 3.13, and $$python is `"$$python" --version 2>/dev/null || echo missing`." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)   (delete $(VENV) first if it exists)" >&2; \
	  exit 1; }; \
	"$$python" -c '$(INTEL_MAC)' || { \
	  echo "Halftone needs PyTorch 2.6 or newer, of which there is none for a Python of Intel Macs (x86_64); on Apple" \
	    "Silicon take an arm64 Python: make PYTHON=... $(MAKECMDGOALS)   (delete $(VENV) first if it exists)" >&2; \
	  exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@ls $(NATIVE).* >/dev/null 2>&1 || echo "The native library was not built, so Halftone will be slower;" \
	  "$(BIN)/python -m halftone.native tells why, and builds it once there is a C++ compiler." >&2
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/halftone demo --out $(DEMO)
	@echo "The report is in $(abspath $(DEMO))"

test: $(STAMP)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

quality: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

study: $(STAMP)
	$(BIN)/halftone study bundled:mini-sd --plan paper --out $(STUDY) --markdown docs/results.md

train-bundled: $(STAMP)
	$(BIN)/python -m training.make_all

clean:
	rm -rf $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests training benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
