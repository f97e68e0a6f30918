"""Trains the user's own recipe with and without batch norm, and measures what folding changes in the user's network.

The split, the preprocessing, the network and the fit are the same as in `foldserve-train fit` with the same flags. Only
one member of an ensemble is trained. The module does not draw plots.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from foldserve.service.figures import count_of, format_change, format_figure
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import MAX_ROWS, OnProgress
from foldserve.training.diagnose.saving import time_models
from foldserve.training.errors import FitError, FoldError
from foldserve.training.fit.loop import Examples, Fitted
from foldserve.training.fold.export import to_onnx
from foldserve.training.network.dropout import Dropout
from foldserve.training.network.preprocessing import transform
from foldserve.training.pipeline import Prepared, assemble, fit_member, prepare
from foldserve.training.plan import Plan
from foldserve.training.table.load import load_held_out
from foldserve.training.table.schema import Table

# Two mean losses count as equal if their relative difference is at most this number. Different initial weights alone
# can change a loss by this much.
_CLEAR = 0.02


@dataclass(frozen=True)
class Training:
    """One training with the user's recipe. losses, scores: the loss and the score of the validation rows, after each
    epoch.

    test_loss, test_score: the loss and the score of the test rows, with the weights of the best epoch. In a
    classification, the loss is the log loss in nats and the score is the accuracy. In a regression, the loss is the
    mean squared error of the standardised target and the score is R2. seconds: the duration of the training. If the
    training diverged, `losses` and `scores` are empty and the other figures are NaN.
    """

    batch_norm: bool
    repeat: int
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best_epoch: int
    test_loss: float
    test_score: float
    seconds: float


@dataclass(frozen=True)
class Graph:
    """The unfolded or the folded ONNX graph of the user's network.

    size: the size of the file in bytes. latency: the median number of seconds of a run, by the number of rows.
    """

    folded: bool
    nodes: int
    parameters: int
    size: int
    latency: dict[int, float]


@dataclass(frozen=True)
class Study:
    """The trainings with and without batch norm, and the ONNX graphs of the first training with the user's own choice
    of batch norm.

    rows: the numbers of training, validation and test rows. total: the number of rows of the table. graphs: the
    unfolded graph and the folded graph; empty if the training of this network diverged.
    """

    plan: Plan
    rows: tuple[int, int, int]
    total: int
    trainings: tuple[Training, ...]
    graphs: tuple[Graph, ...]

    def select(self, *, batch_norm: bool) -> tuple[Training, ...]:
        """Return all trainings with batch norm, or all trainings without batch norm, in the order in which they ran."""
        return tuple(training for training in self.trainings if training.batch_norm == batch_norm)


def measure(table: Table, plan: Plan, diagnosis: DiagnosisPlan, on_progress: OnProgress) -> Study:
    """Train the user's recipe `diagnosis.repeats` times with batch norm, and `diagnosis.repeats` times without batch
    norm.

    Each repeat has different initial weights.

    If the table has more than 20,000 rows, the function uses only 20,000 random rows.
    """
    total = len(table.x)
    if total > MAX_ROWS:
        drawn = np.random.default_rng(plan.seed).permutation(total)[:MAX_ROWS]
        table = table.select(np.sort(drawn))
    prepared = prepare(plan, table)
    test = load_held_out(plan.data, table, prepared.split)
    trainings, kept = list[Training](), None
    count = 2 * diagnosis.repeats
    for repeat in range(diagnosis.repeats):
        for batch_norm in (False, True):
            on_progress("your recipe", len(trainings), count)
            architecture = replace(plan.architecture, batch_norm=batch_norm, members=1)
            changed = replace(plan, architecture=architecture)
            training, fitted = _train(changed, prepared, test, repeat)
            trainings.append(training)
            if repeat == 0 and batch_norm == plan.architecture.batch_norm:
                kept = fitted
    on_progress("your recipe", count, count)
    rows = (len(prepared.train), len(prepared.validation), len(test.y))
    graphs = _compare_graphs(plan, prepared, kept, test, diagnosis, on_progress) if kept else ()
    return Study(plan, rows, total, tuple(trainings), graphs)


def _train(plan: Plan, prepared: Prepared, test: Table, repeat: int) -> tuple[Training, Fitted | None]:
    batch_norm, started = plan.architecture.batch_norm, time.perf_counter()
    try:
        fitted = fit_member(plan, prepared, repeat)
    except FitError:
        return Training(batch_norm, repeat, (), (), 0, math.nan, math.nan, math.nan), None
    seconds = time.perf_counter() - started
    loss, score = _test(prepared, test, fitted.network)
    losses = tuple(epoch.validation_loss for epoch in fitted.history)
    scores = tuple(epoch.validation_score for epoch in fitted.history)
    return Training(batch_norm, repeat, losses, scores, fitted.best_epoch, loss, score, seconds), fitted


@torch.no_grad()
def _test(prepared: Prepared, test: Table, network: nn.Module) -> tuple[float, float]:
    rows = Examples(transform(prepared.preprocessing, test.x), torch.from_numpy(test.y))
    output = network(rows.x).double()
    if test.labels:
        loss = float(functional.cross_entropy(output, rows.y))
        return loss, float((output.argmax(1) == rows.y).double().mean())
    y = (rows.y.double() - prepared.target_mean) / prepared.target_std
    squares = float((output.squeeze(1) - y).square().mean())
    return squares, 1 - squares / max(float(y.var(correction=0)), 1e-12)


def _compare_graphs(
    plan: Plan, prepared: Prepared, fitted: Fitted, test: Table, diagnosis: DiagnosisPlan, on_progress: OnProgress
) -> tuple[Graph, ...]:
    try:
        trained = assemble(plan, prepared, (fitted,))
    except FoldError:  # raised if a weight is not finite
        return ()
    table, chains = prepared.table, {False: trained.network, True: trained.folded.network}
    contents = {
        folded: to_onnx(_chain(chain), len(table.columns), table.outputs, table.task, unfolded=not folded)
        for folded, chain in chains.items()
    }
    latency = time_models(contents, test.x, diagnosis, on_progress, "your network")
    return tuple(_describe(folded, content, latency[folded][True]) for folded, content in contents.items())


def _chain(network: nn.Module) -> nn.Sequential:
    """Return the layers without dropout, which does nothing in eval mode and has no ONNX form."""
    layers = ((name, layer) for name, layer in network.named_children() if not isinstance(layer, Dropout))
    return nn.Sequential(OrderedDict(layers)).eval()


def _describe(folded: bool, content: bytes, latency: dict[int, float]) -> Graph:
    graph = onnx.load_model_from_string(content).graph
    parameters = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    return Graph(folded, len(graph.node), parameters, len(content), latency)


def describe_trainings(study: Study) -> str:
    """Say whether the training with batch norm has the lower loss on the test rows in every pair of trainings."""
    without, with_bn = (study.select(batch_norm=batch_norm) for batch_norm in (False, True))
    differences = [b.test_loss - a.test_loss for a, b in zip(without, with_bn, strict=True)]
    if any(map(math.isnan, differences)):
        return "Some trainings with your recipe diverged, so there is nothing to compare."
    before, after = (sum(t.test_loss for t in trainings) / len(trainings) for trainings in (without, with_bn))
    figures = f"from {format_figure(before)} to {format_figure(after)}"
    pairs = "in the one pair of trainings" if len(differences) == 1 else f"in each of {len(differences)} pairs"
    if abs(after - before) <= _CLEAR * before:
        return (
            f"BN makes no clear difference to the loss of your recipe on the test rows: on average it goes {figures}."
        )
    if max(differences) < 0:
        return f"BN lowers the loss of your recipe on the test rows {pairs}, {figures}, which supports its use here."
    if min(differences) > 0:
        return f"BN raises the loss of your recipe on the test rows {pairs}, {figures}, so --no-batch-norm fits better."
    return f"BN makes no clear difference to the loss of your recipe on the test rows: on average it goes {figures}."


def describe_graphs(study: Study) -> str:
    """Say how folding changes the number of nodes and the latency of the user's network."""
    if not study.graphs:
        return "Training diverged, so there was nothing to fold."
    unfolded, folded = study.graphs
    rows = max(folded.latency)
    before, after = unfolded.latency[rows], folded.latency[rows]
    change = format_change(before, after)
    time = "the same time" if change[-1] != "%" else f"{change[1:]} {'less' if after < before else 'more'} time"
    return (
        f"Folding reduces your network from {count_of(unfolded.nodes, 'node')} to {folded.nodes}, and a run with "
        f"{count_of(rows, 'row')} takes {time}."
    )
