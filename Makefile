# On a fresh machine with Python 3.11 or newer: `make demo` shows Krypton at work, `make test` runs all that gates a change.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_TESTS := $(VENV)/.installed-for-tests
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Without these glibc gives large blocks back to the system at once, and asks for them again: naive inference would look
# up to 1.8 times slower than it is.
ALLOCATOR := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

.DEFAULT_GOAL := help
.PHONY: help demo test zoo bench clean distclean

help:
	@echo "make demo       install into $(VENV), explain the shipped image, write the picture to out/"
	@echo "make test       install, then lint, types and tests"
	@echo "make zoo        the full model zoo (minutes to hours)"
	@echo "make bench      naive against exact, with a table and JSON"
	@echo "make clean      remove outputs and caches; make distclean also $(VENV)"

demo: $(INSTALLED)
	@$(BIN)/krypton demo

# Each worker has one thread of PyTorch's: two workers with two each would wait for one another.
test: $(INSTALLED_FOR_TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not gpu"

zoo: $(INSTALLED_FOR_TESTS)
	$(BIN)/python -m benchmarks.zoo

bench: $(INSTALLED_FOR_TESTS)
	$(ALLOCATOR) $(BIN)/python -m benchmarks.exact

# A stamp that is newer than both files says that the packages are those they name.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Krypton into $(VENV): PyTorch is large, the first time takes minutes."
	$(PIP_INSTALL) -e .
	@touch $@

$(INSTALLED_FOR_TESTS): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Krypton and what its tests need into $(VENV): PyTorch is large, the first time takes minutes."
	$(PIP_INSTALL) -e '.[test]'
	@touch $@ $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Krypton needs Python 3.11 or newer, and '$(PYTHON)' is not. Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf out build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find krypton tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
