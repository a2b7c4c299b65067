# A verb for everything a person does. Each sets the machine up first, which costs
# nothing when it is set up already.
PYTHON := .venv/bin/python
IMAGES := build/images
KERNELS := build/kernel

.DEFAULT_GOAL := help
.PHONY: help setup setup-test guest image kernel-update demo check test test-full bench docs lock \
    clean distclean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install what is missing: Debian packages, .venv, guest programs, kernel, image
	@tools/setup.sh

setup-test: ## the same, and what only the tests need
	@tools/setup.sh --test

guest: ## compile the agent and the shim
	@tools/setup.sh --no-image

image: guest ## build image `standard` anew
	@$(PYTHON) tools/build_image.py --cache $(IMAGES) --force

kernel-update: guest ## pin the guest kernel that this machine's mirrors have now, and get it
	@$(PYTHON) tools/get_kernel.py --cache $(KERNELS) --update-pin

demo: setup ## start a server, run a script in a sandbox, print what it took, stop
	@$(PYTHON) tools/demo.py

check: setup ## format, lint, types, layers, unit tests: under a minute
	@$(PYTHON) tools/run_tests.py check

test: setup-test ## all tests of the gate
	@$(PYTHON) tools/run_tests.py gate

test-full: setup-test ## all tests, with large sizes and many seeds
	@$(PYTHON) tools/run_tests.py full

bench: setup ## measure, beside peers, against the table of goals (ARGS=-h: options)
	@$(PYTHON) -m bench $(ARGS)

docs: setup ## build the documentation as a site: build/site
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

lock: ## write requirements.txt from pyproject.toml
	@.venv/bin/uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-annotate --no-header --extra server --extra dev pyproject.toml -o requirements.txt

clean: ## remove what is built, but the environment
	rm -rf build dist .demo src/magsd/guest/programs src/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf .venv
