# Everything here works in a fresh clone: the targets make their own environment the first time.
#
#   PYTHON      the Python that makes the environment        make test PYTHON=python3.12
#   DPT_VENV    the environment's folder, default .venv      DPT_VENV=/data/dpt-venv make test
#   DPT_EXTRAS  what is installed; on a GPU machine, say     export DPT_EXTRAS=export,gpu,tensorrt,train,dev
#   DPT_SERVE_VENV  the folder of serve-test's environment, default .venv-serve
#   JOBS        test processes, default 2                    make test JOBS=8
#   PYTEST_ARGS more arguments for pytest                    make test PYTEST_ARGS="-k contract"

SHELL := /bin/sh
DPT_VENV ?= .venv
DPT_EXTRAS ?= export,cpu,tensorrt-rtx,train,ray,hub,view,points,video,docs,dev
DPT_SERVE_VENV ?= .venv-serve
JOBS ?= 2
PYTEST_ARGS ?=

ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; exit; }; \
  done; echo python3)
endif

ifneq ($(words $(DPT_VENV)),1)
$(error DPT_VENV is one folder without spaces in its name, and it is '$(DPT_VENV)')
endif

# What the environment is made from. Any change gives another key, and so a new environment.
KEY := $(shell $(PYTHON) -c 'import hashlib, sys; \
  made_from = [open(name).read() for name in ("pyproject.toml", "constraints.txt")]; \
  made_from += [sys.version, sys.base_prefix, sys.argv[1]]; \
  print(hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16])' '$(DPT_EXTRAS)' 2>/dev/null)
COMPLETE := $(DPT_VENV)/.complete-$(KEY)
RUN := $(DPT_VENV)/bin/python

# The environment of the Triton server, whose packages exclude those of the main one.
SERVE_KEY := $(shell $(PYTHON) -c 'import hashlib, sys; \
  made_from = [open(name).read() for name in ("pyproject.toml", "constraints-serve.txt")]; \
  made_from += [sys.version, sys.base_prefix]; \
  print(hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:16])' 2>/dev/null)
SERVE_COMPLETE := $(DPT_SERVE_VENV)/.complete-$(SERVE_KEY)
SERVE_RUN := $(DPT_SERVE_VENV)/bin/python

# This clone comes first, wherever the environment lies and whichever clone made it.
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup key serve-key serve-setup demo demo-train test test-all serve-test cpp cpp-test cpp-test-all lint docs \
  clean distclean

help:  ## Print this list.
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r target text; do printf '%-20s %s\n' "$$target" "$$text"; done

demo: setup  ## From the checkpoint in the repository to engines, a parity verdict and a picture.
	$(RUN) -m demo

demo-train: setup  ## Generate data, train a small model on it, draw samples and the curve.
	$(RUN) -m train.demo

test: setup lint  ## Lint, then the tests: what CI runs.
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 -m "not slow and not gpu" $(PYTEST_ARGS)

test-all: setup lint  ## Lint, then all the tests, slow and GPU ones too.
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 $(PYTEST_ARGS)

serve-test: setup serve-setup  ## The tests of the Triton server and its client, in an environment of their own; CI runs them.
	$(RUN) -m tests.serve.tiny_bundle build-serve
	DPT_SERVE_BUNDLE=build-serve/tiny $(SERVE_RUN) -m pytest tests/serve/server -p no:cacheprovider $(PYTEST_ARGS)

cpp:  ## Build the C++ runtime into build-cpp/release; needs CMake and a C++ compiler, fetches the headers it lacks.
	@for tool in cmake c++; do command -v $$tool >/dev/null || { \
	  echo "error: $$tool is not here. Install CMake 3.25 or newer and GCC 12 or Clang:" \
	    "apt-get install cmake g++ make" >&2; exit 2; }; done
	DPT_CPP_HEADERS="$${DPT_CPP_HEADERS:-$(CURDIR)/build-cpp/headers}" \
	  cmake -S dpt_deploy/cpp -B build-cpp/release -DCMAKE_BUILD_TYPE=Release
	cmake --build build-cpp/release --parallel $(JOBS)

