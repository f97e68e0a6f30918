"""The loop: minibatch gradient descent on tensors in memory, early stopping, and exact batch-norm statistics.

It knows no file, no terminal and no ONNX; who wants to watch hands in a hook. On the CPU the result depends on the
seed, the library versions, the kind of CPU and the number of threads, and on nothing else.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.errors import FitError
from training.plan import Recipe


@dataclass(frozen=True)
class Rows:
    """x: float32 [rows, features], standardised. y: int64 [rows] (classes) or float32 [rows] (standardised)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Epoch:
    """What one pass gave. Losses are means: log loss in nats, or squared error of the standardised target."""

    number: int
    of: int
    loss: float
    validation_loss: float
    rows_per_second: float


@dataclass(frozen=True)
class Fitted:
    """The network of the best epoch, in eval mode, with its statistics recomputed over the training rows."""

    network: nn.Sequential
    best_epoch: int
    history: tuple[Epoch, ...]


def fit(
    network: nn.Sequential,
    train: Rows,
    validation: Rows,
    recipe: Recipe,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Fitted:
    """Train a copy of `network`; the one handed in is left as it was.

    Raises `FitError` when the loss is no longer finite, naming the epoch.
    """
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout and noise draw from the global generator
    criterion = _criterion(train.y)
    batches = len(list(_batches(torch.arange(len(train.x)), recipe.batch_size)))
    optimiser = torch.optim.AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    schedule = _schedule(optimiser, recipe, recipe.epochs * batches)
    history: list[Epoch] = []
    best_loss, best_epoch, best_state = float("inf"), 0, copy.deepcopy(network.state_dict())
    for number in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        total = torch.zeros(())
        network.train()
        for batch in _batches(torch.randperm(len(train.x), generator=generator), recipe.batch_size):
            loss = criterion(network(_noisy(train.x[batch], recipe)), train.y[batch], recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch 2.13 leaves it untyped
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(batch)
        seconds = time.perf_counter() - started
        epoch = Epoch(
            number,
            recipe.epochs,
            float(total) / len(train.x),
            _validation_loss(network, validation, criterion),
            len(train.x) / seconds,
        )
        if not (torch.isfinite(total) and epoch.validation_loss < float("inf")):
            raise FitError(f"the loss is no longer finite in epoch {number}: lower the learning rate")
        history.append(epoch)
        on_epoch(epoch)
        if epoch.validation_loss < best_loss:
            best_loss, best_epoch, best_state = (
                epoch.validation_loss,
                number,
                copy.deepcopy(network.state_dict()),
            )
        elif number - best_epoch >= recipe.patience:
            break
    network.load_state_dict(best_state)
    recompute_statistics(network, train.x)
    return Fitted(network.eval(), best_epoch, tuple(history))


@torch.no_grad()
def recompute_statistics(network: nn.Sequential, x: Tensor, chunk: int = 8192) -> None:
    """Set every BN's running statistics to those of `x` [rows, features] under the final weights, in place.

    The moving average of training mixes statistics of weights long gone. This is PreciseBN (Wu and Johnson, 2021,
    arXiv:2105.07576), with dropout off, since that is how the network is used from now on (Li and others, 2019,
    arXiv:1801.05134). One BN after the other and in two passes, so that each sees what it will see in eval mode
    and the variance is exact, not a mean of batch variances; float64 sums.
    """
    network.eval()
    chunks = list(torch.split(x, chunk))
    for module in network:
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            mean = sum((c.double().sum(0) for c in chunks), torch.zeros(())) / len(x)
            var = sum(((c.double() - mean).square().sum(0) for c in chunks), torch.zeros(())) / len(x)
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
        chunks = [module(c) for c in chunks]


def _noisy(x: Tensor, recipe: Recipe) -> Tensor:
    """Add noise to the input: to first order a penalty on the gradient by the input (Bishop, 1995)."""
    return x + recipe.input_noise * torch.randn_like(x) if recipe.input_noise else x


Criterion = Callable[[Tensor, Tensor, float], Tensor]


def _criterion(y: Tensor) -> Criterion:
    if y.is_floating_point():
        return lambda output, target, _: functional.mse_loss(output.squeeze(1), target)
    return lambda output, target, smoothing: functional.cross_entropy(output, target, label_smoothing=smoothing)


@torch.no_grad()
def _validation_loss(network: nn.Sequential, validation: Rows, criterion: Criterion) -> float:
    network.eval()
    losses = [
        float(criterion(network(x), y, 0.0)) * len(x)
        for x, y in zip(torch.split(validation.x, 8192), torch.split(validation.y, 8192), strict=True)
    ]
    return sum(losses) / len(validation.x)


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Cut `order` into batches; a last one of a single row, which BN can't train on, joins the one before."""
    last = len(order) - 1 if len(order) % size == 1 else len(order)
    for start in range(0, last, size):
        stop = start + size
        yield order[start : len(order) if stop >= last else stop]


def _parameter_groups(network: nn.Sequential, weight_decay: float) -> list[dict[str, object]]:
    """Decay the weight matrices alone: a decayed gamma or bias only fights the statistics it is there to undo."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _schedule(optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    return torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, steps, cycle_momentum=False)
