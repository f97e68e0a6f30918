"""Helpers for the tests of `foldserve tune`: invented latencies, a missing device, and devices that use host memory."""

from __future__ import annotations

import numpy as np

from foldserve.service.bundle import Bundle, Parity
from foldserve.service.commands.tune.latency import Curve
from foldserve.service.errors import DeviceError
from foldserve.service.runtime.cpu import CpuRunner
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.load import Runtime
from foldserve.service.runtime.session import Options
from tests.service.simulated_cuda import SimulatedGpu

BATCHES = (1, 4, 16, 64, 256, 1024)
US = 1e-6


def curve(*microseconds: float) -> Curve:
    return {batch: value * US for batch, value in zip(BATCHES, microseconds, strict=True)}


ONE_THREAD = curve(10, 12, 20, 50, 200, 800)
GRAPHS = curve(32, 32, 33, 40, 60, 120)
PLAIN = curve(90, 90, 90, 95, 110, 160)


def load_on_fake_gpu(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    """Load a model in the same way as on a machine with a GPU. The device's memory is host memory."""
    gpu = SimulatedGpu()
    cuda = CudaRunner(bundle.model, options, gpu.connect, gpu.open_session) if options.device != "cpu" else None
    return Runtime(CpuRunner(bundle.model, options.threads), cuda, options.crossover, "test"), _parity(bundle)


def load_without_gpu(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    if options.device != "cpu":
        raise DeviceError("no GPU today")
    return Runtime(CpuRunner(bundle.model, options.threads), None, 0, "test"), _parity(bundle)


def load_without_plain_runs(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    return (load_on_fake_gpu if options.buckets else load_without_gpu)(bundle, options)


class SmallRunner(CpuRunner):
    """A device that has memory for only a few rows."""

    room = 16

    def run(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) > self.room:
            raise MemoryError("no room")
        return super().run(rows)


def load_with_little_memory(bundle: Bundle, options: Options) -> tuple[Runtime, Parity]:
    return Runtime(SmallRunner(bundle.model, options.threads), None, 0, "test"), _parity(bundle)


def _parity(bundle: Bundle) -> Parity:
    return bundle.manifest.certificate.measurements[0].parity
