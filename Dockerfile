# The images: `service` (the last stage, so the default), on the CPU or with RUNTIME=gpu on CUDA; `trainer`, which makes
# the bundles that a service serves. What is in them is locked in requirements/; what they keep out is in .dockerignore.

# An exact version, which its makers rebuild now and then; `make image-pin` adds the digest of today's, where Docker Hub
# can be reached.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
# cpu or gpu: which ONNX Runtime the service has.
ARG RUNTIME=cpu


FROM ${PYTHON_IMAGE} AS base
# The init passes signals on and buries orphans, whoever starts the image and however; `docker run --init` is not needed.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin foldserve \
    && install --directory --owner=foldserve --group=foldserve /models /work
# No run writes bytecode: it is here already, and holds whatever time a file has, because an engine that copies one from
# stage to stage may round that.
ENV PATH=/opt/foldserve/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM


# foldserve itself, as a wheel.
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
# PyTorch's own index has the builds for the CPU; PyPI's build brings gigabytes of CUDA. What is in torch for its own
# tests is for newer Pythons too, and does not compile.
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
# The same as in the service: a new volume is filled by whichever of the two comes first.
COPY --chown=10001:10001 models /models
ENV MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["tini", "-s", "--", "foldserve-train"]
CMD ["--help"]
# As pyproject.toml has it; the Makefile says which commit this is.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="foldserve-train" \
      org.opencontainers.image.description="Trains a batch-norm MLP on a table, folds it, proves it, writes the bundle." \
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
# A volume over it replaces it.
COPY --chown=10001:10001 models /models
ENV FOLDSERVE_MODELS=/models \
    FOLDSERVE_HOST=0.0.0.0
WORKDIR /work
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["foldserve", "health"]
ENTRYPOINT ["tini", "-s", "--", "foldserve"]
CMD ["serve"]
# As pyproject.toml has it; the Makefile says which commit this is.
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
