"""Runs a model on CUDA, on one thread. Batches are padded to a few sizes; each size is captured as a CUDA graph.

This module owns a session, a stream and buffers. It does not know bundles. A run is one copy to the device, one launch
and one copy back, all on the same stream. A batch that is larger than every graph runs without a graph, kernel by
kernel.

ONNX Runtime keeps captured graphs per thread. It replays a graph only with the memory addresses that the capture has
used. Therefore all runs use one thread, and the buffers never move.
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import math
import re
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.service.arrays import Outputs, Rows, Run
from foldserve.service.errors import DeviceError, DeviceLost, DeviceOutOfMemory, FoldserveError
from foldserve.service.runtime.cuda_stream import CudaError, CudaStream, Stream
from foldserve.service.runtime.session import (
    CUDA,
    Options,
    cuda_options,
    one_line,
    open_cuda,
    require_provider,
    run_options,
)
from foldserve.service.runtime.worker_thread import WorkerThread

if TYPE_CHECKING:
    import onnxruntime as ort

# The first runs of cuBLAS and of the arena allocate memory, which is not allowed during a capture.
_RUNS_BEFORE_CAPTURE = 2
# Texts that errors have when memory is full. The errors come from ONNX Runtime's arena, its memory limit, and CUDA.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|smaller than requested bytes|free memory block|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_LOST = re.compile(r"CUDA (failure|error) \d+|CUBLAS failure", re.IGNORECASE)


class CudaRunner:
    """A session on CUDA, for one caller at a time, from any thread.

    connect, open_session: create the stream and the session. Tests pass other functions to simulate CUDA's failures.
    Raises `DeviceError` when CUDA is not available, or has no room for the model and the buffers.
    """

    def __init__(
        self,
        model: bytes,
        options: Options,
        connect: Callable[[], Stream] | None = None,
        open_session: Callable[[bytes, Mapping[str, str]], ort.InferenceSession] = open_cuda,
    ) -> None:
        self._model = model
        self._options = options
        self._connect = connect or _connect
        self._open_session = open_session
        self._thread = WorkerThread("cuda")
        self.lost = False
        # Called with a new session's run function; raises unless the session reproduces the golden outputs.
        self.check_reopened: Callable[[Run], object] = lambda _: None
        self._session: Any = None
        self._graphs: list[tuple[_BoundBuffers, int]] = []  # in the order of `options.buckets`
        self._large: _BoundBuffers | None = None
        self._seconds_to_open = 0.0
        try:
            self._thread.call(self._open)
        except BaseException as error:
            self._thread.end()
            if isinstance(error, FoldserveError) or not isinstance(error, Exception):
                raise
            raise DeviceError(f"CUDA is available, but can't run this model: {one_line(error)}") from error

    def run(self, rows: Rows) -> Outputs:
        """Run the model on one batch.

        Raises `DeviceOutOfMemory`; then the next call uses a new session. Raises `DeviceLost`; then every later call
        raises it again. Also raises any other exception of ONNX Runtime.
        """
        return self._thread.call(lambda: self._run_or_recover(rows))

    def close(self) -> None:
        """Release the device's memory and end the thread. After that, `run` raises `RuntimeError`."""
        self._thread.end(self._close)

    def _open(self) -> None:
        began = time.monotonic()
        self._stream = self._connect()
        try:
            self._session = self._open_session(self._model, cuda_options(self._options, self._stream.address))
            for graph, size in enumerate(self._options.buckets, 1):  # from 1: ONNX Runtime reserves the number 0
                buffers = _BoundBuffers(self._session, self._stream, size)
                for number in (*[None] * _RUNS_BEFORE_CAPTURE, graph):
                    buffers.launch(size, number)
                self._graphs.append((buffers, graph))
            self._stream.wait()
        except BaseException:
            self._close()
            raise
        self._seconds_to_open = time.monotonic() - began

    def _close(self) -> None:
        self._graphs, self._large, self._session = [], None, None  # free these objects before the memory that they use
        self._stream.close()

    def _run_or_recover(self, rows: Rows) -> Outputs:
        if self.lost:
            raise DeviceLost("the device was lost")
        try:
            return self._run(rows)
        except Exception as error:
            out_of_memory, reason = _is_out_of_memory(error), one_line(error)
            if not out_of_memory and not isinstance(error, CudaError) and not _LOST.search(str(error)):
                raise
            # The frames of the error hold the old session, and the next session needs the memory of the old one.
            traceback.clear_frames(error.__traceback__)
        if out_of_memory:
            self._reopen()
            raise DeviceOutOfMemory("the device is out of memory", max(1, math.ceil(self._seconds_to_open)))
        self.lost = True
        raise DeviceLost("the device was lost") from CudaFailure(reason)

    def _run(self, rows: Rows) -> Outputs:
        """Run on the smallest graph that has room, or without a graph."""
        place = bisect_left(self._options.buckets, len(rows))
        if place < len(self._graphs):
            buffers, graph = self._graphs[place]
            return buffers.run(rows, graph)
        if self._large is None or self._large.size < len(rows):
            self._large = None  # free the old buffers before new buffers are allocated
            self._large = _BoundBuffers(self._session, self._stream, 1 << (len(rows) - 1).bit_length())
        return self._large.run(rows, None)

    def _reopen(self) -> None:
        """Open a new session with an empty arena. If the new session can't be opened, the device is lost."""
        try:
            self._close()
            self._open()
            self.check_reopened(self._run)
        except Exception as error:  # noqa: BLE001 (any failure means that the device can't be used)
            self.lost = True
            raise DeviceLost("the device was lost") from CudaFailure(one_line(error))


