"""A simulated GPU for the CUDA runner.

The simulated GPU uses host memory as device memory. Its sessions run on the CPU.

Sessions read and write the bound buffers, so a missing or late copy changes the outputs. CUDA graphs are not simulated,
but the number of each graph is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort

from foldserve.service.runtime.cuda_stream import Buffer
from foldserve.service.runtime.session import open_cpu


class HostStream:
    """A stream on host memory that does all work at once."""

    device = "cpu"
    address = 4711

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self._device: dict[int, Any] = {}

    def buffer(self, shape: tuple[int, int]) -> Buffer:
        device = np.full(shape, np.nan, np.float32)
        self._device[device.ctypes.data] = device
        return Buffer(np.full(shape, np.nan, np.float32), device.ctypes.data)

    def upload(self, buffer: Buffer, rows: int) -> None:
        self.log.append(f"upload {rows}")
        self._device[buffer.device][:rows] = buffer.host[:rows]

    def download(self, buffer: Buffer, rows: int) -> None:
        self.log.append(f"download {rows}")
        buffer.host[:rows] = self._device[buffer.device][:rows]

    def wait(self) -> None:
        self.log.append("wait")

    def close(self) -> None:
        self.log.append("close")
        self._device.clear()


@dataclass
class SimulatedGpu:
    """A GPU that records the calls to it.

    log: the calls in order. threads: the threads that made the calls. options: the provider's options for each session.
    fails: returns the exception that the next call raises, or None.
    """

    log: list[str] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    options: list[dict[str, str]] = field(default_factory=list)
    fails: Callable[[], Exception | None] = lambda: None

    def connect(self) -> HostStream:
        self._record("connect")
        return HostStream(self.log)

    def open_session(self, model: bytes, options: dict[str, str]) -> Any:
        self._record("open")
        self.options.append(options)
        if error := self.fails():
            raise error
        return SimulatedSession(open_cpu(model, 1), self)

    def _record(self, what: str) -> None:
        self.log.append(what)
        self.threads.add(threading.get_ident())


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

    def run(self, outputs: Any, inputs: Any, options: Any) -> Any:
        self._run("plain", options)
        return self._real.run(outputs, inputs, options)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._run("bound", options)
        self._real.run_with_iobinding(binding, options)

    def _run(self, how: str, options: Any) -> None:
        self._gpu._record(f"{how} {options.get_run_config_entry('gpu_graph_id')}")
        if error := self._gpu.fails():
            raise error
