"""The settings of a diagnosis. The module does not import torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiagnosisPlan:
    """The same plan, table, versions and kind of CPU give the same figures, except for latencies.

    steps: the number of training steps of the networks with three sigmoid layers. rates: the learning rates of the
    networks with three sigmoid layers. The inputs of the sigmoids are measured at the middle rate. depths: the numbers
    of hidden layers of the networks whose gradients are measured. gradient_steps: the number of training steps of the
    networks whose gradients are measured. batch_sizes: the batch sizes at which training mode and evaluation mode are
    compared. mode_steps: the number of training steps before training mode and evaluation mode are compared. rounds:
    the number of timed runs of each model. The latency of a model is the median over its timed runs. repeats: the
    number of trainings with the user's own recipe, each with and without batch norm. Raises `ValueError` for a value
    that is out of range.
    """

    seed: int = 0
    steps: int = 2000
    rates: tuple[float, ...] = (0.1, 1.0, 10.0)
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    gradient_steps: int = 100
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    mode_steps: int = 1000
    latency_batches: tuple[int, ...] = (1, 64, 1024)
    rounds: int = 300
    repeats: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError("the seed is from 0 to 4294967295")
        if not 1 <= self.steps <= 1_000_000:
            raise ValueError("steps are at least 1, at most 1000000")

    @property
    def rate(self) -> float:
        """The learning rate for measuring the inputs of the sigmoids: the middle one of `rates`."""
        return self.rates[len(self.rates) // 2]


QUICK = DiagnosisPlan(
    steps=300, depths=(4, 16), gradient_steps=20, batch_sizes=(2, 8, 32, 128), mode_steps=100, rounds=50, repeats=1
)