class CudaFailure(Exception):  # noqa: N818 (only ever a cause)
    """The text of an error of ONNX Runtime or CUDA. The traceback is left out, because it would hold the session."""


def _connect() -> Stream:
    require_provider(CUDA)
    return CudaStream()


class _BoundBuffers:
    """Buffers for `size` rows on the host and on the device, and the session bound to them. The buffers never move."""

    def __init__(self, session: ort.InferenceSession, stream: Stream, size: int) -> None:
        (self._input,), (self._output,) = session.get_inputs(), session.get_outputs()
        self.size = size
        self._session, self._stream = session, stream
        self._rows = stream.buffer((size, self._input.shape[1]))
        self._outputs = stream.buffer((size, self._output.shape[1]))
        self._bound: tuple[int, Any] | None = None  # the number of rows, and ONNX Runtime's binding for it
        self._options: dict[int | None, Any] = {}  # by the number of the graph

    def run(self, rows: Rows, graph: int | None) -> Outputs:
        """Run the model on `rows`. graph: the number of the CUDA graph, which computes all `size` rows, or None.

        The buffer may hold rows of an earlier batch after the last row. These rows have no effect, since the model
        computes each row alone.
        """
        count = len(rows)
        if rows.shape[1:] != self._rows.host.shape[1:]:
            raise ValueError(f"invalid dimensions: rows of shape {rows.shape} for {self._rows.host.shape[1]} columns")
        self._rows.host[:count] = rows
        self._stream.upload(self._rows, count)
        self.launch(count if graph is None else self.size, graph)
        self._stream.download(self._outputs, count)
        self._stream.wait()
        return self._outputs.host[:count].copy()

    def launch(self, count: int, graph: int | None) -> None:
        """Add a run of the first `count` rows to the stream."""
        if self._bound is None or self._bound[0] != count:
            binding = self._session.io_binding()
            for bind, tensor, buffer in (
                (binding.bind_input, self._input, self._rows),
                (binding.bind_output, self._output, self._outputs),
            ):
                bind(tensor.name, self._stream.device, 0, np.float32, (count, buffer.host.shape[1]), buffer.device)
            self._bound = count, binding
        if graph not in self._options:
            self._options[graph] = run_options(graph)
            # The copy back follows on the same stream, so the run need not wait for the device.
            self._options[graph].add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(self._bound[1], self._options[graph])


def _is_out_of_memory(error: Exception) -> bool:
    return error.out_of_memory if isinstance(error, CudaError) else bool(_OUT_OF_MEMORY.search(str(error)))
