"""Compares a new version with the active version: their interfaces, and their answers to the last live rows.

This module counts the differences between the answers of the two versions. `live/verdict.py` decides whether the
differences are too large.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Decision, Feature, Manifest
from foldserve.service.engine.repository import Model
from foldserve.service.live.plan import Changes, Outcome, Trial

_TIMED_RUNS = 5


def compare(old: Model, new: Model, trial: Trial) -> Outcome:
    """Compare two versions. If the interfaces differ and the trial forbids it, the outcome names the differences.

    The outcome also shows how the answers changed, if the trial asks for this and the answers can be compared.
    """
    changes = list(interface_changes(old.manifest, new.manifest))
    measures: dict[str, Any] = {"against": old.manifest.version}
    if changes:
        measures["interface"] = changes
        if not trial.allow_interface_change:
            reason = f"the interface differs from version {old.manifest.version}: {'; '.join(changes)}"
            return Outcome(reason=reason, final=True, compared=measures)
    if old.manifest.input.shape != new.manifest.input.shape or old.manifest.labels != new.manifest.labels:
        return Outcome(compared=measures)  # the answers can't be compared
    golden = np.array(old.manifest.golden.inputs, np.float32)
    if not np.isfinite(new.runtime.run(golden)).all():
        reason = "an output is not finite for the golden rows of the version that serves"
        return Outcome(reason=reason, final=True, compared=measures)
    if not trial.shadow:
        return Outcome(compared=measures)
    rows, outputs = old.live_rows.sample()
    return Outcome(
        compared=measures,
        live=_changes(old, new, rows, outputs) if len(rows) else Changes(rows=0),
        golden=_changes(old, new, golden, np.array(old.manifest.golden.outputs, np.float32)),
    )


def interface_changes(old: Manifest, new: Manifest) -> Iterator[str]:
    """Compare two interfaces, and yield a text for each difference that a client of the old version may notice."""
    before, after = [f.name for f in old.features], [f.name for f in new.features]
    added, removed = [n for n in after if n not in before], [n for n in before if n not in after]
    if (
        len(before) == len(after)
        and len(added) == len(removed) == 1
        and before.index(removed[0]) == after.index(added[0])
    ):
        yield f"the feature {removed[0]!r} is now {added[0]!r}"
    else:
        yield from (f"the feature {name!r} is new" for name in added)
        yield from (f"the feature {name!r} is missing" for name in removed)
    if [n for n in before if n in after] != [n for n in after if n in before]:
        yield "the features have another order"
    named = {feature.name: feature for feature in new.features}
    for feature in old.features:
        if feature.name in named:
            yield from _feature_changes(feature, named[feature.name])
    if old.task != new.task:
        yield f"the task is {new.task}, not {old.task}"
    elif old.labels != new.labels:
        yield "the labels differ" if set(old.labels) != set(new.labels) else "the labels have another order"


def _feature_changes(old: Feature, new: Feature) -> Iterator[str]:
    if old.kind != new.kind:
        yield f"the feature {old.name!r} is {new.kind}, not {old.kind}"
    elif new.categories[: len(old.categories)] != old.categories:  # adding categories at the end changes no index
        yield f"the categories of {old.name!r} differ"
    if old.missing and not new.missing:
        yield f"the feature {old.name!r} may not be missing any more"


def _changes(old: Model, new: Model, rows: Rows, outputs: Outputs) -> Changes:
    """Describe how the new answers differ from the old answers.

    outputs: the outputs of the old version, float32 [rows, outputs].
    """
    answers, seconds = _run(new, rows)
    expected = old.batcher.expected_seconds(min(len(rows), new.batcher.max_batch))
    timed: dict[str, Any] = {} if expected is None else {"seconds": (seconds, expected)}
    if not np.isfinite(answers).all():
        return Changes(rows=len(rows), not_finite=int((~np.isfinite(answers)).any(axis=1).sum()), **timed)
    timed["largest_change"] = float(np.abs(answers - outputs).max())
    if old.manifest.task == "regression":
        return Changes(rows=len(rows), range=(float(outputs.min()), float(outputs.max())), **timed)
    before, after = Decision.of(old.manifest).classes(outputs), Decision.of(new.manifest).classes(answers)
    changed = before != after
    by_class = {
        str(old.manifest.labels[label]): (int((before == label).sum()), int(changed[before == label].sum()))
        for label in np.unique(before).tolist()
    }
    return Changes(rows=len(rows), by_class=by_class, **timed)


def _run(model: Model, rows: Rows) -> tuple[Outputs, float]:
    """Run all rows. Return the outputs, and how many seconds the fastest run of the first batch took."""
    size = model.batcher.max_batch
    outputs = np.concatenate([model.runtime.run(rows[i : i + size]) for i in range(0, len(rows), size)])
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        model.runtime.run(rows[:size])
        times.append(time.perf_counter() - started)
    return outputs, min(times)
