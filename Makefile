# `make demo` separates the shipped song; `make test` lints and tests. Either sets up what it needs, once.
PYTHON ?= python3
# For every `pip install`, such as --extra-index-url https://download.pytorch.org/whl/cpu
PIP_INSTALL_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install $(PIP_INSTALL_OPTIONS)

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/python train.py
	@echo "To go on: . $(BIN)/activate, then the README's commands."

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found: install Python 3.10 to 3.13, or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "error: Bespoke needs Python 3.10 to 3.13; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.fluidsynth: $(VENV)/.created scripts/install_fluidsynth.sh
	PYTHON=$(BIN)/python sh scripts/install_fluidsynth.sh
	touch $@

$(VENV)/.installed: $(VENV)/.fluidsynth pyproject.toml
	@# Under this name are earlier versions, whose removal would take the new command along, and another project.
	$(BIN)/python -m pip --quiet --quiet uninstall --yes bespoke
	$(PIP_INSTALL) -e .
	@# librosa compiles some of its functions when they are first imported, for half a minute.
	$(BIN)/python -c 'import librosa; librosa.vqt'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
