"""Runs on CUDA: batches padded to a few sizes, each of them captured as a CUDA graph, all on one thread.

It knows rows, a session and a stream, no bundle. A run is one copy up, one launch and one copy down on one stream,
between buffers that no other run uses; batches larger than every graph are launched kernel by kernel.

ONNX Runtime keeps the graphs that it captured by thread, and replays one only with the addresses it was captured with:
hence the thread and the buffers. https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import math
import re
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

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

if TYPE_CHECKING:
    import onnxruntime as ort

Rows = npt.NDArray[np.float32]
Result = TypeVar("Result")

# What cuBLAS and the arena allocate in their first runs can't be allocated while a graph is captured.
_PLAIN_RUNS = 2
# As ONNX Runtime's arena, its limit and CUDA say it.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|Failed to allocate memory|smaller than requested bytes|free memory block|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_LOST = re.compile(r"CUDA (failure|error) \d+|CUBLAS failure", re.IGNORECASE)


class CudaRunner:
    """A session on CUDA for one caller at a time, from whichever thread.

    connect, open_session: what makes the stream and the session; for tests of what CUDA would do. Raises `DeviceError`
    where CUDA does not answer, or has no room for the model and its buffers.
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
        self._thread = _Thread()
        self.lost = False
        # What a session made anew must pass before it answers anybody: it is given the runs of that session.
        self.prove: Callable[[Callable[[Rows], Rows]], object] = lambda _: None
        self._session: Any = None
        self._graphs: list[tuple[_Place, int]] = []
        self._large: _Place | None = None
        self._seconds_to_open = 0.0
        try:
            self._thread.call(self._open)
        except BaseException as error:
            self._thread.end()
            if isinstance(error, FoldserveError) or not isinstance(error, Exception):
                raise
            raise DeviceError(f"CUDA answers, but can't serve this model: {one_line(error)}") from error

    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs].

        Raises `DeviceOutOfMemory`, after which the next call has a new session; `DeviceLost`, after which nothing
        works any more; or what else ONNX Runtime raises.
        """
        return self._thread.call(lambda: self._guarded(rows))

    def close(self) -> None:
        """Give the device's memory back, and end the thread. Nothing runs after that."""
        self._thread.end(self._close)

    def _open(self) -> None:
        began = time.monotonic()
        self._stream = self._connect()
        try:
            self._session = self._open_session(self._model, cuda_options(self._options, self._stream.address))
            for number, size in enumerate(self._options.buckets, 1):  # 0 is ONNX Runtime's own
                place = _Place(self._session, self._stream, size)
                for graph in (*[None] * _PLAIN_RUNS, number):
                    place.launch(size, graph)
                self._graphs.append((place, number))
            self._stream.wait()
        except BaseException:
            self._close()
            raise
        self._seconds_to_open = time.monotonic() - began

    def _close(self) -> None:
        self._graphs, self._large, self._session = [], None, None  # what uses the memory goes before the memory
        self._stream.close()

    def _guarded(self, rows: Rows) -> Rows:
        if self.lost:
            raise DeviceLost("the device was lost")
        try:
            return self._run(rows)
        except Exception as error:
            out_of_memory, reason = _is_out_of_memory(error), one_line(error)
            if not out_of_memory and not isinstance(error, CudaError) and not _LOST.search(str(error)):
                raise
            # Its frames hold the session, whose memory the next one needs.
            traceback.clear_frames(error.__traceback__)
        if out_of_memory:
            self._rebuild()
            raise DeviceOutOfMemory("the device is out of memory", max(1, math.ceil(self._seconds_to_open)))
        self.lost = True
        raise DeviceLost("the device was lost") from CudaFailure(reason)

    def _run(self, rows: Rows) -> Rows:
        """Run on the smallest captured size that has room, or plainly."""
        place = bisect_left(self._options.buckets, len(rows))
        if place < len(self._graphs):
            graph, number = self._graphs[place]
            return graph.run(rows, number)
        if self._large is None or self._large.size < len(rows):
            self._large = None
            self._large = _Place(self._session, self._stream, 1 << (len(rows) - 1).bit_length())
        return self._large.run(rows, None)

    def _rebuild(self) -> None:
        """Begin anew with an arena that holds nothing. Where even that fails, the device is as good as lost."""
        try:
            self._close()
            self._open()
            self.prove(self._run)
        except Exception as error:  # noqa: BLE001 (whatever it is)
            self.lost = True
            raise DeviceLost("the device was lost") from CudaFailure(one_line(error))


