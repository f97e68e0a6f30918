"""The loop: minibatch gradient descent on tensors in memory, early stopping, and exact batch-norm statistics.

It knows no file format, no terminal and no ONNX; who wants to watch hands in a hook. On the CPU the result depends on
the seed, the library versions, the kind of CPU, the number of threads and of processes, and on nothing else: not on
when a checkpoint was written, nor on whether the fit went on from one.
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
from foldserve.training.fit.distributed import World
from foldserve.training.fit.optimiser import FlatAdamW
from foldserve.training.network.dropout import Dropout
from foldserve.training.plan import Recipe

# So often is a long epoch reported on.
SECONDS_BETWEEN_REPORTS = 0.2
# Rows that are evaluated at once: what bounds memory.
_CHUNK = 8192


@dataclass(frozen=True)
class Examples:
    """x: float32 [rows, features], standardised. y: int64 [rows] (classes) or float32 [rows] (standardised)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> Examples:
        """Give the same rows on `device`."""
        return Examples(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Epoch:
    """What one pass gave. Losses are means: log loss in nats, or squared error of the standardised target.

    validation_score: accuracy, or R2.
    """

    number: int
    epochs: int
    loss: float
    validation_loss: float
    validation_score: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochProgress:
    """The progress within epoch `number` of `epochs`. rows_done, rows: of all processes."""

    number: int
    epochs: int
    rows_done: int
    rows: int
    rows_per_second: float


@dataclass(frozen=True)
class Fitted:
    """The network of the best epoch, on the CPU, in eval mode, its statistics recomputed over the training rows."""

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
    """Train a copy of `network`, a chain on the CPU; the one handed in is left as it was.

    With several processes each calls it with the same arguments and gets the same result; the hooks are called in the
    first alone. With a checkpoint it goes on from what that holds, and leaves its last state there.

    Raises `FitError` when the loss is no longer finite, naming the epoch; `CheckpointError`; `ExecutionError` where
    the network can't be compiled.
    """
    recipe = recipe.resolved(len(train.x))
    train, validation = train.to(world.device), validation.to(world.device)
    fitting = _Fitting(network, train, recipe, seed, world, compiled=compiled)
    epochs, patience = recipe.epochs or 0, recipe.patience
    if checkpoint:
        fitting.go_on_from(checkpoint)
    resumed = len(fitting.history)
    for number in range(resumed + 1, epochs + 1):
        if number - 1 - fitting.best_epoch >= patience:
            break
        started = time.perf_counter()
        loss = fitting.one_pass(train, number, on_progress)
        rate = len(train.x) / (time.perf_counter() - started)
        validation_loss, score = fitting.validate(validation)
        epoch = Epoch(number, epochs, loss, validation_loss, score, rate)
        if not (math.isfinite(loss) and math.isfinite(epoch.validation_loss)):
            raise FitError(f"the loss is no longer finite in epoch {number}: lower the learning rate")
        fitting.note(epoch)
        if world.is_first:
            if checkpoint and checkpoint.due():
                checkpoint.save(fitting.state())
            on_epoch(epoch)
    if checkpoint and world.is_first and len(fitting.history) > resumed:
        checkpoint.save(fitting.state())
    best = copy.deepcopy(network).to(world.device)
    best.load_state_dict(fitting.best)
    recompute_statistics(best, train.x)
    return Fitted(best.cpu().eval(), fitting.best_epoch, tuple(fitting.history))


class _Fitting:
    """What changes while a fit runs: weights, moments, random numbers, the best epoch so far."""

    def __init__(
        self, network: nn.Sequential, train: Examples, recipe: Recipe, seed: int, world: World, *, compiled: bool
    ) -> None:
        self._recipe, self._world, self._compiled = recipe, world, compiled
        self._network = copy.deepcopy(network).to(world.device)
        self._order = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout and noise draw from the device's default generator
        self._optimiser = FlatAdamW(self._network.parameters(), recipe.weight_decay)
        trained = world.spread(self._network.train())
        self._trained = torch.compile(trained, dynamic=False) if compiled else trained
        self._dropouts = [module for module in self._network.modules() if isinstance(module, Dropout)]
        self._class_weight = _balanced(train.y) if recipe.class_weight == "balanced" else None
        # A column whose values nearly all lie close together would drown in what is no noise to another.
        self._spread = train.x.std(0, correction=0)
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}

    def one_pass(self, train: Examples, number: int, on_progress: Callable[[EpochProgress], None]) -> float:
        """Take each row once; the mean loss."""
        recipe, world = self._recipe, self._world
        rows, size, epochs = len(train.x), recipe.batch_size or 0, recipe.epochs or 0
        batches = list(_batches(torch.randperm(rows, generator=self._order).to(world.device), size))
        step, steps = (number - 1) * len(batches), epochs * len(batches)
        total = torch.zeros((), device=world.device)
        started = reported = time.monotonic()
        done = 0
        self._network.train()
        for batch in batches:
            loss = self._loss(train, batch)
            # The loss is a sum, and several processes' gradients are averaged.
            weight = torch.full_like(loss, world.size / len(batch))
            loss.backward(weight)  # type: ignore[no-untyped-call]  # torch 2.13 leaves it untyped
            self._optimiser.step(learning_rate(recipe, step, steps))
            total += loss.detach()
            step, done = step + 1, done + len(batch)
            if world.is_first and (now := time.monotonic()) - reported >= SECONDS_BETWEEN_REPORTS:
                reported = now
                on_progress(EpochProgress(number, epochs, done, rows, done / (now - started)))
        return float(world.total(total)) / rows

    def _loss(self, train: Examples, batch: Tensor) -> Tensor:
        """Sum the loss over this process's share of the rows `batch`."""
        recipe, world, of = self._recipe, self._world, len(batch)
        mine = world.share(of)
        if world.size > 1:
            for dropout in self._dropouts:
                dropout.share_mask(mine, of)
            batch = batch[mine]
        x = train.x.index_select(0, batch)
        if recipe.input_noise:
            # To first order a penalty on the gradient by the input (Bishop, 1995). Drawn for the whole batch: so each
            # row's noise is the same whatever the number of processes.
            noise = torch.randn(of, *x.shape[1:], device=x.device)
            x.addcmul_(noise if world.size == 1 else noise[mine], self._spread, value=recipe.input_noise)
        try:
            with self._precision():
                output = self._trained(x)
        except RuntimeError as error:
            if not self._compiled:
                raise
            raise ExecutionError(f"--compile: {str(error).splitlines()[0]}") from error
        return self._summed(output.float(), train.y.index_select(0, batch), recipe.label_smoothing)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._world.device.type, torch.bfloat16)

    @torch.no_grad()
    def validate(self, validation: Examples) -> tuple[float, float]:
        """Compute the mean loss, without smoothing, and the score, in float32, each process on its share."""
        self._network.eval()
        mine = self._world.share(len(validation.x))
        total = torch.zeros(2, dtype=torch.float64, device=validation.x.device)
        for x, y in zip(*(torch.split(rows[mine], _CHUNK) for rows in (validation.x, validation.y)), strict=True):
            output = self._network(x)
            total[0] += self._summed(output, y, 0.0)
            # Of a regression what is not explained, in terms of a target that varies by 1.
            right = (output.squeeze(1) - y).square() if y.is_floating_point() else output.argmax(1) == y
            total[1] += right.sum()
        loss, score = (self._world.total(total) / len(validation.x)).tolist()
        return loss, _r2(score, validation.y) if validation.y.is_floating_point() else score

    def _summed(self, output: Tensor, y: Tensor, smoothing: float) -> Tensor:
        """Sum the rows' losses: log loss of logits [rows, classes], or squared error of values [rows, 1]."""
        if y.is_floating_point():
            return functional.mse_loss(output.squeeze(1), y, reduction="sum")
        weight = self._class_weight
        return functional.cross_entropy(output, y, weight, label_smoothing=smoothing, reduction="sum")

    def note(self, epoch: Epoch) -> None:
        """Keep the weights if they are the best so far."""
        if not self.history or epoch.validation_loss < self.history[self.best_epoch - 1].validation_loss:
            self.best_epoch = epoch.number
            for name, tensor in self._network.state_dict().items():
                self.best[name].copy_(tensor)
        self.history.append(epoch)

    def state(self) -> State:
        """Everything that what follows depends on."""
        tensors = self._tensors() | {
            "order": self._order.get_state(),
            "random": torch.get_rng_state(),
            "history": torch.tensor([astuple(epoch) for epoch in self.history], dtype=torch.float64),
        }
        if self._world.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self._world.device)
        return State(tensors, {"best_epoch": self.best_epoch})

    def _tensors(self) -> dict[str, Tensor]:
        """What is restored by being copied into: the very tensors that are trained with."""
        return {
            **{f"network.{name}": tensor for name, tensor in self._network.state_dict().items()},
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
            **{f"adamw.{name}": tensor for name, tensor in self._optimiser.state().items()},
        }

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take the state that `checkpoint` holds, if any."""
        state = checkpoint.load()
        if state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{checkpoint.path} is damaged: remove it to train from the start") from error
        epochs = torch.tensor(len(self.history), device=self._world.device)
        if int(self._world.total(epochs)) != self._world.size * len(self.history):
            raise CheckpointError(f"{checkpoint.path} is not the same for every process: it needs a shared folder")

    def _restore(self, state: State) -> None:
        for name, tensor in self._tensors().items():
            kept = state.tensors[name]
            if kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                raise ValueError(name)
            tensor.copy_(kept)
        self._order.set_state(state.tensors["order"])
        torch.set_rng_state(state.tensors["random"])
        if self._world.device.type == "cuda":
            torch.cuda.set_rng_state(state.tensors["random_cuda"], self._world.device)
        self.history = [
            Epoch(int(number), int(of), *rest) for number, of, *rest in state.tensors["history"].double().tolist()
        ]
        self.best_epoch = int(state.notes["best_epoch"])
        if not 1 <= self.best_epoch <= len(self.history):
            raise ValueError(self.best_epoch)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Give the rate of `step`, from 0, of `steps`: what PyTorch's schedulers of the same names give.

    cosine: half a cosine from the highest rate to 0 (Loshchilov and Hutter, 2017, arXiv:1608.03983). onecycle: up from
    1/25 of the highest over the first 30% of the steps, then down to 4e-6 of it (Smith and Topin, 2018,
    arXiv:1708.07120), both along half a cosine.
    """
    highest = recipe.learning_rate
    if recipe.schedule == "cosine":
        return _half_cosine(highest, 0.0, step / steps)
    top = 0.3 * steps - 1
    if step <= top:
        return _half_cosine(highest / 25, highest, step / top)
    return _half_cosine(highest, highest / 25 / 1e4, (step - top) / (steps - 1 - top))


