# Everything lives in .venv; each target does its whole set-up. Needs Python >= 3.11 with venv, and make.
#   make demo                                   the whole system on this computer
#   make install TORCH_INDEX=URL                take torch from PyTorch's index of CPU wheels: 0.2 GB instead of several on Linux x86-64
#   make test PYTEST="-n 0 -k actor -x"         other pytest options
PYTHON ?= python3
TORCH_INDEX ?=
# Files as they come, for the slow ones are first.
PYTEST ?= -n 3 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo paper test test-arm test-boot soak check format coverage-page clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5
	@echo "targets: install demo paper test test-arm test-boot soak check format coverage-page clean$(patsubst benchmarks/%.py, bench-%,$(wildcard benchmarks/[a-z]*.py))"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cutlayer needs Python 3.11 or newer: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/cutlayer demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST) $(if $(CI),--no-skips)

# The power cut again and again, at random points; takes about ten minutes.
soak: $(STAMP)
	$(BIN)/python -m pytest tests/e2e/test_power_cuts.py -n 2 --power-cuts 40

# The client's ARM image under emulation, all of it; needs root, qemu-user-static, debootstrap, buildah and mosquitto. Writes its page.
test-arm: $(STAMP)
	$(BIN)/python -m tools.arm_image register
	$(BIN)/python -m pytest -n 0 -m "" --no-skips --write-page tests/arm

# Whole machines that are flashed, boot, enrol and train, and lose their power; ten minutes to half an hour. Needs no root, but apt,
# qemu-system-arm, fakeroot, e2fsprogs, dosfstools, mtools, fdisk and mosquitto. Writes its page.
test-boot: $(STAMP)
	$(BIN)/python -m pytest -n 0 -s -m "" --no-skips --write-page tests/boot

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# onnxruntime-training shares its import name with onnxruntime, and ended with Python 3.12.
ORT_TRAINING_PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 2>/dev/null) $(PYTHON))
.venv-ort-training/.installed: ort-training.txt
	$(ORT_TRAINING_PYTHON) -m venv .venv-ort-training
	.venv-ort-training/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r ort-training.txt
	@touch $@

bench-engine: $(STAMP) .venv-ort-training/.installed
	$(BIN)/python -m benchmarks.engine --ort-training-python .venv-ort-training/bin/python

# The link on slow lines, shaped in the kernel: both need root. Goodput, also a part of bench-link; and a run whose line is cut for a minute
# in every phase.
# The paper's tables and its curve, trained anew: about two hours of two cores, cell by cell; ended and started again, it goes on.
paper: bench-paper

bench-link: bench-link-line
bench-link-line: bench-line
bench-link-cuts: bench-line_cuts

# docs/coverage.md, from what the tests train.
coverage-page: $(STAMP)
	$(BIN)/python -m docs.make_coverage

# A benchmark is a script; its results are a page of docs/benchmarks/.
bench-%: benchmarks/%.py $(STAMP)
	$(BIN)/python -m benchmarks.$*

clean:
	rm -rf .venv .venv-ort-training .mypy_cache .ruff_cache .pytest_cache .hypothesis build cutlayer.egg-info
