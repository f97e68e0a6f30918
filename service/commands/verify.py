"""`foldserve verify`: checks a bundle again on this machine, as a server does before it serves the model."""

from __future__ import annotations

from pathlib import Path

from foldserve.service.bundle import Bundle, find_bundle, require_place
from foldserve.service.errors import DeviceError
from foldserve.service.figures import format_difference, format_percent
from foldserve.service.runtime.golden import check_graph
from foldserve.service.runtime.load import load
from foldserve.service.runtime.session import Device, Options, is_expected


def run(path: Path, device: Device = "auto") -> None:
    """Check the bundle in the folder `path`.

    If `path` is the folder of a model, check the newest version of the model. Print a line for each check that passes.

    device: `auto` checks the model on the CPU, and on CUDA if it is available. If the machine has a GPU or an ONNX
    Runtime for CUDA, the command prints the reason why CUDA is skipped. `cpu` never checks CUDA, and `cuda` requires
    it.
    Raises `BundleError` for the first check that fails. Raises `DeviceError` if ONNX Runtime is not installed, or if
    the required CUDA is not available.
    """
    bundle = find_bundle(path)
    manifest = bundle.manifest
    print_check("ok", "hash", f"sha256 {manifest.model.sha256}, {manifest.model.size:,} bytes")
    if bundle.warning:
        print_check("warn", "seal", bundle.warning)
    else:
        print_check("ok", "seal", f"sha256 {bundle.digest} of the manifest")
    require_place(bundle)
    print_check("ok", "name", f"{manifest.name}/{manifest.version}, as the folder")
    prove(bundle, device)
    print(f"{manifest.name}/{manifest.version} is the model that its manifest certifies")


def prove(bundle: Bundle, device: Device = "auto") -> None:
    """Check the graph, the interface and the golden rows of a bundle on each device, and print a line for each check.

    Raises as `run`.
    """
    graph = check_graph(bundle).graph
    print_check("ok", "graph", f"{' '.join(node.op_type for node in graph.node)}, opset {bundle.manifest.model.opset}")
    for options in (Options("cpu"), Options("cuda"))[: 1 if device == "cpu" else 2]:
        try:
            _, parity = load(bundle, options)
        except DeviceError as error:
            if options.device == "cpu" or device == "cuda":
                raise
            if not is_expected(error):
                print_check("skip", options.device, str(error))
            continue
        print_check(
            "ok",
            options.device,
            f"{parity.rows} golden rows, in batches of 1, of 2 and of all: largest difference "
            f"{format_difference(parity.max_absolute)}, {format_percent(parity.worst)} of the tolerance",
        )


def print_check(status: str, check: str, found: str) -> None:
    """Print the line of one check."""
    print(f"{status:<5} {check:<12} {found}")
