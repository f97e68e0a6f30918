"""Decides whether the answers of a new version are near enough to the answers of the active version.

Each process compares its own live rows. This module adds up the counts of all processes, and compares the sums with the
limits. This module does not depend on models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from foldserve.service.live.plan import Attempt, Changes, Outcome, Trial

# If there are fewer live rows than this number, the golden rows of the active version are also compared.
FEW_ROWS = 32
# The minimum number of rows in a class. If a class has fewer rows than this number, the share of its changed rows is
# not checked.
_MIN_CLASS_ROWS = 10
# Clients do not notice if a run takes up to this number of seconds longer.
_FREE_SECONDS = 5e-4


def merge(attempts: Sequence[Attempt], outcomes: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Merge the outcomes of several processes. A version may serve only if it may serve in every process.

    outcomes: one list for each process, with the outcomes of the same attempts; empty if no process has answered.
    """
    return [_merge(attempt, of_each) for attempt, *of_each in zip(attempts, *outcomes, strict=True)] if outcomes else []


def _merge(attempt: Attempt, of_each: Sequence[Outcome]) -> Outcome:
    refused = next((outcome for outcome in of_each if outcome.reason is not None), None)
    if refused is not None:
        return refused
    if len({outcome.digest for outcome in of_each}) > 1:
        return Outcome(reason="the files changed while the processes read them")
    first = of_each[0]
    live = [outcome.live for outcome in of_each if outcome.live is not None]
    if attempt.trial is None or not live:
        return first
    if sum(changes.rows for changes in live) < FEW_ROWS:
        live += [outcome.golden for outcome in of_each if outcome.golden is not None][:1]
    measures = (first.compared or {}) | _measures(live)
    reason = next(_excesses(measures, attempt.trial), None)
    return Outcome(reason=reason, final=reason is not None, digest=first.digest, compared=measures)


def _measures(parts: Sequence[Changes]) -> dict[str, Any]:
    """Return each measure over all rows, by its name."""
    measures: dict[str, Any] = {"rows": sum(part.rows for part in parts)}
    timed = [part.seconds for part in parts if part.seconds is not None]
    if timed:  # the fastest run is the one that other programs disturbed least
        measures["seconds"] = min(seconds for seconds, _ in timed)
        measures["seconds_before"] = min(seconds for _, seconds in timed)
    if not_finite := sum(part.not_finite for part in parts):
        return measures | {"not_finite": not_finite}
    measures["largest_change"] = max(part.largest_change for part in parts)
    spreads = [part.range for part in parts if part.range is not None]
    if spreads:
        spread = max(high for _, high in spreads) - min(low for low, _ in spreads)
        return measures | {"largest_change": measures["largest_change"] / (spread or 1.0)}
    rows: dict[str, int] = {}
    changed: dict[str, int] = {}
    for part in parts:
        for label, (count, others) in part.by_class.items():
            rows[label] = rows.get(label, 0) + count
            changed[label] = changed.get(label, 0) + others
    by_class = {label: changed[label] / count for label, count in rows.items() if count >= _MIN_CLASS_ROWS}
    return measures | {"changed": sum(changed.values()) / measures["rows"], "changed_by_class": by_class}


def _excesses(measures: dict[str, Any], trial: Trial) -> Iterator[str]:
    """Yield one text for each limit that the measures exceed."""
    rows = measures["rows"]
    if "not_finite" in measures:
        yield f"{measures['not_finite']} of {rows} live rows have an output that is not finite"
        return
    if (share := measures.get("changed", 0.0)) > trial.max_changed:
        yield f"{share:.1%} of {rows} live rows get another label, and {trial.max_changed:.1%} may"
    for label, share in measures.get("changed_by_class", {}).items():
        if share > (limit := trial.max_changed_in_class):
            yield f"{share:.1%} of the live rows with the label {label} get another label, and {limit:.1%} may"
    change, limit_change = measures["largest_change"], trial.max_change
    if limit_change is not None and change > limit_change:
        yield f"an output changes by {change:.3g}, and the limit is {limit_change:g}"
    ratio = trial.max_latency_ratio
    if ratio is not None and "seconds" in measures:
        seconds, before = measures["seconds"], measures["seconds_before"]
        if seconds > ratio * before + _FREE_SECONDS:
            yield f"a run takes {seconds:.2g} s, and {before:.2g} s before; the limit is {ratio:g} times"
