"""The plots of a diagnosis: draws measurements as SVG. The module does not know the sentences or the page.

In every plot, one colour is for networks with batch norm, and the other colour for networks without.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from foldserve.training.diagnose.convergence import LAYERS, PERCENTILES, Run
from foldserve.training.diagnose.gradients import ACTIVATIONS, PREDICTED_GROWTH, Depth
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.saving import PLACEMENTS, Saving
from foldserve.training.report.svg import FIRST, GRID, SECOND, TEXT, draw_grid, format_power_of_ten, legend_below
from foldserve.training.text import count_of

_LINE_STYLES = ("dotted", "solid", "dashed", "dashdot")
# A width in inches. The page scales every plot to the width of the page.
_WIDTH = 10


def _colour(batch_norm: bool) -> str:
    return FIRST if batch_norm else SECOND


def _name(batch_norm: bool) -> str:
    return "with BN" if batch_norm else "without BN"


def draw_speed(runs: Sequence[Run], score_name: str) -> str:
    """Draw the score by steps, with one panel for each learning rate."""
    rates = sorted({run.rate for run in runs})

    def draw(axes: Any) -> None:
        for ax, rate in zip(axes[0], rates, strict=True):
            for run in (r for r in runs if r.rate == rate):
                ax.plot(run.steps, run.scores, color=_colour(run.batch_norm), label=_name(run.batch_norm))
                if run.diverged:
                    ax.axvline(run.diverged, color=_colour(run.batch_norm), linestyle="dotted")
            ax.set(title=f"learning rate {rate:g}", xlabel="steps")
            if score_name == "R2":  # because the R2 of an untrained network can be any negative number
                ax.set_ylim(-0.5, 1)
        axes[0, 0].set_ylabel(score_name + " on held-out rows")
        legend_below(axes[0, 0])

    alt = f"{score_name} by steps, with and without BN, at each learning rate"
    return draw_grid("speed", alt, (1, len(rates)), (_WIDTH, 3.1), draw, sharey=True)


def draw_percentiles(without: Run, with_bn: Run) -> str:
    """Draw the percentiles of one sigmoid's inputs during training, side by side on one scale."""

    def draw(axes: Any) -> None:
        for ax, run in zip(axes[0], (without, with_bn), strict=True):
            low, middle, high = np.array(run.percentiles).T
            ax.fill_between(run.steps, low, high, color=_colour(run.batch_norm), alpha=0.2, linewidth=0)
            for share, values in zip(PERCENTILES, (low, middle, high), strict=True):
                width = 1.8 if share == 50 else 0.9
                ax.plot(run.steps, values, color=_colour(run.batch_norm), linewidth=width)
                if np.isfinite(values[-1]):
                    ax.annotate(f"{share}%", (run.steps[-1], values[-1]), xytext=(3, -3), textcoords="offset points")
            ax.set(title=_name(run.batch_norm), xlabel="steps")
        axes[0, 0].set_ylabel("input to the sigmoid")

    alt = "percentiles of the inputs of one sigmoid by steps, without and with BN"
    return draw_grid("percentiles", alt, (1, 2), (_WIDTH, 2.9), draw, sharey=True)


def draw_moments(without: Run, with_bn: Run) -> str:
    """Draw the mean and variance of each layer's sigmoid inputs during training."""

    def draw(axes: Any) -> None:
        for column, run in enumerate((without, with_bn)):
            for row, (name, values) in enumerate((("mean", run.means), ("variance", run.variances))):
                ax: Axes = axes[row, column]
                for layer in range(LAYERS):
                    series = [of_layers[layer] for of_layers in values]
                    style = _LINE_STYLES[layer % len(_LINE_STYLES)]
                    ax.plot(
                        run.steps, series, color=_colour(run.batch_norm), linestyle=style, label=f"layer {layer + 1}"
                    )
                axes[row, 0].set_ylabel(f"{name} of sigmoid inputs")
                if name == "variance":
                    _set_log_scale(ax, [v for r in (without, with_bn) for v in np.ravel(r.variances)])
            axes[0, column].set_title(_name(run.batch_norm))
            axes[1, column].set_xlabel("steps")
            axes[0, column].legend()

    alt = "mean and variance of the sigmoids' inputs by steps, without and with BN, layer by layer"
    return draw_grid("moments", alt, (2, 2), (_WIDTH, 4.8), draw, sharex=True, sharey="row")