class CudaFailure(Exception):  # noqa: N818 (it is told, not handled)
    """What ONNX Runtime or CUDA said, without the frames in which they said it."""


def _connect() -> Stream:
    require_provider(CUDA)
    return CudaStream()


class _Place:
    """Room for `size` rows on both sides, and the session bound to it. It never moves."""

    def __init__(self, session: ort.InferenceSession, stream: Stream, size: int) -> None:
        (self._inputs,), (self._outputs,) = session.get_inputs(), session.get_outputs()
        self.size = size
        self._session, self._stream = session, stream
        self._above = stream.buffer((size, self._inputs.shape[1]))
        self._below = stream.buffer((size, self._outputs.shape[1]))
        self._bound: tuple[int, Any] | None = None
        self._options: dict[int | None, Any] = {}

    def run(self, rows: Rows, graph: int | None) -> Rows:
        """Map the rows by CUDA graph number `graph`, of all of `size`; None: plainly, these rows alone.

        The rows of a batch don't see each other, so what an earlier run has left behind the last one is of no effect.
        """
        count = len(rows)
        if rows.shape[1:] != self._above.host.shape[1:]:
            raise ValueError(f"invalid dimensions: rows of shape {rows.shape} for {self._above.host.shape[1]} columns")
        self._above.host[:count] = rows
        self._stream.upload(self._above, count)
        self.launch(count if graph is None else self.size, graph)
        self._stream.download(self._below, count)
        self._stream.wait()
        return self._below.host[:count].copy()

    def launch(self, count: int, graph: int | None) -> None:
        """Put a run of the first `count` rows on the stream."""
        if self._bound is None or self._bound[0] != count:
            binding = self._session.io_binding()
            for bind, tensor, buffer in (
                (binding.bind_input, self._inputs, self._above),
                (binding.bind_output, self._outputs, self._below),
            ):
                bind(tensor.name, self._stream.device, 0, np.float32, (count, buffer.host.shape[1]), buffer.device)
            self._bound = count, binding
        if graph not in self._options:
            self._options[graph] = run_options(graph)
            # What follows is on the same stream.
            self._options[graph].add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._session.run_with_iobinding(self._bound[1], self._options[graph])


def _is_out_of_memory(error: Exception) -> bool:
    return error.out_of_memory if isinstance(error, CudaError) else bool(_OUT_OF_MEMORY.search(str(error)))


class _Thread:
    """One thread, which does what others ask of it while they wait."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        # Half the time there and back of a concurrent.futures executor: 9 us against 21.
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._one_caller = threading.Lock()
        self._ended = False
        threading.Thread(target=self._work, name="cuda", daemon=True).start()

    def call(self, work: Callable[[], Result]) -> Result:
        """Do `work` there, and return or raise what it does. Raises `RuntimeError` after the end."""
        with self._one_caller:
            if self._ended:
                raise RuntimeError("this runner is closed")
            return self._done(work)

    def end(self, last: Callable[[], object] | None = None) -> None:
        """Do `last`, and end the thread. A second time it does nothing."""
        with self._one_caller:
            if self._ended:
                return
            self._ended = True
            try:
                if last is not None:
                    self._done(last)
            finally:
                self._asked.put(None)

    def _done(self, work: Callable[[], Result]) -> Result:
        self._asked.put(work)
        result: Result
        result, error = self._answers.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # a cycle with its own traceback would keep all that its frames hold
        return result

    def _work(self) -> None:
        while (work := self._asked.get()) is not None:
            try:
                self._answers.put((work(), None))
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                self._answers.put((None, error))
            del work
