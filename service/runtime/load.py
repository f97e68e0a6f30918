"""Opens a bundle's model on the requested device.

`load` returns the model only if the model reproduces the golden outputs on this device. A model that reproduces the
golden outputs is called "ready". This module chooses the device. This module does not depend on HTTP or queues.
"""

from __future__ import annotations

from dataclasses import replace

import onnx

from foldserve.service.arrays import Outputs, Rows, Run
from foldserve.service.bundle import Bundle, Manifest, Parity
from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.runtime.cpu import CpuRunner
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.golden import check_description, check_golden, check_graph, check_interface
from foldserve.service.runtime.precision import convert, widen
from foldserve.service.runtime.session import CPU, CUDA, Options, is_expected
from foldserve.service.runtime.shortcuts import NO_SHORTCUTS, Shortcuts, prepare

# A Concat with more inputs than this number can't be captured, because each run of this Concat needs memory on the
# host.
_MOST_INPUTS_IN_GRAPH = 32


class Runtime:
    """A loaded model that runs batches, for one caller at a time.

    provider: ONNX Runtime's name of the execution provider. why: a text that says why the model runs on this
    device. crossover: batches with fewer rows than this number run on the CPU, even if CUDA works.
    """

    def __init__(self, cpu: CpuRunner, cuda: CudaRunner | None, crossover: int, why: str) -> None:
        self._cpu = cpu
        self._cuda = cuda
        self._crossover = crossover
        self.provider = CPU if cuda is None else CUDA
        self.why = why

    @property
    def providers(self) -> tuple[str, ...]:
        """The names of all providers that may run a batch, with `provider` first."""
        return (self.provider, CPU) if self._crossover else (self.provider,)

    @property
    def lost(self) -> bool:
        """Whether the device has failed. After a device has failed, only a new process can use the device again."""
        return self._cuda is not None and self._cuda.lost

    def run(self, rows: Rows) -> Outputs:
        """Run the model on one batch.

        Raises `DeviceOutOfMemory`, `DeviceLost`, or another exception of ONNX Runtime. Outputs that are not finite
        raise no error here, because only the caller knows the request of each row.
        """
        if self._cuda is None or len(rows) < self._crossover:
            return self._cpu.run(rows)
        return self._cuda.run(rows)

    def close(self) -> None:
        """Release the device's memory."""
        if self._cuda is not None:
            self._cuda.close()


def load(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    """Open and check the model of `bundle`. Return the model, and the worst parity on the golden rows.

    Raises `DeviceError` when the device is not available. Raises `BundleError` in these cases: the graph has external
    data; ONNX Runtime can't run the model; the model's interface differs from the manifest; the model does not
    reproduce the golden outputs.
    """
    try:
        graph = check_graph(bundle)
        cpu = CpuRunner(bundle.model, options.threads)
        check_interface(cpu.session, bundle.manifest)
        check_description(graph, bundle.manifest)
        why, reason = "requested", "the CPU is requested"
        if options.device != "cpu":
            try:
                return _load_on_cuda(graph, cpu, bundle.manifest, options)
            except DeviceError as refusal:
                if options.device == "cuda":
                    raise
                why, reason = "this machine has no NVIDIA GPU" if is_expected(refusal) else str(refusal), str(refusal)
        if options.precision != "fp32":
            raise DeviceError(f"precision {options.precision} needs CUDA: {reason}")
        return Runtime(cpu, None, 0, why), _check_on_cpu(cpu, bundle.manifest)
    except BundleError as error:
        raise BundleError(error.reason, bundle.path) from error


def _load_on_cuda(
    graph: onnx.ModelProto, cpu: CpuRunner, manifest: Manifest, options: Options
) -> tuple[Runtime, Parity]:
    crossover = options.crossover if options.device == "auto" else 0
    no_graphs = any(len(node.input) > _MOST_INPUTS_IN_GRAPH for node in graph.graph.node)
    if no_graphs:
        options = replace(options, buckets=())
    prepared, shortcuts = prepare(graph, options)
    refused = ""
    try:
        cuda, parity = _open_on_cuda(prepared, shortcuts, manifest, options)
    except (BundleError, DeviceError) as error:
        if shortcuts == NO_SHORTCUTS:
            raise
        refused = str(error)
        cuda, parity = _open_on_cuda(graph, NO_SHORTCUTS, manifest, options)
    if crossover:
        try:
            parity = max(parity, _check_on_cpu(cpu, manifest), key=lambda parity: parity.worst)
        except BaseException:
            cuda.close()
            raise
    why = "requested" if options.device == "cuda" else "CUDA is available"
    if options.precision != "fp32":
        why += f"; products in {options.precision}"
    if no_graphs:
        why += f"; no CUDA graphs, since a node has more than {_MOST_INPUTS_IN_GRAPH} inputs"
    if refused:
        why += f"; no shortcuts, since with them: {refused}"
    if crossover:
        why += f"; fewer than {crossover} rows run on the CPU"
    return Runtime(cpu, cuda, crossover, why), parity


def _open_on_cuda(
    graph: onnx.ModelProto, shortcuts: Shortcuts, manifest: Manifest, options: Options
) -> tuple[CudaRunner, Parity]:
    """Open a runner. Raises `BundleError` or `DeviceError` unless the model reproduces the golden outputs."""
    cuda = CudaRunner(convert(graph, options.precision), options, shortcuts=shortcuts)
    # A batch of three pieces uses one of the two buffers twice, so this batch is checked too.
    in_pieces = (2 * shortcuts.piece + 1,) if shortcuts.piece else ()

    def check(run: Run) -> Parity:
        tolerance = widen(manifest.certificate.tolerance, options.precision)
        return check_golden(run, CUDA, manifest, tolerance, (*options.buckets, *in_pieces))

    try:
        parity = check(cuda.run)
    except BaseException:
        cuda.close()
        raise
    cuda.check_reopened = check
    return cuda, parity


def _check_on_cpu(cpu: CpuRunner, manifest: Manifest) -> Parity:
    return check_golden(cpu.run, CPU, manifest, manifest.certificate.tolerance)
