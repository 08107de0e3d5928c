# make demo: train and judge a reward model on the built-in world.   make test: lint, types, tests.
# Both make .venv if there is none: with uv where it is on the PATH, which finds or fetches a Python, else with venv and
# pip of python3. Another Python: make demo PYTHON=python3.12
VERSIONS := >=3.10,<3.15
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
	@python="$(PYTHON)"; \
	if [ -x $(BIN)/python ] || { [ -z "$$python" ] && command -v uv >/dev/null; }; then exit 0; fi; \
	$${python:=python3} -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null || \
	{ echo "$$python is not Python 3.10 to 3.14: name one that is, as in make demo PYTHON=python3.12" >&2; exit 1; }
	@if command -v uv >/dev/null; then \
		[ -x $(BIN)/python ] || { rm -rf .venv && uv venv --python '$(or $(PYTHON),$(VERSIONS))' .venv; } && \
		uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(or $(PYTHON),python3) -m venv .venv; } && \
		$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache
