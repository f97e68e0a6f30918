# Everything a person or CI runs. `make demo` and `make test` need Python 3.11+ and make, nothing else.
#
#   TORCH_INDEX=URL  an index to take torch from besides PyPI: PyTorch's own CPU index spares gigabytes of CUDA
#                    libraries (its address: https://pytorch.org/get-started/locally/)
#   PORT=N           where `make demo` serves
#   IMAGE_TOOL=...   what `make image-check` builds and runs images with: docker, or a stand-in for where there is no
#                    engine, whose commands tests/image/tool.py names

PYTHON ?= python3
VENV ?= .venv
CLIENTS ?= .venv-clients
GPU ?= .venv-gpu
LOCK ?= .venv-lock
IMAGE_TOOL ?= docker
PORT ?= 8000
DEMO := .demo/models
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar on $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# What an image is labelled with, and where its torch is from.
IMAGE_ARGUMENTS = --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	--build-arg REVISION=$(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown) \
	--build-arg CREATED=$(shell git log -1 --format=%cI 2>/dev/null || echo unknown) \
	$(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))
IMAGE_BUILD = docker build $(IMAGE_ARGUMENTS)
# PyPI by name: whatever index this machine prefers has no say in what an image is made of.
UV = $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --constraints constraints.txt \
	--config-file requirements/uv.toml --custom-compile-command 'make lock' --default-index https://pypi.org/simple

.PHONY: help demo test test-slow test-clients test-gpu test-gpu-wheel check bench bench-gpu bench-training bench-ablation install clean \
	lock image image-gpu image-trainer image-check image-pin

help:
	@echo "make demo   train digits, fold it, prove it, serve it on http://127.0.0.1:$(PORT)"
	@echo "make test   style, types and the whole test suite"
	@echo "make test-slow     whole trainings: killed and resumed, on several processes, over five seeds"
	@echo "make test-clients  tritonclient, KServe's client and perf_analyzer against the server"
	@echo "make test-gpu-wheel  what onnxruntime-gpu refuses where there is no GPU, with the real wheel"
	@echo "make test-gpu        the runtime and training on a GPU"
	@echo "make check  style and types alone"
	@echo "make docs   write the tables of docs/deployment.md anew"
	@echo "make bench  foldserve beside what else serves such a model; needs wrk; ARGS='--help' for more"
	@echo "make bench-gpu  foldserve on a GPU beside ONNX Runtime and PyTorch there, with PYTHON's packages; ARGS='--help'"
	@echo "make bench-training  foldserve's training beside what else learns from a table; ARGS='--data DIR', ARGS='--help'"
	@echo "make bench-ablation  what each part of the preset best gives; ARGS='--data DIR', ARGS='--help'"
	@echo "make image          foldserve:cpu, the service with digits in it: docker run -p 8000:8000 foldserve:cpu"
	@echo "make image-gpu      foldserve:gpu, the same on CUDA: docker run --gpus all -p 8000:8000 foldserve:gpu"
	@echo "make image-trainer  foldserve:trainer: docker run -v TABLES:/work -v MODELS:/models foldserve:trainer fit TABLE.csv --models /models"
	@echo "make image-check    build all three, run them, prove what they promise; IMAGE_TOOL=docker, ARGS='--only cpu'"
	@echo "make image-pin      write the digest of the base image into the Dockerfile, from Docker Hub"
	@echo "make lock           write requirements/ anew from pyproject.toml and constraints.txt; with TORCH_INDEX torch's hashes too"
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
	$(BIN)/hadolint Dockerfile

.PHONY: docs
docs: install
	$(BIN)/python docs/write_tables.py

bench: install
	$(BIN)/python benchmarks/serving.py $(ARGS)

# With the packages of PYTHON: those of `install` have the CPU's ONNX Runtime, and the two exclude each other.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py $(ARGS)

bench-training: install
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python benchmarks/training.py $(ARGS)

bench-ablation: install
	$(BIN)/python benchmarks/ablation.py $(ARGS)

image:
	$(IMAGE_BUILD) --tag foldserve:cpu .

image-gpu:
	$(IMAGE_BUILD) --build-arg RUNTIME=gpu --tag foldserve:gpu .

image-trainer:
	$(IMAGE_BUILD) --target trainer --tag foldserve:trainer .

image-check:
	@$(PYTHON) -m tests.image.check --tool $(IMAGE_TOOL) $(IMAGE_ARGUMENTS) $(ARGS)

image-pin:
	@image=$$(sed -n 's/^ARG PYTHON_IMAGE=\([^@]*\).*/\1/p' Dockerfile); \
	digest=$$(docker buildx imagetools inspect "$$image" --format '{{.Manifest.Digest}}') && \
	{ echo "$$digest" | grep -Eqx 'sha256:[0-9a-f]{64}' || { echo "no digest: $$digest" >&2; exit 1; }; } && \
	sed -i.bak "s|^\(ARG PYTHON_IMAGE=\).*|\1$$image@$$digest|" Dockerfile && rm Dockerfile.bak && grep '^ARG PYTHON_IMAGE=' Dockerfile

# torch's small build for the CPU is in PyTorch's own index alone, and so are its hashes.
lock: $(LOCK)/installed
	$(UV) --extra cpu --output-file requirements/cpu.txt pyproject.toml
	$(UV) --extra gpu --output-file requirements/gpu.txt pyproject.toml
	$(UV) --extra cpu --extra train --extra tune --no-emit-package torch --output-file requirements/train.txt pyproject.toml
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	| $(UV) --output-file requirements/build.txt -
	torch=$$(sed -n 's/^torch==.*/&+cpu/p' constraints.txt); $(if $(TORCH_INDEX),\
	echo "$$torch" | $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-deps \
		--custom-compile-command 'make lock TORCH_INDEX=URL' --default-index $(TORCH_INDEX) --output-file requirements/torch.txt -,\
	grep -q "^$$torch" requirements/torch.txt || sed -i.bak "s/^torch==.*/$$torch/; /^ *--hash/d" requirements/torch.txt; rm -f requirements/torch.txt.bak)

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

$(LOCK)/installed: constraints.txt
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip --disable-pip-version-check install --progress-bar on --constraint constraints.txt uv
	@touch $@

$(CLIENTS)/installed: tests/clients/requirements.txt tests/clients/install_perf_analyzer.sh
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	tests/clients/install_perf_analyzer.sh $(CLIENTS)/bin/python || echo "no perf_analyzer runs here: its tests are skipped"
	@touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(GPU) $(LOCK) .bench .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