def _half_cosine(start: float, stop: float, share: float) -> float:
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def recompute_statistics(network: nn.Sequential, x: Tensor, chunk: int = _CHUNK) -> None:
    """Set every BN's running statistics to those of `x` [rows, features] under the final weights, in place.

    The moving average of training mixes statistics of weights long gone. This is PreciseBN (Wu and Johnson, 2021,
    arXiv:2105.07576), with dropout off, since that is how the network is used from now on (Li and others, 2019,
    arXiv:1801.05134). One BN after the other and in two passes, so that each sees what it will see in eval mode
    and the variance is exact, not a mean of batch variances; float64 sums.
    """
    network.eval()
    chunks = list(torch.split(x, chunk))
    last = max((i for i, module in enumerate(network, start=1) if isinstance(module, nn.BatchNorm1d)), default=0)
    for module in list(network)[:last]:
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            mean = sum((c.double().sum(0) for c in chunks), torch.zeros((), device=x.device)) / len(x)
            var = sum(((c.double() - mean).square().sum(0) for c in chunks), torch.zeros((), device=x.device)) / len(x)
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
        chunks = [module(c) for c in chunks]


def _r2(squared_error: float, y: Tensor) -> float:
    return 1 - squared_error / max(float(y.double().var(correction=0)), 1e-12)


def _balanced(y: Tensor) -> Tensor | None:
    """Give each class the weight that makes its rows count as much as any other's: float32 [classes], mean 1 a row."""
    if y.is_floating_point():
        return None
    counts = torch.bincount(y)
    return (len(y) / (len(counts) * counts)).float()


def _batches(order: Tensor, size: int) -> Iterator[Tensor]:
    """Cut `order` into batches; a last one of a single row, which BN can't train on, joins the one before."""
    last = len(order) - 1 if len(order) % size == 1 else len(order)
    for start in range(0, last, size):
        stop = start + size
        yield order[start : len(order) if stop >= last else stop]
