"""Measurements -> SVG, by matplotlib's figures alone: no window, no global state. It knows no sentence and no page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from foldserve.training.diagnose.convergence import LAYERS, PERCENTILES, Run
from foldserve.training.diagnose.gradients import ACTIVATIONS, PREDICTED_GROWTH, Depth
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.saving import PLACEMENTS, Saving

_WITHOUT, _WITH = "#c0562f", "#1f6f8b"
_STYLES = ("dotted", "solid", "dashed", "dashdot")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",  # text stays text: a tenth of the size, and it can be read out and searched
}


def _svg(name: str, shape: tuple[int, int], size: tuple[float, float], draw: Callable[[Any], None], **axes: Any) -> str:
    """Draw on a grid of axes, [rows, columns] whatever their number, and give one <svg> element.

    size: in inches. The same figures give the same text: ids are made from `name`, and nothing is dated.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(*shape, squeeze=False, **axes))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    # What stands before it belongs to a file of its own: the XML declaration and a document type with an address.
    return svg[svg.index("<svg") :].strip()


def _colour(batch_norm: bool) -> str:
    return _WITH if batch_norm else _WITHOUT


def _bn(batch_norm: bool) -> str:
    return "with BN" if batch_norm else "without BN"


def speed(runs: Sequence[Run], score_name: str) -> str:
    """Score against steps: one panel a learning rate."""
    rates = sorted({run.rate for run in runs})

    def draw(axes: Any) -> None:
        for ax, rate in zip(axes[0], rates, strict=True):
            for run in (r for r in runs if r.rate == rate):
                ax.plot(run.steps, run.scores, color=_colour(run.batch_norm), label=_bn(run.batch_norm))
                if run.diverged:
                    ax.axvline(run.diverged, color=_colour(run.batch_norm), linestyle="dotted")
            ax.set(title=f"learning rate {rate:g}", xlabel="steps")
            if score_name == "R2":  # before it has learned, R2 is any number below 0
                ax.set_ylim(-0.5, 1)
        axes[0, 0].set_ylabel(score_name + " on held-out rows")
        _legend_below(axes[0, 0])

    return _svg("speed", (1, len(rates)), (10, 3.1), draw, sharey=True)


def percentiles(without: Run, with_bn: Run) -> str:
    """The 15th, 50th and 85th percentile of one sigmoid's inputs over training, side by side on one scale."""

    def draw(axes: Any) -> None:
        for ax, run in zip(axes[0], (without, with_bn), strict=True):
            low, middle, high = np.array(run.percentiles).T
            ax.fill_between(run.steps, low, high, color=_colour(run.batch_norm), alpha=0.2, linewidth=0)
            for share, values in zip(PERCENTILES, (low, middle, high), strict=True):
                width = 1.8 if share == 50 else 0.9
                ax.plot(run.steps, values, color=_colour(run.batch_norm), linewidth=width)
                if np.isfinite(values[-1]):
                    ax.annotate(f"{share}%", (run.steps[-1], values[-1]), xytext=(3, -3), textcoords="offset points")
            ax.set(title=_bn(run.batch_norm), xlabel="steps")
        axes[0, 0].set_ylabel("input to the sigmoid")

    return _svg("percentiles", (1, 2), (10, 2.9), draw, sharey=True)


def moments(without: Run, with_bn: Run) -> str:
    """Mean and variance of each layer's sigmoid inputs over training."""

    def draw(axes: Any) -> None:
        for column, run in enumerate((without, with_bn)):
            for row, (name, values) in enumerate((("mean", run.means), ("variance", run.variances))):
                ax: Axes = axes[row, column]
                for layer in range(LAYERS):
                    series = [look[layer] for look in values]
                    style = _STYLES[layer % len(_STYLES)]
                    colour = _colour(run.batch_norm)
                    ax.plot(run.steps, series, color=colour, linestyle=style, label=f"layer {layer + 1}")
                axes[row, 0].set_ylabel(f"{name} of sigmoid inputs")
                if name == "variance":
                    _log(ax, [look for r in (without, with_bn) for look in np.ravel(r.variances)])
            axes[0, column].set_title(_bn(run.batch_norm))
            axes[1, column].set_xlabel("steps")
        axes[0, 0].legend()
        axes[0, 1].legend()

    return _svg("moments", (2, 2), (10, 4.8), draw, sharex=True, sharey="row")


def _legend_below(ax: Axes) -> None:
    """One legend for all axes of the figure, where it covers none of them."""
    ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _log(ax: Axes, values: Sequence[float]) -> None:
    """Make y logarithmic and at least two decades high, unless no value can be shown so."""
    shown = np.array([value for value in values if np.isfinite(value) and value > 0])
    if not len(shown):
        return
    ax.set_yscale("log")
    low, high = np.log10(shown.min()), np.log10(shown.max())
    half = max(0.55 * (high - low), 1.0)
    ax.set_ylim(10 ** ((low + high) / 2 - half), 10 ** ((low + high) / 2 + half))
    ax.yaxis.set_minor_formatter(NullFormatter())


