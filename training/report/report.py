"""The report: turns the evidence of one training into one HTML page for people.

The module computes the contents of each section. sentences.py writes the sentences, charts.py draws the charts, and
report.html.jinja arranges both. The same evidence gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

from foldserve.service.bundle import Feature
from foldserve.training.fit.loop import Epoch
from foldserve.training.report import charts
from foldserve.training.report.evaluate import Calibration, measure_calibration
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.page import render_page
from foldserve.training.report.sentences import findings, headline
from foldserve.training.text import format_count, format_figure, format_name, format_percent, format_value, join_some

MAX_MATRIX_CLASSES = 30
MAX_CLASSES = 50
MAX_PAIRS = 20
MAX_FEATURES = 100
_MAX_BARS = 40
_MOST_NAMES = 5
# A label with more characters than this is written vertically above its column of the confusion matrix.
_SHORT_LABEL = 3
# If an importance is below this, it differs from 0 only by rounding.
_ZERO = 1e-12


def render(evidence: Evidence) -> str:
    """Render the report as one HTML page, to be encoded in UTF-8."""
    manifest = evidence.manifest
    return render_page(
        "report/report.html.jinja",
        manifest=manifest,
        evidence=evidence,
        notes=[*evidence.notes, *findings(evidence)],
        headline=headline(evidence),
        curves=_curves(evidence.histories, "accuracy" if manifest.labels else "R2"),
        features=_features(evidence),
        worst=max(m.parity.worst for m in manifest.certificate.measurements),
        outcome=_classification(evidence) if manifest.labels else _regression(evidence),
    )


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
    counts = confusion_matrix(y, outputs.argmax(1), labels=np.arange(len(labels)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [format_name(label) for label in labels]
    has_matrix = len(labels) <= MAX_MATRIX_CLASSES
    rows = zip(names, counts.tolist(), shares.tolist(), strict=True) if has_matrix else ()
    shown = range(len(labels)) if len(labels) <= MAX_CLASSES else evidence.worst_classes[:MAX_CLASSES]
    defined = [scores.f1 for scores in classes if not math.isnan(scores.f1)]
    baselines = [scores.baseline_f1 for scores in classes if scores.rows]
    calibration = measure_calibration(y, outputs)
    return {
        "names": names,
        "matrix": [(name, list(zip(row, share, strict=True))) for name, row, share in rows],
        "long_labels": any(len(name) > _SHORT_LABEL for name in names),
        "pairs": _confusions(counts, shares)[: _MOST_NAMES if has_matrix else MAX_PAIRS],
        "classes": [(labels[i], classes[i]) for i in shown],
        "macro_f1": sum(defined) / len(defined),
        "macro_baseline": sum(baselines) / len(baselines),
        "calibration_error": calibration.error,
        "reliability": _reliability(calibration),
    }


def _confusions(counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> list[tuple[int, int, int, float]]:
    """List the most frequent confusions.

    Each entry has the indices of the true and the predicted class, the number of test rows, and their share of the true
    class.
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
    return {
        "predictions": charts.draw_predictions(y, y + residual, alt),
        "residuals": charts.draw_residuals(residual, f"Histogram of predicted minus true: {quantiles}."),
        "quantiles": quantiles,
        "drawn": min(len(y), charts.MAX_POINTS),
    }


def _features(evidence: Evidence) -> list[dict[str, Any]]:
    """Return one entry for each line of the table, with the most important feature first."""
    mean, std = evidence.importances.mean, evidence.importances.std
    largest = max(float(mean.max()), 0.0)
    # All numbers of the column have the same number of decimals. It is chosen so that the largest number has three
    # digits.
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
    """Return the SVG path of a small histogram.

    Each bar is 1 wide and begins at y = 1. The highest bar has the height 1.
    """
    highest = max(counts, default=0) or 1
    return "".join(f"M{i + 0.1:g} 1v-{count / highest:.3g}h.8V1z" for i, count in enumerate(counts) if count)
