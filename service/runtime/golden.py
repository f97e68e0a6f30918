"""Checks the model of a bundle before the server uses the model: its graph, its interface and its golden outputs.

This module gets an open session and the function that runs it, so it does not depend on devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from foldserve.service.arrays import Rows, Run
from foldserve.service.bundle import (
    DESCRIPTION_KEY,
    MODEL_FILE,
    Bundle,
    Manifest,
    Parity,
    Tolerance,
    describe_manifest,
)
from foldserve.service.errors import BundleError, DeviceError, DeviceLost, DeviceOutOfMemory
from foldserve.service.runtime.session import one_line


def check_graph(bundle: Bundle) -> onnx.ModelProto:
    """Parse the model. Raises `BundleError` unless the model is ONNX with the manifest's opset and no external data.

    ONNX Runtime would read external data from any path that the graph names. The hash of the model does not cover files
    with external data.
    """
    try:
        proto = onnx.load_model_from_string(bundle.model)
    except DecodeError as error:
        raise BundleError(f"{MODEL_FILE} is not an ONNX model") from error
    opsets = [imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")]
    if opsets != [bundle.manifest.model.opset]:
        raise BundleError(f"{MODEL_FILE} is of opset {opsets}, the manifest says {bundle.manifest.model.opset}")
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        for tensor in _tensors(graph):
            if uses_external_data(tensor):
                raise BundleError(f"{MODEL_FILE} keeps a tensor in another file (external data)")
        graphs.extend(
            subgraph
            for node in graph.node
            for a in node.attribute
            for subgraph in (*([a.g] if a.HasField("g") else []), *a.graphs)
        )
    return proto


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant of a graph. The constants of subgraphs are left out."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def check_description(graph: onnx.ModelProto, manifest: Manifest) -> None:
    """Raise `BundleError` if the model's description differs from the manifest's description."""
    for entry in graph.metadata_props:
        if entry.key == DESCRIPTION_KEY and entry.value != describe_manifest(manifest):
            raise BundleError(f"the description in {MODEL_FILE} does not have the manifest's features and labels")


def check_interface(session: Any, manifest: Manifest) -> None:
    """Raise `BundleError` unless the session's inputs and outputs match the manifest's tensors and its features."""
    for kind, promised, found in (
        ("input", manifest.input, session.get_inputs()),
        ("output", manifest.output, session.get_outputs()),
    ):
        # ONNX Runtime gives the name of a dynamic dimension instead of its size.
        interface = [(t.name, t.type, tuple(d if isinstance(d, int) else -1 for d in t.shape)) for t in found]
        if interface != [(promised.name, "tensor(float)", promised.shape)]:
            raise BundleError(f"the {kind} of {MODEL_FILE} is not the manifest's {promised.name!r} {promised.shape}")
    if len(manifest.features) != manifest.input.shape[1]:
        raise BundleError(f"{len(manifest.features)} features for an input of {manifest.input.shape[1]} columns")
    outputs = manifest.output.shape[1]
    if manifest.task == "classification" and len(manifest.labels) != outputs:
        raise BundleError(f"{len(manifest.labels)} labels for an output of {outputs} columns")
    if manifest.task == "regression" and (manifest.labels or outputs != 1):
        raise BundleError(f"a regression with {len(manifest.labels)} labels and an output of {outputs} columns")


def check_golden(
    run: Run, provider: str, manifest: Manifest, tolerance: Tolerance, sizes: Sequence[int] = ()
) -> Parity:
    """Run the golden rows in batches of 1, of 2, of all rows, and of each of `sizes`.

    Return the worst parity of these batches. provider: the name of the provider that runs the batches, for the error
    message. If a batch has more rows than the bundle has golden rows, the golden rows are repeated. Raises
    `BundleError` when an output is outside `tolerance`, and `DeviceError` when the device fails.
    """
    rows, reference = _golden(manifest)
    parities = []
    for size in (1, 2, len(rows), *sizes):
        count = max(size, len(rows))
        repeated = np.resize(rows, (count, rows.shape[1]))
        try:
            outputs = np.concatenate([run(repeated[i : i + size]) for i in range(0, count, size)])
        except (DeviceLost, DeviceOutOfMemory) as error:
            raise DeviceError(f"on the golden rows, {error}") from error
        except Exception as error:
            raise BundleError(f"on the golden rows, the model failed to run: {one_line(error)}") from error
        parities.append(tolerance.measure(np.resize(reference, (count, reference.shape[1])), outputs))
    worst = max(parities, key=lambda parity: (not parity.holds, parity.worst))
    if not worst.holds:
        raise BundleError(
            f"on {provider} the golden outputs differ by {worst.max_absolute:.3g}, "
            f"{worst.worst:.3g} times the tolerance"
        )
    return worst


def _golden(manifest: Manifest) -> tuple[Rows, npt.NDArray[np.float64]]:
    """Return the golden rows, and the reference's outputs for these rows as a float64 array [rows, outputs]."""
    golden = manifest.golden
    try:
        exact = np.array(golden.inputs, dtype=np.float64)  # null becomes NaN
        reference = np.array(golden.outputs, dtype=np.float64)
    except ValueError as error:
        raise BundleError("the golden rows differ in length") from error
    if not len(exact) or exact.shape != (len(reference), manifest.input.shape[1]):
        raise BundleError(f"golden rows of shape {exact.shape}, and {len(reference)} outputs")
    for feature, column in zip(manifest.features, zip(*golden.inputs, strict=True), strict=True):
        if not all(map(feature.admits, column)):
            raise BundleError(f"a golden row holds an invalid value in column {feature.name!r}")
    if (np.abs(exact) > np.finfo(np.float32).max).any():
        raise BundleError("a golden row holds a value that is too large for float32")
    return exact.astype(np.float32), reference