def _set_log_scale(ax: Axes, values: Sequence[float]) -> None:
    """Make the y axis logarithmic, over at least two decades, unless every value is 0 or not finite."""
    shown = np.array([value for value in values if np.isfinite(value) and value > 0])
    if not len(shown):
        return
    ax.set_yscale("log")
    low, high = np.log10(shown.min()), np.log10(shown.max())
    half = max(0.55 * (high - low), 1.0)
    ax.set_ylim(10 ** ((low + high) / 2 - half), 10 ** ((low + high) / 2 + half))
    ax.yaxis.set_major_formatter(format_power_of_ten)
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw_gradients(measured: Sequence[Depth], *, trained: bool) -> str:
    """Draw the gradient norm by layer. Deeper networks have stronger lines.

    There is one panel for each activation without batch norm, and one for each activation with batch norm.
    """
    depths = sorted({m.depth for m in measured})
    strengths = dict(zip(depths, np.linspace(0.35, 1.0, len(depths)) if len(depths) > 1 else [1.0], strict=True))

    def draw(axes: Any) -> None:
        for ax, (activation, batch_norm) in zip(axes[0], product(ACTIVATIONS, (False, True)), strict=True):
            chosen = [m for m in measured if m.activation == activation and m.batch_norm == batch_norm]
            for m in chosen:
                norms = np.array(m.trained if trained else m.initial)
                shown = np.where(norms > 0, norms, np.nan)
                ax.plot(range(1, m.depth + 1), shown, color=_colour(batch_norm), alpha=strengths[m.depth])
            values = [v for m in chosen for v in (m.trained if trained else m.initial)]
            predicted = []
            if activation == "relu" and batch_norm and not trained:
                predicted = _draw_prediction(ax, max(chosen, key=lambda m: m.depth).initial)
            _set_log_scale(ax, [*values, *predicted])
            diverged = [str(m.depth) for m in chosen if trained and m.diverged]
            if diverged:
                ax.text(0.05, 0.05, f"diverged: {', '.join(diverged)} layers", transform=ax.transAxes, fontsize=8)
            ax.set(title=f"{activation}, {_name(batch_norm)}", xlabel="layer, from the input")
        axes[0, 0].set_ylabel("norm of the gradient")
        for depth in depths:
            axes[0, 0].plot([], [], color=TEXT, alpha=strengths[depth], label=f"{depth} layers")
        legend_below(axes[0, 0])

    when = "after training" if trained else "at initialisation"
    alt = f"norm of the gradient by layer {when}, for each depth, activation, and with and without BN"
    return draw_grid("trained" if trained else "initial", alt, (1, 4), (_WIDTH, 3.1), draw)


def _draw_prediction(ax: Axes, norms: Sequence[float]) -> list[float]:
    """Draw a line with the predicted slope above the measured norms, and return its points.

    Return [] if a norm is 0 or not finite.
    """
    layers = np.arange(1, len(norms) + 1)
    if not np.all(np.isfinite(norms)) or not np.all(np.array(norms) > 0):
        return []
    slope = 3 * np.exp(np.mean(np.log(norms))) * PREDICTED_GROWTH ** (layers.mean() - layers)
    label = f"predicted, x {PREDICTED_GROWTH:.2f} per layer"
    ax.plot(layers, slope, color=TEXT, linestyle="dashed", linewidth=1, label=label)
    ax.legend(loc="upper right")
    return list(slope)


def draw_gaps(measured: Sequence[Gap], score_name: str) -> str:
    """Draw the loss and the score in both modes by batch size."""

    def draw(axes: Any) -> None:
        sizes = [g.batch for g in measured]
        for ax, training, evaluation, name in (
            (axes[0, 0], [g.training_loss for g in measured], [g.evaluation_loss for g in measured], "loss"),
            (axes[0, 1], [g.training_score for g in measured], [g.evaluation_score for g in measured], score_name),
        ):
            ax.plot(sizes, training, color=SECOND, marker="o", markersize=4, label="training mode: batch statistics")
            ax.plot(sizes, evaluation, color=FIRST, marker="s", markersize=4, label="evaluation mode: running averages")
            ax.fill_between(sizes, training, evaluation, color=GRID, alpha=0.5, linewidth=0)
            if sizes:
                ax.set_xscale("log", base=2)
                ax.set_xticks(sizes, list(map(str, sizes)))
                ax.minorticks_off()
            ax.set(xlabel="rows in a batch", ylabel=name)
        legend_below(axes[0, 0])

    alt = f"loss and {score_name} in training and evaluation mode by batch size"
    return draw_grid("gaps", alt, (1, 2), (_WIDTH, 2.9), draw)


def draw_latency(saving: Saving) -> str:
    """Draw the median latencies of the unfolded and the folded models side by side.

    There is one panel for each number of rows.
    """
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
                    color=FIRST if folded else SECOND,
                    label="folded" if folded else "unfolded",
                )
                ax.bar_label(bars, fmt="%.0f", fontsize=7)
            names = [f"{placement}\nopt. {'on' if on else 'off'}" for placement, on in groups]
            ax.set_xticks(range(len(groups)), names, fontsize=8)
            ax.grid(visible=False, axis="x")
            ax.set(title=count_of(n, "row"))
        axes[0, 0].set_ylabel("median latency, µs")
        legend_below(axes[0, 0])

    alt = "median latency of the unfolded and the folded models by placement and rows"
    return draw_grid("latency", alt, (1, len(rows)), (_WIDTH, 3.1), draw)
