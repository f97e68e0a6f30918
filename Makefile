# Everything a person or CI runs. `make demo` and `make test` need Python 3.11+ and make, nothing else.
#
#   TORCH_INDEX=URL  an index to take torch from besides PyPI: PyTorch's own CPU index spares gigabytes of CUDA
#                    libraries (its address: https://pytorch.org/get-started/locally/)
#   PORT=N           where `make demo` serves

PYTHON ?= python3
VENV ?= .venv
CLIENTS ?= .venv-clients
GPU ?= .venv-gpu
PORT ?= 8000
DEMO := .demo/models
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar on $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help demo test test-slow test-clients test-gpu test-gpu-wheel check bench bench-gpu bench-training bench-ablation install clean

help:
	@echo "make demo   train digits, fold it, prove it, serve it on http://127.0.0.1:$(PORT)"
	@echo "make test   style, types and the whole test suite"
	@echo "make test-slow     whole trainings: killed and resumed, on several processes, over five seeds"
	@echo "make test-clients  tritonclient, KServe's client and perf_analyzer against the server"
	@echo "make test-gpu-wheel  what onnxruntime-gpu refuses where there is no GPU, with the real wheel"
	@echo "make test-gpu        the runtime and training on a GPU"
	@echo "make check  style and types alone"
	@echo "make bench  foldserve beside what else serves such a model; needs wrk; ARGS='--help' for more"
	@echo "make bench-gpu  foldserve on a GPU beside ONNX Runtime and PyTorch there, with PYTHON's packages; ARGS='--help'"
	@echo "make bench-training  foldserve's training beside what else learns from a table; ARGS='--data DIR', ARGS='--help'"
	@echo "make bench-ablation  what each part of the preset best gives; ARGS='--data DIR', ARGS='--help'"
	@echo "make clean  remove what the targets above made"
	@echo "with PORT=N, PYTHON=python3.12, TORCH_INDEX=URL of PyTorch's CPU builds"

demo: install
	@mkdir -p $(DEMO)
	$(BIN)/foldserve-train fit digits --models $(DEMO)
	@newest=$$(ls $(DEMO)/digits | sort -n | tail -n 1); echo; $(BIN)/foldserve verify $(DEMO)/digits/$$newest
	@echo
	exec $(BIN)/foldserve serve --models $(DEMO) --port $(PORT)

test: check
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

# Their environment is their own: their pins exclude those of constraints.txt.
test-clients: install $(CLIENTS)/installed
	SERVER_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -W error -m pytest --confcutdir=tests/clients tests/clients

# onnxruntime-gpu and onnxruntime are one module: the other needs an environment of its own.
test-gpu-wheel: $(GPU)/installed
	$(GPU)/bin/python -W error -m pytest --confcutdir=tests/gpu_wheel tests/gpu_wheel

# Where there is a GPU, TORCH_INDEX names PyTorch's builds for its CUDA.
test-gpu: $(GPU)/installed
	$(PIP:$(BIN)/%=$(GPU)/bin/%) --constraint constraints.txt --editable '.[gpu,train,test]'
	$(GPU)/bin/python -m pytest tests/gpu

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/serving.py $(ARGS)

# With the packages of PYTHON: those of `install` have the CPU's ONNX Runtime, and the two exclude each other.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py $(ARGS)

bench-training: install
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python benchmarks/training.py $(ARGS)

bench-ablation: install
	$(BIN)/python benchmarks/ablation.py $(ARGS)

install: $(VENV)/installed

# The stamp comes last: an install that broke off is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "foldserve needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable '.[cpu,train,tune,test]'
	@touch $@

$(GPU)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU)
	$(PIP:$(BIN)/%=$(GPU)/bin/%) --constraint constraints.txt --editable '.[gpu,test]'
	@touch $@

$(CLIENTS)/installed: tests/clients/requirements.txt tests/clients/install_perf_analyzer.sh
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	tests/clients/install_perf_analyzer.sh $(CLIENTS)/bin/python || echo "no perf_analyzer runs here: its tests are skipped"
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(GPU) .bench .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
