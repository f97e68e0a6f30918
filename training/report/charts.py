"""The charts of the report. Each function draws arrays as an SVG chart with a legend.

The module does not depend on the manifest or the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.report.axis import Axis, linear_axis, log_axis
from foldserve.training.report.curves import Curve
from foldserve.training.report.svg import Chart, Colour, Dash, legend

# The largest number of points in a scatter chart. A chart with more points would look the same, but its file would be
# larger.
MAX_POINTS = 1_000
MAX_CURVES = 3
_MAX_LINES = 20
# An axis is logarithmic if its largest value is more than this number times its smallest value. On a linear axis, the
# loss of the late epochs would look like a flat line, and the points of most rows would overlap in one dot.
_LOGARITHMIC = 30
_MAX_BINS = 40
# If two points of a curve are closer than this share of the width of the chart, they look like one point.
_RESOLUTION = 1 / 250
_CURVE_STYLES: tuple[tuple[Colour, Dash], ...] = (("first", ""), ("second", "dashed"), ("ink", "dotted"))

Values = npt.NDArray[np.floating[Any]]


def draw_losses(histories: Sequence[tuple[Values, Values]], alt: str) -> str:
    """Draw the training loss and the validation loss by epoch. Mark the lowest validation loss of each history.

    histories: pairs of training losses [epochs] and validation losses [epochs], with at least one epoch. The first 20
    histories are drawn, each as a pair of lines.
    """
    shown = histories[:_MAX_LINES]
    drawn = np.concatenate([np.concatenate(pair) for pair in shown])
    steep = drawn.min() > 0 and drawn.max() / drawn.min() > _LOGARITHMIC
    y = log_axis("loss", [drawn]) if steep else linear_axis("loss", [drawn], low=min(0.0, float(drawn.min())))
    chart = Chart(_epochs([validation for _, validation in shown]), y)
    for training, validation in shown:
        epochs, best = np.arange(1, len(training) + 1), int(validation.argmin())
        chart.line(epochs, training, "second", "dashed")
        chart.line(epochs, validation, "first")
        chart.points(epochs[best : best + 1], validation[best : best + 1], "first", size=4)
    return chart.svg(alt) + legend(
        ("second", "dashed", "training"), ("first", "", "validation"), ("first", "dot", "lowest")
    )


def draw_scores(histories: Sequence[Values], name: str, alt: str) -> str:
    """Draw a score of the validation rows by epoch.

    histories: arrays [epochs]. The first 20 histories are drawn as lines.
    """
    shown = histories[:_MAX_LINES]
    # The lower end of the axis is at least 0, because the R2 of an untrained model can be any negative number. The
    # upper end of the axis is always 1, so that the axis has a range even if every epoch has the score 1.
    lowest = min(float(score.min()) for score in shown)
    chart = Chart(_epochs(shown), linear_axis(f"validation {name}", [], low=min(max(lowest, 0.0), 0.95), high=1.0))
    for score in shown:
        epochs = np.arange(1, len(score) + 1)
        chart.line(epochs, score, "first")
        if len(score) == 1:  # a line needs at least two epochs
            chart.points(epochs, score, "first")
    return chart.svg(alt)


def _epochs(histories: Sequence[Values]) -> Axis:
    return linear_axis("epoch", [[1, max(map(len, histories))]], integers=True)


def draw_reliability(edges: Values, confidence: Values, accuracy: Values, share: Values, alt: str) -> str:
    """Draw a line of the accuracy against the confidence, and bars with the share of the rows in each bin.

    edges: the edges of the bins, [bins + 1]. confidence, accuracy: the mean confidence and the accuracy in each bin,
    [bins]; NaN for an empty bin. share: the share of the rows in each bin, [bins].
    """
    chart = Chart(_share_axis("confidence"), _share_axis("accuracy"))
    chart.bars(edges[:-1], edges[1:], share, "pale")
    _diagonal(chart)
    filled = share > 0
    chart.line(confidence[filled], accuracy[filled], "first")
    chart.points(confidence[filled], accuracy[filled], "first")
    return chart.svg(alt) + legend(
        ("first", "dot", "the model"), ("ink", "dashed", "calibrated"), ("pale", "area", "share of the rows")
    )


def draw_roc(curves: Sequence[tuple[str, Curve]], marked: int | None, alt: str) -> str:
    """Draw the true positive rate against the false positive rate for the first 3 curves, each with its name.

    marked: the index of the point for the decision threshold on the first curve; None to mark no point.
    """
    chart = Chart(_share_axis("false positive rate"), _share_axis("true positive rate (recall)"))
    _diagonal(chart)
    shown = [(name, curve.false_positive_rate, curve.recall) for name, curve in curves[:MAX_CURVES]]
    return _draw_curves(chart, shown, marked, alt, ("ink", "dashed", "by chance"))


def draw_precision_recall(curves: Sequence[tuple[str, Curve]], marked: int | None, alt: str) -> str:
    """Draw the precision against the recall for the first 3 curves. `marked` has the same meaning as in `draw_roc`."""
    chart = Chart(_share_axis("recall"), _share_axis("precision"))
    # At the first point, no row is predicted as the class, so the precision at this point is only a convention.
    shown = [(name, curve.recall[1:], curve.precision[1:]) for name, curve in curves[:MAX_CURVES]]
    return _draw_curves(chart, shown, None if marked is None else max(marked - 1, 0), alt)


def draw_gains(name: str, curve: Curve, marked: int, alt: str) -> str:
    """Draw the gains curve. The x axis is the share of rows that are predicted as the class. The y axis is the recall.

    The rows are sorted by their score, and the row with the highest score comes first.
    """
    chart = Chart(_share_axis("share of the rows, highest scores first"), _share_axis("share of the class found"))
    _diagonal(chart)
    shown = [(name, curve.predicted_share, curve.recall)]
    return _draw_curves(chart, shown, marked, alt, ("ink", "dashed", "by chance"))


def _draw_curves(
    chart: Chart,
    curves: Sequence[tuple[str, Values, Values]],
    marked: int | None,
    alt: str,
    *more: tuple[Colour, Dash, str],
) -> str:
    entries: list[tuple[Colour, Any, str]] = []
    for (name, x, y), (colour, dash) in zip(curves, _CURVE_STYLES, strict=False):
        chart.line(*_thin(x, y), colour, dash)
        entries.append((colour, dash, name))
    if marked is not None:
        _, x, y = curves[0]
        chart.points(x[marked : marked + 1], y[marked : marked + 1], "second", size=5)
        entries.append(("second", "dot", "at the threshold"))
    return chart.svg(alt) + legend(*entries, *more)


def _thin(x: Values, y: Values) -> tuple[Values, Values]:
    """Leave out each point of a curve if it would be drawn at the same place as the point before it.

    The curve goes from (0, 0) to (1, 1).
    """
    places = np.stack([x, y]) // _RESOLUTION
    moved = np.append(True, (np.diff(places) != 0).any(0))
    moved |= np.append(moved[1:], True)  # keeps the point before each step, so that the step stays vertical
    return x[moved], y[moved]


def is_log_scaled(values: Values) -> bool:
    """Return whether a chart of `values` needs logarithmic axes, as a chart of prices often does."""
    return bool(values.min() > 0) and float(values.max() / values.min()) > _LOGARITHMIC


def draw_predictions(y: Values, values: Values, alt: str) -> str:
    """Draw the predicted values against the true values, both [rows]. The axes may be logarithmic: see `is_log_scaled`.

    At most `MAX_POINTS` rows are drawn, which are evenly spread over the table. A chart with logarithmic axes leaves
    out rows whose predicted value is not positive.
    """
    taken = np.unique(np.linspace(0, len(y) - 1, MAX_POINTS).round().astype(int))
    make = log_axis if is_log_scaled(y) else linear_axis
    chart = Chart(make("true", [y]), make("predicted", [y, values[values > 0] if make is log_axis else values]))
    low, high = max(chart.x.low, chart.y.low), min(chart.x.high, chart.y.high)
    ends = np.geomspace(low, high) if make is log_axis else np.array([low, high])
    chart.points(y[taken], values[taken], "first", size=2.5, faint=True)
    chart.line(ends, ends, "ink", "dashed")
    return chart.svg(alt) + legend(("first", "dot", "a test row"), ("ink", "dashed", "exact"))


def has_long_tail(residual: Values) -> bool:
    """Return whether the largest residual is so far above the median that a chart needs absolute values on a
    logarithmic axis.
    """
    size = abs(residual)
    half = float(np.median(size))
    return half > 0 and float(size.max()) > _LOGARITHMIC * half


def draw_residuals(residual: Values, alt: str) -> str:
    """Draw a histogram of `residual` [rows], the predicted minus the true values. See `has_long_tail`."""
    bins = min(_MAX_BINS, max(5, round(len(residual) ** 0.5)))
    return _draw_sizes(residual, bins, alt) if has_long_tail(residual) else _draw_signed(residual, bins, alt)


def _draw_signed(residual: Values, bins: int, alt: str) -> str:
    extent = float(abs(residual).max()) or 1.0
    counts, edges = np.histogram(residual, bins, None if np.ptp(residual) else (-extent, extent))
    chart = Chart(linear_axis("predicted minus true", [edges]), _rows_axis(counts))
    chart.bars(edges[:-1], edges[1:], counts, "first")
    chart.line(np.zeros(2), np.array([0, chart.y.high]), "ink", "dashed")
    return chart.svg(alt)


def _draw_sizes(residual: Values, bins: int, alt: str) -> str:
    """Draw a histogram of the absolute values of the residuals.

    Each bar has a part for the residuals above 0 and a part for the other residuals.
    """
    size = abs(residual)
    low = float(np.quantile(size[size > 0], 0.01))
    edges = np.geomspace(low, float(size.max()), bins + 1)
    edges[-1] = size.max()
    above, below = (np.histogram(size[chosen].clip(low), edges)[0] for chosen in (residual > 0, residual <= 0))
    chart = Chart(log_axis("distance of predicted and true", [edges]), _rows_axis(above + below))
    chart.bars(edges[:-1], edges[1:], above, "first")
    chart.bars(edges[:-1], edges[1:], above + below, "second", floor=above)
    return chart.svg(alt) + legend(("second", "area", "predicted too low"), ("first", "area", "predicted too high"))


def _rows_axis(counts: npt.NDArray[np.int64]) -> Axis:
    return linear_axis("rows", [counts], low=0.0, integers=True)


def _share_axis(label: str) -> Axis:
    return linear_axis(label, [], low=0.0, high=1.0)


def _diagonal(chart: Chart) -> None:
    ends = np.array([0.0, 1.0])
    chart.line(ends, ends, "ink", "dashed")
