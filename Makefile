# make demo, make test: everything on a fresh machine, into .venv, and nowhere else.
BIN := .venv/bin

.PHONY: demo test check install clean

demo:
	@python3 tools/install.py phantom
	@$(BIN)/amodal demo --out demo --overwrite

test:
	@python3 tools/install.py dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check:
	@python3 tools/install.py dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy

install:
	@python3 tools/install.py dev

clean:
	rm -rf .venv demo build dist .ruff_cache .mypy_cache
