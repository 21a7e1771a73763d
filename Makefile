# Everything a newcomer needs: `make run` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: run test check fix bench sim fuzz clean help

help:
	@echo "make run    proxy, two nodes and a sample app on loopback; Ctrl-C stops"
	@echo "make test   lint, types and the whole test suite"
	@echo "make check  lint and types only"
	@echo "make fix    let ruff mend what it can"
	@echo "make bench  the benchmark table (takes a few minutes)"
	@echo "make sim    whole clusters with faults, from seeds, for ten minutes (SIM_MINUTES, SIM_SEEDS, SIM_JOBS)"
	@echo "make fuzz   hostile input from seeds that nobody chose, for ten minutes (FUZZ_MINUTES)"
	@echo "make clean  removes .venv and what was built; keeps ./data"

$(STAMP): pyproject.toml
	@sh .ci/ensure-venv.sh "$(PYTHON)" "$(VENV)"
	@echo "installing Fairlead and what it needs into $(VENV) (first time only, about a minute)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[proxy,test]' || \
		{ echo "Fairlead could not be installed: can pip reach PyPI (or your mirror)?" >&2; exit 1; }
	@touch $@

# Programs that tests and benchmarks run beside Python: nginx, haproxy, promtool, wrk, openssl, node.
.PHONY: tools
tools: $(STAMP)
	@sh .ci/ensure-tools.sh "$(VENV)"

run: $(STAMP)
	@exec $(BIN)/fairlead demo

check: $(STAMP)
	@$(BIN)/ruff format --check --quiet . || (echo "run: make fix" && exit 1)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fix: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: check tools
	@$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder

bench: $(STAMP) tools
	@$(BIN)/python -m bench

SIM_SEEDS   ?= 1..100000
SIM_MINUTES ?= 10
SIM_JOBS    ?= 2

sim: $(STAMP)
	@$(BIN)/python -m tests.sim --known --seeds $(SIM_SEEDS) --minutes $(SIM_MINUTES) --jobs $(SIM_JOBS) --page

FUZZ_MINUTES ?= 10

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

clean:
	rm -rf $(VENV) build dist
