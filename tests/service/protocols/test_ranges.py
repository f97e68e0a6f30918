"""Values outside of the training ranges are counted by feature, and described for the client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.bundle import Feature, Reading
from foldserve.service.protocols.ranges import Ranges
from tests.service.mixed import FEATURES, codes, mixed_manifest, mixed_rows
from tests.service.support import feature_fields

RANGES = Ranges(mixed_manifest().features)


def expected_counts(rows: list[Any]) -> dict[tuple[str, str], int]:
    """Count the unusual values of each feature with Python's comparisons.

    The range of each numeric feature is 0 to 1.
    """
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for feature, value in zip(FEATURES, row, strict=True):
            name, known = feature["name"], feature.get("categories")
            unusual = value is not None and (value not in known if known else not 0 <= value <= 1)
            if unusual:
                key = ("unseen" if known else "outside", name)
                counts[key] = counts.get(key, 0) + 1
    return counts


@given(mixed_rows)
def test_unusual_values_are_counted_by_feature(rows: list[Any]) -> None:
    expected = expected_counts(rows)
    assert (RANGES.count(codes(rows)) or {}) == expected
    assert RANGES.count_bytes(codes(rows).tobytes() * 3) == {key: 3 * count for key, count in expected.items()}


@given(mixed_rows, st.integers(0, 4))
def test_a_warning_names_the_row_and_the_column_of_each_value(rows: list[Any], limit: int) -> None:
    entries, found = RANGES.describe(codes(rows), limit)
    places = [
        (i, feature["name"])
        for i, row in enumerate(rows)
        for feature, value in zip(FEATURES, row, strict=True)
        if expected_counts([[value if other is feature else None for other in FEATURES]])
    ]
    assert found == len(places)
    assert [(entry["row"], entry["column"]) for entry in entries] == places[:limit]


def test_values_of_a_large_request_are_found_in_every_part() -> None:
    rows = np.full((50_000, len(FEATURES)), 0.5, np.float32)
    rows[[0, 9_362, 49_999], 0] = 7, -7, np.nan
    assert RANGES.count(rows) == {("outside", "age"): 2}
    assert [entry["row"] for entry in RANGES.describe(rows, 10)[0]] == [0, 9_362]


@pytest.mark.parametrize("width", [1, 3, 64, 513, 2000])
@pytest.mark.parametrize("share", [0.01, 1])
def test_values_are_counted_for_any_number_of_features(width: int, share: float) -> None:
    features = [{"name": str(i), "range": (-1.0, 1.0)} for i in range(width)]
    ranges = Ranges([Feature.model_validate(feature_fields(feature)) for feature in features])
    random = np.random.default_rng(0)
    for count in (1, 20, 300_000 // width):
        rows = np.where(random.random((count, width)) < share, 2, 0).astype(np.float32)
        expected = {("outside", str(i)): int(total) for i, total in enumerate((rows == 2).sum(axis=0)) if total}
        assert (ranges.count(rows) or {}) == expected


def test_a_warning_says_the_range_in_the_words_of_the_table() -> None:
    day = Reading(origin="2024-01-01")
    features = [
        {"name": "length", "range": (float(np.float32(32.1)), float(np.float32(59.6)))},
        {"name": "when", "kind": "time", "range": (0.0, 30.0), "reading": day},
        {"name": "member", "kind": "boolean", "range": (0.0, 0.0)},
        {"name": "town", "kind": "categorical", "categories": ("Paris",)},
    ]
    ranges = Ranges([Feature.model_validate(feature_fields(feature)) for feature in features])
    entries, _ = ranges.describe(np.array([[32, 31, 1, 1], [59.6, 0, 0, 0], [60, -1, 0, 0]], np.float32), 10)
    assert [(entry["row"], entry["column"], entry["warning"]) for entry in entries] == [
        (0, "length", "below the training range, 32.1 to 59.6"),
        (0, "when", "above the training range, 2024-01-01 to 2024-01-31"),
        (0, "member", "training has only seen false"),
        (0, "town", "a category that training has not seen"),
        (2, "length", "above the training range, 32.1 to 59.6"),
        (2, "when", "below the training range, 2024-01-01 to 2024-01-31"),
    ]
