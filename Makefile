# make demo: train and judge a reward model on the built-in world.   make test: lint, types, tests.
# Both make .venv if there is none: with uv where it is on the PATH, else with venv and pip.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := configs/ipvrm_arithmetic.yaml
# compiled once: without its cache Python compiles all of PyTorch again at every start, 13 seconds on a slow core
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types unit clean

demo: $(INSTALLED)
	$(BIN)/ipvrm fit --config $(DEMO)
	$(BIN)/ipvrm test --config $(DEMO) --ckpt_path last

test: lint types unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

$(INSTALLED): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
		[ -d .venv ] || uv venv --python $(PYTHON) .venv; \
		uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		[ -d .venv ] || $(PYTHON) -m venv .venv; \
		$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache
