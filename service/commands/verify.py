"""`foldserve verify`: checks a bundle again on this machine, as a server does before it serves the model."""

from __future__ import annotations

from pathlib import Path

from foldserve.service.bundle import read
from foldserve.service.errors import DeviceError
from foldserve.service.runtime.golden import check_graph
from foldserve.service.runtime.load import load
from foldserve.service.runtime.session import Options


def run(path: Path) -> None:
    """Check the bundle in the folder `path`, and print a line for each check that passes.

    CUDA is skipped, with the reason, if it is not available. Raises `BundleError` for the first check that fails, and
    `DeviceError` if ONNX Runtime is not installed.
    """
    bundle = read(path)
    manifest = bundle.manifest
    _print("ok", "hash", f"sha256 {manifest.model.sha256}, {manifest.model.size:,} bytes")
    graph = check_graph(bundle).graph
    _print("ok", "graph", f"{' '.join(node.op_type for node in graph.node)}, opset {manifest.model.opset}")
    for options in (Options("cpu"), Options("cuda")):
        try:
            _, parity = load(bundle, options)
        except DeviceError as error:
            if options.device == "cpu":
                raise
            _print("skip", options.device, str(error))
            continue
        _print(
            "ok",
            options.device,
            f"{parity.rows} golden rows, in batches of 1, of 2 and of all: largest difference "
            f"{parity.max_absolute:.2g}, {parity.worst:.2%} of the tolerance",
        )
    print(f"{manifest.name}/{manifest.version} is the model that its manifest certifies")


def _print(status: str, check: str, found: str) -> None:
    print(f"{status:<5} {check:<12} {found}")
