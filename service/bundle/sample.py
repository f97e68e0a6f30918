"""Draws random rows from the ranges and categories of features.

The rows are similar to the rows of a request. The drawn rows contain no personal data.

This module does not depend on neural networks or sessions. The caller's generator creates the arrays, so this module
does not import NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foldserve.service.bundle.manifest import Feature

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def draw_column(
    feature: Feature, rows: int, generator: np.random.Generator, *, integers: bool = False
) -> npt.NDArray[np.float32]:
    """Draw random values, float32 [rows], from a uniform distribution. No drawn value is missing.

    A drawn number or time is in the training range, and a drawn boolean is 0 or 1. A drawn category may be any index,
    including the reserved index for unseen categories. integers: draw only whole numbers for a numeric feature.
    """
    if feature.largest_code is not None:
        return generator.integers(0, feature.largest_code, rows, endpoint=True).astype("float32")
    low, high = feature.range or (0.0, 0.0)
    values = generator.uniform(low, high, rows)
    return (values.round() if integers or feature.kind == "time" else values).astype("float32").clip(low, high)
