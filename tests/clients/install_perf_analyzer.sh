#!/usr/bin/env bash
# Install perf_analyzer into the environment of a Python: install_perf_analyzer.sh .venv-clients/bin/python
#
# The wheels of perf_analyzer need glibc 2.38. An older Debian or Ubuntu gets the last perf_analyzer in a wheel of
# tritonclient, with the two libraries that perf_analyzer links. Wheels of perf-analyzer before 2.58 are empty
# placeholders.
set -euo pipefail
python=$(realpath --no-symlinks "$1")
environment=$(dirname "$(dirname "$python")")
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

if pip install --only-binary :all: perf-analyzer==2.60.0 2>/dev/null; then
    exit
fi
mkdir -p "$environment/perf_analyzer"
cd "$environment/perf_analyzer"
pip install --target cuda --upgrade --no-deps nvidia-cuda-runtime-cu12==12.9.79
pip download --no-deps --dest . tritonclient==2.47.0
"$python" -m zipfile --extract tritonclient-2.47.0-*.whl wheel
apt-get download -qq libb64-0d
dpkg-deb --extract libb64-0d_*.deb b64
binary=$(find wheel -type f -name perf_analyzer)
libraries=$(dirname "$(find "$PWD/b64" -name 'libb64.so.0d')"):$(dirname "$(find "$PWD/cuda" -name 'libcudart.so.12')")
chmod +x "$binary"
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$PWD/$binary" >"$environment/bin/perf_analyzer"
chmod +x "$environment/bin/perf_analyzer"
"$environment/bin/perf_analyzer" --version
