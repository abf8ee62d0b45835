# SPDX-License-Identifier: MIT
#
# Every target is complete by itself: on a machine that has only make and a Python 3.11 or later with
# pip and venv, it makes .venv, installs what it needs there and runs. A second run installs nothing,
# a change of pyproject.toml installs anew.
#
#   make demo        what the library is for, as a table, in under a minute
#   make test        the tests
#   make help        all targets
#
#   make ARGS="-k undo -x" test                  arguments for pytest
#   make ARGS="overhead --json out.json" bench   arguments for the benchmark
#   make PYTHON=python3.13 test                  another Python (after `make clean`)

PYTHON ?= python3
ARGS ?=

VENV := .venv
IN_VENV := $(VENV)/bin/python
PIP := $(IN_VENV) -m pip --disable-pip-version-check
PYTEST := $(IN_VENV) -m pytest -rfEs
# Afresh each time: a cached page would keep its warnings to itself.
SPHINX := $(IN_VENV) -m sphinx --fresh-env --fail-on-warning --quiet

# The files that say what is installed: the package itself, and each dependency group on top of it.
INSTALLED := $(VENV)/installed
BENCH := $(VENV)/group-bench
DOCS := $(VENV)/group-docs
LINT := $(VENV)/group-lint
PICTURES := $(VENV)/group-pictures
SCREENSHOTS := $(VENV)/group-screenshots
TESTS := $(VENV)/group-tests

.DEFAULT_GOAL := help
.PHONY: help check demo test test-programs test-long test-switching browser cluster soak sweep sweep-sampled test-pythons guest lint format types layers doctest docs pictures screenshots examples bench packages clean

# Two installs into one environment at a time would break it.
.NOTPARALLEL:

help:  ## what there is
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/  \1\t\2/p' Makefile | expand -t 18

check: lint types layers $(TESTS)  ## before a commit: lint, types, layers, the tests of what changed
	$(IN_VENV) -m tests.support.changed $(ARGS)

demo: $(BENCH)  ## what the library is for, as a table
	$(IN_VENV) -m aioktask demo $(ARGS)

# What the tests, the checks and the demo need, for whoever starts several of them at a time.
packages: $(TESTS) $(LINT) $(DOCS) $(BENCH)  ## install it all

# Tests of programs, half of the time of all: commands, servers, clusters, interpreters that are forked,
# end, or are struck, and are looked at from outside.
PROGRAMS := bench interruption process top tune cluster/test_dask.py cluster/test_dask_lost.py \
	cluster/test_processes.py support/test_guest_reports.py web/test_page_servers.py web/test_servers.py

test: $(TESTS)  ## the everyday tests
	$(PYTEST) $(PROGRAMS:%=--ignore=tests/%) $(ARGS)

test-programs: $(TESTS)  ## tests that start programs of their own
	$(PYTEST) $(PROGRAMS:%=tests/%) $(ARGS)

# What is marked slow, with long hypothesis runs: 15 minutes a test at most, 30 in all.
test-long: $(TESTS)  ## the slow ones, with long hypothesis runs
	AIOKTASK_TEST_PROFILE=long AIOKTASK_TEST_INTERRUPTIONS="nothing alarm" $(PYTEST) -m "slow and not guest" --timeout=900 --session-timeout=1800 $(ARGS)

# What runs threads in this process, with a thread switch tried every microsecond, 5000 times as
# often as usual. What is pure, or runs in processes of its own, would show nothing new.
UNSWITCHED := $(PROGRAMS) cluster engine/learning engine/machine engine/ranges engine/scheduling figures guest \
	soak support api/test_imports.py
test-switching: $(TESTS)  ## tests of threads, a thread switch tried every microsecond
	AIOKTASK_TEST_SWITCHINTERVAL=1e-6 $(PYTEST) --timeout=600 \
		$(UNSWITCHED:%=--ignore-glob='tests/%') $(ARGS)

# The tests on 3.13, 3.14, 3.15 and on free-threaded Python, which are fetched and built at first, in
# some ten minutes; half an hour for each. ARGS=3.14 for one of them, ARGS=--short for what differs most.
test-pythons: $(TESTS)  ## the tests on other Pythons, free-threaded ones too
	$(IN_VENV) -m tests.pythons $(ARGS)

