# This Dockerfile builds two images. The image `service` is the default, because it is the last stage. The image
# `service` runs the server on the CPU, or on CUDA with RUNTIME=gpu. The image `trainer` writes the bundles that
# `service` serves. The files in requirements/ lock the packages of both images. .dockerignore lists the files that the
# images may contain.

# The tag names an exact version of Python, but Docker Hub sometimes rebuilds the image of this tag. `make image-pin`
# adds the current digest of the image.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
# RUNTIME chooses the ONNX Runtime of the service: cpu or gpu.
ARG RUNTIME=cpu


FROM ${PYTHON_IMAGE} AS base
# tini forwards signals and reaps orphaned processes, so `docker run --init` is not needed.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin foldserve \
    && install --directory --owner=foldserve --group=foldserve /models /work
# The build compiles the Python code, so a container writes no bytecode. Python checks the bytecode by the hash of its
# source file. The modification time of the source is not reliable, because a copy between stages may round the time.
ENV PATH=/opt/foldserve/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM


# The stage `wheel` builds the wheel of foldserve.
FROM ${PYTHON_IMAGE} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY requirements/build.txt requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary=:all: --no-deps --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY foldserve foldserve
COPY service service
COPY training training
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .


FROM ${PYTHON_IMAGE} AS trainer-dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/train.txt requirements/torch.txt /requirements/
RUN python -m venv --without-pip /opt/foldserve \
    && pip --python /opt/foldserve/bin/python install --require-hashes --only-binary=:all: --no-deps --no-compile \
        --requirement /requirements/train.txt
# Only PyTorch's index has the CPU builds of torch. The torch build on PyPI needs gigabytes of CUDA libraries.
# The module torch.testing._internal is not compiled, because some of its files need a newer Python.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip --python /opt/foldserve/bin/python install --require-hashes --only-binary=:all: --no-deps --no-compile \
        --index-url "${TORCH_INDEX}" --requirement /requirements/torch.txt \
    && /opt/foldserve/bin/python -m compileall -qf -x /torch/testing/_internal/ --invalidation-mode unchecked-hash \
        /opt/foldserve/lib


FROM base AS trainer
COPY --from=trainer-dependencies /opt/foldserve /opt/foldserve
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/foldserve/bin/python install --no-cache-dir --no-index --no-deps --no-compile /wheel/*.whl \
    && python -m compileall -qf --invalidation-mode unchecked-hash /opt/foldserve/lib/python3.*/site-packages/foldserve
# The images `service` and `trainer` contain the same models, because their containers may share a new volume, and
# Docker fills it from whichever image starts first.
COPY --chown=10001:10001 models /models
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["tini", "-s", "--", "foldserve-train"]
CMD ["--help"]
# VERSION is the version in pyproject.toml, and a test compares VERSION with pyproject.toml. The Makefile sets REVISION
# and CREATED.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="foldserve-train" \
      org.opencontainers.image.description="Trains a batch-norm MLP on a table, folds and certifies it, and writes the bundle." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"


FROM ${PYTHON_IMAGE} AS service-dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG RUNTIME
COPY requirements/${RUNTIME}.txt /requirements/
RUN python -m venv --without-pip /opt/foldserve \
    && pip --python /opt/foldserve/bin/python install --require-hashes --only-binary=:all: --no-deps --no-compile \
        --requirement "/requirements/${RUNTIME}.txt" \
    && /opt/foldserve/bin/python -m compileall -qf --invalidation-mode unchecked-hash /opt/foldserve/lib


FROM base AS service
COPY --from=service-dependencies /opt/foldserve /opt/foldserve
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/foldserve/bin/python install --no-cache-dir --no-index --no-deps --no-compile /wheel/*.whl \
    && python -m compileall -qf --invalidation-mode unchecked-hash /opt/foldserve/lib/python3.*/site-packages/foldserve
# If a volume is mounted at /models, it replaces the models of the image.
COPY --chown=10001:10001 models /models
ENV FOLDSERVE_MODELS=/models \
    FOLDSERVE_HOST=0.0.0.0
WORKDIR /work
USER 10001:10001
EXPOSE 8000
# Until the first success, Docker runs the health check at the interval --start-interval. A server on CUDA may need most
# of the start period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --start-interval=1s --retries=3 CMD ["foldserve", "health"]
ENTRYPOINT ["tini", "-s", "--", "foldserve"]
CMD ["serve"]
# VERSION is the version in pyproject.toml, and a test compares VERSION with pyproject.toml. The Makefile sets REVISION
# and CREATED.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="foldserve" \
      org.opencontainers.image.description="Serves folded, certified models over REST with ONNX Runtime." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
