"""The report: turns the evidence of one training into one HTML page for people.

The module computes the contents of each section. The module sentences.py writes the sentences, and charts.py draws the
charts. The template report.html.jinja arranges the sentences and the charts. The same evidence always gives the same
HTML, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Feature
from foldserve.service.figures import (
    count_of,
    format_count,
    format_duration,
    format_figure,
    format_percent,
    format_value,
)
from foldserve.training.fit.loop import Epoch
from foldserve.training.report import charts
from foldserve.training.report.evaluate import METRIC_NAMES, Calibration, count_confusions, measure_calibration
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.page import render_page
from foldserve.training.report.sentences import (
    compare_versions,
    describe_threshold,
    explain_threshold,
    findings,
    headline,
)
from foldserve.training.text import format_name, join_some

MAX_MATRIX_CLASSES = 30
MAX_CLASSES = 50
MAX_PAIRS = 20
MAX_FEATURES = 100
LIFT_SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
# If a confusion matrix has more classes than this, its cells have no space for a share below the count.
_MAX_SHARES = 12
_MAX_BARS = 40
_MOST_NAMES = 5
# Above a column of the confusion matrix, a label with more characters than this is written vertically.
_SHORT_LABEL = 3
# If all importances are below this number, they differ from 0 only by rounding errors.
_ZERO = 1e-12


def render(evidence: Evidence) -> str:
    """Render the report as one HTML page. The caller must encode the page in UTF-8."""
    manifest = evidence.manifest
    return render_page(
        "report/report.html.jinja",
        manifest=manifest,
        evidence=evidence,
        notes=[*evidence.notes, *findings(evidence)],
        headline=headline(evidence),
        curves=_curves(evidence.histories, "accuracy" if manifest.labels else "R2"),
        metrics=_metrics(evidence),
        previous=_describe_previous(evidence),
        speed=_describe_speed(evidence),
        ranking=_ranking(evidence),
        features=_features(evidence),
        worst=max(m.parity.worst for m in manifest.certificate.measurements),
        outcome=_classification(evidence) if manifest.labels else _regression(evidence),
    )


def _metrics(evidence: Evidence) -> dict[str, Any]:
    """Return the titles and the rows of the table of metrics. Each row has a name, a number of rows, and figures."""
    manifest, previous = evidence.manifest, evidence.previous
    names = list(manifest.metrics["test"])
    rows: list[tuple[str, int, dict[str, float]]] = [
        (part, manifest.provenance.rows[part], manifest.metrics[part]) for part in sorted(manifest.metrics)
    ]
    rows.append(("test, baseline", len(evidence.y), evidence.baseline))
    if previous and previous.manifest:
        count = previous.manifest.provenance.rows.get("test", 0)
        rows.append((f"test, version {previous.version}", count, previous.manifest.metrics["test"]))
    return {
        "titles": ["rows", "count", *(METRIC_NAMES[name] for name in names)],
        "rows": [
            (name, format_count(count), [format_figure(scores.get(metric, math.nan)) for metric in names])
            for name, count, scores in rows
        ],
    }


def _describe_previous(evidence: Evidence) -> str:
    previous = evidence.previous
    if previous is None:
        return "There is no version before this one."
    if previous.manifest is None:
        return f"Version {previous.version}, the one before, can't be compared: {previous.reason}."
    rows = (
        "the same test rows"
        if previous.has_rows_of(evidence.manifest)
        else "its own test rows, which may be others, so a difference can come from the rows"
    )
    return f"Version {previous.version} is the one before, measured on {rows}. {compare_versions(evidence)}"


def _describe_speed(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the size and the speed of the model, as pairs of a name and a text."""
    manifest = evidence.manifest
    facts = [("model.onnx", count_of(manifest.model.size, "byte"))]
    if evidence.previous and evidence.previous.manifest:
        facts.append((f"version {evidence.previous.version}", count_of(evidence.previous.manifest.model.size, "byte")))
    for latency in evidence.latency:
        each = f", {format_duration(latency.seconds / latency.rows)} a row" if latency.rows > 1 else ""
        facts.append((count_of(latency.rows, "row"), f"{format_duration(latency.seconds)}{each}"))
    return facts


