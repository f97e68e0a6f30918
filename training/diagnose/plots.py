"""The plots of a diagnosis: draws measurements as SVG. The module does not depend on the sentences or the page.

In every plot, networks with batch norm have one colour, and networks without batch norm have another colour. Each plot
is a list of charts with one legend. On a wide page, the charts are side by side. On a phone, the charts are below each
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from foldserve.service.figures import count_of, format_duration, format_value
from foldserve.training.diagnose.convergence import LAYERS, PERCENTILES, Run
from foldserve.training.diagnose.gradients import ACTIVATIONS, PREDICTED_GROWTH, Depth
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.recipe import Study
from foldserve.training.diagnose.saving import PLACEMENTS, Saving
from foldserve.training.report.axis import category_axis, linear_axis, log_axis, powers_axis
from foldserve.training.report.svg import Chart, Colour, Dash, legend


@dataclass(frozen=True)
class Plot:
    """SVG charts that share a legend, and the HTML of the legend."""

    charts: tuple[str, ...]
    legend: str


Norms = npt.NDArray[np.float64]

_DASHES: tuple[Dash, ...] = ("dotted", "", "dashed")
# The range of an axis for R2. The axis does not show every R2, because the R2 of an untrained network can be any
# negative number.
_R2_RANGE = (-0.5, 1.0)
_LEAST_DECADES = 2.0
_BAR, _GAP = 0.38, 0.02


def _colour(batch_norm: bool) -> Colour:
    return "first" if batch_norm else "second"


def _name(batch_norm: bool) -> str:
    return "with BN" if batch_norm else "without BN"


_BOTH: tuple[tuple[Colour, Dash, str], ...] = (("first", "", "with BN"), ("second", "", "without BN"))


def draw_trainings(study: Study, score_name: str) -> Plot:
    """Draw the validation loss and the validation score by epoch for every training with the user's recipe."""
    trainings = [training for training in study.trainings if training.losses]
    low, high = _R2_RANGE if score_name == "R2" else (None, None)
    x = linear_axis("epoch", [[1, len(training.losses)] for training in trainings], integers=True)
    scores = linear_axis(f"validation {score_name}", [training.scores for training in trainings], low=low, high=high)
    losses = Chart(x, linear_axis("validation loss", [training.losses for training in trainings], low=0.0))
    of_scores = Chart(x, scores)
    for training in trainings:
        epochs, colour = np.arange(1, len(training.losses) + 1), _colour(training.batch_norm)
        losses.line(epochs, np.array(training.losses), colour)
        of_scores.line(epochs, np.array(training.scores), colour)
        best = slice(training.best_epoch - 1, training.best_epoch)
        losses.points(epochs[best], np.array(training.losses)[best], colour, size=4)
    charts = [
        losses.svg("validation loss by epoch, with and without BN"),
        of_scores.svg(f"validation {score_name} by epoch, with and without BN"),
    ]
    return Plot(tuple(charts), legend(*_BOTH, ("ink", "dot", "lowest loss")))


def draw_speed(runs: Sequence[Run], score_name: str) -> Plot:
    """Draw the score against the number of steps, with one chart for each learning rate."""
    low, high = _R2_RANGE if score_name == "R2" else (None, None)
    y = linear_axis(f"{score_name} on held-out rows", [run.scores for run in runs], low=low, high=high)
    charts, diverged = [], False
    for rate in sorted({run.rate for run in runs}):
        chosen = [run for run in runs if run.rate == rate]
        title = f"learning rate {format_value(rate)}"
        chart = Chart(linear_axis("steps", [run.steps for run in chosen], low=0.0, integers=True), y, title)
        for run in chosen:
            chart.line(np.array(run.steps), np.array(run.scores), _colour(run.batch_norm))
            if run.diverged:
                diverged = True
                ends = np.array([y.low, y.high])
                chart.line(np.full(2, run.diverged), ends, _colour(run.batch_norm), "dotted")
        charts.append(chart.svg(f"{score_name} by steps at {title}, with and without BN"))
    dotted: tuple[tuple[Colour, Dash, str], ...] = (("ink", "dotted", "diverged here"),) if diverged else ()
    return Plot(tuple(charts), legend(*_BOTH, *dotted))


def draw_percentiles(without: Run, with_bn: Run) -> Plot:
    """Draw the percentiles of one sigmoid's inputs during training. The chart without batch norm and the chart with
    batch norm have the same scale.
    """
    y = linear_axis("input to the sigmoid", [without.percentiles, with_bn.percentiles])
    charts = []
    for run in (without, with_bn):
        steps, name = np.array(run.steps), _name(run.batch_norm)
        chart = Chart(linear_axis("steps", [run.steps], low=0.0, integers=True), y, name)
        values = np.array(run.percentiles).T
        chart.band(steps, values[0], values[-1], _colour(run.batch_norm))
        for share, line in zip(PERCENTILES, values, strict=True):
            chart.line(steps, line, _colour(run.batch_norm), "" if share == 50 else "dotted")
        charts.append(chart.svg(f"Percentiles of the inputs of one sigmoid by steps, {name}"))
    middle: tuple[Colour, Dash, str] = ("ink", "", "median")
    return Plot(tuple(charts), legend(*_BOTH, middle, ("ink", "dotted", "15th and 85th percentile")))


