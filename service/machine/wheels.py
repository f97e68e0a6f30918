"""Lists the installed wheels of ONNX Runtime from pip's records. Importing a broken wheel could end the process."""

from __future__ import annotations

from importlib import metadata

WHEELS = ("onnxruntime", "onnxruntime-gpu")  # both wheels install the module onnxruntime, and overwrite each other


def installed() -> list[str]:
    """Return the names of the installed wheels. If there is more than one wheel, the installation is broken."""
    return [name for name in WHEELS if _is_installed(name)]


def _is_installed(wheel: str) -> bool:
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True
