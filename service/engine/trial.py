"""Compares a new version with the version that serves: their interfaces, and their answers to the last live rows.

It knows two models and limits. It does not know why the limits were chosen, or what happens after the comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Decision, Feature, Manifest
from foldserve.service.engine.repository import Model
from foldserve.service.live.plan import Trial

# If there are fewer live rows than this, the golden rows of the version that serves are compared too.
_FEW_ROWS = 32
# The minimum number of rows in a class. For a class with fewer rows, the share of changed rows is ignored.
_MIN_CLASS_ROWS = 10
# If two runs differ by at most this number of seconds, clients do not notice the difference.
_FREE_SECONDS = 5e-4
_TIMED_RUNS = 5


def compare(old: Model, new: Model, trial: Trial) -> tuple[str | None, dict[str, Any]]:
    """Return the reason why `new` may not replace `old`, or None.

    Also return the measures of the comparison by name.
    """
    changes = list(interface_changes(old.manifest, new.manifest))
    measures: dict[str, Any] = {"against": old.manifest.version}
    if changes:
        measures["interface"] = changes
        if not trial.allow_interface_change:
            return f"the interface differs from version {old.manifest.version}: {'; '.join(changes)}", measures
    if old.manifest.input.shape != new.manifest.input.shape or old.manifest.labels != new.manifest.labels:
        return None, measures  # no answers can be compared
    golden = np.array(old.manifest.golden.inputs, np.float32)
    if not np.isfinite(new.runtime.run(golden)).all():
        return "an output is not finite for the golden rows of the version that serves", measures
    if not trial.shadow:
        return None, measures
    rows, outputs = old.live_rows.sample()
    if len(rows) < _FEW_ROWS:
        rows = np.concatenate([rows, golden])
        outputs = np.concatenate([outputs, np.array(old.manifest.golden.outputs, np.float32)])
    measures |= _measure(old, new, rows, outputs)
    return _judge(measures, trial), measures


def interface_changes(old: Manifest, new: Manifest) -> Iterator[str]:
    """Yield a text about each difference that a client of the old version may notice."""
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
    elif new.categories[: len(old.categories)] != old.categories:  # more categories at the end change no index
        yield f"the categories of {old.name!r} differ"
    if old.missing and not new.missing:
        yield f"the feature {old.name!r} may not be missing any more"


def _measure(old: Model, new: Model, rows: Rows, outputs: Outputs) -> dict[str, Any]:
    """Return the measures of the answers. outputs: the outputs of the old version, float32 [rows, outputs]."""
    answers, seconds = _run(new, rows)
    measures: dict[str, Any] = {"rows": len(rows)}
    expected = old.batcher.expected_seconds(min(len(rows), new.batcher.max_batch))
    if expected is not None:
        measures["seconds"], measures["seconds_before"] = seconds, expected
    if not np.isfinite(answers).all():
        return measures | {"not_finite": int((~np.isfinite(answers)).any(axis=1).sum())}
    if old.manifest.task == "regression":
        spread = float(np.ptp(outputs)) or 1.0
        return measures | {"largest_change": float(np.abs(answers - outputs).max()) / spread}
    before, after = Decision.of(old.manifest).classes(outputs), Decision.of(new.manifest).classes(answers)
    changed = before != after
    by_class = {
        str(old.manifest.labels[label]): float(changed[before == label].mean())
        for label in np.unique(before).tolist()
        if (before == label).sum() >= _MIN_CLASS_ROWS
    }
    return measures | {
        "largest_change": float(np.abs(answers - outputs).max()),
        "changed": float(changed.mean()),
        "changed_by_class": by_class,
    }


def _run(model: Model, rows: Rows) -> tuple[Outputs, float]:
    """Run all rows. Return the outputs, and the seconds of the fastest run of the first batch."""
    size = model.batcher.max_batch
    outputs = np.concatenate([model.runtime.run(rows[i : i + size]) for i in range(0, len(rows), size)])
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        model.runtime.run(rows[:size])
        times.append(time.perf_counter() - started)
    return outputs, min(times)


def _judge(measures: dict[str, Any], trial: Trial) -> str | None:
    """Return a text about the first limit that the measures exceed."""
    rows = measures["rows"]
    if "not_finite" in measures:
        return f"{measures['not_finite']} of {rows} live rows have an output that is not finite"
    if (share := measures.get("changed", 0.0)) > trial.max_changed:
        return f"{share:.1%} of {rows} live rows get another label, and {trial.max_changed:.1%} may"
    for label, share in measures.get("changed_by_class", {}).items():
        if share > trial.max_changed_in_class:
            limit = trial.max_changed_in_class
            return f"{share:.1%} of the live rows with the label {label} get another label, and {limit:.1%} may"
    change, limit_change = measures["largest_change"], trial.max_change
    if limit_change is not None and change > limit_change:
        return f"an output changes by {change:.3g}, and the limit is {limit_change:g}"
    ratio, free = trial.max_latency_ratio, _FREE_SECONDS
    if ratio is not None and "seconds" in measures:
        seconds, before = measures["seconds"], measures["seconds_before"]
        if seconds > ratio * before + free:
            return f"a run takes {seconds:.2g} s, and {before:.2g} s before; the limit is {ratio:g} times"
    return None
