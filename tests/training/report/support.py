"""Invented results of trainings, and a parser of report pages."""

from html.parser import HTMLParser

import numpy as np

from foldserve.service import bundle
from foldserve.training.fit.loop import Epoch
from foldserve.training.report.evaluate import Importances, score
from foldserve.training.report.evidence import Evidence

HOSTILE = "<script>alert(1)</script>\"'&"


def manifest(task, y, outputs, names, labels, **changes):
    """Make a manifest whose metrics compare `outputs` with the targets `y`."""
    feature = {"range": (0.0, 16.0), "histogram": {"edges": (0.0, 8.0, 16.0), "counts": (30, 10)}}
    parity = {"rows": 4096, "max_absolute": 4.1e-7, "max_relative": 3e-6, "worst": 0.0097}
    agreement = {"argmax_rows": 4096, "argmax_agreement": 1.0} if labels else dict.fromkeys(AGREEMENT)
    made = bundle.Manifest.model_validate(
        {
            "schema_version": 1,
            "name": "made",
            "version": 3,
            "created": "2026-01-02T03:04:05Z",
            "task": task,
            "model": {"size": 36485, "sha256": "a" * 64, "opset": 20},
            "input": {"name": "input", "shape": (-1, len(names))},
            "output": {"name": "out", "shape": (-1, outputs.shape[1])},
            "features": [{"name": name, **feature} for name in names],
            "labels": labels,
            "certificate": {
                "reference": "torch float64, unfolded",
                "tolerance": {"absolute": 1e-5, "relative": 1e-4},
                "measurements": [
                    {"runtime": "onnxruntime CPU", "rows": "random", "batch": 4096, "parity": parity | agreement}
                ],
            },
            "golden": {"inputs": (), "outputs": ()},
            "folded": [{"layer": "norm1", "rule": "W' = diag(s) W", "into": "dense1"}],
            "metrics": {name: score(task, y, outputs) for name in ("validation", "test")},
            "provenance": {
                "source": "table.csv",
                "data_sha256": "b" * 64,
                "rows": {"train": 40, "validation": len(y), "test": len(y)},
                "seed": 7,
                "threads": 1,
                "cpu": "any",
                "hyperparameters": {"preset": "best", "hidden": (64, 64), "dropout": 0.15},
                "versions": {"torch": "2.13.0"},
            },
        }
    )
    return made.model_copy(update=changes)


AGREEMENT = ("argmax_rows", "argmax_agreement")


def history(epochs=5):
    return tuple(Epoch(n, 60, 2.0 / n, 1.0 / n + 0.04 * n, 1 - 0.5 / n, 1e4) for n in range(1, epochs + 1))


def importances(features, metric="log_loss"):
    mean = np.random.default_rng(0).permutation(np.linspace(-0.01, 0.5, features))
    return Importances(metric, 200, 5, mean, np.full(features, 0.01))


def classification(classes=4, features=3, rows=200, labels=None, names=None, never=None, **changes):
    generator = np.random.default_rng(classes)
    y = np.append(np.arange(classes), generator.integers(0, classes, rows))
    logits = generator.normal(size=(len(y), classes)) + 2.0 * np.eye(classes)[y]
    if never is not None:
        logits[:, never] = -20
    outputs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    names = names or [f"column {i}" for i in range(features)]
    labels = labels or tuple(f"class {i}" for i in range(classes))
    made = manifest("classification", y, outputs, names, labels, **changes)
    return Evidence(made, (history(),), y, outputs, importances(len(names)))


def regression(rows=150, **changes):
    generator = np.random.default_rng(0)
    y = generator.normal(100, 20, rows)
    outputs = (y + generator.normal(0, 5, rows))[:, None].astype(np.float32)
    made = manifest("regression", y, outputs, ["a", "b"], (), **changes)
    return Evidence(made, (history(),), y, outputs, importances(2, "rmse"))


class Page(HTMLParser):
    """The page as a browser sees it: elements with attributes, and tables with cells of text.

    Every tag must be closed.
    """

    VOID = frozenset({"meta", "br", "link", "img", "path", "use"})

    def __init__(self, page):
        super().__init__()
        self.elements, self.tables, self.open, self.text, self.css = [], [], [], "", ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert len(dict(attributes)) == len(attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.css += data
            return
        self.text += data
        if {"td", "th"} & set(self.open) and "svg" not in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, *head):
        """Find the rows of the table whose header begins with the cells `head`."""
        return next(rows[1:] for rows in self.tables if tuple(rows[0][: len(head)]) == head)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
