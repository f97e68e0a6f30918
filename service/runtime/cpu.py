"""Runs on the CPU, small batches between arrays of their own. It knows rows and a session, no bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from foldserve.service.runtime.session import open_cpu, run_options

if TYPE_CHECKING:
    import onnxruntime as ort

Rows = npt.NDArray[np.float32]

# Larger batches gain nothing from arrays of their own.
_BOUND_ROWS = 32


class CpuRunner:
    """A session on the CPU for one caller at a time; `threads` work on one run.

    Raises `DeviceError` where there is no ONNX Runtime, and `BundleError` for a model that it refuses.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        self.session = open_cpu(model, threads)
        self._input, self._output = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self._fits = all(
            tensor.type == "tensor(float)" and len(tensor.shape) == 2 and type(tensor.shape[1]) is int
            for tensor in (self._input, self._output)
        )
        self._bindings: dict[tuple[int, ...], _Binding] = {}  # by the shape of the rows

    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs]. Raises what ONNX Runtime raises."""
        binding = self._bindings.get(rows.shape)
        if binding is None:
            if not self._fits or len(rows) > _BOUND_ROWS or rows.shape[1:] != (self._input.shape[1],):
                outputs: Rows
                (outputs,) = self.session.run([self._output.name], {self._input.name: rows})
                return outputs
            binding = self._bindings[rows.shape] = _Binding(self.session, self._input, self._output, len(rows))
        return binding.run(rows)


class _Binding:
    """One number of rows, with arrays of its own that the session reads and writes: half the cost of a small run."""

    def __init__(self, session: ort.InferenceSession, inputs: ort.NodeArg, outputs: ort.NodeArg, count: int) -> None:
        self._session = session
        self._input = np.zeros((count, inputs.shape[1]), np.float32)
        self._output = np.zeros((count, outputs.shape[1]), np.float32)
        self._bound = session.io_binding()
        self._options = run_options()  # without them each run makes its own
        for bind, tensor, array in (
            (self._bound.bind_input, inputs, self._input),
            (self._bound.bind_output, outputs, self._output),
        ):
            bind(tensor.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, rows: Rows) -> Rows:
        self._input[...] = rows
        self._session.run_with_iobinding(self._bound, self._options)
        return self._output.copy()