cpp-test: setup cpp  ## The tests of the C++ runtime, those that take minutes aside; CI runs them.
	DPT_CPP_TESTS=$(JOBS) $(RUN) -m pytest tests/cpp -m "not slow and not gpu" $(PYTEST_ARGS)

cpp-test-all: setup cpp  ## All tests of the C++ runtime.
	DPT_CPP_TESTS=$(JOBS) $(RUN) -m pytest tests/cpp $(PYTEST_ARGS)

lint: setup  ## Ruff over the whole tree.
	$(RUN) -m ruff check .

docs: setup  ## Build the documentation into site/, without a network; a broken link fails.
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "Open site/index.html. Search needs a web server: python -m http.server --directory site"

setup: $(COMPLETE)  ## Make or renew the environment (6 GB), and nothing else.

serve-setup: $(SERVE_COMPLETE)

key:
	@echo $(KEY)

serve-key:
	@echo $(SERVE_KEY)

# The marker .dpt-deploy comes first, so that only a folder made here is ever removed; .complete-* comes last, so
# that an interrupted set-up starts over. A folder outside the clone may serve several clones: it holds the
# dependencies alone, and PYTHONPATH adds the project.
$(COMPLETE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and $(PYTHON) is $$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing)." \
	    "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@if [ -e "$(DPT_VENV)" ] && [ ! -e "$(DPT_VENV)/.dpt-deploy" ]; then \
	  echo "error: $(DPT_VENV) exists and was not made by this Makefile. Remove it," \
	    "or choose another folder: DPT_VENV=FOLDER make ..." >&2; exit 2; fi
	@echo "Setting up $(DPT_VENV) with $$($(PYTHON) --version): [$(DPT_EXTRAS)]. The first time downloads gigabytes."
	rm -rf "$(DPT_VENV)"
	mkdir -p "$(DPT_VENV)" && touch "$(DPT_VENV)/.dpt-deploy"
	$(PYTHON) -m venv "$(DPT_VENV)"
	$(RUN) -I -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(DPT_EXTRAS)]'
	@case "$(abspath $(DPT_VENV))" in "$(CURDIR)"/*) ;; *) $(RUN) -I -m pip uninstall --yes --quiet dpt-deploy ;; esac
	@touch "$@"

# The folder numpy2 is for the test of what the server does with it. The rest is as above.
$(SERVE_COMPLETE):
	@if [ -e "$(DPT_SERVE_VENV)" ] && [ ! -e "$(DPT_SERVE_VENV)/.dpt-deploy" ]; then \
	  echo "error: $(DPT_SERVE_VENV) exists and was not made by this Makefile. Remove it," \
	    "or choose another folder: DPT_SERVE_VENV=FOLDER make ..." >&2; exit 2; fi
	@echo "Setting up $(DPT_SERVE_VENV) for the Triton server. The first time downloads 300 MB."
	rm -rf "$(DPT_SERVE_VENV)"
	mkdir -p "$(DPT_SERVE_VENV)" && touch "$(DPT_SERVE_VENV)/.dpt-deploy"
	$(PYTHON) -m venv "$(DPT_SERVE_VENV)"
	$(SERVE_RUN) -I -m pip install --disable-pip-version-check -c constraints-serve.txt -e '.[cpu,client]' \
	  nvidia-pytriton onnx pytest
	$(SERVE_RUN) -I -m pip install --disable-pip-version-check -c constraints.txt --no-deps \
	  --target "$(DPT_SERVE_VENV)/numpy2" numpy
	$(SERVE_RUN) -I -m pip uninstall --yes --quiet dpt-deploy
	@touch "$@"

clean:  ## Remove caches and build folders; the environment, runs and engines stay.
	rm -rf build build-cpp build-serve dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean  ## Remove the environments in .venv and .venv-serve as well.
	rm -rf .venv .venv-serve
