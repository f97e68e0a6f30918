"""The charts of the report: draws arrays as SVG. The module does not know the manifest or the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from foldserve.training.report.svg import FIRST, GRID, SECOND, TEXT, draw_svg, legend_below

# The largest number of points in a scatter chart. More points would look the same and only make the file larger.
MAX_POINTS = 1_000
_MAX_LINES = 20
# A loss gets a logarithmic axis if its max / min is above this. On a linear axis, the late epochs would look like a
# flat line.
_LOGARITHMIC = 30

Values = npt.NDArray[np.floating[Any]]


def draw_losses(histories: Sequence[tuple[Values, Values]], alt: str) -> str:
    """Draw the training and validation loss by epoch, and mark the lowest validation loss of each history.

    histories: pairs of training losses [epochs] and validation losses [epochs], with at least one epoch. The first 20
    histories are drawn, each as a pair of lines.
    """

    def draw(axes: Axes) -> None:
        for i, (training, validation) in enumerate(histories[:_MAX_LINES]):
            epochs = np.arange(1, len(training) + 1)
            best = int(validation.argmin())
            marker = "." if len(epochs) == 1 else ""  # a single epoch can't be drawn as a line
            axes.plot(epochs, training, "--", marker=marker, color=SECOND, lw=1.2, label="training" if not i else None)
            axes.plot(epochs, validation, marker=marker, color=FIRST, label="validation" if not i else None)
            axes.plot(epochs[best], validation[best], "o", color=FIRST, label="lowest" if not i else None)
        drawn = np.concatenate([np.concatenate(pair) for pair in histories[:_MAX_LINES]])
        if drawn.min() > 0 and drawn.max() / drawn.min() > _LOGARITHMIC:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        else:
            axes.set_ylim(bottom=0)
        _label_epochs(axes, "loss")
        legend_below(axes)

    return draw_svg("losses", alt, draw)


def draw_scores(histories: Sequence[Values], name: str, alt: str) -> str:
    """Draw a score of the validation rows by epoch. histories: arrays [epochs]. The first 20 are drawn as lines."""

    def draw(axes: Axes) -> None:
        for score in histories[:_MAX_LINES]:
            axes.plot(np.arange(1, len(score) + 1), score, marker="." if len(score) == 1 else "", color=FIRST)
        # The axis has a fixed top and a limited bottom, because the R2 of an untrained model can be any negative
        # number, and a score can be 1 in every epoch.
        lowest = min(float(score.min()) for score in histories[:_MAX_LINES])
        axes.set_ylim(bottom=min(max(lowest, 0.0), 0.95), top=1.0)
        _label_epochs(axes, f"validation {name}")

    return draw_svg("scores", alt, draw)


def _label_epochs(axes: Axes, ylabel: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set(xlabel="epoch", ylabel=ylabel)


def draw_reliability(edges: Values, confidence: Values, accuracy: Values, share: Values, alt: str) -> str:
    """Draw the accuracy by confidence as a line, and the share of the rows in each bin as bars.

    edges: [bins + 1]. confidence, accuracy: [bins], NaN for an empty bin. share: [bins].
    """

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=GRID, label="share of the rows")
        axes.plot([0, 1], [0, 1], "--", color=TEXT, lw=1, label="calibrated")
        filled = share > 0
        axes.plot(confidence[filled], accuracy[filled], "o-", color=FIRST, ms=4, label="the model")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.03))
        legend_below(axes)

    return draw_svg("reliability", alt, draw)


def draw_predictions(y: Values, values: Values, alt: str) -> str:
    """Draw the predicted values over the true values, both [rows].

    At most `MAX_POINTS` rows are drawn, at equal distances.
    """
    taken = np.unique(np.linspace(0, len(y) - 1, MAX_POINTS).round().astype(int))

    def draw(axes: Axes) -> None:
        ends = [min(y.min(), values.min()), max(y.max(), values.max())]
        axes.plot(ends, ends, "--", color=TEXT, lw=1, label="exact")
        axes.plot(y[taken], values[taken], "o", color=FIRST, ms=4, alpha=0.6, mew=0, label="a test row")
        axes.set(xlabel="true", ylabel="predicted")
        legend_below(axes)

    return draw_svg("predictions", alt, draw)


def draw_residuals(residual: Values, alt: str) -> str:
    """Draw a histogram of `residual` [rows], the predicted minus the true values."""

    def draw(axes: Axes) -> None:
        axes.hist(residual, bins=min(40, max(5, round(len(residual) ** 0.5))), color=FIRST, edgecolor=GRID, lw=0.5)
        axes.axvline(0, color=TEXT, lw=1, ls="--")
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="predicted minus true", ylabel="rows")

    return draw_svg("residuals", alt, draw)
