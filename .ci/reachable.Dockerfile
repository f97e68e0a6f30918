# Builds only where a container reaches the two package indexes that the images need. `.ci/run` asks this first.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
FROM ${PYTHON_IMAGE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m pip download --quiet --no-deps --dest /tmp/reachable idna \
    && python3 -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=30)" "${TORCH_INDEX}/torch/"
