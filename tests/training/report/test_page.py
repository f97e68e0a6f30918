"""The report page loads no other file.

The page has descriptions and enough contrast, escapes every name, and stays small.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from foldserve.training.report.report import (
    MAX_FEATURES,
    render,
)
from foldserve.training.report.sentences import summarise
from tests.training.report.support import HOSTILE, Page, classification, regression


@pytest.fixture(scope="module")
def pages():
    """The report pages of a classification and of a regression."""
    return render(classification()), render(regression())


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
