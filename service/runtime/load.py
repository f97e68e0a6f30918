"""A model that runs: its sessions opened on the device asked for, each proven against the bundle.

It knows a bundle and arrays, no HTTP and no queue. What `load` returns has given the golden outputs on whatever will
serve, in the precision that will serve; that is what "ready" means.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx

from foldserve.service.bundle import Bundle, Manifest, Parity
from foldserve.service.errors import BundleError, DeviceError
from foldserve.service.runtime.cpu import CpuRunner
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.golden import check_golden, check_graph, check_interface
from foldserve.service.runtime.precision import converted, tolerance
from foldserve.service.runtime.session import CPU, CUDA, Options

Rows = npt.NDArray[np.float32]


class Runtime:
    """A model that runs on `provider`, because `why`; small batches on the CPU where that was asked for.

    It is for one caller at a time.
    """

    def __init__(self, cpu: CpuRunner, cuda: CudaRunner | None, crossover: int, why: str) -> None:
        self._cpu = cpu
        self._cuda = cuda
        self._crossover = crossover
        self.provider = CPU if cuda is None else CUDA
        self.why = why

    @property
    def providers(self) -> tuple[str, ...]:
        """Name what batches may be run on."""
        return (self.provider, CPU) if self._crossover else (self.provider,)

    @property
    def lost(self) -> bool:
        """Whether the device has failed and nothing but a new process will help."""
        return self._cuda is not None and self._cuda.lost

    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs].

        Raises `DeviceOutOfMemory`, `DeviceLost`, or what else ONNX Runtime raises. A value need not be finite: that
        is for the caller whose row it is.
        """
        if self._cuda is None or len(rows) < self._crossover:
            return self._cpu.run(rows)
        return self._cuda.run(rows)

    def close(self) -> None:
        """Give the device's memory back."""
        if self._cuda is not None:
            self._cuda.close()


def load(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    """Open what `options` ask for and prove it; the parity is the golden rows' worst.

    Raises `DeviceError` when the device does not answer, `BundleError` when the graph has external data, is not what
    ONNX Runtime runs, has another interface than the manifest's, or misses the golden outputs.
    """
    try:
        graph = check_graph(bundle)
        cpu = CpuRunner(bundle.model, options.threads)
        check_interface(cpu.session, bundle.manifest)
        why = "asked for"
        if options.device != "cpu":
            try:
                return _on_cuda(graph, cpu, bundle.manifest, options)
            except DeviceError as refusal:
                if options.device == "cuda":
                    raise
                why = str(refusal)
        if options.precision != "fp32":
            reason = "the CPU is asked for" if options.device == "cpu" else why
            raise DeviceError(f"precision {options.precision} is for CUDA: {reason}")
        return Runtime(cpu, None, 0, why), _proven_on_the_cpu(cpu, bundle.manifest)
    except BundleError as error:
        raise BundleError(error.reason, bundle.path) from error


def _on_cuda(graph: onnx.ModelProto, cpu: CpuRunner, manifest: Manifest, options: Options) -> tuple[Runtime, Parity]:
    crossover = options.crossover if options.device == "auto" else 0
    cuda = CudaRunner(converted(graph, options.precision), options)

    def proven_on_cuda(run: Callable[[Rows], Rows]) -> Parity:
        allowed = tolerance(manifest.certificate.tolerance, options.precision)
        return check_golden(run, CUDA, manifest, allowed, options.buckets)

    try:
        found = [proven_on_cuda(cuda.run)]
        if crossover:
            found.append(_proven_on_the_cpu(cpu, manifest))
        cuda.prove = proven_on_cuda
    except BaseException:
        cuda.close()
        raise
    why = "asked for" if options.device == "cuda" else "CUDA answers"
    if options.precision != "fp32":
        why += f"; products in {options.precision}"
    if crossover:
        why += f"; fewer than {crossover} rows run on the CPU"
    return Runtime(cpu, cuda, crossover, why), max(found, key=lambda parity: parity.worst)


def _proven_on_the_cpu(cpu: CpuRunner, manifest: Manifest) -> Parity:
    return check_golden(cpu.run, CPU, manifest, manifest.certificate.tolerance)
