"""The page, parsed like in a browser; every figure is compared with scikit-learn's or with plain arithmetic."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_score, r2_score, recall_score

from foldserve.service import bundle
from foldserve.training.fit.loop import Epoch
from foldserve.training.report.evaluate import Importances, score
from foldserve.training.report.evidence import Evidence
from foldserve.training.report.report import (
    MAX_CLASSES,
    MAX_FEATURES,
    MAX_MATRIX_CLASSES,
    MAX_PAIRS,
    render,
)
from foldserve.training.report.sentences import summarise

HOSTILE = "<script>alert(1)</script>\"'&"


def manifest(task, y, outputs, names, labels, **changes):
    """A manifest whose metrics are those of `outputs`."""
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


@pytest.fixture(scope="module")
def pages():
    """One page of each task."""
    return render(classification()), render(regression())


class Page(HTMLParser):
    """The page as a browser sees it: elements with attributes, tables as cells of text. Every tag must be closed."""

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
        """Find the rows under the table whose first header cells are `head`."""
        return next(rows[1:] for rows in self.tables if tuple(rows[0][: len(head)]) == head)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_metrics_are_shown_beside_the_best_constant_answer():
    evidence = classification()
    rows = {row[0]: row[2:] for row in Page(render(evidence)).table("rows", "count")}
    shares = np.bincount(evidence.y) / len(evidence.y)
    entropy = log_loss(evidence.y, np.tile(shares, (len(evidence.y), 1)), labels=range(4))
    assert rows["test"] == [f"{value:.4f}" for value in evidence.manifest.metrics["test"].values()]
    assert rows["test, baseline"] == [f"{shares.max():.4f}", f"{entropy:.4f}"]


def test_a_regression_is_shown_beside_the_mean():
    evidence = regression()
    page = Page(render(evidence))
    rows = {row[0]: row[2:] for row in page.table("rows", "count")}
    assert rows["test, baseline"] == [f"{evidence.y.std():.4f}", "0.0000"]
    assert rows["test"][1] == f"{r2_score(evidence.y, evidence.outputs):.4f}"
    assert f"50% below {np.median(evidence.outputs[:, 0] - evidence.y):.4g}" in page.text
    assert len(page.named("svg")) == 4 + 2  # scores, losses, predictions, residuals, and a histogram a feature


def test_class_scores_are_scikit_learn_s():
    evidence = classification()
    predicted = evidence.outputs.argmax(1)
    rows = Page(render(evidence)).table("class")
    scores = [
        np.bincount(evidence.y),
        np.bincount(predicted, minlength=4),
        *(score(evidence.y, predicted, average=None) for score in (precision_score, recall_score, f1_score)),
    ]
    for i, row in enumerate(rows[:-1]):
        assert row[:6] == [f"class {i}", *(str(s[i]) for s in scores[:2]), *(f"{s[i]:.4f}" for s in scores[2:])]
    majority = np.bincount(evidence.y).max() / len(evidence.y)
    assert sorted(row[6] for row in rows[:-1])[-1] == f"{2 * majority / (1 + majority):.4f}"
    assert rows[-1][5] == f"{f1_score(evidence.y, predicted, average='macro'):.4f}"


def test_the_confusion_matrix_is_scikit_learn_s():
    evidence = classification()
    expected = confusion_matrix(evidence.y, evidence.outputs.argmax(1))
    rows = Page(render(evidence)).table("true", "class 0")
    assert [[int(cell) for cell in row[1:]] for row in rows] == expected.tolist()


def test_many_classes_get_the_most_frequent_confusions_and_the_worst_classes():
    evidence = classification(classes=MAX_MATRIX_CLASSES + 30, rows=3000)
    page = Page(render(evidence))
    assert not any(row[:2] == ["true", "class 0"] for rows in page.tables for row in rows[:1])
    pairs = page.table("true", "predicted")
    wrong = confusion_matrix(evidence.y, evidence.outputs.argmax(1))
    np.fill_diagonal(wrong, 0)
    assert [int(row[2]) for row in pairs] == np.sort(wrong, axis=None)[::-1][:MAX_PAIRS].tolist()
    assert wrong[int(pairs[0][0].split()[1]), int(pairs[0][1].split()[1])] == wrong.max()
    classes = page.table("class")
    assert len(classes) == MAX_CLASSES + 1
    worst = np.sort(f1_score(evidence.y, evidence.outputs.argmax(1), average=None))[:MAX_CLASSES]
    assert [row[5] for row in classes[:-1]] == [f"{value:.4f}" for value in worst]
    assert f"The {MAX_CLASSES} of 60 classes with the lowest F1" in page.text


def test_features_are_sorted_by_importance_and_described_by_the_manifest():
    evidence = classification(features=5)
    kinds = [
        {"kind": "categorical", "categories": ("NA", HOSTILE, "c"), "range": None},
        {"missing": True, "missing_share": 0.125},
        {"range": (3.0, 3.0)},
        {"kind": "boolean", "categories": (False, True), "range": None},
        {"range": (-0.25, 1e9)},
    ]
    features = [f.model_copy(update=kind) for f, kind in zip(evidence.manifest.features, kinds, strict=True)]
    evidence = replace(evidence, manifest=evidence.manifest.model_copy(update={"features": tuple(features)}))
    page = Page(render(evidence))
    rows = page.table("feature")
    order = np.argsort(-evidence.importances.mean)
    assert [row[0] for row in rows] == [f"column {i}" for i in order]
    assert rows[0][6] == f"{evidence.importances.mean.max():.3f} ± 0.010"
    by_name = {row[0]: row[1:4] for row in rows}
    assert by_name["column 0"] == ["categorical", f"3: NA, {HOSTILE}, c", "none"]
    assert by_name["column 1"] == ["numeric", "0 to 16", "12.5%"]
    assert by_name["column 2"] == ["numeric", "always 3", "none"]
    assert by_name["column 3"][:2] == ["boolean", "2: False, True"]
    assert by_name["column 4"][1] == "-0.25 to 1e+09"


def test_folding_certificate_and_provenance_are_those_of_the_manifest():
    page = Page(render(classification()))
    assert page.table("layer") == [["norm1", "W' = diag(s) W", "dense1"]]
    assert page.table("runtime")[0] == [
        *("onnxruntime CPU", "random", "4,096", "4,096", "4.1e-07", "3e-06", "0.97%", "100.0% of 4,096")
    ]
    facts = {row[0]: row[1] for rows in page.tables for row in rows if len(row) == 2}
    assert facts["data sha256"] == "b" * 64
    assert facts["hidden"] == "64, 64"
    assert facts["torch"] == "2.13.0"
    assert "trained 2026-01-02 03:04:05 UTC on table.csv, preset best" in page.text


def test_the_page_loads_nothing(pages):
    for text in pages:
        page = Page(text)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "img", "iframe", "object", "image"}
        for _, attributes in page.elements:
            for value in (attributes.get(name) for name in ("src", "href", "xlink:href", "srcset", "action")):
                assert value is None or value.startswith("#")
            assert not any(name.startswith("on") for name in attributes)
        assert not re.search(r"://|@import|url\((?!#)", text)


def test_every_reference_inside_the_page_has_one_target(pages):
    for text in pages:
        page = Page(text)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_charts_have_descriptions_and_tables_have_headers(pages):
    for page in map(Page, pages):
        assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.named("svg"))
        assert all(head.get("scope") in ("row", "col") for head in page.named("th"))
        assert page.named("html")[0]["lang"] == "en"


def contrast(first, second):
    """Compute the contrast ratio of two colours, #rgb or #rrggbb (WCAG 2.2)."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_text_has_enough_contrast_in_light_and_dark_mode(pages):
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w+);", block))
        for block in re.findall(r":root \{(.*?)\}", Page(pages[0]).css, re.DOTALL)
    )
    for colours in (light, light | dark):
        pairs = [("ink", "page"), ("quiet", "page"), ("ink", "panel"), ("ink", "heat"), ("chart-text", "page")]
        assert min(contrast(colours[a], colours[b]) for a, b in pairs) >= 4.5
        assert min(contrast(colours[name], colours["page"]) for name in ("bar", "chart-first", "chart-second")) >= 3


