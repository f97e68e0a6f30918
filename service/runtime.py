"""One ONNX Runtime session: open it on the device asked for, prove it against its bundle, run it.

It knows a bundle and arrays, no HTTP and no queue. A session that `load` returns has given the golden outputs on
the device that will serve; that is what "ready" means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import uses_external_data

from service.bundle import MODEL_FILE, Bundle, Manifest, Parity
from service.errors import BundleError, DeviceError

try:
    import onnxruntime as ort
except ModuleNotFoundError:
    ort = None

Device = Literal["auto", "cpu", "cuda"]
Rows = npt.NDArray[np.float32]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# TF32 keeps 10 bits of a float32's 23: a folded model would miss its golden outputs, and its certificate.
_OPTIONS = {"cpu": {}, "cuda": {"use_tf32": "0"}}
# Larger batches gain nothing from arrays of their own.
_BOUND_ROWS = 32
_SILENT = 4  # ONNX Runtime's log severity "fatal": what it has to say comes back as an exception, once


@dataclass(frozen=True)
class Runtime:
    """A session that runs on `provider`, because `why`. It is for one caller at a time."""

    session: ort.InferenceSession
    provider: str
    why: str
    input: str
    output: str
    bindings: dict[int, _Binding | None] = field(default_factory=dict)

    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs].

        Raises what ONNX Runtime raises. A value need not be finite: that is for the caller whose row it is.
        """
        binding = self._binding(len(rows)) if len(rows) <= _BOUND_ROWS else None
        if binding is not None and rows.shape == binding.shape:
            return binding.run(rows)
        outputs: Rows
        (outputs,) = self.session.run([self.output], {self.input: rows})
        return outputs

    def _binding(self, count: int) -> _Binding | None:
        try:
            return self.bindings[count]
        except KeyError:
            inputs, outputs = self.session.get_inputs()[0], self.session.get_outputs()[0]
            fits = self.provider == _PROVIDERS["cpu"] and all(
                tensor.type == "tensor(float)" and len(tensor.shape) == 2 and type(tensor.shape[1]) is int
                for tensor in (inputs, outputs)
            )
            self.bindings[count] = _Binding(self.session, inputs, outputs, count) if fits else None
            return self.bindings[count]


class _Binding:
    """One number of rows, with arrays of its own that the session reads and writes: half the cost of a small run."""

    def __init__(self, session: ort.InferenceSession, inputs: ort.NodeArg, outputs: ort.NodeArg, count: int) -> None:
        self._session = session
        self.shape = (count, inputs.shape[1])
        self._input = np.zeros(self.shape, np.float32)
        self._output = np.zeros((count, outputs.shape[1]), np.float32)
        self._bound = session.io_binding()
        # Without options each run makes its own; and whether there is a GPU graph is asked by an exception, unless
        # it is said that there is none.
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", "-1")
        for bind, tensor, array in (
            (self._bound.bind_input, inputs, self._input),
            (self._bound.bind_output, outputs, self._output),
        ):
            bind(tensor.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, rows: Rows) -> Rows:
        self._input[...] = rows
        self._session.run_with_iobinding(self._bound, self._options)
        return self._output.copy()


def load(bundle: Bundle, device: Device, threads: int) -> tuple[Runtime, Parity]:
    """Open a session for `bundle` and prove it; the parity is that of the golden rows.

    threads: of one `run`, on the CPU. Raises `DeviceError` when the device does not answer, `BundleError` when the
    graph has external data, is not what ONNX Runtime runs, has another interface than the manifest's, or misses
    the golden outputs.
    """
    try:
        check_graph(bundle)
        runtime = open_session(bundle, device, threads)
        check_interface(runtime, bundle.manifest)
        return runtime, check_golden(runtime, bundle.manifest)
    except BundleError as error:
        raise BundleError(error.reason, bundle.path) from error


