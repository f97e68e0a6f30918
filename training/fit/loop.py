"""The loop: minibatch gradient descent on tensors in memory, early stopping, and exact batch-norm statistics.

The module does not depend on file formats, terminals or ONNX. The module reports its progress by calling hooks. On a
CPU, the result depends only on the seed, the library versions, the kind of CPU, and the numbers of threads and
processes. Checkpoints do not change the result, and a resumed run has the same result as a run without interruption.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foldserve.training.errors import CheckpointError, ExecutionError, FitError
from foldserve.training.fit.checkpoint import Checkpoint, State
from foldserve.training.fit.distributed import World, wrap_ddp
from foldserve.training.fit.optimiser import FlatAdamW
from foldserve.training.fit.schedule import learning_rate
from foldserve.training.fit.statistics import recompute_statistics
from foldserve.training.network.dropout import Dropout
from foldserve.training.plan import Recipe

# The minimum time between two progress reports within an epoch, in seconds.
SECONDS_BETWEEN_REPORTS = 0.2
# Rows are evaluated in chunks of this size, to limit the memory.
_CHUNK = 8192


@dataclass(frozen=True)
class Examples:
    """x: the standardised features, float32 [rows, features].

    y: the classes, int64 [rows]; in a regression, the standardised targets, float32 [rows].
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Examples:
        """Return `Examples` with the same rows on `device`."""
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Epoch:
    """The losses, the score and the speed of a finished epoch. number: the number of the epoch, from 1 to `epochs`.

    loss, validation_loss: in a classification, the mean log loss of the rows in nats; in a regression, the mean squared
    error of the standardised target. validation_score: the accuracy, or R2 in a regression.
    """

    number: int
    epochs: int
    loss: float
    validation_loss: float
    validation_score: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochProgress:
    """The progress and the speed of an unfinished epoch. number: the number of the epoch, from 1 to `epochs`.

    rows_done: the number of rows of this epoch that all processes together have finished. rows: the number of all rows
    of the epoch, in all processes together.
    """

    number: int
    epochs: int
    rows_done: int
    rows: int
    rows_per_second: float


@dataclass(frozen=True)
class Fitted:
    """The network of the best epoch, on the CPU, in eval mode.

    The statistics of the BNs in this network are computed from all training rows.
    """

    network: nn.Sequential
    best_epoch: int
    history: tuple[Epoch, ...]