def _ranking(evidence: Evidence) -> dict[str, Any]:
    """Return the charts over all thresholds, by their names in the template. Return {} in a regression, and if no class
    has a curve.
    """
    labels, curves = evidence.manifest.labels, evidence.curves
    if not curves:
        return {}
    named = [(format_name(labels[i]), curve) for i, curve in curves.items()]
    name, curve = named[0]
    binary = len(labels) == 2
    marked = curve.at(evidence.threshold) if binary else None
    areas = _list_figures([(name, curve.auc) for name, curve in named])
    precisions = _list_figures([(name, curve.average_precision) for name, curve in named])
    shares = LIFT_SHARES if binary else ()
    return {
        "roc": charts.draw_roc(named, marked, f"ROC curve. The area below it is {areas}."),
        "areas": areas,
        "precision_recall": charts.draw_precision_recall(
            named, marked, f"Precision by recall. The average precision is {precisions}."
        ),
        "precisions": precisions,
        "gains": ""
        if marked is None
        else charts.draw_gains(name, curve, marked, f"Share of {name} found by the share of the rows taken."),
        "lifts": [
            (f"{share:.0%}", format_percent(found), format_figure(found / share))
            for share, found in ((share, curve.found_in_first(share)) for share in shares)
        ],
        "sentences": [text for text in (explain_threshold(evidence.manifest), *describe_threshold(evidence)) if text]
        if binary
        else [],
        "name": name,
    }


def _list_figures(named: Sequence[tuple[str, float]]) -> str:
    """Write the figure of each class with the name of the class. If there is only one class, leave out its name."""
    if len(named) == 1:
        return format_figure(named[0][1])
    return ", ".join(f"{format_figure(figure)} for {name}" for name, figure in named)


def _curves(histories: Sequence[tuple[Epoch, ...]], score: str) -> dict[str, str]:
    """Return `losses`, `scores` and `caption` for the template, or {} if no member has a history."""
    kept = [history for history in histories if history]
    if not kept:
        return {}
    lowest = [min(history, key=lambda epoch: epoch.validation_loss) for history in kept]
    best = sorted(epoch.number for epoch in lowest)
    after = f"epoch {best[0]}" if best[0] == best[-1] else f"epochs {best[0]} to {best[-1]}"
    loss = format_figure(sum(epoch.validation_loss for epoch in lowest) / len(lowest))
    longest = max(len(history) for history in kept)
    caption = (
        f"Lowest validation loss, {loss}, after {after} of {longest}."
        if len(kept) == 1
        else f"{len(kept)} members: lowest validation loss, {loss} on average, after {after} of {longest}."
    )
    losses = [
        (np.array([epoch.loss for epoch in history]), np.array([epoch.validation_loss for epoch in history]))
        for history in kept
    ]
    scores = [np.array([epoch.validation_score for epoch in history]) for history in kept]
    return {
        "losses": charts.draw_losses(losses, f"Training and validation loss by epoch. {caption}"),
        "scores": charts.draw_scores(scores, score, f"{score} of the validation rows by epoch"),
        "caption": caption,
    }


def _classification(evidence: Evidence) -> dict[str, Any]:
    labels, classes, y, outputs = evidence.manifest.labels, evidence.classes, evidence.y, evidence.outputs
    counts = count_confusions(y, evidence.predicted, len(labels))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [format_name(label) for label in labels]
    has_matrix = len(labels) <= MAX_MATRIX_CLASSES
    rows = zip(names, counts.tolist(), shares.tolist(), strict=True) if has_matrix else ()
    shown = range(len(labels)) if len(labels) <= MAX_CLASSES else evidence.worst_classes[:MAX_CLASSES]
    defined = [scores.f1 for scores in classes if not math.isnan(scores.f1)]
    baselines = [scores.baseline_f1 for scores in classes if scores.rows]
    areas = [scores.auc for scores in classes if not math.isnan(scores.auc)]
    calibration = measure_calibration(y, outputs)
    return {
        "names": names,
        "matrix": [(name, list(zip(row, share, strict=True))) for name, row, share in rows],
        "with_shares": len(labels) <= _MAX_SHARES,
        "long_labels": any(len(name) > _SHORT_LABEL for name in names),
        "pairs": _confusions(counts, shares)[: _MOST_NAMES if has_matrix else MAX_PAIRS],
        "classes": [(labels[i], classes[i]) for i in shown],
        "macro_f1": sum(defined) / len(defined),
        "macro_baseline": sum(baselines) / len(baselines),
        "macro_auc": sum(areas) / len(areas) if areas else math.nan,
        "calibration_error": calibration.error,
        "reliability": _reliability(calibration),
    }


