"""Calibration: finds one temperature for all logits.

After a division by this temperature, about 80% of the answers with probability 0.8 are right. The division is an affine
map, so it folds into the last Dense.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from foldserve.training.fit.brent import minimise

# The penalty on log(T)^2, in nats. On few rows, a temperature far from 1 is likely noise. With this penalty, a
# temperature of e must reduce the total loss by at least this number of nats.
_PENALTY = 5.0
_MAX_LOG_T = math.log(8.0)


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """Return the temperature T for which softmax(logits / T) fits the classes `y` best.

    logits: [rows, classes]; y: int64 [rows]. The network must not have been trained on these rows. The method is the
    temperature scaling of Guo and others, 2017 (arXiv:1706.04599). It minimises the log loss plus a penalty on
    log(T)^2.
    """
    exact = logits.double()

    def cost(log_t: float) -> float:
        loss = functional.cross_entropy(exact / math.exp(log_t), y, reduction="sum")
        return float(loss) + _PENALTY * log_t**2

    return math.exp(minimise(cost, -_MAX_LOG_T, _MAX_LOG_T))
