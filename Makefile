# Every target sets up what it needs in .venv; pins live in constraints.txt.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready

.PHONY: demo test faults versions check docs setup chromium clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/mtsae demo

chromium:  # the browser tests' browser, where there is none
	.ci/chromium

test: $(READY) chromium
	$(BIN)/python -m pytest -n auto

faults: $(READY)  # an hour or two; FAULTS="--only kill --seed 2" for a part
	PYTHONPATH=tests $(BIN)/python -m faults $(FAULTS)

versions: $(READY)  # the lowest and the newest versions that pyproject.toml allows; VERSIONS=lowest for one
	$(BIN)/python -m tools.versions $(VERSIONS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(MAKE) docs

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs notebooks/runs site .cache dist build
