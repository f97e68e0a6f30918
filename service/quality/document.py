"""Makes the answer of /v1/models/{model}/drift: the sums of all processes, compared with the manifest.

The OpenAPI description of this answer is made from the classes in this module. This module does not depend on routes or
HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel

from foldserve.service.bundle import Feature, Label
from foldserve.service.quality.bins import Numbers
from foldserve.service.quality.monitor import Monitor, Snapshot
from foldserve.service.quality.stability import LARGE, LEAST_ROWS, MODERATE, Judgement, State
from foldserve.service.quality.tally import Sum

# With fewer labels than this number, the quality is not judged.
LEAST_LABELS = 100
# The states of a model, the most serious state first. The state of a model is the first state in this list that any of
# its features has.
_ORDER: tuple[State, ...] = (
    *("drift", "moderate drift", "too few rows", "too few training rows", "stable", "no training histogram"),
)
# The quantile of the standard normal distribution for a 95% confidence interval.
_NORMAL = 1.95996


class FeatureDrift(BaseModel):
    """The drift of one feature.

    `training` and `live` have the number of rows in each bin; `edges` are the edges of the bins. `psi`: the population
    stability index; null if there is no training histogram or no live row. `noise`: without drift, the index exceeds
    this limit in only one of 1,000 cases. `below`: the share of the rows with a value below the first edge. `above`:
    the share of the rows with a value above the last edge. For a categorical feature, `unseen` is the share of the rows
    with a category that training has not seen.
    """

    name: str
    kind: str
    state: State
    psi: float | None
    noise: float | None
    missing: float | None
    training_missing: float
    below: float | None = None
    above: float | None = None
    unseen: float | None = None
    edges: list[float]
    training: list[int]
    live: list[float]


class LabelShare(BaseModel):
    """The share of the rows for which the model predicted this label."""

    label: bool | int | float | str
    share: float | None


class PredictionDrift(BaseModel):
    """The distribution of the predictions for live rows.

    A classification has `labels` and `confidence`, the mean probability of the predicted label. A regression has `mean`
    and `deviation`, the mean and the standard deviation of the predictions. The manifest has no distribution of the
    predictions in training, so nothing is compared here.
    """

    labels: list[LabelShare] | None = None
    confidence: float | None = None
    mean: float | None = None
    deviation: float | None = None


class Quality(BaseModel):
    """The quality of the predictions whose labels are known, and the metrics in the manifest.

    `accuracy_interval`: the 95% confidence interval of the live accuracy (Wilson, 1927).
    """

    labels: int
    state: Literal["off", "too few labels", "measured"]
    live: dict[str, float] | None
    test: dict[str, float] | None
    accuracy_interval: tuple[float, float] | None = None


class Drift(BaseModel):
    """The drift of one version.

    `state`: the most serious state among the features; `off` if the server does not count rows. `rows`: the number of
    rows that the model has answered in the window. `counted`: how many of the answered rows were counted. `sampled`:
    whether the counted rows are a sample; `rows` is then an estimate. `since`: the time at which the window began.
    `notes`: remarks, as texts.
    """

    model: str
    version: int
    state: State | Literal["off"]
    notes: list[str]
    window_hours: float
    since: datetime
    rows: int
    counted: int
    sampled: bool
    thresholds: dict[str, float]
    features: list[FeatureDrift]
    predictions: PredictionDrift
    quality: Quality


def describe(monitor: Monitor, snapshots: Sequence[Snapshot], now: datetime | None = None) -> Drift:
    """Describe the drift of one version. snapshots: one snapshot from each process."""
    sums, seconds = monitor.join(snapshots)
    manifest, options = monitor.manifest, monitor.options
    rows, counted = float(sums[Sum.ROWS]), int(sums[Sum.COUNTED])
    # The effective sample size: an unweighted sample of this size is as exact as the weighted sample (Kish, Survey
    # Sampling, 1965).
    effective = rows**2 / float(sums[Sum.SQUARES]) if counted else 0.0
    live = monitor.features_of(sums)
    judgements = monitor.stability.judge(live * (effective / rows if rows else 0.0), effective)
    parts = zip(manifest.features, judgements, monitor.bins.slices, strict=True)
    features = [_feature(feature, judged, live[own], rows) for feature, judged, own in parts]
    states = {feature.state for feature in features}
    state: State | Literal["off"] = next(each for each in _ORDER if each in states) if options.drift else "off"
    sampled = counted < round(rows)
    return Drift(
        model=manifest.name,
        version=manifest.version,
        state=state,
        notes=list(_notes(state, features, effective, sampled=sampled)),
        window_hours=options.seconds / 3600,
        since=(now or datetime.now(UTC)) - timedelta(seconds=seconds),
        rows=round(rows),
        counted=counted,
        sampled=sampled,
        thresholds={"moderate drift": MODERATE, "drift": LARGE},
        features=features,
        predictions=_predictions(monitor, sums),
        quality=_quality(monitor, sums),
    )


def _feature(feature: Feature, judged: Judgement, live: Numbers, rows: float) -> FeatureDrift:
    below, *bins, above, missing = live.tolist()
    categorical = feature.kind == "categorical"

    def share(count: float) -> float | None:
        return count / rows if rows else None

    return FeatureDrift(
        name=feature.name,
        kind=feature.kind,
        state=judged.state,
        psi=judged.psi,
        noise=judged.noise,
        missing=share(missing),
        training_missing=feature.missing_share,
        below=None if categorical else share(below),
        above=None if categorical else share(above),
        unseen=share(above) if categorical else None,
        edges=list(feature.histogram.edges),
        training=list(feature.histogram.counts),
        live=bins,
    )


def _notes(state: str, features: Sequence[FeatureDrift], effective: float, *, sampled: bool) -> list[str]:
    notes = []
    without = sum(feature.state == "no training histogram" for feature in features)
    if state == "off":
        return ["The server does not count live rows, because it runs with --no-drift."]
    if without:
        which = "No feature has" if without == len(features) else f"{without} of {len(features)} features have no"
        notes.append(
            f"{which}{' a' if without == len(features) else ''} training histogram, so the drift can't be judged: the "
            "model was imported without a table. Import it again with --data TABLE."
        )
    if effective < LEAST_ROWS:
        notes.append(f"There are too few rows to judge: a feature needs at least {LEAST_ROWS}.")
    elif few := sum(feature.state == "too few rows" for feature in features):
        notes.append(f"{few} of {len(features)} features need more rows: chance alone may explain their index.")
    if small := sum(feature.state == "too few training rows" for feature in features):
        notes.append(f"{small} of {len(features)} features have too few training rows to judge their index.")
    if sampled:
        notes.append("The rows were counted in a sample, because the server was busy. Each row has a weight.")
    return notes


def _predictions(monitor: Monitor, sums: Numbers) -> PredictionDrift:
    rows = float(sums[Sum.PREDICTED])
    labels: tuple[Label, ...] = monitor.manifest.labels
    mean = float(sums[Sum.OUTPUTS]) / rows if rows else None
    if labels:
        counts = monitor.classes_of(sums).tolist()
        shares = [
            LabelShare(label=label, share=count / rows if rows else None)
            for label, count in zip(labels, counts, strict=True)
        ]
        return PredictionDrift(labels=shares, confidence=mean)
    if mean is None:
        return PredictionDrift()
    variance = max(0.0, float(sums[Sum.OUTPUT_SQUARES]) / rows - mean**2)
    return PredictionDrift(mean=mean + monitor.center, deviation=math.sqrt(variance))


def _quality(monitor: Monitor, sums: Numbers) -> Quality:
    manifest, count = monitor.manifest, int(sums[Sum.LABELLED])
    state: Literal["off", "too few labels", "measured"] = "measured" if count >= LEAST_LABELS else "too few labels"
    test = manifest.metrics.get("test")
    if monitor.predictions is None:
        return Quality(labels=0, state="off", live=None, test=test)
    if not count:
        return Quality(labels=0, state=state, live=None, test=test)
    first, second = float(sums[Sum.CORRECT]) / count, float(sums[Sum.LOSS]) / count
    if not manifest.labels:
        return Quality(labels=count, state=state, live={"rmse": math.sqrt(first), "mae": second}, test=test)
    live = {"accuracy": first, "log_loss": second}
    return Quality(labels=count, state=state, live=live, test=test, accuracy_interval=_wilson(first, count))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95% confidence interval of a share of `count` cases (Wilson, 1927)."""
    square = _NORMAL**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return middle - half, middle + half