def _confusions(counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> list[tuple[int, int, int, float]]:
    """List the most frequent confusions.

    Each entry has four numbers: the index of the true class, the index of the predicted class, the number of test rows,
    and the share of these rows among all test rows of the true class.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True)
    return [(i, j, int(wrong[i, j]), float(shares[i, j])) for i, j in pairs if wrong[i, j]]


def _reliability(calibration: Calibration) -> str:
    filled = calibration.share > 0
    bins = "; ".join(
        f"{format_percent(confidence)} confident, {format_percent(accuracy)} right"
        for confidence, accuracy in zip(calibration.confidence[filled], calibration.accuracy[filled], strict=True)
    )
    alt = f"Accuracy by confidence, in bins: {bins}."
    c = calibration
    return charts.draw_reliability(c.edges, c.confidence, c.accuracy, c.share, alt)


def _regression(evidence: Evidence) -> dict[str, Any]:
    residual, y = evidence.residual, evidence.y.astype(np.float64)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    values = np.quantile(residual, shares).tolist()
    quantiles = ", ".join(f"{p:.0%} below {format_value(q)}" for p, q in zip(shares, values, strict=True))
    extent = f"between {format_value(y.min())} and {format_value(y.max())}"
    alt = f"Predicted against true values {extent}, one dot per row."
    log_scaled = charts.is_log_scaled(y)
    hidden = int((y + residual <= 0).sum()) if log_scaled else 0
    return {
        "predictions": charts.draw_predictions(y, y + residual, alt),
        "residuals": charts.draw_residuals(residual, f"Histogram of predicted minus true: {quantiles}."),
        "quantiles": quantiles,
        "sizes": _error_sizes(residual),
        "hidden": f"{count_of(hidden, 'row')} with a predicted value of 0 or less can't be drawn" if hidden else "",
        "log_scaled": log_scaled,
        "long_tail": charts.has_long_tail(residual),
        "drawn": min(len(y), charts.MAX_POINTS),
    }


def _error_sizes(residual: npt.NDArray[np.float64]) -> list[tuple[str, str]]:
    shares = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
    sizes = np.quantile(abs(residual), shares).tolist()
    return [(f"{share:.0%}", format_value(size)) for share, size in zip(shares, sizes, strict=True)]


def _features(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the lines of the table of features. The most important feature comes first."""
    mean, std = evidence.importances.mean, evidence.importances.std
    largest = max(float(mean.max()), 0.0)
    # All importances have the same number of decimals, so that a reader can compare them. The largest importance is
    # written with three digits.
    places = max(2 - math.floor(math.log10(largest)), 0) if largest > _ZERO else 4
    return [
        {
            "name": feature.name,
            "kind": feature.kind,
            "values": _values(feature),
            "missing": format_percent(feature.missing_share) if feature.missing else "none",
            "bars": _bars(feature.histogram.counts[:_MAX_BARS]),
            "bins": min(len(feature.histogram.counts), _MAX_BARS),
            "counts": ", ".join(map(format_count, feature.histogram.counts[:_MAX_BARS])),
            "importance": f"{mean[i]:,.{places}f} \N{PLUS-MINUS SIGN} {std[i]:,.{places}f}",
            "bar": max(float(mean[i]), 0.0) / largest if largest else 0.0,
        }
        for i in evidence.ranking[:MAX_FEATURES]
        for feature in (evidence.manifest.features[i],)
    ]


def _values(feature: Feature) -> str:
    if feature.categories:
        names = [format_name(category) for category in feature.categories]
        return f"{len(names):,}: {join_some(names, _MOST_NAMES)}"
    if feature.range is None:
        return ""
    low, high = feature.range
    if feature.kind == "time" and feature.reading is not None:
        return f"{feature.reading.moment_text(low)} to {feature.reading.moment_text(high)}"
    return f"always {format_value(low)}" if low == high else f"{format_value(low)} to {format_value(high)}"


def _bars(counts: Sequence[int]) -> str:
    """Return a small histogram as an SVG path.

    Each bar is 1 wide and begins at y = 1. The highest bar has the height 1.
    """
    highest = max(counts, default=0) or 1
    return "".join(f"M{i + 0.1:g} 1v-{count / highest:.3g}h.8V1z" for i, count in enumerate(counts) if count)