def draw_moments(without: Run, with_bn: Run) -> Plot:
    """Draw the mean and the variance of the sigmoids' inputs during training, with one line for each layer."""
    axes = (
        ("mean", linear_axis("mean of sigmoid inputs", [without.means, with_bn.means])),
        (
            "variance",
            log_axis(
                "variance of sigmoid inputs", [without.variances, with_bn.variances], least_decades=_LEAST_DECADES
            ),
        ),
    )
    charts = []
    for (name, y), run in product(axes, (without, with_bn)):
        values = np.array(run.means if name == "mean" else run.variances)
        title = f"{name}, {_name(run.batch_norm)}"
        chart = Chart(linear_axis("steps", [run.steps], low=0.0, integers=True), y, title)
        for layer in range(LAYERS):
            chart.line(np.array(run.steps), values[:, layer], _colour(run.batch_norm), _DASHES[layer % len(_DASHES)])
        charts.append(chart.svg(f"{name} of the sigmoids' inputs by steps, layer by layer, {_name(run.batch_norm)}"))
    layers: list[tuple[Colour, Dash, str]] = [
        ("ink", _DASHES[layer % len(_DASHES)], f"layer {layer + 1}") for layer in range(LAYERS)
    ]
    return Plot(tuple(charts), legend(*_BOTH, *layers))


def draw_gradients(measured: Sequence[Depth], *, trained: bool) -> Plot:
    """Draw the gradient norm by layer. A deeper network has a more opaque line.

    There are two charts for each activation: one without batch norm, and one with batch norm.
    """
    depths = sorted({m.depth for m in measured})
    strengths = dict(zip(depths, np.linspace(0.35, 1.0, len(depths)) if len(depths) > 1 else [1.0], strict=True))
    when = "after training" if trained else "at initialisation"
    charts = []
    for activation, batch_norm in product(ACTIVATIONS, (False, True)):
        chosen = [m for m in measured if m.activation == activation and m.batch_norm == batch_norm]
        norms = {m.depth: np.array(m.trained if trained else m.initial) for m in chosen}
        predicted = None
        if activation == "relu" and batch_norm and not trained:
            predicted = _predict(norms[max(norms)])
        drawn = [*norms.values(), *([] if predicted is None else [predicted])]
        title = f"{activation}, {_name(batch_norm)}"
        x = linear_axis("layer, from the input", [[1, max(depths)]], integers=True)
        chart = Chart(x, log_axis("norm of the gradient", drawn, least_decades=_LEAST_DECADES), title)
        for depth, values in norms.items():
            chart.line(np.arange(1, depth + 1), values, _colour(batch_norm), opacity=float(strengths[depth]))
        if predicted is not None:
            chart.line(np.arange(1, len(predicted) + 1), predicted, "ink", "dashed")
        diverged = [str(m.depth) for m in chosen if trained and m.diverged]
        if diverged:
            chart.note(f"diverged: {', '.join(diverged)} layers")
        charts.append(chart.svg(f"Norm of the gradient by layer {when}: {title}"))
    more: tuple[tuple[Colour, Dash, str], ...] = () if trained else (("ink", "dashed", _describe_prediction()),)
    depth_list = ", ".join(map(str, depths))
    return Plot(tuple(charts), legend(*_BOTH, *more) + f'<p class="quiet">Stronger lines: {depth_list} layers.</p>')


def _describe_prediction() -> str:
    return f"predicted slope, x {format_value(PREDICTED_GROWTH)} per layer"


def _predict(norms: Norms) -> Norms | None:
    """Return the points of a line with the predicted slope, placed above the measured norms. Return None if a norm is 0
    or not finite.
    """
    if not np.isfinite(norms).all() or (norms <= 0).any():
        return None
    layers = np.arange(1, len(norms) + 1)
    line: Norms = 3 * np.exp(np.log(norms).mean()) * PREDICTED_GROWTH ** (layers.mean() - layers)
    return line


def draw_gaps(measured: Sequence[Gap], score_name: str) -> Plot:
    """Draw the loss and the score in training mode and in evaluation mode, by batch size."""
    sizes = [gap.batch for gap in measured]
    x = powers_axis("rows in a batch", sizes)
    charts = []
    for name, training, evaluation in (
        ("loss", [g.training_loss for g in measured], [g.evaluation_loss for g in measured]),
        (score_name, [g.training_score for g in measured], [g.evaluation_score for g in measured]),
    ):
        chart = Chart(x, linear_axis(name, [training, evaluation]), name)
        places = np.array(sizes, np.float64)
        chart.band(places, np.array(training), np.array(evaluation), "ink")
        chart.line(places, np.array(training), "second")
        chart.line(places, np.array(evaluation), "first")
        charts.append(chart.svg(f"{name} in training and evaluation mode by batch size"))
    return Plot(
        tuple(charts),
        legend(("second", "", "training mode: batch statistics"), ("first", "", "evaluation mode: running averages")),
    )


def draw_latency(saving: Saving) -> Plot:
    """Draw the median latencies of the unfolded and the folded models side by side.

    There is one chart for each number of rows.
    """
    groups = list(product(PLACEMENTS, (False, True)))
    names = [f"{placement}, {'on' if on else 'off'}" for placement, on in groups]
    charts = []
    for rows in sorted(saving.models[0].latency[True]):
        heights = {
            folded: np.array([1e6 * saving.pair(placement)[folded].latency[on][rows] for placement, on in groups])
            for folded in (False, True)
        }
        y = linear_axis("median latency, µs", heights.values(), low=0.0)
        chart = Chart(category_axis("placement, optimisations of ONNX Runtime", names), y, count_of(rows, "row"))
        for folded, values in heights.items():
            left = np.arange(len(groups)) + (_GAP / 2 if folded else -_GAP / 2 - _BAR)
            chart.bars(left, left + _BAR, values, "first" if folded else "second")
            for place, value in zip(left + _BAR / 2, values.tolist(), strict=True):
                chart.text(float(place), value, format_duration(value / 1e6).partition(" ")[0])
        charts.append(chart.svg(f"Median latency of the unfolded and the folded models for {count_of(rows, 'row')}"))
    return Plot(tuple(charts), legend(("second", "area", "unfolded"), ("first", "area", "folded")))
