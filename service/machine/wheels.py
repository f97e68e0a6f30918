"""Which ONNX Runtime is installed, by what pip says. It imports none: one that is broken may do anything then."""

from __future__ import annotations

from importlib import metadata

WHEELS = ("onnxruntime", "onnxruntime-gpu")  # they install one module, over each other


def installed() -> list[str]:
    """Name the wheels that are installed: one where all is well."""
    return [name for name in WHEELS if _is_installed(name)]


def _is_installed(wheel: str) -> bool:
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True
