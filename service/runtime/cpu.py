"""Runs a model on the CPU. Small batches are copied into arrays to which the session is bound.

This module owns the session and its arrays, and does not depend on bundles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.runtime.session import open_cpu, run_options

if TYPE_CHECKING:
    import onnxruntime as ort

# Batches of at most this number of rows use arrays that are bound to the session. For larger batches, binding arrays
# would save no measurable time.
_MAX_BOUND_ROWS = 32


class CpuRunner:
    """A session on the CPU, for one caller at a time. threads: the number of threads that work on one run.

    Raises `DeviceError` if ONNX Runtime is not available, and `BundleError` if ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        self.session = open_cpu(model, threads)
        self._input, self._output = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self._can_bind = all(
            tensor.type == "tensor(float)" and len(tensor.shape) == 2 and type(tensor.shape[1]) is int
            for tensor in (self._input, self._output)
        )
        self._bindings: dict[tuple[int, ...], _Binding] = {}  # maps a shape of the rows to the arrays for this shape

    def run(self, rows: Rows) -> Outputs:
        """Run the model on one batch. Raises any exception of ONNX Runtime."""
        binding = self._bindings.get(rows.shape)
        if binding is None:
            if not self._can_bind or len(rows) > _MAX_BOUND_ROWS or rows.shape[1:] != (self._input.shape[1],):
                outputs: Outputs
                (outputs,) = self.session.run([self._output.name], {self._input.name: rows})
                return outputs
            binding = self._bindings[rows.shape] = _Binding(self.session, self._input, self._output, len(rows))
        return binding.run(rows)


class _Binding:
    """An input array and an output array that are bound to the session, for batches of one size. Binding these arrays
    to the session halves the time of a small run.
    """

    def __init__(self, session: ort.InferenceSession, inputs: ort.NodeArg, outputs: ort.NodeArg, size: int) -> None:
        self._session = session
        self._input = np.zeros((size, inputs.shape[1]), np.float32)
        self._output = np.zeros((size, outputs.shape[1]), np.float32)
        self._bound = session.io_binding()
        self._options = run_options()  # without this object, ONNX Runtime creates options for each run
        for bind, tensor, array in (
            (self._bound.bind_input, inputs, self._input),
            (self._bound.bind_output, outputs, self._output),
        ):
            bind(tensor.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, rows: Rows) -> Outputs:
        self._input[...] = rows
        self._session.run_with_iobinding(self._bound, self._options)
        return self._output.copy()
