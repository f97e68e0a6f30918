"""What a model is worth: its metrics on rows with known targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error

from service.bundle import Task


def metrics(task: Task, y: npt.NDArray[Any], outputs: npt.NDArray[np.floating]) -> dict[str, float]:
    """Score `outputs` [rows, outputs] against `y` [rows].

    Classification: `accuracy`, and `log_loss` in nats. Regression, in the target's units: `rmse`, and `r2`.
    """
    if task == "regression":
        values = outputs[:, 0].astype(np.float64)
        return {"rmse": float(root_mean_squared_error(y, values)), "r2": float(r2_score(y, values))}
    # float32 rows sum to 1 within 1e-7 only; scikit-learn warns at less than float64's precision.
    probabilities = outputs.astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    classes = np.arange(outputs.shape[1])
    return {
        "accuracy": float(accuracy_score(y, outputs.argmax(1))),
        "log_loss": float(log_loss(y, probabilities, labels=classes)),
    }