# The live page in a Chromium, the system's or Debian's, which is fetched; skipped where neither can
# be had. The pictures of its states: AIOKTASK_TEST_PICTURES=DIRECTORY make browser.
browser: $(TESTS)  ## the live page in a real browser
	$(PYTEST) -m browser tests/browser $(ARGS)

# Processes of clusters killed at every stage of a job, and hosts in network namespaces that are cut
# off or slow: 6 minutes. With AIOKTASK_TEST_CLUSTER=whole every cut of a minute, for some more.
cluster: $(TESTS)  ## clusters whose processes are killed and whose networks are cut
	$(PYTEST) -m cluster --timeout=600 tests/cluster $(ARGS)

# A real server with two workers for two minutes, and what it takes to begin and to stop. For ten
# minutes: ARGS=--soak-seconds=600. ARGS=--soak-seed=7 has the clients do the same once more.
soak: $(TESTS)  ## servers under load, for two minutes
	$(PYTEST) -m soak --timeout=1800 tests/soak $(ARGS)

# The library's calls, interrupted at a sample of their lines by a seed that is printed: 8 minutes at
# most. AIOKTASK_TEST_SEED=7 repeats a sample.
sweep-sampled: $(TESTS)  ## calls interrupted at their lines, a sample
	$(PYTEST) -m sweep --timeout=1200 tests/interruption $(ARGS)

# The same at every line, of every call, in every way: some hours.
sweep: $(TESTS)  ## the same at every line: some hours
	AIOKTASK_TEST_SWEEP=whole $(PYTEST) -m sweep --timeout=36000 tests/interruption $(ARGS)

# In a machine with two nodes, huge pages and an IOMMU, which is built and emulated: see
# tests/guest/README.md. Ten minutes a test at most: an emulated CPU is slow.
guest: $(TESTS)  ## the tests that need an emulated machine
	$(PYTEST) -m guest --timeout=600 tests/guest $(ARGS)

lint: $(LINT)  ## likely bugs, misuse of async, one form of the code
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .

format: $(LINT)  ## bring the code into that form
	$(IN_VENV) -m ruff check --fix .
	$(IN_VENV) -m ruff format .

# The tests' group too: mypy reads trio and uvloop, which the engine knows how to wake.
types: $(LINT) $(TESTS)  ## mypy, strict
	$(IN_VENV) -m mypy

layers: $(LINT)  ## who imports whom
	$(VENV)/bin/lint-imports

doctest: $(TESTS) $(DOCS)  ## the examples in docstrings and in docs/
	$(PYTEST) --doctest-modules aioktask
	$(SPHINX) -b doctest docs build/doctest

docs: $(DOCS)  ## the documentation, into build/docs
	$(SPHINX) -b html docs build/docs
	@echo "read build/docs/index.html"

# From docs/benchmarks, where a run's NAME.json and NAME.txt are put. Without new ones nothing changes.
pictures: $(PICTURES)  ## the documentation's pictures and tables, from its figures
	$(IN_VENV) docs/make_pictures.py

# Of jobs that run for it, in a minute, by a Chromium of the system's: other ones each time.
screenshots: $(SCREENSHOTS)  ## the documentation's pictures of the live page and of top
	$(IN_VENV) docs/make_screenshots.py

# With what a user has: the package and its dependencies, and every warning an error.
examples: $(INSTALLED)  ## every program in examples/
	@for example in examples/*.py examples/*/*.py; do \
		echo "--- $$example"; \
		$(IN_VENV) -W error "$$example" || exit 1; \
	done

bench: $(BENCH)  ## the promises, measured beside peers
	$(IN_VENV) -m aioktask bench $(ARGS)

clean:  ## remove all that make made
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find aioktask docs examples tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@echo "installing aioktask and its dependencies into $(VENV)"
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/group-%: $(INSTALLED)
	@echo "installing the dependency group $*"
	@$(PIP) install --quiet --group $*
	@touch $@