def test_only_the_evidence_decides_the_bytes(pages):
    assert pages == (render(classification()), render(regression()))
    assert render(regression()) != render(regression(rows=151))


@pytest.mark.parametrize("name", [HOSTILE, "{{ 7 * 7 }}", "$\\frac$", "&lt;", "x" * 10_000, "\x1b[2J\u202e\ud800\x00"])
def test_a_name_from_the_table_is_only_text(name):
    evidence = classification(names=[name, "b", "c"], labels=(name, "b", "c", "d"))
    evidence = replace(evidence, importances=replace(evidence.importances, mean=np.array([3.0, 2.0, 1.0])))
    page, lines = render(evidence), summarise(evidence)
    parsed = Page(page)
    as_column, as_class = parsed.table("feature")[0][0], parsed.table("class")[0][0]
    assert as_column == as_class
    assert len(as_column) <= 60
    if name.isprintable() and len(name) <= 60:
        assert as_column == name
        assert name in lines
    assert page.encode()
    assert all(c.isprintable() or c == "\n" for c in page + lines)
    assert not parsed.named("script")


def test_a_note_on_the_table_is_on_the_page_but_not_in_the_summary():
    evidence = replace(classification(), notes=(f"Dropped {HOSTILE}.",))
    assert f"Dropped {HOSTILE}." in Page(render(evidence)).text
    assert "Dropped" not in summarise(evidence)


