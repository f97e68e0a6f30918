"""The tables of a diagnosis. Each function turns measurements into rows of texts. The first row of a table has the
titles of the columns.
"""

from __future__ import annotations

import math
from itertools import product

from foldserve.service.figures import (
    count_of,
    format_change,
    format_count,
    format_difference,
    format_duration,
    format_figure,
    format_value,
)
from foldserve.training.diagnose.convergence import Run, describe_steps, find_goal
from foldserve.training.diagnose.gradients import ACTIVATIONS, PREDICTED_GROWTH, Depth, deepest, growth
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.recipe import Study
from foldserve.training.diagnose.saving import PLACEMENTS, Saving

Rows = tuple[tuple[str, ...], ...]

_NAMES = {False: "without BN", True: "with BN"}


def list_trainings(study: Study, score: str) -> Rows:
    """List every training with the user's recipe."""
    rows = [
        (
            f"{_NAMES[training.batch_norm]}, {training.repeat + 1}",
            format_figure(training.test_loss),
            format_figure(training.test_score),
            str(training.best_epoch) if training.losses else "diverged",
            format_duration(training.seconds / max(len(training.losses), 1)),
        )
        for batch_norm in (False, True)
        for training in study.select(batch_norm=batch_norm)
    ]
    return (("training", "test loss", f"test {score}", "best epoch", "epoch time"), *rows)


def list_graphs(study: Study) -> Rows:
    """List the figures of the user's network before and after folding."""
    if not study.graphs:
        return ()
    unfolded, folded = study.graphs
    figures = [
        ("nodes", format_count(unfolded.nodes), format_count(folded.nodes), unfolded.nodes, folded.nodes),
        (
            "parameters",
            format_count(unfolded.parameters),
            format_count(folded.parameters),
            unfolded.parameters,
            folded.parameters,
        ),
        ("file, bytes", format_count(unfolded.size), format_count(folded.size), unfolded.size, folded.size),
        *(
            (f"run, {count_of(rows, 'row')}", format_duration(before), format_duration(after), before, after)
            for rows, before, after in ((n, unfolded.latency[n], folded.latency[n]) for n in folded.latency)
        ),
    ]
    titles = ("your network", "unfolded", "folded", "change")
    return (titles, *((name, a, b, format_change(before, after)) for name, a, b, before, after in figures))


def list_speeds(runs: tuple[Run, ...], score: str) -> Rows:
    """List the number of steps to the goal and the best score of each run."""
    goal, limit = find_goal(runs), max(run.steps[-1] for run in runs)
    rows = []
    for run in sorted(runs, key=lambda run: (run.rate, run.batch_norm)):
        best = max((s for s in run.scores if math.isfinite(s)), default=math.nan)
        steps = f"diverged at step {run.diverged:,}" if run.diverged else describe_steps(run.steps_to(goal), limit)
        rows.append((f"{format_value(run.rate)}, {_NAMES[run.batch_norm]}", steps, format_figure(best)))
    return (("learning rate", f"to {score} {format_figure(goal)}", f"best {score}"), *rows)


def list_medians(runs: tuple[Run, ...]) -> Rows:
    """List by how much the median input of a typical sigmoid varies during the training."""
    rows = ((_NAMES[run.batch_norm], format_difference(run.movement[0])) for run in runs)
    return (("network", "range of the median"), *rows)


def list_moments(runs: tuple[Run, ...]) -> Rows:
    """For each network, list the range of the mean input and the ratio of the highest to the lowest variance, each for
    the layer where it is largest.
    """
    rows = ((_NAMES[run.batch_norm], *map(format_difference, run.movement[1:])) for run in runs)
    return (("network", "range of the mean", "largest / smallest variance"), *rows)


def list_growth(measured: tuple[Depth, ...]) -> Rows:
    """For the deepest networks at initialisation, list the growth of the gradient per layer."""
    rows = []
    for activation, batch_norm in product(ACTIVATIONS, (False, True)):
        depth = deepest(measured, activation, batch_norm=batch_norm)
        predicted = format_figure(PREDICTED_GROWTH) if activation == "relu" and batch_norm else ""
        rows.append((f"{activation}, {_NAMES[batch_norm]}", format_figure(growth(depth.initial)), predicted))
    layers = max(m.depth for m in measured)
    return (("network", f"factor per layer, {layers} layers", "predicted"), *rows)


def list_scores(measured: tuple[Depth, ...], score: str) -> Rows:
    """List the growth of the gradient in the deepest networks and the scores of all networks, both after training."""
    depths = sorted({m.depth for m in measured})
    rows = []
    for activation, batch_norm in product(ACTIVATIONS, (False, True)):
        chosen = {m.depth: m for m in measured if m.activation == activation and m.batch_norm == batch_norm}
        scores = ("diverged" if chosen[n].diverged else format_difference(chosen[n].score) for n in depths)
        factor = format_figure(growth(chosen[depths[-1]].trained))
        rows.append((f"{activation}, {_NAMES[batch_norm]}", factor, *scores))
    return (("network", "factor per layer", *(f"{score}, {n} layers" for n in depths)), *rows)


def list_gaps(gaps: tuple[Gap, ...], score: str) -> Rows:
    """List the losses and the scores in training mode and in evaluation mode, by batch size."""
    titles = ("rows in a batch", "loss, training", "loss, evaluation", f"{score}, training", f"{score}, evaluation")
    rows = (
        (
            format_count(gap.batch),
            *map(format_figure, (gap.training_loss, gap.evaluation_loss, gap.training_score, gap.evaluation_score)),
        )
        for gap in gaps
    )
    return (titles, *rows) if gaps else ()


def list_sizes(saving: Saving | None) -> Rows:
    """List the nodes, the parameters and the memory of the reference topology before and after folding."""
    if saving is None:
        return ()
    titles = ("model", "nodes", "operators run", "parameters", "file, B", "written per row, B", "largest operator, B")
    return (
        titles,
        *(
            (
                f"{m.placement}, {'folded' if m.folded else 'unfolded'}",
                *map(format_count, (m.nodes, len(m.run), m.parameters, m.size, m.written, m.peak)),
            )
            for m in saving.models
        ),
    )


def list_latencies(saving: Saving | None) -> Rows:
    """List the median latencies of the reference topology before and after folding."""
    if saving is None:
        return ()
    rows = []
    for placement, on in product(PLACEMENTS, (True, False)):
        unfolded, folded = (model.latency[on] for model in saving.pair(placement))
        rows += [
            (
                f"{placement}, {'on' if on else 'off'}, {n:,}",
                format_duration(unfolded[n]),
                format_duration(folded[n]),
                format_change(unfolded[n], folded[n]),
            )
            for n in sorted(folded)
        ]
    return (("placement, optimisations, rows", "unfolded", "folded", "change"), *rows)
