"""Runs on CUDA: batches padded to a few sizes, each of them captured as a CUDA graph, all on one thread.

It knows rows, a session and a stream, no bundle. A run of a captured size is one copy up, one launch and one copy
down on one stream, between buffers that never move; larger batches are plain runs.

ONNX Runtime keeps the graphs that it captured by thread, and replays one only with the addresses it was captured with:
hence the thread and the buffers. https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from service.errors import DeviceLost, DeviceOutOfMemory
from service.session import CUDA, Options, cuda_options, open_cuda, require, run_options
from service.stream import Buffer, CudaError, CudaStream, Stream

if TYPE_CHECKING:
    import onnxruntime as ort

Rows = npt.NDArray[np.float32]
Result = TypeVar("Result")

# What cuBLAS and the arena allocate in their first runs can't be allocated while a graph is captured.
_PLAIN_RUNS = 2
_RETRY_SECONDS = 1
_OUT_OF_MEMORY = re.compile(r"out of memory|Failed to allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.I)
_LOST = re.compile(r"CUDA (failure|error) \d+|CUBLAS failure|CUDNN failure", re.I)


class CudaRunner:
    """A session on CUDA for one caller at a time, from whichever thread. Raises `DeviceError` where there is none.

    connect, open_session: what makes the stream and the session; for tests of what CUDA would do.
    """

    provider = CUDA

    def __init__(
        self,
        model: bytes,
        options: Options,
        connect: Callable[[], Stream] | None = None,
        open_session: Callable[[bytes, dict[str, str]], ort.InferenceSession] = open_cuda,
    ) -> None:
        self._model = model
        self._options = options
        self._connect = connect or _connect
        self._open_session = open_session
        self._thread = _Thread()
        self.lost = False
        self._session: Any = None
        self._graphs: list[_Graph] = []
        try:
            self._thread.call(self._open)
        except BaseException:
            self._thread.end()
            raise

    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs].

        Raises `DeviceOutOfMemory`, after which the next call has a new session; `DeviceLost`, after which nothing
        works any more; or what else ONNX Runtime raises.
        """
        return self._thread.call(lambda: self._guarded(rows))

    def close(self) -> None:
        """Give the device's memory back, and end the thread."""
        self._thread.call(self._close)
        self._thread.end()

    def _open(self) -> None:
        self._stream = self._connect()
        try:
            session = self._session = self._open_session(self._model, cuda_options(self._options, self._stream.address))
            self._plain = run_options()
            self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name
            for number, size in enumerate(self._options.buckets):
                graph = _Graph.bound(session, self._stream, size, number)
                self._graphs.append(graph)
                for _ in range(_PLAIN_RUNS):
                    session.run_with_iobinding(graph.binding, self._plain)
                session.run_with_iobinding(graph.binding, graph.options)
            self._stream.wait()
        except BaseException:
            self._stream.close()
            raise
        self._sizes = [graph.size for graph in self._graphs]

    def _close(self) -> None:
        self._graphs, self._session = [], None  # they use the memory that goes now
        self._stream.close()

    def _guarded(self, rows: Rows) -> Rows:
        if self.lost:
            raise DeviceLost("the device was lost")
        try:
            return self._run(rows)
        except Exception as error:
            if _is_out_of_memory(error):
                self._rebuild()
                raise DeviceOutOfMemory("the device is out of memory", _RETRY_SECONDS) from error
            if isinstance(error, CudaError) or _LOST.search(str(error)):
                self.lost = True
                raise DeviceLost("the device was lost") from error
            raise

    def _run(self, rows: Rows) -> Rows:
        """Run on the smallest captured size that has room, or plainly.

        The rows of a batch don't see each other, so what an earlier run has left behind the last one is of no effect.
        """
        count = len(rows)
        place = bisect_left(self._sizes, count)
        if place == len(self._sizes) or rows.shape[1:] != self._graphs[place].input.host.shape[1:]:
            outputs: Rows
            (outputs,) = self._session.run([self._output], {self._input: rows}, self._plain)
            return outputs
        graph = self._graphs[place]
        graph.input.host[:count] = rows
        self._stream.upload(graph.input, count)
        self._session.run_with_iobinding(graph.binding, graph.options)
        self._stream.download(graph.output, count)
        self._stream.wait()
        return graph.output.host[:count].copy()

    def _rebuild(self) -> None:
        """Begin anew with an arena that holds nothing. Where even that fails, the device is as good as lost."""
        try:
            self._close()
            self._open()
        except Exception as error:
            self.lost = True
            raise DeviceLost("the device was lost") from error


def _connect() -> Stream:
    require(CUDA)
    return CudaStream()


@dataclass(frozen=True)
class _Graph:
    """One batch size: its buffers, bound, and the options by which ONNX Runtime captures it once and then replays."""

    size: int
    input: Buffer
    output: Buffer
    binding: Any
    options: Any

    @classmethod
    def bound(cls, session: ort.InferenceSession, stream: Stream, size: int, number: int) -> _Graph:
        (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
        above, below = (stream.buffer((size, tensor.shape[1])) for tensor in (inputs, outputs))
        binding = session.io_binding()
        for bind, tensor, buffer in (
            (binding.bind_input, inputs, above),
            (binding.bind_output, outputs, below),
        ):
            bind(tensor.name, stream.device, 0, np.float32, buffer.host.shape, buffer.device)
        options = run_options(number)
        # The copy down is on the same stream, and waited for once.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return cls(size, above, below, binding, options)


def _is_out_of_memory(error: Exception) -> bool:
    return error.out_of_memory if isinstance(error, CudaError) else bool(_OUT_OF_MEMORY.search(str(error)))


class _Thread:
    """One thread, which does what others ask of it while they wait."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        # Half the time there and back of a concurrent.futures executor: 9 us against 21.
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._one_caller = threading.Lock()
        threading.Thread(target=self._work, name="cuda", daemon=True).start()

    def call(self, work: Callable[[], Result]) -> Result:
        """Do `work` there, and return or raise what it does."""
        with self._one_caller:
            self._asked.put(work)
            result: Result
            result, error = self._answers.get()
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """End the thread, once it has nothing left to do."""
        self._asked.put(None)

    def _work(self) -> None:
        while (work := self._asked.get()) is not None:
            try:
                self._answers.put((work(), None))
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                self._answers.put((None, error))
