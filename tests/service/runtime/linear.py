"""A handmade model, 2a + 3b, and its golden rows."""

from __future__ import annotations

import numpy as np
from onnx import helper

from foldserve.service.bundle import Golden
from tests.service.support import constant, onnx_model

WEIGHTS = np.array([[2.0], [3.0]], np.float32)
GOLDEN = Golden(inputs=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), outputs=((2.0,), (3.0,), (5.0,)))
MATMUL = helper.make_node("MatMul", ["input", "w"], ["value"])


def linear(**changes: object) -> bytes:
    """Serialise the model; changes: passed to `onnx_model`."""
    return onnx_model([MATMUL], [constant("w", WEIGHTS)], **changes)  # type: ignore[arg-type]
