"""The sentences about a training: a headline and findings for the report, and lines for the terminal.

The module does not depend on the page.
"""

from __future__ import annotations

import numpy as np

from foldserve.service.bundle import Manifest
from foldserve.service.figures import format_difference, format_figure, format_percent, format_value
from foldserve.training.report.evaluate import METRIC_NAMES
from foldserve.training.report.evidence import Evidence
from foldserve.training.text import format_name, join_some, printable

_MOST_NAMES = 5
_MOST_LINES = 3
_FIRST_ROWS = 0.1
_LOWER_IS_BETTER = ("log_loss", "cost", "rmse", "mae")


def headline(evidence: Evidence) -> str:
    """Write one sentence that compares the model with the best constant answer."""
    manifest, constant, test = evidence.manifest, evidence.baseline, evidence.manifest.metrics["test"]
    # It is not known which rows an imported model was trained on.
    rows = f"the rows of {format_name(manifest.provenance.source)}" if manifest.source else "the rows it never saw"
    if not manifest.labels:
        return (
            f"Off by {format_figure(test['rmse'])} (root mean square) on {rows}; always answering their "
            f"mean would be off by {format_figure(constant['rmse'])}."
        )
    counts = np.bincount(evidence.y)
    majority = format_name(manifest.labels[int(counts.argmax())])
    return (
        f"Right on {format_percent(test['accuracy'])} of {rows}; always answering {majority} would be "
        f"right on {format_percent(counts.max() / counts.sum())}."
    )


def explain_threshold(manifest: Manifest) -> str:
    """Say in one sentence how the decision threshold was chosen. Return an empty text if there is no threshold."""
    threshold = manifest.threshold
    if threshold is None:
        return ""
    rows = f"of the {manifest.provenance.rows['validation']:,} validation rows"
    reason = {"f1": f"the largest F1 {rows}", "value": "as given"}
    costs = "the smallest cost {}, {:g} for a false positive and {:g} for a false negative".format
    why = costs(rows, *threshold.costs) if threshold.costs else reason[threshold.rule]
    return f"{format_name(threshold.positive)} from a probability of {threshold.value:.6g} on: {why}."


def findings(evidence: Evidence) -> list[str]:
    """List the weaknesses that the scores show, one sentence for each."""
    sentences, test = list[str](), evidence.manifest.metrics["test"]
    if not evidence.manifest.labels:
        useless = test["r2"] <= 0
    elif evidence.manifest.threshold is None:
        useless = test["accuracy"] <= evidence.baseline["accuracy"]
    else:  # a threshold that increases the recall or lowers the costs may lower the accuracy
        useless = test["log_loss"] >= evidence.baseline["log_loss"]
    if useless:
        sentences.append("The model is no better than an answer that looks at no feature.")
    elif evidence.manifest.labels and test["log_loss"] >= evidence.baseline["log_loss"]:
        sentences.append(
            "Its answers are better than one that looks at no feature, its probabilities are not: see log_loss."
        )
    labelled = zip(evidence.manifest.labels, evidence.classes, strict=True)
    never = [format_name(label) for label, scores in labelled if scores.rows and not scores.predicted]
    if never:
        sentences.append(f"Classes of the test rows that the model never predicts: {join_some(never, _MOST_NAMES)}.")
    return sentences


def describe_threshold(evidence: Evidence) -> list[str]:
    """Describe the precision and recall of a model with two classes at its threshold, and how well the model ranks the
    rows.

    Return [] if the test rows have only one class.
    """
    if not evidence.curves:
        return []
    place, curve = next(iter(evidence.curves.items()))
    name, marked = format_name(evidence.manifest.labels[place]), curve.at(evidence.threshold)
    precision = float(curve.precision[marked])
    lift = curve.found_in_first(_FIRST_ROWS) / _FIRST_ROWS
    right = f", and {format_percent(precision)} of these answers are right (precision)" if marked else ""
    return [
        f"From a probability of {format_value(evidence.threshold)} on, the answer is {name}: this finds "
        f"{format_percent(float(curve.recall[marked]))} of the rows of {name} (recall){right}.",
        f"Among the {_FIRST_ROWS:.0%} of the rows with the highest probability, {name} is {format_figure(lift)} times "
        "as frequent as among all rows (lift).",
    ]


