# Everything a newcomer needs: `make run` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: run test check fix bench clean help

help:
	@echo "make run    proxy, two nodes and a sample app on loopback; Ctrl-C stops"
	@echo "make test   lint, types and the whole test suite"
	@echo "make check  lint and types only"
	@echo "make fix    let ruff mend what it can"
	@echo "make bench  the benchmark table (takes a few minutes)"
	@echo "make clean  removes .venv and what was built; keeps ./data"

$(STAMP): pyproject.toml
	@sh .ci/ensure-venv.sh "$(PYTHON)" "$(VENV)"
	@echo "installing Fairlead and what it needs into $(VENV) (first time only, about a minute)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[proxy,test]' || \
		{ echo "Fairlead could not be installed: can pip reach PyPI (or your mirror)?" >&2; exit 1; }
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[proxy,test,bench]'
	@touch $@

run: $(STAMP)
	@exec $(BIN)/fairlead demo

check: $(STAMP)
	@$(BIN)/ruff format --check --quiet . || (echo "run: make fix" && exit 1)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: check
	@$(BIN)/python -m pytest -q

bench: $(BENCH_STAMP)
	@$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist
