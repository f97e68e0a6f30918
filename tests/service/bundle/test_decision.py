"""Tests the decision: the predicted class of each row, its best classes, and the names of the classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from foldserve.service.bundle import Decision, Threshold
from tests.service.support import manifest

# Few different values, so that ties are frequent.
probability = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1.0])
tables = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 4)), elements=st.floats(0, 1, width=32))
pairs = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(2)), elements=st.floats(0, 1, width=32))


@given(tables)
def test_without_a_threshold_the_first_of_the_largest_probabilities_decides(probabilities: np.ndarray) -> None:
    expected = [max(range(len(row)), key=lambda i: (row[i], -i)) for row in probabilities.tolist()]
    assert Decision(tuple(range(probabilities.shape[1]))).classes(probabilities).tolist() == expected


@given(pairs, probability, st.sampled_from(["no", "yes"]))
def test_a_row_is_positive_from_the_threshold_on(probabilities: np.ndarray, value: float, positive: str) -> None:
    decision = Decision(("no", "yes"), Threshold(positive=positive, value=value, rule="value"))
    place = decision.labels.index(positive)
    # A client reads the probabilities as decimal text. With double precision, the client must find the same classes.
    told = json.loads("[" + ", ".join(str(p) for p in probabilities[:, place]) + "]")
    assert decision.classes(probabilities).tolist() == [place if p >= value else 1 - place for p in told]


@given(tables, st.integers(1, 6))
def test_the_best_classes_have_the_largest_probabilities_and_ties_keep_their_order(
    probabilities: np.ndarray, count: int
) -> None:
    best = Decision(tuple(range(probabilities.shape[1]))).best_classes(probabilities, count).tolist()
    assert best == [sorted(range(len(row)), key=lambda i: (-row[i], i))[:count] for row in probabilities.tolist()]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("no", "é"), ("no", "é")),
        ((False, True), ("false", "true")),
        ((1, 2.5, "x"), ("1", "2.5", "x")),
        (("1", 1), ('"1"', "1")),
        ((), ()),
    ],
    ids=repr,
)
def test_every_class_has_its_own_name(labels: tuple[Any, ...], names: tuple[str, ...]) -> None:
    assert Decision(labels).names == names


@pytest.mark.parametrize(
    ("labels", "positive"), [(("a", "b", "c"), "a"), ((), "a"), (("a", "b"), "c"), ((0, 1), True), ((0, 1), "1")]
)
def test_a_threshold_needs_two_labels_and_one_of_them(labels: tuple[Any, ...], positive: Any) -> None:
    content = manifest(labels=labels).model_dump()
    content["threshold"] = {"positive": positive, "value": 0.5, "rule": "f1"}
    with pytest.raises(ValidationError, match="a threshold needs two labels"):
        type(manifest()).model_validate(content)


@pytest.mark.parametrize(("field", "value"), [("value", -0.1), ("value", 1.1), ("rule", "best"), ("rule", "cost:1")])
def test_a_threshold_with_a_wrong_value_or_rule_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Threshold.model_validate({"positive": True, "value": 0.5, "rule": "f1", field: value})
