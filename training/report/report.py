"""The report: the evidence of one training -> one HTML page for people, and a few lines for the terminal.

It owns what is said and in which order; report.html.jinja owns how it looks, evaluate.py the figures, charts.py the
drawings. The page is complete in itself: no script, no network, no font. The same evidence gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined
from sklearn.metrics import confusion_matrix

from foldserve.service.bundle import Feature, Manifest
from foldserve.training.fit.loop import Epoch
from foldserve.training.report import charts
from foldserve.training.report.evaluate import Calibration, ClassFigures, Importances, baseline, calibration, per_class
from foldserve.training.text import format_figure, format_name, format_percent, format_value, join_some, printable

MAX_MATRIX_CLASSES = 30
MAX_CLASSES = 50
MAX_PAIRS = 20
MAX_FEATURES = 100
_MAX_BARS = 40
_SOME = 5  # names in a sentence
_SHORT = 3  # characters of a label that stands above a column without being turned
_SUMMARISED = 3
_NOTHING = 1e-12


@dataclass(frozen=True)
class Evidence:
    """All that a report is made of; no row of the table is in it but its target.

    histories: what each member of the model saw while it was trained, one of a model that is no ensemble; a member
    that did not keep its own has (). y: of the test rows, int64 [rows] (indices into `manifest.labels`) or float64
    [rows] (the target's units). outputs: the exported model's for the same rows, [rows, outputs]. importances: one
    entry a feature of the manifest. notes: what the reader should know besides, each a sentence.
    """

    manifest: Manifest
    histories: tuple[tuple[Epoch, ...], ...]
    y: npt.NDArray[Any]
    outputs: npt.NDArray[np.floating[Any]]
    importances: Importances
    notes: tuple[str, ...] = ()

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The metrics of the best answer that looks at no feature."""
        return baseline(self.manifest.task, self.y, self.outputs.shape[1])

    @cached_property
    def classes(self) -> tuple[ClassFigures, ...]:
        """One entry a label; () for regression."""
        return per_class(self.y, self.outputs.argmax(1), len(self.manifest.labels)) if self.manifest.labels else ()

    @cached_property
    def residual(self) -> npt.NDArray[np.float64]:
        """Predicted minus true, [rows]; of a regression alone."""
        residual: npt.NDArray[np.float64] = self.outputs[:, 0].astype(np.float64) - self.y
        return residual

    @property
    def ranking(self) -> npt.NDArray[np.int64]:
        """The features' indices, the most important first."""
        return np.argsort(-self.importances.mean, kind="stable")


def render(evidence: Evidence) -> str:
    """Give the report as one HTML page, to be encoded in UTF-8."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": format_figure,
        "percent": format_percent,
        "name": format_name,
        "printable": printable,
    }
    template = environment.from_string(
        files("foldserve.training.report").joinpath("report.html.jinja").read_text("utf-8")
    )
    manifest = evidence.manifest
    return template.render(
        manifest=manifest,
        evidence=evidence,
        notes=[*evidence.notes, *_findings(evidence)],
        headline=_headline(evidence),
        curves=_curves(evidence.histories, "accuracy" if evidence.manifest.labels else "R2"),
        colours=charts.COLOURS,
        features=_features(evidence),
        worst=max(m.parity.worst for m in manifest.certificate.measurements),
        outcome=_classification(evidence) if manifest.labels else _regression(evidence),
    )


def summarise(evidence: Evidence) -> str:
    """Give what a terminal should say after a training: the baseline, where the model is worst, what it looks at.

    The notes of the evidence are not in it: they were said when the table was read.
    """
    manifest, importances = evidence.manifest, evidence.importances
    constant = "the most frequent class" if manifest.labels else "the mean"
    figures = ", ".join(f"{metric} {format_figure(value)}" for metric, value in evidence.baseline.items())
    lines = [("baseline", f"{figures}, by always answering {constant}")]
    if manifest.labels:
        worst = [i for i in _worst_first(evidence.classes) if evidence.classes[i].rows][:_SUMMARISED]
        for head, i in zip(("worst", *[""] * len(worst)), worst, strict=False):
            found = evidence.classes[i]
            recall = f"{format_percent(found.recall)} of {found.rows:,} found"
            lines.append((head, f"{format_name(manifest.labels[i])}: {recall}, F1 {found.f1:.4f}"))
    else:
        half, most = np.quantile(abs(evidence.residual), [0.5, 0.9]).tolist()
        lines.append(("residuals", f"half within {format_figure(half)}, 90% within {format_figure(most)}"))
    top = [i for i in evidence.ranking[:_SUMMARISED] if importances.mean[i] > 0]
    missed = ", ".join(f"{format_name(manifest.features[i].name)} +{format_figure(importances.mean[i])}" for i in top)
    lines.append(("features", f"{missed} {importances.metric} when shuffled" if top else "none is missed alone"))
    lines += [("note", printable(note)) for note in _findings(evidence)]
    return "\n".join(f"{head:<12} {text}" for head, text in lines)


def _headline(evidence: Evidence) -> str:
    manifest, constant, test = evidence.manifest, evidence.baseline, evidence.manifest.metrics["test"]
    if not manifest.labels:
        return (
            f"Off by {format_figure(test['rmse'])} (root mean square) on rows it never saw; always answering their "
            f"mean would be off by {format_figure(constant['rmse'])}."
        )
    majority = format_name(manifest.labels[int(np.bincount(evidence.y).argmax())])
    return (
        f"Right on {format_percent(test['accuracy'])} of the rows it never saw; always answering {majority} would be "
        f"right on {format_percent(constant['accuracy'])}."
    )


def _findings(evidence: Evidence) -> list[str]:
    """What the figures give reason to say."""
    notes, test = list[str](), evidence.manifest.metrics["test"]
    if test["accuracy"] <= evidence.baseline["accuracy"] if evidence.manifest.labels else test["r2"] <= 0:
        notes.append("The model is no better than an answer that looks at no feature.")
    elif evidence.manifest.labels and test["log_loss"] >= evidence.baseline["log_loss"]:
        notes.append(
            "Its answers are better than one that looks at no feature, its probabilities are not: see log_loss."
        )
    labelled = zip(evidence.manifest.labels, evidence.classes, strict=True)
    never = [format_name(label) for label, found in labelled if found.rows and not found.predicted]
    if never:
        notes.append(f"Never predicted on the test rows, though some are of it: {join_some(never, _SOME)}.")
    return notes


def _curves(histories: Sequence[tuple[Epoch, ...]], score: str) -> dict[str, str]:
    """Give `svg`, `scores` and `caption`; {} where no member has a history."""
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
    lines = [
        (np.array([epoch.loss for epoch in history]), np.array([epoch.validation_loss for epoch in history]))
        for history in kept
    ]
    of_each = [np.array([epoch.validation_score for epoch in history]) for history in kept]
    return {
        "svg": charts.losses(lines, f"Training and validation loss by epoch. {caption}"),
        "scores": charts.scores(of_each, score, f"{score} of the validation rows by epoch"),
        "caption": caption,
    }


def _classification(evidence: Evidence) -> dict[str, Any]:
    labels, classes, y, outputs = evidence.manifest.labels, evidence.classes, evidence.y, evidence.outputs
    counts = confusion_matrix(y, outputs.argmax(1), labels=np.arange(len(labels)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(labels) <= MAX_CLASSES
    shown = list(range(len(labels))) if few else _worst_first(classes)[:MAX_CLASSES]
    defined = [found for found in classes if not math.isnan(found.f1)]
    measured = calibration(y, outputs)
    return {
        "matrix": [
            (labels[i], list(zip(counts[i].tolist(), shares[i].tolist(), strict=True))) for i in range(len(labels))
        ]
        if len(labels) <= MAX_MATRIX_CLASSES
        else [],
        "long_labels": any(len(format_name(label)) > _SHORT for label in labels),
        "pairs": _pairs(counts, shares)[: _SOME if len(labels) <= MAX_MATRIX_CLASSES else MAX_PAIRS],
        "classes": [(labels[i], classes[i]) for i in shown],
        "macro_f1": sum(found.f1 for found in defined) / len(defined),
        "macro_baseline": sum(found.baseline_f1 for found in classes if found.rows)
        / sum(1 for found in classes if found.rows),
        "calibration_error": measured.error,
        "reliability": _reliability(measured),
    }


def _pairs(counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]) -> list[tuple[int, int, int, float]]:
    """List what is most often taken for something else, as indices (true, predicted), rows and share of the class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True)
    return [(i, j, int(wrong[i, j]), float(shares[i, j])) for i, j in pairs if wrong[i, j]]


