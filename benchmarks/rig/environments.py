"""Installs each contender in a separate virtual environment, and builds commands that run on one core."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS = ROOT / "benchmarks" / "contenders"

# Every library gets one thread. A program has only one core, and several threads would compete for this core.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class StartError(Exception):
    """Raised if a contender can't be installed or started. The error message has one line."""


def environment(name: str) -> Path:
    """Return the path of Python in a contender's virtual environment.

    Create the environment again if the requirements have changed.
    """
    folder, wanted = ROOT / ".bench" / name, (CONTENDERS / f"{name}.txt").read_text()
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} in {folder.relative_to(ROOT)}", file=sys.stderr)
    _install([sys.executable, "-m", "venv", "--clear", str(folder)])
    _install([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(CONTENDERS / f"{name}.txt")])
    stamp.write_text(wanted)
    return python


def packages(name: str) -> Path:
    """Return a folder with the packages of a contender, but without their dependencies. Python can
    import the packages if the folder is on PYTHONPATH.

    A contender that needs PyTorch uses the PyTorch that is installed for foldserve.
    """
    folder, wanted = ROOT / ".bench" / name, (CONTENDERS / f"{name}.txt").read_text()
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {name} in {folder.relative_to(ROOT)}", file=sys.stderr)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        _install([*pip, "--requirement", str(CONTENDERS / f"{name}.txt")])
        stamp.write_text(wanted)
    return folder


def modules(name: str) -> Path:
    """Return a folder whose node_modules has the npm packages of a contender. The versions are pinned in the
    contender's package.json.
    """
    folder, wanted = ROOT / ".bench" / name, (CONTENDERS / name / "package.json").read_text()
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {name} in {folder.relative_to(ROOT)}", file=sys.stderr)
        npm = shutil.which("npm")
        if npm is None:
            raise StartError("can't be installed: npm is missing; apt-get install nodejs npm")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        # Without --onnxruntime-node-install=skip, the package of ONNX Runtime downloads its CUDA libraries.
        _install([npm, "install", "--prefix", str(folder), "--silent", "--onnxruntime-node-install=skip"])
        stamp.write_text(wanted)
    return folder


def pins(name: str, package: str) -> list[str]:
    """Return the pinned versions in a contender's requirements as "package version", for packages whose name ends in
    `package`.
    """
    text = (CONTENDERS / f"{name}.txt").read_text()
    return [found.replace("==", " ") for found in re.findall(rf"^.*{package}==.*$", text, re.MULTILINE)]


def npm_pins(name: str) -> dict[str, str]:
    """Return the versions of the npm packages of a contender, by package."""
    document: dict[str, dict[str, str]] = json.loads((CONTENDERS / name / "package.json").read_text())
    return document["dependencies"]


def _install(program: Sequence[str]) -> None:
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")]
        raise StartError(f"can't be installed: {(lines or ['the installer failed'])[-1][:200]}")


def pinned(core: int, program: Sequence[str]) -> list[str]:
    """Return the command that runs a program and its child processes on one core."""
    return ["taskset", "--cpu-list", str(core), *program]


def variables() -> dict[str, str]:
    """Return the environment variables for a contender. The variables do not include the FOLDSERVE_* settings of the
    shell.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOLDSERVE_")}
    return kept | _ONE_THREAD
