# make demo: the main job on an embedded example. make test: every fast test. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all check kernels bench clean

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q 'scikit-build-core>=1.1' 'cmake>=3.26' 'ninja>=1.11'
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	touch $@

# An editable install keeps the library outside the checkout, so a changed kernel is built and installed here.
kernels: $(STAMP)
	@$(BIN)/cmake --build build/editable > build/kernels.log 2>&1 || { cat build/kernels.log; exit 1; }
	@$(BIN)/cmake --install build/editable \
	  --prefix "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" > build/install.log 2>&1 \
	  || { cat build/install.log; exit 1; }

demo: kernels
	$(BIN)/graphopt demo -o build/demo --force

test: kernels
	$(BIN)/pytest -q

test-all: kernels
	$(BIN)/pytest -q -m "slow or not slow"

check: kernels
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: kernels
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
