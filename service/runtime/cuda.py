"""Runs a model on CUDA. Each batch is padded to one of a few sizes, and each size has a captured CUDA graph.

This module owns a session and a stream, and recovers from failures. The module `cuda_buffers` has the code that runs a
batch. This module does not depend on bundles. A CUDA graph contains the copies and the kernels of a run, so a run with
a graph needs only one launch and one wait. A batch that is larger than every graph runs without a graph, kernel by
kernel.

ONNX Runtime could capture CUDA graphs itself, but this module captures them, for three reasons. ONNX Runtime keeps
separate graphs for each thread. To launch a graph, ONNX Runtime needs a whole call, and its graphs do not contain the
copies. ONNX Runtime captures in CUDA's global mode, in which no other model may allocate memory. docs/cuda.md has the
details.
"""

from __future__ import annotations

import ctypes
import math
import re
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from foldserve.service.arrays import Outputs, Rows, Run
from foldserve.service.errors import DeviceError, DeviceLost, DeviceOutOfMemory, FoldserveError
from foldserve.service.runtime.cuda_buffers import BoundBuffers, LargeBatches
from foldserve.service.runtime.cuda_stream import CudaError, CudaStream, Stream
from foldserve.service.runtime.session import (
    CUDA,
    Options,
    cuda_options,
    is_out_of_memory,
    one_line,
    open_cuda,
    require_provider,
)
from foldserve.service.runtime.shortcuts import NO_SHORTCUTS, Shortcuts

if TYPE_CHECKING:
    import onnxruntime as ort

# Errors of ONNX Runtime for a failed device: "CUDA failure 700: ...", "CUDA error cudaErrorIllegalAddress:...".
_LOST = re.compile(r"CUDA (failure \d+|error \w+)|CUBLAS failure", re.IGNORECASE)


class CudaRunner:
    """A session on CUDA, for any number of threads. If several threads call `run`, the runs happen one after another.

    shortcuts: the shortcuts for which `model` is prepared. connect: a function that creates the stream. open_session: a
    function that creates the session. Tests pass other functions to simulate failures of CUDA. Raises `DeviceError`
    when CUDA is not available, or has no room for the model and the buffers.
    """

    def __init__(
        self,
        model: bytes,
        options: Options,
        connect: Callable[[], Stream] | None = None,
        open_session: Callable[[bytes, Mapping[str, str]], ort.InferenceSession] = open_cuda,
        shortcuts: Shortcuts = NO_SHORTCUTS,
    ) -> None:
        self._shortcuts = shortcuts
        self._model = model
        self._options = options
        self._connect = connect or _connect
        self._open_session = open_session
        self._one_run = threading.Lock()
        self._closed = False
        self.lost = False
        # After `_open` has opened a new session, it passes the function that runs this session to `check_reopened`.
        # `check_reopened` raises an error unless the new session reproduces the golden outputs.
        self.check_reopened: Callable[[Run], object] = lambda _: None
        self._session: Any = None
        self._graphs: list[BoundBuffers] = []  # one graph for each bucket, in the order of `options.buckets`
        self._large: LargeBatches | None = None
        self._seconds_to_open = 0.0
        try:
            self._open()
        except FoldserveError:
            raise
        except Exception as error:
            raise DeviceError(f"CUDA is available, but can't run this model: {one_line(error)}") from error

    def run(self, rows: Rows) -> Outputs:
        """Run the model on one batch.

        Raises `DeviceOutOfMemory` if the device has no memory for the run; the next call then uses a new session.
        Raises `DeviceLost` if the device has failed; every later call then raises `DeviceLost` again. Raises
        `RuntimeError` if the runner is closed. Also raises any other exception of ONNX Runtime.
        """
        with self._one_run:
            if self._closed:
                raise RuntimeError("this runner is closed")
            return self._run_or_recover(rows)

    def close(self) -> None:
        """Release the device's memory. If the runner is already closed, this method does nothing."""
        with self._one_run:
            if not self._closed and not self.lost:
                self._close()
            self._closed = True

    def _open(self) -> None:
        began = time.monotonic()
        self._stream = self._connect()
        try:
            self._session = self._open_session(self._model, cuda_options(self._options, self._stream.address))
            for size in self._options.buckets:
                self._graphs.append(BoundBuffers(self._session, self._stream, size, self._shortcuts))
                self._graphs[-1].capture()
            self._stream.wait()
            self.check_reopened(self._run)
        except BaseException as error:
            # The traceback's frames keep the session alive, and the session's destructor uses the stream, so clear the
            # frames before the stream is closed.
            traceback.clear_frames(error.__traceback__)
            self._close()
            raise
        self._seconds_to_open = time.monotonic() - began

    def _close(self) -> None:
        if self._large is not None:
            self._large.stop()
        if not self._stream.works():
            # Some destructors of ONNX Runtime abort the process if the device reports an error. One extra reference
            # keeps the session alive until the process ends, so that its destructor never runs. The operating system
            # then frees the memory.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
            return
        self._graphs, self._large, self._session = [], None, None  # free the graphs before the memory that they use
        self._stream.close()

    def _run_or_recover(self, rows: Rows) -> Outputs:
        if self.lost:
            raise DeviceLost("the device was lost")
        try:
            return self._run(rows)
        except Exception as error:
            out_of_memory, reason = is_out_of_memory(error), one_line(error)
            failed = isinstance(error, CudaError) or _LOST.search(str(error)) is not None
            works = self._stream.works()
            if works and not failed and not out_of_memory:
                raise
            # The traceback's frames keep the old session alive, but the next session needs the old session's memory.
            traceback.clear_frames(error.__traceback__)
        if out_of_memory and works:
            self._reopen()
            raise DeviceOutOfMemory("the device is out of memory", max(1, math.ceil(self._seconds_to_open)))
        self.lost = True
        self._close()
        raise DeviceLost("the device was lost") from CudaFailure(reason)

    def _run(self, rows: Rows) -> Outputs:
        """Run the model with the smallest CUDA graph that has room for the rows, or without a graph."""
        place = bisect_left(self._options.buckets, len(rows))
        if place < len(self._graphs):
            return self._graphs[place].run(rows)
        size = 1 << (len(rows) - 1).bit_length()
        if self._shortcuts.piece:
            size = min(size, self._shortcuts.piece)
        if self._large is None or self._large.size < size:
            if self._large is not None:  # free the old buffers before new buffers are allocated
                self._large.free()
                self._large = None
            self._large = LargeBatches(self._session, self._stream, size, self._shortcuts)
        return self._large.run(rows)

    def _reopen(self) -> None:
        """Open a new session with an empty arena. If the new session can't be opened, the device is lost."""
        try:
            self._close()
            self._open()
        except Exception as error:  # noqa: BLE001 (any failure means that the device can't be used)
            self.lost = True
            raise DeviceLost("the device was lost") from CudaFailure(one_line(error))


class CudaFailure(Exception):  # noqa: N818 (only ever a cause)
    """An exception that contains the message of an ONNX Runtime or CUDA error.

    This exception has no traceback, because a traceback would keep the session alive.
    """


def _connect() -> Stream:
    require_provider(CUDA)
    return CudaStream()