def fit(
    network: nn.Sequential,
    train: Examples,
    validation: Examples,
    recipe: Recipe,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_progress: Callable[[EpochProgress], None] = lambda _: None,
    world: World = World(),  # noqa: B008  # frozen
    compiled: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Train a copy of `network`. `network` must be a chain of layers on the CPU, and does not change.

    If there are several processes, all processes call this function with the same arguments and get the same result.
    Only the first process calls the hooks. If the caller gives a checkpoint, the fit resumes from the state in the
    checkpoint. At the end, the fit also writes its last state to the checkpoint. Raises `FitError` with the number of
    the epoch if the loss is not finite, and `ExecutionError` if the network can't be compiled. Reading or writing the
    checkpoint may raise `CheckpointError`.
    """
    recipe = recipe.resolved(len(train.x))
    train, validation = train.to(world.device), validation.to(world.device)
    training = _Training(network, train, recipe, seed, world, compiled=compiled)
    epochs, patience = recipe.epochs or 0, recipe.patience
    if checkpoint:
        training.resume(checkpoint)
    resumed = len(training.history)
    for number in range(resumed + 1, epochs + 1):
        if number - 1 - training.best_epoch >= patience:
            break
        started = time.perf_counter()
        loss = training.run_epoch(train, number, on_progress)
        rate = len(train.x) / (time.perf_counter() - started)
        validation_loss, score = training.validate(validation)
        epoch = Epoch(number, epochs, loss, validation_loss, score, rate)
        if not (math.isfinite(loss) and math.isfinite(epoch.validation_loss)):
            raise FitError(f"the loss is no longer finite in epoch {number}: lower the learning rate")
        training.record(epoch)
        if world.is_first:
            if checkpoint and checkpoint.is_due():
                checkpoint.save(training.state())
            on_epoch(epoch)
    if checkpoint and world.is_first and len(training.history) > resumed:
        checkpoint.save(training.state())
    best = copy.deepcopy(network).to(world.device)
    best.load_state_dict(training.best)
    recompute_statistics(best, train.x)
    return Fitted(best.cpu().eval(), training.best_epoch, tuple(training.history))


class _Training:
    """The state that changes during a fit: the weights, the moments of the optimiser, the random state, and the best
    epoch so far.
    """

    def __init__(
        self, network: nn.Sequential, train: Examples, recipe: Recipe, seed: int, world: World, *, compiled: bool
    ) -> None:
        self._recipe, self._world, self._compiled = recipe, world, compiled
        self._network = copy.deepcopy(network).to(world.device)
        self._order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout and noise use the device's default generator
        self._optimiser = FlatAdamW(self._network.parameters(), recipe.weight_decay)
        wrapped = wrap_ddp(self._network.train(), world)
        self._forward = torch.compile(wrapped, dynamic=False) if compiled else wrapped
        self._dropouts = [module for module in self._network.modules() if isinstance(module, Dropout)]
        self._class_weight = _balanced_weights(train.y) if recipe.class_weight == "balanced" else None
        # The standard deviation of the input noise is different for each column. With one standard deviation for all
        # columns, the noise would be larger than the values of a column with a small variance.
        self._column_std = train.x.std(0, correction=0)
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}

    def run_epoch(self, train: Examples, number: int, on_progress: Callable[[EpochProgress], None]) -> float:
        """Train on each row once, and return the mean loss."""
        recipe, world = self._recipe, self._world
        rows, epochs = len(train.x), recipe.epochs or 0
        order = torch.randperm(rows, generator=self._order).to(world.device)
        batches = list(_cut_batches(order, recipe.batch_size or 0))
        step, steps = (number - 1) * len(batches), epochs * len(batches)
        total = torch.zeros((), device=world.device)
        started = reported = time.monotonic()
        done = 0
        self._network.train()
        for batch in batches:
            loss = self._batch_loss(train, batch)
            # The loss is a sum over this process's rows, and DDP averages the gradients of the processes. With the
            # weight world.size / len(batch), the average of the gradients is the gradient of the mean loss of all rows
            # in the batch. The weight is not an argument of `backward`, because `backward` would then import sympy,
            # which takes 0.4 s.
            (loss * (world.size / len(batch))).backward()  # type: ignore[no-untyped-call]  # torch 2.13: untyped
            self._optimiser.step(learning_rate(recipe, step, steps))
            total += loss.detach()
            step, done = step + 1, done + len(batch)
            if world.is_first and (now := time.monotonic()) - reported >= SECONDS_BETWEEN_REPORTS:
                reported = now
                on_progress(EpochProgress(number, epochs, done, rows, done / (now - started)))
        return float(world.sum(total)) / rows

    def _batch_loss(self, train: Examples, batch: Tensor) -> Tensor:
        """Sum the loss over this process's share of the rows `batch`."""
        recipe, world, batch_size = self._recipe, self._world, len(batch)
        share = world.share(batch_size)
        if world.size > 1:
            for dropout in self._dropouts:
                dropout.share_mask(share, batch_size)
            batch = batch[share]
        x = train.x.index_select(0, batch)
        if recipe.input_noise:
            # To first order, noise on the input acts as a penalty on the gradient of the loss with respect to the input
            # (Bishop, 1995). The noise is drawn for the whole batch, so that the noise of a row does not depend on the
            # number of processes.
            noise = torch.randn(batch_size, *x.shape[1:], device=x.device)
            x.addcmul_(noise if world.size == 1 else noise[share], self._column_std, value=recipe.input_noise)
        try:
            with self._autocast():
                output = self._forward(x)
        except RuntimeError as error:
            if not self._compiled:
                raise
            raise ExecutionError(f"--compile: {str(error).splitlines()[0]}") from error
        return self._sum_loss(output.float(), train.y.index_select(0, batch), recipe.label_smoothing)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)

    @torch.no_grad()
    def validate(self, validation: Examples) -> tuple[float, float]:
        """Compute the mean loss without label smoothing, and the score, both in float32.

        Each process evaluates its share of the rows.
        """
        self._network.eval()
        share = self._world.share(len(validation.x))
        total = torch.zeros(2, dtype=torch.float64, device=validation.x.device)
        for x, y in zip(*(torch.split(part[share], _CHUNK) for part in (validation.x, validation.y)), strict=True):
            output = self._network(x)
            total[0] += self._sum_loss(output, y, 0.0)
            # In a classification, the sum of `term` is the number of right answers. In a regression, the sum of `term`
            # is the sum of the squared errors, which `_r2` needs.
            term = (output.squeeze(1) - y).square() if y.is_floating_point() else output.argmax(1) == y
            total[1] += term.sum()
        loss, score = (self._world.sum(total) / len(validation.x)).tolist()
        return loss, _r2(score, validation.y) if validation.y.is_floating_point() else score

    def _sum_loss(self, output: Tensor, y: Tensor, smoothing: float) -> Tensor:
        """Return the sum of the losses of the rows.

        In a classification, the loss is the log loss of logits [rows, classes]; in a regression, it is the squared
        error of values [rows, 1].
        """
        if y.is_floating_point():
            return functional.mse_loss(output.squeeze(1), y, reduction="sum")
        weight = self._class_weight
        return functional.cross_entropy(output, y, weight, label_smoothing=smoothing, reduction="sum")

    def record(self, epoch: Epoch) -> None:
        """Add `epoch` to the history, and keep the weights if `epoch` has the lowest validation loss so far."""
        if not self.history or epoch.validation_loss < self.history[self.best_epoch - 1].validation_loss:
            self.best_epoch = epoch.number
            for name, tensor in self._network.state_dict().items():
                self.best[name].copy_(tensor)
        self.history.append(epoch)

    def state(self) -> State:
        """Return the complete state from which a later run can continue this fit."""
        tensors = self._tensors() | {
            "order": self._order.get_state(),
            "random": torch.get_rng_state(),
            "history": torch.tensor([astuple(epoch) for epoch in self.history], dtype=torch.float64),
        }
        if self._world.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self._world.device)
        return State(tensors, {"best_epoch": self.best_epoch})

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the running training, not copies of these tensors.

        To restore a state, copy the saved values into the returned tensors.
        """
        return {
            **{f"network.{name}": tensor for name, tensor in self._network.state_dict().items()},
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
            **{f"adamw.{name}": tensor for name, tensor in self._optimiser.state().items()},
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state that `checkpoint` holds, if there is a state."""
        state = checkpoint.load()
        if state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{checkpoint.path} is damaged: remove it to train from the start") from error
        epochs = torch.tensor(len(self.history), device=self._world.device)
        if int(self._world.sum(epochs)) != self._world.size * len(self.history):
            raise CheckpointError(f"{checkpoint.path} is not the same for every process: it needs a shared folder")

    def _restore(self, state: State) -> None:
        for name, tensor in self._tensors().items():
            saved = state.tensors[name]
            if saved.shape != tensor.shape or saved.dtype != tensor.dtype:
                raise ValueError(name)
            tensor.copy_(saved)
        self._order.set_state(state.tensors["order"])
        torch.set_rng_state(state.tensors["random"])
        if self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["random_cuda"], self._world.device)
        self.history = [
            Epoch(int(number), int(epochs), *figures)
            for number, epochs, *figures in state.tensors["history"].double().tolist()
        ]
        self.best_epoch = int(state.notes["best_epoch"])
        if not 1 <= self.best_epoch <= len(self.history):
            raise ValueError(self.best_epoch)


def _r2(squared_error: float, y: Tensor) -> float:
    return 1 - squared_error / max(float(y.double().var(correction=0)), 1e-12)


def _balanced_weights(y: Tensor) -> Tensor | None:
    """Return a weight for each class, float32 [classes].

    All classes get the same total weight, and the mean weight of the rows is 1.
    """
    if y.is_floating_point():
        return None
    counts = torch.bincount(y)
    return (len(y) / (len(counts) * counts)).float()


def _cut_batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Cut `order` into batches of `size` rows.

    BN can't train on a single row. If the last batch would have only one row, this row joins the previous batch.
    """
    last = len(order) - 1 if len(order) % size == 1 else len(order)
    for start in range(0, last, size):
        stop = start + size
        yield order[start : len(order) if stop >= last else stop]
