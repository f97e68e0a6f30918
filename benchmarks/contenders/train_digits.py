"""Trains repeatedly: `python train_digits.py NAME WIDTHS BATCH EPOCHS norm|plain`.

NAME is a key of `CONTENDERS`, and WIDTHS are the widths of the hidden layers. For each line on standard input, the
program trains a new network with or without batch norm. After each training, the program prints the training rows per
second of processor time. The data is scikit-learn's digits, repeated eight times: 14,376 rows of 64 features in
float32. Training uses one thread, cross-entropy, and Adam or AdamW. Almost no rows are used for validation.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

COPIES = 8


@dataclass(frozen=True)
class Task:
    """The data and the network of a training, the same for every contender. x: float32 [rows, 64], from 0 to 1. y:
    int64 [rows].
    """

    x: np.ndarray
    y: np.ndarray
    widths: tuple[int, ...]
    batch: int
    epochs: int
    norm: bool


Train = Callable[[], object]


def foldserve(task: Task) -> Train:
    """Train with the loop of `foldserve-train fit` and deterministic kernels."""
    import torch

    from foldserve.training.fit.loop import Examples, fit
    from foldserve.training.network.mlp import build_mlp
    from foldserve.training.plan import Architecture, Recipe

    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    architecture = Architecture(hidden=task.widths, batch_norm=task.norm, dropout=0.0)
    recipe = Recipe(
        epochs=task.epochs, patience=task.epochs, batch_size=task.batch, input_noise=0.0, label_smoothing=0.0
    )
    return lambda: fit(build_mlp(64, 10, architecture), Examples(x, y), Examples(x[:10], y[:10]), recipe, seed=0)


def skorch(task: Task) -> Train:
    """Train the same network with skorch, without a validation split."""
    import torch
    from skorch import NeuralNetClassifier
    from torch import nn

    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    width = 64
    for units in task.widths:
        norm = [nn.BatchNorm1d(units)] if task.norm else []
        layers += [nn.Linear(width, units, bias=not task.norm), *norm, nn.ReLU()]
        width = units
    network = nn.Sequential(*layers, nn.Linear(width, 10))
    learner = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=1e-3,
        max_epochs=task.epochs,
        batch_size=task.batch,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    return lambda: learner.fit(task.x, task.y)


def sklearn(task: Task) -> Train:
    """Train scikit-learn's MLP without early stopping. This MLP has no batch norm."""
    from sklearn.neural_network import MLPClassifier

    learner = MLPClassifier(
        task.widths, batch_size=task.batch, max_iter=task.epochs, n_iter_no_change=task.epochs + 1, random_state=0
    )
    return lambda: learner.fit(task.x, task.y)


CONTENDERS: dict[str, Callable[[Task], Train]] = {"foldserve": foldserve, "skorch": skorch, "sklearn": sklearn}


def main() -> None:
    """Train once to warm up. Train again for each line of standard input."""
    name, widths, batch, epochs, norm = sys.argv[1:]
    warnings.simplefilter("ignore")  # scikit-learn warns that the training ended before it converged
    x, y = load_digits(return_X_y=True)
    task = Task(
        np.tile((x / 16).astype(np.float32), (COPIES, 1)),
        np.tile(y, COPIES),
        tuple(map(int, widths.split(","))),
        int(batch),
        int(epochs),
        norm == "norm",
    )
    train = CONTENDERS[name](task)
    train()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        train()
        print(len(task.x) * task.epochs / (time.process_time() - started), flush=True)


if __name__ == "__main__":
    main()