def compare_versions(evidence: Evidence) -> str:
    """Say for each test metric whether it is better or worse than in the previous version.

    The text is empty if there is no previous version.
    """
    previous = evidence.previous and evidence.previous.manifest
    if not previous:
        return ""
    ours, theirs = evidence.manifest.metrics["test"], previous.metrics["test"]
    # The costs of two versions are comparable only if the same rule chose both thresholds.
    if evidence.manifest.threshold and evidence.manifest.threshold.rule != getattr(previous.threshold, "rule", None):
        theirs = {metric: value for metric, value in theirs.items() if metric != "cost"}
    changes = [
        f"{METRIC_NAMES[metric]} {_compare(metric, theirs[metric], value)}"
        for metric, value in ours.items()
        if metric in theirs
    ]
    if not changes:
        return "It has none of the metrics of this version."
    return f"This version: {', '.join(changes)}."


def _compare(metric: str, before: float, after: float) -> str:
    if before == after:
        return "unchanged"
    is_better = (after < before) == (metric in _LOWER_IS_BETTER)
    return f"{'better' if is_better else 'worse'} by {format_difference(abs(after - before))}"


def summarise(evidence: Evidence) -> str:
    """Return the lines for the terminal: the baseline, the worst classes or the residuals, the best features, the
    previous version, and the findings.

    The lines do not repeat the notes of the evidence, because the command has already printed the notes.
    """
    manifest = evidence.manifest
    threshold = explain_threshold(manifest)
    constant = "the most frequent class" if manifest.labels else "the mean"
    if threshold:
        constant = "the class shares"
    figures = ", ".join(f"{metric} {format_figure(value)}" for metric, value in evidence.baseline.items())
    lines = [("threshold", threshold)] if threshold else []
    lines += [("baseline", f"{figures}, by always answering {constant}")]
    lines += _worst_classes(evidence) if manifest.labels else [_residuals(evidence)]
    lines.append(("features", _best_features(evidence)))
    lines += _previous(evidence)
    lines += [("note", printable(finding)) for finding in findings(evidence)]
    return "\n".join(f"{head:<12} {text}" for head, text in lines)


def _previous(evidence: Evidence) -> list[tuple[str, str]]:
    previous = evidence.previous
    if previous is None:
        return []
    if previous.manifest is None:
        return [
            ("note", printable(f"version {previous.version}, the one before, can't be compared: {previous.reason}"))
        ]
    rows = "the same test rows" if previous.has_rows_of(evidence.manifest) else "other test rows, perhaps"
    return [("previous", f"version {previous.version}, {rows}. {compare_versions(evidence)}")]


def _worst_classes(evidence: Evidence) -> list[tuple[str, str]]:
    worst = [i for i in evidence.worst_classes if evidence.classes[i].rows][:_MOST_LINES]
    lines = []
    for place, i in enumerate(worst):
        scores = evidence.classes[i]
        recall = f"{format_percent(scores.recall)} of {scores.rows:,} found"
        label = format_name(evidence.manifest.labels[i])
        lines.append(("" if place else "worst", f"{label}: {recall}, F1 {format_figure(scores.f1)}"))
    return lines


def _residuals(evidence: Evidence) -> tuple[str, str]:
    half, most = np.quantile(abs(evidence.residual), [0.5, 0.9]).tolist()
    return "residuals", f"half within {format_figure(half)}, 90% within {format_figure(most)}"


def _best_features(evidence: Evidence) -> str:
    mean, features = evidence.importances.mean, evidence.manifest.features
    best = [i for i in evidence.ranking[:_MOST_LINES] if mean[i] > 0]
    if not best:
        return f"shuffling any one of them does not increase the {evidence.importances.metric}"
    named = ", ".join(f"{format_name(features[i].name)} +{format_figure(mean[i])}" for i in best)
    return f"{named} {evidence.importances.metric} when shuffled"
