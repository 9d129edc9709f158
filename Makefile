# The two commands of the README, and what they share. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install quickstart test test-kernels coverage gpu-check clean

help:
	@echo "make quickstart                 the whole way on drawn pictures, in a few minutes"
	@echo "make quickstart IMAGES=FOLDER   the same on your own pictures"
	@echo "make test                       lint, types and the test suite"
	@echo "make test-kernels               the test suite under each of torch's kernels for this processor (an hour or two)"
	@echo "make coverage                   the test suite once more, and the lines it does not reach"
	@echo "make gpu-check                  all that only a GPU can prove, in 8 minutes; PYTHON=… DATA=… ONLY=PART"
	@echo "make clean                      remove the environment and what the quickstart made"

install: $(READY)

# Done again only when the requirements change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV) || { echo "error: no virtual environment: apt-get install python3-venv, and again"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $(READY)

quickstart: $(READY)
	@$(BIN)/seer-pipe quickstart $(if $(IMAGES),--images "$(IMAGES)")

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# A training follows the last bit of its sums, and these differ from processor to processor: nothing may hang on them.
test-kernels: $(READY)
	$(BIN)/python tests/kernels.py -n 2 --dist loadfile

# In one process, so that all of it is seen; child processes of tests are not counted.
coverage: $(READY)
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report --skip-covered --sort cover

# By the Python that is there: on such a machine torch and DALI are given, and nothing is installed.
gpu-check:
	@$(PYTHON) benchmarks/gpu_check.py $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) quickstart
