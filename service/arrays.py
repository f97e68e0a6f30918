"""Names for the arrays that protocols, engine and runtime exchange. Each name stands for one dtype and one shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
"""[rows, features]: raw values in the manifest's order; a category is its index, a missing value NaN."""

Outputs = npt.NDArray[np.float32]
"""[rows, outputs]: a probability for each label, or one value; a value may be infinite or NaN."""

Run = Callable[[Rows], Outputs]
"""Runs a model on one batch."""