def gradients(measured: Sequence[Depth], *, trained: bool) -> str:
    """Gradient norm by layer, one line a depth; one panel for each activation without and with batch norm."""
    depths = sorted({m.depth for m in measured})
    colours = dict(zip(depths, mpl.colormaps["viridis"](np.linspace(0.9, 0.0, len(depths))), strict=True))

    def draw(axes: Any) -> None:
        for ax, (activation, batch_norm) in zip(axes[0], product(ACTIVATIONS, (False, True)), strict=True):
            chosen = [m for m in measured if m.activation == activation and m.batch_norm == batch_norm]
            for m in chosen:
                norms = np.array(m.trained if trained else m.initial)
                ax.plot(range(1, m.depth + 1), np.where(norms > 0, norms, np.nan), color=colours[m.depth])
            values = [v for m in chosen for v in (m.trained if trained else m.initial)]
            predicted = []
            if activation == "relu" and batch_norm and not trained:
                predicted = _prediction(ax, max(chosen, key=lambda m: m.depth).initial)
            _log(ax, [*values, *predicted])
            diverged = [str(m.depth) for m in chosen if trained and m.diverged]
            if diverged:
                ax.text(0.05, 0.05, f"diverged: {', '.join(diverged)} layers", transform=ax.transAxes, fontsize=8)
            ax.set(title=f"{activation}, {_bn(batch_norm)}", xlabel="layer, from the input")
        axes[0, 0].set_ylabel("norm of the gradient")
        for depth in depths:
            axes[0, 0].plot([], [], color=colours[depth], label=f"{depth} layers")
        axes[0, 0].legend(loc="lower right")

    return _svg("trained" if trained else "initial", (1, 4), (10, 3.1), draw)


def _prediction(ax: Axes, norms: Sequence[float]) -> list[float]:
    """Draw the predicted slope above what was measured, and give its points; none where there is nothing to compare."""
    layers = np.arange(1, len(norms) + 1)
    if not np.all(np.isfinite(norms)) or not np.all(np.array(norms) > 0):
        return []
    slope = 3 * np.exp(np.mean(np.log(norms))) * PREDICTED_GROWTH ** (layers.mean() - layers)
    label = f"predicted, x {PREDICTED_GROWTH:.2f} a layer"
    ax.plot(layers, slope, color="#555", linestyle="dashed", linewidth=1, label=label)
    ax.legend(loc="upper right")
    return list(slope)


def gaps(measured: Sequence[Gap], score_name: str) -> str:
    """Loss and score in both modes against the batch size."""

    def draw(axes: Any) -> None:
        sizes = [g.batch for g in measured]
        for ax, training, evaluation, name in (
            (axes[0, 0], [g.training_loss for g in measured], [g.evaluation_loss for g in measured], "loss"),
            (axes[0, 1], [g.training_score for g in measured], [g.evaluation_score for g in measured], score_name),
        ):
            ax.plot(sizes, training, color=_WITHOUT, marker="o", markersize=4, label="training mode: the batch's own")
            ax.plot(sizes, evaluation, color=_WITH, marker="s", markersize=4, label="evaluation mode: running averages")
            ax.fill_between(sizes, training, evaluation, color="#888", alpha=0.15, linewidth=0)
            if sizes:
                ax.set_xscale("log", base=2)
                ax.set_xticks(sizes, list(map(str, sizes)))
                ax.minorticks_off()
            ax.set(xlabel="rows in a batch", ylabel=name)
        axes[0, 0].legend(title="statistics", title_fontsize=8)

    return _svg("gaps", (1, 2), (10, 2.9), draw)


def latency(saving: Saving) -> str:
    """Median latency, unfolded beside folded: one panel a number of rows."""
    rows = sorted(saving.models[0].latency[True])
    groups = list(product(PLACEMENTS, (False, True)))

    def draw(axes: Any) -> None:
        for ax, n in zip(axes[0], rows, strict=True):
            for offset, folded in ((-0.2, False), (0.2, True)):
                heights = [1e6 * saving.pair(placement)[folded].latency[on][n] for placement, on in groups]
                bars = ax.bar(
                    np.arange(len(groups)) + offset,
                    heights,
                    0.38,
                    color=_WITH if folded else _WITHOUT,
                    label="folded" if folded else "unfolded",
                )
                ax.bar_label(bars, fmt="%.0f", fontsize=7)
            names = [f"{placement}\nopt. {'on' if on else 'off'}" for placement, on in groups]
            ax.set_xticks(range(len(groups)), names, fontsize=8)
            ax.grid(visible=False, axis="x")
            ax.set(title=f"{n:,} row{'s' * (n != 1)}")
        axes[0, 0].set_ylabel("median latency, µs")
        _legend_below(axes[0, 0])

    return _svg("latency", (1, len(rows)), (10, 3.1), draw)