def _reliability(measured: Calibration) -> str:
    filled = measured.share > 0
    said = "; ".join(
        f"{format_percent(confidence)} confident, {format_percent(accuracy)} right"
        for confidence, accuracy in zip(measured.confidence[filled], measured.accuracy[filled], strict=True)
    )
    alt = f"Accuracy by confidence, in bins: {said}."
    return charts.reliability(measured.edges, measured.confidence, measured.accuracy, measured.share, alt)


def _regression(evidence: Evidence) -> dict[str, Any]:
    residual, y = evidence.residual, evidence.y.astype(np.float64)
    points = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = np.quantile(residual, points).tolist()
    spread = ", ".join(f"{p:.0%} below {format_value(q)}" for p, q in zip(points, quantiles, strict=True))
    extent = f"between {format_value(y.min())} and {format_value(y.max())}"
    return {
        "predictions": charts.predictions(y, y + residual, f"Predicted against true values {extent}, one dot a row."),
        "residuals": charts.residuals(residual, f"Histogram of predicted minus true: {spread}."),
        "spread": spread,
        "drawn": min(len(y), charts.MAX_POINTS),
    }


def _features(evidence: Evidence) -> list[dict[str, Any]]:
    """One entry a line of the table, the most important feature first."""
    mean, std = evidence.importances.mean, evidence.importances.std
    largest = max(float(mean.max()), 0.0)
    # Of one column the same places: three figures of the largest.
    places = max(2 - math.floor(math.log10(largest)), 0) if largest > _NOTHING else 4
    return [
        {
            "name": feature.name,
            "kind": feature.kind,
            "values": _values(feature),
            "missing": format_percent(feature.missing_share) if feature.missing else "none",
            "bars": _bars(feature.histogram.counts[:_MAX_BARS]),
            "bins": min(len(feature.histogram.counts), _MAX_BARS),
            "counts": ", ".join(f"{count:,}" for count in feature.histogram.counts[:_MAX_BARS]),
            "importance": f"{mean[i]:,.{places}f} \N{PLUS-MINUS SIGN} {std[i]:,.{places}f}",
            "bar": max(float(mean[i]), 0.0) / largest if largest else 0.0,
        }
        for i in evidence.ranking[:MAX_FEATURES]
        for feature in (evidence.manifest.features[i],)
    ]


def _values(feature: Feature) -> str:
    if feature.categories:
        names = [format_name(category) for category in feature.categories]
        return f"{len(names):,}: {join_some(names, _SOME)}"
    if feature.range is None:
        return ""
    low, high = feature.range
    return f"always {format_value(low)}" if low == high else f"{format_value(low)} to {format_value(high)}"


def _bars(counts: Sequence[int]) -> str:
    """Give the path of a small histogram, each bar 1 wide, the highest 1 high, on a line at 1."""
    highest = max(counts, default=0) or 1
    return "".join(f"M{i + 0.1:g} 1v-{count / highest:.3g}h.8V1z" for i, count in enumerate(counts) if count)


def _worst_first(classes: Sequence[ClassFigures]) -> list[int]:
    """Sort the classes' indices by F1, those of which there is none last."""
    return sorted(range(len(classes)), key=lambda i: (math.isnan(classes[i].f1), classes[i].f1))
