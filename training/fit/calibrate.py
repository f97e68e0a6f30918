"""Calibration: finds one temperature for all logits.

After the logits are divided by the temperature, about 80% of the answers with probability 0.8 are right. A division by
a constant is an affine map, so this division folds into the last Dense.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from foldserve.training.fit.brent import minimise

# The penalty on a temperature T is this number of nats times log(T)^2. If there are few rows, a temperature T far from
# 1 is probably an effect of noise. Because of the penalty, T = e is chosen only if T = e reduces the total loss by at
# least this number of nats.
_PENALTY = 5.0
_MAX_LOG_T = math.log(8.0)


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """Return the temperature T for which softmax(logits / T) fits the classes `y` best.

    logits: [rows, classes]; y: int64 [rows]. `logits` must be for rows on which the network was not trained. The method
    is the temperature scaling of Guo and others, 2017 (arXiv:1706.04599). The function minimises the log loss plus a
    penalty on log(T)^2.
    """
    exact = logits.double()

    def cost(log_t: float) -> float:
        loss = functional.cross_entropy(exact / math.exp(log_t), y, reduction="sum")
        return float(loss) + _PENALTY * log_t**2

    return math.exp(minimise(cost, -_MAX_LOG_T, _MAX_LOG_T))