def test_a_class_that_is_never_predicted_is_named_and_its_precision_is_undefined():
    evidence = classification(never=2)
    page = Page(render(evidence))
    row = page.table("class")[2]
    assert row[2:6] == ["0", "\N{EN DASH}", "0.0000", "0.0000"]
    assert "Classes of the test rows that the model never predicts: class 2." in page.text
    assert summarise(evidence).splitlines()[1].startswith("worst        class 2: 0.0% of")


def test_a_useless_model_is_called_useless():
    evidence = classification()
    constant = np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (len(evidence.y), 1))
    made = manifest("classification", evidence.y, constant, ["a", "b", "c"], evidence.manifest.labels)
    text = Page(render(replace(evidence, manifest=made, outputs=constant))).text
    assert "no better than an answer that looks at no feature" in text
    assert "no better than an answer that looks at no feature" not in Page(render(evidence)).text


def test_useless_probabilities_of_useful_answers_are_reported():
    assert "its probabilities are not: see log_loss" in summarise(classification(never=2))
    assert "probabilities are not" not in summarise(classification())


@pytest.mark.parametrize("classes", [2, 1000])
def test_the_page_stays_small_for_any_number_of_classes(classes):
    page = render(classification(classes=classes, rows=2000))
    Page(page)
    assert len(page) < 300_000


@pytest.mark.parametrize("features", [1, 2000])
def test_the_page_stays_small_for_any_number_of_features(features):
    page = render(classification(features=features))
    assert len(Page(page).table("feature")) == min(features, MAX_FEATURES)
    assert (f"The {MAX_FEATURES} most important of 2,000 features" in page) == (features == 2000)
    assert len(page) < 300_000


def test_the_page_stays_small_for_many_rows():
    page = render(regression(rows=50_000))
    assert "1,000 of 50,000 test rows" in page
    assert len(page) < 300_000


@pytest.mark.parametrize("histories", [(), ((),), (history(1),), (history(), (), history(3)), 40 * (history(),)])
def test_histories_can_be_missing_short_or_many(histories):
    page = Page(render(replace(classification(), histories=histories)))
    kept = [found for found in histories if found]
    if not kept:
        assert "No history of the losses was kept" in page.text
    elif len(kept) > 1:
        assert f"{len(kept)} members" in page.text
    else:
        assert "Lowest validation loss, 1.0400, after epoch 1 of 1." in page.text


def test_the_best_epoch_has_the_lowest_validation_loss():
    lowest = min(history(20), key=lambda epoch: epoch.validation_loss)
    text = Page(render(replace(classification(), histories=(history(20),)))).text
    assert f"Lowest validation loss, {lowest.validation_loss:.4f}, after epoch {lowest.number} of 20." in text


def test_constant_targets_and_outputs_can_be_drawn():
    y = np.full(10, 3.0)
    outputs = np.full((10, 1), 3.0, np.float32)
    made = manifest("regression", y, outputs, ["a"], ())
    Page(render(Evidence(made, (), y, outputs, Importances("rmse", 10, 5, np.zeros(1), np.zeros(1)))))


def test_the_summary_has_the_baseline_the_worst_classes_and_the_best_features():
    evidence = classification()
    lines = summarise(evidence).splitlines()
    assert len(lines) == 5
    worst = f1_score(evidence.y, evidence.outputs.argmax(1), average=None).argmin()
    best = evidence.importances.mean.argmax()
    assert lines[0].startswith(
        f"baseline     accuracy {(np.bincount(evidence.y) / len(evidence.y)).max():.4f}, log_loss "
    )
    assert lines[1].startswith(f"worst        class {worst}: ")
    assert lines[4].startswith(f"features     column {best} +{evidence.importances.mean[best]:.4f}, ")


def test_the_summary_of_a_regression_has_the_size_of_its_errors():
    evidence = regression()
    off = np.quantile(abs(evidence.outputs[:, 0] - evidence.y), [0.5, 0.9])
    assert f"residuals    half within {off[0]:.4f}, 90% within {off[1]:.4f}" in summarise(evidence).splitlines()
