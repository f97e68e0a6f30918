"""Runs batches on CUDA with buffers that are bound to a session.

This module does not depend on bundles, and does not handle a failed device. A large batch runs in pieces. While the GPU
computes one piece, the host copies the next piece to page-locked memory, and from there to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.machine import cgroup
from foldserve.service.runtime.cuda_stream import Stream
from foldserve.service.runtime.session import run_options
from foldserve.service.runtime.shortcuts import Shortcuts

if TYPE_CHECKING:
    import onnxruntime as ort

# While a CUDA graph is captured, no memory may be allocated. The first run allocates memory for each tensor. After the
# first run, ONNX Runtime plans one block of memory for all tensors, and the second run allocates the block.
_RUNS_BEFORE_CAPTURE = 2
# A kernel writes outputs of at most this number of bytes directly to the host. Larger outputs are copied after the run,
# because the copy is then faster than direct writes.
_MOST_WRITTEN = 2**14
_SLOTS = 2  # the GPU computes one piece while the host copies the next piece
# Several threads fill the page-locked memory, because one thread copies only about a fifth as fast as the bus to the
# GPU.
_FILLING_THREADS = 4
_LEAST_PER_THREAD = 2**20  # for fewer bytes, the start of a second thread takes longer than the copy


class BoundBuffers:
    """Buffers for `size` rows on the host and on the device, and the session bound to them. The buffers never move."""

    def __init__(self, session: ort.InferenceSession, stream: Stream, size: int, shortcuts: Shortcuts) -> None:
        (self._input,), (self._output,) = session.get_inputs(), session.get_outputs()
        self.size = size
        self._session, self._stream, self._shortcuts = session, stream, shortcuts
        self._rows = stream.buffer((size, self._input.shape[1]))
        try:
            self._outputs = stream.buffer((size, self._output.shape[1]))
        except BaseException:
            stream.free(self._rows)
            raise
        self.columns = self._input.shape[1] - shortcuts.ones
        if shortcuts.ones:
            self._rows.host[:, self.columns :] = 0
            self._rows.host[:, self.columns] = 1
        self._bound: tuple[int, Any] | None = None  # a batch size, and ONNX Runtime's binding for this size
        self._replay: Callable[[], None] | None = None
        self._options = run_options()
        # A run need not wait for the device, because the copy of the outputs follows on the same stream. While a CUDA
        # graph is captured, a run must not wait for the device.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def capture(self) -> None:
        """Capture a CUDA graph of a run of all `size` rows, including the copies to and from the device.

        Later calls of `run` launch the captured graph.
        """
        add_run = partial(self._add_run, self.size, self._stream.upload)
        for _ in range(_RUNS_BEFORE_CAPTURE):
            add_run()
        self._stream.wait()
        # `add_run` is a partial object, not a lambda. After an error, a lambda in the traceback's frames would keep the
        # session alive, even after `traceback.clear_frames`.
        self._replay = self._stream.capture(add_run)

    def run(self, rows: Rows) -> Outputs:
        """Run the model on at most `size` rows.

        After the last row of this batch, the buffer may still hold rows of an earlier batch. Rows of an earlier batch
        have no effect, because the model computes each row alone.
        """
        count = len(rows)
        self.check(rows)
        self._rows.host[:count, : self.columns] = rows
        if self._replay is None:
            self._add_run(count, self._stream.upload)
        else:
            self._replay()
        self._stream.wait()
        return self._outputs.host[:count].copy()

    def check(self, rows: Rows) -> None:
        """Raise `ValueError` unless the rows have as many columns as the model has features."""
        if rows.shape[1:] != (self.columns,):
            raise ValueError(f"invalid dimensions: rows of shape {rows.shape} for {self.columns} columns")

    def begin(self, rows: Rows, event: int, pool: ThreadPoolExecutor) -> None:
        """Copy the rows to the buffer, begin a run, and record `event` after the run.

        The caller must first wait until the last run with this buffer is done.
        """
        count = len(rows)
        target = self._rows.host[:count, : self.columns]
        parts = min(_FILLING_THREADS, max(1, rows.nbytes // _LEAST_PER_THREAD))
        # NumPy releases Python's interpreter lock while it copies, so several threads can copy at the same time.
        list(pool.map(np.copyto, np.array_split(target, parts), np.array_split(rows, parts)))
        self._add_run(count, partial(self._stream.upload_meanwhile, event=event))
        self._stream.record(event)

    def outputs(self, count: int) -> Outputs:
        """Return the outputs of the first `count` rows of the last run. The next run overwrites the returned array."""
        return self._outputs.host[:count]

    def free(self) -> None:
        """Free the buffers. Call this method only if no CUDA graph uses the buffers.

        When the stream is closed, it frees all buffers that were not freed before.
        """
        self._bound = None
        self._stream.free(self._rows)
        self._stream.free(self._outputs)

    def _add_run(self, count: int, upload: Callable[..., None]) -> None:
        """Queue the work of a run on the stream: copy the first `count` rows to the device, run them, and copy the
        outputs to the host.
        """
        written = self._shortcuts.host_outputs and self._outputs.bytes(count) <= _MOST_WRITTEN
        if self._bound is None or self._bound[0] != count:
            binding = self._session.io_binding()
            # CUDA's kernels can write to page-locked memory of the host. Page-locked memory has the same address on the
            # device and on the host.
            target = self._outputs.host_address if written else self._outputs.device
            for bind, tensor, buffer, address in (
                (binding.bind_input, self._input, self._rows, self._rows.device),
                (binding.bind_output, self._output, self._outputs, target),
            ):
                bind(tensor.name, self._stream.device, 0, np.float32, (count, buffer.host.shape[1]), address)
            self._bound = count, binding
        upload(self._rows, count)
        self._session.run_with_iobinding(self._bound[1], self._options)
        if not written:
            self._stream.download(self._outputs, count)


class LargeBatches:
    """Buffers for batches that are larger than every graph. A batch of more than `size` rows runs in pieces."""

    def __init__(self, session: ort.InferenceSession, stream: Stream, size: int, shortcuts: Shortcuts) -> None:
        self.size = size
        self._stream = stream
        self._new = partial(BoundBuffers, session, stream, size, shortcuts)
        self._slots = [self._new()]
        self._events: list[int] = []
        self._pool: ThreadPoolExecutor | None = None

    def run(self, rows: Rows) -> Outputs:
        """Run the model on any number of rows, kernel by kernel."""
        if len(rows) <= self.size:
            return self._slots[0].run(rows)
        self._slots[0].check(rows)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(min(_FILLING_THREADS, cgroup.threads()), "foldserve-fill")
        while len(self._slots) < _SLOTS:
            self._slots.append(self._new())
        while len(self._events) < _SLOTS:
            self._events.append(self._stream.event())
        outputs = np.empty((len(rows), self._slots[0].outputs(0).shape[1]), np.float32)
        starts = range(0, len(rows), self.size)
        for number, start in enumerate([*starts, *[len(rows)] * _SLOTS]):
            slot, event = self._slots[number % _SLOTS], self._events[number % _SLOTS]
            if number >= _SLOTS:  # the slot still holds an earlier piece
                self._stream.wait_for(event)
                done = outputs[starts[number - _SLOTS] :][: self.size]
                done[...] = slot.outputs(len(done))
            if start < len(rows):
                slot.begin(rows[start : start + self.size], event, self._pool)
        return outputs

    def free(self) -> None:
        """Free the buffers. The stream frees its events only when the stream is closed."""
        for slot in self._slots:
            slot.free()
        self.stop()

    def stop(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
