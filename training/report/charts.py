"""Charts: numbers -> inline SVG in the colours of the page around it, the same bytes for the same numbers.

It owns matplotlib and how its SVG becomes part of a page; it knows neither manifest nor training. A page gives the
colours as the custom properties of `COLOURS`, and may change them with the reader's colour scheme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# The CSS custom property of each colour that a chart is made of, and its value where a page sets none.
COLOURS = {"chart-text": "#33383f", "chart-grid": "#d5d9df", "chart-first": "#0b5cad", "chart-second": "#b3500b"}
TEXT, GRID, FIRST, SECOND = COLOURS.values()

# Points beyond this many are drawn no more distinguishable, only larger in bytes.
MAX_POINTS = 1_000
_MAX_LINES = 20
# max / min from which a loss is drawn on a logarithmic axis: its late epochs would be a flat line on a linear one.
_LOGARITHMIC = 30

_STYLE = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.figsize": (5.4, 3.2),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",  # matplotlib brings it: room is measured alike everywhere
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.color": GRID,
    "ytick.labelcolor": TEXT,
}

Values = npt.NDArray[np.floating[Any]]


def inline(name: str, alt: str, draw: Callable[[Axes], None]) -> str:
    """Draw one chart and give it as an `<svg>` element for an HTML page, without a reference to anything outside.

    name: unique in the page, it keeps the ids of two charts apart. alt: what a reader who can't see it is told.
    """
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(layout="constrained")
        draw(figure.subplots())
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = re.compile(r'.*?<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
    svg = root.sub(rf'<svg class="chart" viewBox="\1" role="img" aria-label="{escape(alt)}">', content.getvalue(), 1)
    # What matplotlib would say to the whole page: a style of every element, and ids that two charts share.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def losses(histories: Sequence[tuple[Values, Values]], alt: str) -> str:
    """Draw training and validation loss by epoch, one pair of lines a history, its lowest validation loss marked.

    histories: (training, validation), each [epochs], epochs above 0; the first 20 are drawn.
    """

    def draw(axes: Axes) -> None:
        for i, (training, validation) in enumerate(histories[:_MAX_LINES]):
            epochs = np.arange(1, len(training) + 1)
            best = int(validation.argmin())
            marker = "." if len(epochs) == 1 else ""  # one epoch is no line
            axes.plot(epochs, training, "--", marker=marker, color=SECOND, lw=1.2, label="training" if not i else None)
            axes.plot(epochs, validation, marker=marker, color=FIRST, lw=1.4, label="validation" if not i else None)
            axes.plot(epochs[best], validation[best], "o", color=FIRST, label="lowest" if not i else None)
        drawn = np.concatenate([np.concatenate(pair) for pair in histories[:_MAX_LINES]])
        if drawn.min() > 0 and drawn.max() / drawn.min() > _LOGARITHMIC:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()

    return inline("losses", alt, draw)


def scores(histories: Sequence[Values], name: str, alt: str) -> str:
    """Draw a score of the validation rows by epoch, a line a history: each [epochs]; the first 20 are drawn."""

    def draw(axes: Axes) -> None:
        for score in histories[:_MAX_LINES]:
            axes.plot(np.arange(1, len(score) + 1), score, marker="." if len(score) == 1 else "", color=FIRST, lw=1.4)
        # Before it has learned, R2 is any number below 0; and a score may be 1 all the time.
        lowest = min(float(score.min()) for score in histories[:_MAX_LINES])
        axes.set_ylim(bottom=min(max(lowest, 0.0), 0.95), top=1.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=f"validation {name}")

    return inline("scores", alt, draw)


def reliability(edges: Values, confidence: Values, accuracy: Values, share: Values, alt: str) -> str:
    """Draw how often a prediction of some confidence is right, and the share of rows in each bin as bars.

    edges: [bins + 1]; confidence, accuracy: [bins], NaN where a bin is empty; share: [bins].
    """

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=GRID, label="share of the rows")
        axes.plot([0, 1], [0, 1], "--", color=TEXT, lw=1, label="calibrated")
        filled = share > 0
        axes.plot(confidence[filled], accuracy[filled], "o-", color=FIRST, lw=1.4, ms=4, label="the model")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.03))
        axes.legend(loc="upper left")

    return inline("reliability", alt, draw)


def predictions(y: Values, values: Values, alt: str) -> str:
    """Draw predicted against true values, both [rows], at most `MAX_POINTS` of them, evenly taken."""
    taken = np.unique(np.linspace(0, len(y) - 1, MAX_POINTS).round().astype(int))

    def draw(axes: Axes) -> None:
        ends = [min(y.min(), values.min()), max(y.max(), values.max())]
        axes.plot(ends, ends, "--", color=TEXT, lw=1, label="exact")
        axes.plot(y[taken], values[taken], "o", color=FIRST, ms=4, alpha=0.6, mew=0, label="a test row")
        axes.set(xlabel="true", ylabel="predicted")
        axes.legend()

    return inline("predictions", alt, draw)


def residuals(residual: Values, alt: str) -> str:
    """Draw how `residual` [rows], predicted minus true, is spread."""

    def draw(axes: Axes) -> None:
        axes.hist(residual, bins=min(40, max(5, round(len(residual) ** 0.5))), color=FIRST, edgecolor=GRID, lw=0.5)
        axes.axvline(0, color=TEXT, lw=1, ls="--")
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="predicted minus true", ylabel="rows")

    return inline("residuals", alt, draw)
