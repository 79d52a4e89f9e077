# What people and CI call. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python
FUZZ_SECONDS ?= 60
# Most Python tests wait for ticks: so many files of them run side by side.
TEST_WORKERS ?= 2
LIB := $(if $(filter Darwin,$(shell uname)),dylib,so)
NPM := dashboard tests/browser tests/grafana-schema tests/hot-shots
SOURCES := Cargo.toml Cargo.lock pyproject.toml build_backend.py $(shell find src python dashboard/dist -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: help bench bench-client bench-requests bench-exposition bench-ingest bench-store bench-dashboard bench-instructions browser screenshots dashboard demo npm node test test-rust test-python test-matrix torture fuzz deny lint fmt wheel check-rust clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(VENV)/.demo ## serve two real models, send them requests, show the table (needs no root)
	@$(BIN)/python examples/demo.py

test: test-rust test-python ## everything that the tests need, then all tests

test-rust: check-rust
	cargo test --locked

test-python: $(VENV)/.test npm browser
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

# In CI what is missing is installed; elsewhere whoever wants it says so.
npm: ## install the npm packages of the page and of the tests that need some, if npm is there
	@command -v npm >/dev/null || [ "$(CI)" != true ] || $(MAKE) node
	@if command -v npm >/dev/null; then $(MAKE) -s $(NPM:%=%/node_modules/.installed); \
	else echo "npm is missing; make node installs it"; false; fi || echo "what needs npm packages will be skipped, or fail in CI"

# The bundler comes as an optional package, one a platform; what tests need has none.
%/node_modules/.installed: %/package.json %/package-lock.json
	@cd $* && npm ci --ignore-scripts $(if $(filter dashboard,$*),,--omit=optional) --no-audit --no-fund
	@touch $@

dashboard: dashboard/node_modules/.installed ## bundle the page anew, from dashboard/src to dashboard/dist (needs npm)
	cd dashboard && npm run --silent check && npm run --silent build

# Chromium comes from the system's packages: in CI with apt-get, as root; elsewhere that is for whoever owns the machine.
browser: npm ## install what drives Chromium for the tests of the page, if npm is there; in CI Chromium too, with apt-get
	@command -v chromium >/dev/null || [ "$(CI)" != true ] || \
	{ apt-get update -qq && apt-get install -y --no-install-recommends chromium; }
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	echo "Chromium is missing (apt-get install chromium): the tests of the page in a browser will be skipped"

screenshots: $(VENV)/.test browser ## pictures of each page of the dashboard, in light, dark and narrow, into docs/screenshots
	$(BIN)/python tests/browser/screenshots.py

node: ## install Node.js and npm with apt-get, for the page and the tests that need them; needs root
	@command -v apt-get >/dev/null || { echo "there is no apt-get here: install Node.js 18 or newer with npm"; exit 1; }
	apt-get update -qq && apt-get install -y --no-install-recommends nodejs npm

test-matrix: $(VENV)/.test ## the client's tests under each CPython of pyenv, 3.10 and newer; says which are missing
	$(BIN)/python -m pytest -rA -k "every_python" tests/python/test_matrix.py

torture: $(VENV)/.test ## the long tests: 1,000 kills, each write refused and 100,000 damaged files of the store, 20,000 questions to Prometheus and to us, 10,000 forks under each Python, 10 million lines with tags that never repeat
	TORTURE_KILLS=1000 cargo test --locked --release --test torture -- --nocapture
	TORTURE_WRITES=1 cargo test --locked --release --test full_disk -- --nocapture
	TORTURE_FLIPS=100000 cargo test --locked --release --lib any_flipped -- --nocapture
	$(BIN)/python -m pytest -m torture --timeout 14400

deny: check-rust ## licences, sources and advisories of every dependency, as deny.toml says
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: installing it, which takes some minutes"; cargo install --locked cargo-deny; }
	cargo deny check

fuzz: check-rust ## look for input that breaks the datagram's encoding or decoding, or PromQL, FUZZ_SECONDS=60 for each target
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: installing it"; cargo install --locked cargo-fuzz; }
	@rustup toolchain list | grep -q nightly || { echo "the nightly toolchain is missing: installing it"; rustup toolchain install nightly --profile minimal; }
	@for target in $$(cargo fuzz list); do \
		mkdir -p fuzz/corpus/$$target && echo "fuzzing $$target for $(FUZZ_SECONDS) s" && \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

bench: ## all benchmarks but the instructions, one after the other: some ten minutes on a machine that does nothing else
	@$(MAKE) bench-client bench-requests bench-ingest bench-exposition bench-store

bench-client: $(VENV)/.bench target/bench/python/empty_method.abi3.so ## what a call of the client costs, beside an empty method and today's clients
	PYTHONPATH=target/bench/python $(BIN)/python benches/client.py $(BENCH)

bench-requests: $(VENV)/.bench ## what the middlewares add to a request, beside others (BENCH=quick for a look)
	$(BIN)/python benches/requests.py $(BENCH)

bench-ingest: check-rust ## what the collector takes to receive, beside a loop that only counts (BENCH=quick for a look)
	cargo bench --locked --bench ingest -- $(BENCH)

bench-exposition: check-rust ## what a scrape of 99,000 series takes, in time and memory (BENCH=quick for a look)
	cargo bench --locked --bench exposition -- $(BENCH)

bench-store: check-rust ## what two weeks on disk take, beside Prometheus with the same samples (BENCH="quick disk" for a look at a part)
	cargo bench --locked --bench store -- $(BENCH)

bench-dashboard: $(VENV)/.test browser ## how long the page takes to its first pictures, on two weeks of 100 APIs
	@rm -rf target/bench/two-weeks
	cargo bench --locked --bench store -- make target/bench/two-weeks
	$(BIN)/python benches/dashboard.py target/bench/two-weeks

# With names of functions, which the wheel does not have.
bench-instructions: target/bench/python/empty_method.abi3.so $(BIN)/python ## the instructions of a call, counted by valgrind
	@command -v valgrind >/dev/null || { echo "this needs valgrind: apt-get install valgrind"; exit 1; }
	CARGO_PROFILE_RELEASE_STRIP=none cargo build --release --locked --lib --no-default-features --features python --target-dir target/bench
	@mkdir -p target/bench/named && cp -r python/cortex_metrics target/bench/named/
	@cp target/bench/release/libcortex_metrics.$(LIB) target/bench/named/cortex_metrics/_native.abi3.so
	PYTHONPATH=target/bench/named:target/bench/python $(BIN)/python benches/instructions.py

target/bench/python/empty_method.abi3.so: benches/empty_method/Cargo.toml benches/empty_method/src/lib.rs
	CARGO_PROFILE_RELEASE_STRIP=none cargo build --release --manifest-path benches/empty_method/Cargo.toml --target-dir target/bench
	@mkdir -p $(@D) && cp target/bench/release/libempty_method.$(LIB) $@

lint: check-rust $(VENV)/.test npm ## formatting, clippy, also of the fuzz targets, ruff, mypy, and the page's types where npm is there
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --no-default-features --features python -- -D warnings
	@# Nothing is linked, so that libFuzzer need not be built.
	CUSTOM_LIBFUZZER_PATH=./libfuzzer.a cargo clippy --locked --manifest-path fuzz/Cargo.toml --bins --target-dir target/fuzz -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest cortex_metrics --mypy-config-file pyproject.toml
	@if [ -e dashboard/node_modules/.installed ]; then cd dashboard && npm run --silent check; \
	else echo "the page's types were not checked: npm is missing (make node)"; [ "$(CI)" != true ]; fi

fmt: $(VENV)/.test ## format everything
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: dist/.built ## build the wheel into dist/
	@ls dist/*.whl

clean: ## remove what was built; the cargo cache stays
	rm -rf $(VENV) dist .demo target

# Found out first: a line that says what to run instead of a page of compiler errors.
check-rust:
	@$(PYTHON) build_backend.py

# Debian's python3 comes without ensurepip; its pip can install into a venv that has none.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cortex-metrics: got Python %d.%d, want 3.10 or newer" % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)

# The programs first, with cargo's own progress: what runs inside pip is silent.
dist/.built: $(SOURCES) | check-rust $(BIN)/python
	@echo "building cortex-collector and cortex; the first time this takes some minutes"
	cargo build --release --locked --bins
	@rm -rf dist && mkdir -p dist
	@echo "building the extension module and the wheel"
	@$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	@touch $@

$(VENV)/.installed: dist/.built
	@$(PIP) install --quiet --force-reinstall --no-deps dist/*.whl
	@touch $@

$(VENV)/.demo: $(VENV)/.installed
	@echo "installing what the demo's models need: scikit-learn"
	@$(PIP) install --quiet "$$(ls dist/*.whl)[serve]" scikit-learn
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	@echo "installing the clients and middlewares that ours are measured beside"
	@$(PIP) install --quiet "$$(ls dist/*.whl)[bench,serve]"
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install --quiet "$$(ls dist/*.whl)[serve,test]" scikit-learn
	@touch $@
