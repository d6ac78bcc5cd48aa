# The course in a few commands; `make help` lists them. On Windows without make, the README
# gives the same as plain commands (a test keeps the two equal).

# Python 3.11 or 3.12, whichever runs: python3.11, python3.12, python3 or python.
SUPPORTED = import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c "$(SUPPORTED)" >/dev/null 2>&1 && { echo $$p; break; }; done)

VENV = .venv
PY = $(if $(wildcard $(VENV)/Scripts),$(VENV)/Scripts/python,$(VENV)/bin/python)
STAMP = $(VENV)/installed.stamp
NB =
.DEFAULT_GOAL = help
.PHONY: help test course lab notebooks bench lock clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-11s %s\n", $$1, $$2}' Makefile

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 was not found. Install one of them, or say"; \
		echo "where it is: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -c "$(SUPPORTED)" || { echo "$(PYTHON) is not Python 3.11 or 3.12"; exit 1; }
	@echo "Building $(VENV) from requirements.lock: some minutes, once."
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

test: $(STAMP)  ## run everything that proves the course works
	$(PY) -m pytest -n 2 --dist loadfile --doctest-modules --nbval-lax --nbval-current-env tests gsgen_lib tools notebooks

course: $(STAMP)  ## execute every notebook; pages and pictures in build/course
	$(PY) -m tools.course $(NB)

lab: $(STAMP)  ## open your own copies of the notebooks in JupyterLab
	$(PY) -m tools.lab

notebooks: $(STAMP)  ## make the notebooks from notebooks/src, executed (NB=01: one of them)
	$(PY) -m tools.notebooks $(NB)
	$(PY) -m tools.pictures

bench: $(STAMP)  ## run all benchmarks and rewrite BENCHMARKS.md
	$(PY) -m gsgen_lib.cli bench all --save
	$(PY) -m tools.benchmarks_md

lock: $(STAMP)  ## resolve pyproject.toml again into requirements.lock
	$(PY) -m pip install --quiet uv
	$(PY) -m tools.lock

clean:  ## remove build/ and the environment
	rm -rf build $(VENV) *.egg-info
