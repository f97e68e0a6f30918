"""Calibration: one temperature for all logits, so that a probability of 0.8 comes true four times out of five.

It is affine, and so folds into the last Dense.
"""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

# In nats. Few rows are no reason to trust a temperature far from 1: being off by a factor of e must save as much.
_PRICE = 5.0
_MOST = math.log(8.0)


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """Give the T for which softmax(logits / T) fits best: logits [rows, classes], y int64 [rows], not trained on.

    Temperature scaling of Guo and others, 2017 (arXiv:1706.04599), by the log loss, held to 1 by a price on log(T)^2.
    """
    exact = logits.double()

    def cost(log_t: float) -> float:
        return float(functional.cross_entropy(exact / math.exp(log_t), y, reduction="sum")) + _PRICE * log_t**2

    return math.exp(float(minimize_scalar(cost, bounds=(-_MOST, _MOST), method="bounded").x))