def check_graph(bundle: Bundle) -> onnx.ModelProto:
    """Parse the model. Raises `BundleError` when it is no ONNX, of another opset, or has a tensor in another file.

    External data would be read by ONNX Runtime from wherever the path points, past the hash.
    """
    try:
        proto = onnx.load_model_from_string(bundle.model)
    except DecodeError as error:
        raise BundleError("model.onnx is no ONNX model") from error
    opsets = [imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")]
    if opsets != [bundle.manifest.model.opset]:
        raise BundleError(f"{MODEL_FILE} is of opset {opsets}, the manifest says {bundle.manifest.model.opset}")
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        for tensor in _tensors(graph):
            if uses_external_data(tensor):
                raise BundleError("model.onnx keeps a tensor in another file (external data)")
        graphs.extend(
            subgraph
            for node in graph.node
            for a in node.attribute
            for subgraph in (*([a.g] if a.HasField("g") else []), *a.graphs)
        )
    return proto


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def open_session(bundle: Bundle, device: Device, threads: int) -> Runtime:
    """Open a session on the device that was asked for; `auto` is CUDA where it answers, and else the CPU."""
    if device != "auto":
        session, chosen, why = _session(bundle.model, device, threads), device, "asked for"
    else:
        try:
            session, chosen, why = _session(bundle.model, "cuda", threads), "cuda", "CUDA answers"
        except DeviceError as refusal:
            session, chosen, why = _session(bundle.model, "cpu", threads), "cpu", str(refusal)
    manifest = bundle.manifest
    return Runtime(session, _PROVIDERS[chosen], why, manifest.input.name, manifest.output.name)


def _session(model: bytes, device: Literal["cpu", "cuda"], threads: int) -> ort.InferenceSession:
    """Open a session on exactly `device`. ONNX Runtime would turn to the CPU in silence; three things forbid it."""
    if ort is None:
        raise DeviceError("no ONNX Runtime is installed: pip install 'foldserve[cpu]' or 'foldserve[gpu]'")
    provider = _PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise DeviceError("this ONNX Runtime is built without CUDA; foldserve[gpu] brings one that has it")
    ort.set_default_logger_severity(_SILENT)
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    # A spinning thread burns the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # The CUDA libraries of foldserve[gpu] lie in site-packages, where the loader does not look by itself.
        ort.preload_dlls(cudnn=False)
    try:
        # The fallback is Python's own: it would print, and open another session on the CPU.
        session = ort.InferenceSession(model, options, providers=[(provider, _OPTIONS[device])], enable_fallback=False)
    except Exception as error:
        # A listed provider need not load: onnxruntime-gpu lists CUDA on a machine without a GPU.
        if device == "cuda":
            _session(model, "cpu", threads)  # a graph that nobody runs is the bundle's fault, not the device's
            raise DeviceError(
                f"CUDA does not answer; are there a GPU, a driver, CUDA's libraries? ({_one_line(error)})"
            ) from error
        raise BundleError(f"ONNX Runtime refuses {MODEL_FILE}: {_one_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{device} was asked for, the session came back on {session.get_providers()[0]}")
    return session


def check_interface(runtime: Runtime, manifest: Manifest) -> None:
    """Raise `BundleError` unless the graph's inputs and outputs are the manifest's, and fit its features."""
    session = runtime.session
    for kind, promised, found in (
        ("input", manifest.input, session.get_inputs()),
        ("output", manifest.output, session.get_outputs()),
    ):
        # ONNX Runtime gives a dynamic dimension as its name.
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


def check_golden(runtime: Runtime, manifest: Manifest) -> Parity:
    """Run the golden rows alone, in pairs and together; the parity is the worst of the three.

    Raises `BundleError` when one is outside the certificate's tolerance.
    """
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
            raise BundleError(f"a golden row holds in column {feature.name!r} what no row may have there")
    if (np.abs(exact) > np.finfo(np.float32).max).any():
        raise BundleError("a golden row holds a value that is too large for float32")
    rows = exact.astype(np.float32)
    found = []
    for size in (1, 2, len(rows)):
        batches = (rows[i : i + size] for i in range(0, len(rows), size))
        try:
            outputs = np.concatenate([runtime.run(batch) for batch in batches])
        except Exception as error:
            raise BundleError(f"on the golden rows, the model failed to run: {_one_line(error)}") from error
        found.append(manifest.certificate.tolerance.measure(reference, outputs))
    worst = max(found, key=lambda parity: (not parity.holds, parity.worst))
    if not worst.holds:
        raise BundleError(
            f"on {runtime.provider} the golden rows are off by {worst.max_absolute:.3g}, "
            f"{worst.worst:.3g} times what the certificate allows"
        )
    return worst


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # ONNX Runtime opens with a code: "[ONNXRuntimeError] : 1 : FAIL : ".
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", lines[0]) if lines else type(error).__name__
