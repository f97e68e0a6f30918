"""A handmade model, 2a + 3b, with golden rows, and a function that returns the reason why a bundle is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from foldserve.service import bundle
from foldserve.service.bundle import BundleError, Golden
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Options
from tests.service.support import constant, onnx_model

WEIGHTS = np.array([[2.0], [3.0]], np.float32)
GOLDEN = Golden(inputs=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), outputs=((2.0,), (3.0,), (5.0,)))
MATMUL = helper.make_node("MatMul", ["input", "w"], ["value"])


def linear(**changes: object) -> bytes:
    """Serialise the model. changes: arguments for `onnx_model`."""
    return onnx_model([MATMUL], [constant("w", WEIGHTS)], **changes)  # type: ignore[arg-type]


def refusal(whole: bundle.Bundle) -> str:
    """Load a bundle that must be refused, and return the reason."""
    with pytest.raises(BundleError) as refused:
        runtime.load(whole, Options("cpu"))
    assert str(refused.value) == f"{whole.path}: {refused.value.reason}"
    assert "\n" not in refused.value.reason
    return refused.value.reason
