"""A simulated GPU for the CUDA runner.

The simulated GPU uses host memory as device memory. The sessions of the simulated GPU run on the CPU.

Sessions read and write the simulated device memory, so a missing or late copy changes the outputs. As in CUDA, a
capture records the work without doing the work. During a capture, an allocation or a wait is refused. The tests in
tests/cuda_harness use ONNX Runtime's own CUDA provider without a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from foldserve.service.runtime.cuda_stream import Buffer, CudaError
from foldserve.service.runtime.session import open_cpu


@dataclass
class SimulatedGpu:
    """A simulated GPU that records the calls to it.

    log: the calls in order. threads: the threads that made the calls. options: the provider's options for each session.
    fails: a function that returns the exception that the next call raises, or None. works: False if the device has
    failed for good.
    recorded: the work that the current capture has recorded; None without a capture.
    """

    log: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    options: list[dict[str, str]] = field(default_factory=list)
    fails: Callable[[], Exception | None] = lambda: None
    works: bool = True
    recorded: list[Callable[[], object]] | None = None

    def connect(self) -> HostStream:
        self.record("connect")
        return HostStream(self)

    def open_session(self, model: bytes, options: dict[str, str]) -> Any:
        self.record("open")
        self.options.append(options)
        self.fail()
        return SimulatedSession(open_cpu(model, 1), self)

    def record(self, call: str) -> None:
        self.log.append(call)
        self.threads.add(threading.get_ident())

    def fail(self) -> None:
        if error := self.fails():
            raise error

    def add(self, work: Callable[[], object]) -> None:
        """Do the work. During a capture, record the work instead of doing it."""
        if self.recorded is None:
            work()
        else:
            self.recorded.append(work)

    def refuse_in_capture(self, function: str) -> None:
        if self.recorded is not None:
            raise CudaError(function, 900, "operation not permitted when stream is capturing")


class HostStream:
    """A stream on host memory that does all work immediately."""

    device = "cpu"
    address = 4711

    def __init__(self, gpu: SimulatedGpu) -> None:
        self._gpu = gpu
        self._device: dict[int, Any] = {}
        self._graphs: list[list[Callable[[], object]]] = []

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        self._gpu.refuse_in_capture("cudaMalloc")
        device = np.full(shape, np.nan, np.float32)
        self._device[device.ctypes.data] = device
        return Buffer(np.full(shape, np.nan, np.float32), device.ctypes.data)

    def free(self, buffer: Buffer) -> None:
        self._gpu.record(f"free {len(buffer.host)}")
        del self._device[buffer.device]

    def upload(self, buffer: Buffer, rows: int) -> None:
        def copy() -> None:
            self._device[buffer.device][:rows] = buffer.host[:rows]

        self._gpu.record(f"upload {rows}")
        self._gpu.add(copy)

    def download(self, buffer: Buffer, rows: int) -> None:
        def copy() -> None:
            buffer.host[:rows] = self._device[buffer.device][:rows]

        self._gpu.record(f"download {rows}")
        self._gpu.add(copy)

    def event(self) -> int:
        return 0

    def upload_meanwhile(self, buffer: Buffer, rows: int, event: int) -> None:  # noqa: ARG002
        self.upload(buffer, rows)

    def record(self, event: int) -> None:  # noqa: ARG002
        self._gpu.record("record")

    def wait_for(self, event: int) -> None:  # noqa: ARG002
        self._gpu.record("wait for")

    def capture(self, add_work: Callable[[], object]) -> Callable[[], None]:
        place, number = len(self._graphs), len(self._graphs) + 1
        self._gpu.record(f"capture {number}")
        self._gpu.recorded = []
        self._graphs.append(self._gpu.recorded)
        try:
            add_work()
        finally:
            self._gpu.recorded = None

        def launch() -> None:
            self._gpu.record(f"launch {number}")
            self._gpu.fail()
            for work in self._graphs[place]:
                work()

        return launch

    def wait(self) -> None:
        self._gpu.refuse_in_capture("cudaStreamSynchronize")
        self._gpu.record("wait")

    def works(self) -> bool:
        return self._gpu.works

    def close(self) -> None:
        self._gpu.record("close")
        self._graphs.clear()
        self._device.clear()


class SimulatedSession:
    """A session on the CPU that records its runs."""

    def __init__(self, real: ort.InferenceSession, gpu: SimulatedGpu) -> None:
        self._real = real
        self._gpu = gpu

    def get_inputs(self) -> Any:
        return self._real.get_inputs()

    def get_outputs(self) -> Any:
        return self._real.get_outputs()

    def io_binding(self) -> Any:
        return self._real.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("gpu_graph_id") == "-1"
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        self._gpu.record("run")
        self._gpu.fail()
        self._gpu.add(lambda: self._real.run_with_iobinding(binding, options))
