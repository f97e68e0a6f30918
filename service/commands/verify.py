"""`foldserve verify`: checks a bundle again on this machine, as a server does before it serves the model."""

from __future__ import annotations

from pathlib import Path

from foldserve.service.bundle import Bundle, read, require_place
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
    print_check("ok", "hash", f"sha256 {manifest.model.sha256}, {manifest.model.size:,} bytes")
    if bundle.warning:
        print_check("warn", "seal", bundle.warning)
    else:
        print_check("ok", "seal", f"sha256 {bundle.digest} of the manifest")
    require_place(bundle)
    print_check("ok", "name", f"{manifest.name}/{manifest.version}, as the folder")
    prove(bundle)
    print(f"{manifest.name}/{manifest.version} is the model that its manifest certifies")


def prove(bundle: Bundle) -> None:
    """Check the graph, the interface and the golden rows of a bundle on each device, and print a line for each check.

    Raises as `run`.
    """
    graph = check_graph(bundle).graph
    print_check("ok", "graph", f"{' '.join(node.op_type for node in graph.node)}, opset {bundle.manifest.model.opset}")
    for options in (Options("cpu"), Options("cuda")):
        try:
            _, parity = load(bundle, options)
        except DeviceError as error:
            if options.device == "cpu":
                raise
            print_check("skip", options.device, str(error))
            continue
        print_check(
            "ok",
            options.device,
            f"{parity.rows} golden rows, in batches of 1, of 2 and of all: largest difference "
            f"{parity.max_absolute:.2g}, {parity.worst:.2%} of the tolerance",
        )


def print_check(status: str, check: str, found: str) -> None:
    """Print the line of one check."""
    print(f"{status:<5} {check:<12} {found}")
