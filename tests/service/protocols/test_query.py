"""Tests the parameters in the query of a prediction's URL. Every form of the answer has the same values as the plain
answer. A wrong query is refused.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from foldserve.service.bundle import Threshold
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.friendly import MAX_WARNINGS, FriendlyCodec
from foldserve.service.protocols.oip import OipCodec
from tests.service.support import MARKER, manifest

ROW = b'{"instances": [[0.5, 0.5]]}'
LABELS = [("no", "yes"), (False, True), (3, 1, 2), ("a", 1, 2.5, True)]


def codec(labels: tuple[Any, ...] = ("no", "yes"), threshold: float | None = None, **more: Any) -> FriendlyCodec:
    made = manifest(labels=labels, **more)
    if threshold is not None:
        rule = Threshold(positive=labels[-1], value=threshold, rule="value")
        made = made.model_copy(update={"threshold": rule})
    return FriendlyCodec(made, 1_000)


def answer(codec: FriendlyCodec, query: bytes, outputs: np.ndarray, body: bytes = ROW) -> dict[str, Any]:
    asked = codec.for_query(query) if query else codec
    found: dict[str, Any] = json.loads(asked.decode({}, body).encode(outputs).body)
    return found


def outputs_of(labels: tuple[Any, ...]) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.just(len(labels))), elements=st.floats(0, 1, width=32)
    )


@given(st.data(), st.sampled_from(LABELS), st.integers(1, 5), st.floats(0, 1) | st.none())
def test_every_form_agrees_with_the_plain_probabilities(
    data: st.DataObject, labels: tuple[Any, ...], top: int, threshold: float | None
) -> None:
    model = codec(labels, threshold if len(labels) == 2 else None)
    outputs = data.draw(outputs_of(labels))
    plain = answer(model, b"", outputs)
    names = [label if isinstance(label, str) else json.dumps(label) for label in labels]

    named = answer(model, b"named=true", outputs)
    assert named == plain | {"probabilities": [dict(zip(names, row, strict=True)) for row in plain["probabilities"]]}
    assert list(named) == list(plain)

    ranked = [sorted(range(len(labels)), key=lambda i: (-row[i], i))[:top] for row in plain["probabilities"]]
    best = answer(model, b"top=%d" % top, outputs)
    kept = [[row[i] for i in order] for row, order in zip(plain["probabilities"], ranked, strict=True)]
    assert best == plain | {"classes": [[labels[i] for i in order] for order in ranked], "probabilities": kept}
    assert [[type(label) for label in row] for row in best["classes"]] == [
        [type(labels[i]) for i in order] for order in ranked
    ]

    both = answer(model, b"top=%d&named=true" % top, outputs)
    assert [list(row.items()) for row in both["probabilities"]] == [
        [(names[i], value) for i, value in zip(order, values, strict=True)]
        for order, values in zip(ranked, kept, strict=True)
    ]
    assert both["predictions"] == plain["predictions"]


@given(st.data(), st.floats(0, 1))
def test_the_threshold_decides_in_json_and_in_arrow(data: st.DataObject, value: float) -> None:
    value = float(str(np.float32(value)))  # foldserve-train writes a threshold as the text of a float32
    model = codec(threshold=value)
    outputs = data.draw(outputs_of(("no", "yes")))
    plain = answer(model, b"", outputs)
    assert plain["predictions"] == ["yes" if row[1] >= value else "no" for row in plain["probabilities"]]
    arrow = model.decode({b"accept": b"application/vnd.apache.arrow.stream"}, ROW).encode(outputs).body
    assert pa.ipc.open_stream(io.BytesIO(arrow)).read_all()["prediction"].to_pylist() == plain["predictions"]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (b"app", "the URL has an unknown query parameter; the known ones are named, top and warnings"),
        (b"Named=true", "the URL has an unknown query parameter; the known ones are named, top and warnings"),
        (b"named=true&", "the URL has an unknown query parameter; the known ones are named, top and warnings"),
        (
            b"%s=1" % MARKER.encode(),
            "the URL has an unknown query parameter; the known ones are named, top and warnings",
        ),
        (b"named", "the query parameter named is neither true nor false"),
        (b"named=1", "the query parameter named is neither true nor false"),
        (b"warnings=%s" % MARKER.encode(), "the query parameter warnings is neither true nor false"),
        (b"named=true&named=true", "the query parameter named is given more than once"),
        *(
            (b"top=" + count, "the query parameter top is not a whole number of at least 1")
            for count in (b"", b"0", b"-1", b"+1", b"1.0", b"01", b"1e3", "\u0661".encode(), b"9" * 5_000)
        ),
    ],
)
def test_a_wrong_query_is_refused(query: bytes, text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        codec().for_query(query)
    assert str(refused.value) == text


def test_a_model_without_classes_has_no_probabilities_to_name() -> None:
    model = codec(())
    for query in (b"named=true", b"top=1"):
        with pytest.raises(InvalidInput, match="need a model with classes"):
            model.for_query(query)
    found = answer(model, b"warnings=true", np.array([[2]], np.float32))
    assert found == {"model": "made", "version": 1, "predictions": [2.0], "warnings": []}


@pytest.mark.parametrize("kind", [b"application/octet-stream", b"application/vnd.apache.arrow.stream"])
def test_another_form_needs_an_answer_in_json(kind: bytes) -> None:
    with pytest.raises(InvalidInput, match="need an answer in JSON"):
        codec().for_query(b"named=true").decode({b"accept": kind}, ROW)


def test_the_open_inference_protocol_refuses_these_parameters_and_ignores_others() -> None:
    codec = OipCodec(manifest(), 4)
    with pytest.raises(InvalidInput, match="only"):
        codec.for_query(b"tenant=a&named=true")
    assert codec.for_query(b"tenant=a") is codec


# --- warnings --------------------------------------------------------------------------------------------------------


def test_warnings_come_only_if_the_client_asks() -> None:
    outputs = np.array([[0.25, 0.75]], np.float32)
    body = b'{"instances": [[-1, 0.5]]}'
    warned = answer(codec(), b"warnings=true", outputs, body)
    assert warned.pop("warnings") == [{"row": 0, "column": "a", "warning": "below the training range, 0 to 1"}]
    assert warned == answer(codec(), b"", outputs, body) == answer(codec(), b"warnings=false", outputs, body)


@pytest.mark.parametrize("rows", [MAX_WARNINGS, MAX_WARNINGS + 7])
def test_an_answer_has_a_limited_number_of_warnings(rows: int) -> None:
    body = json.dumps({"instances": [[2, 0.5]] * rows}).encode()
    found = answer(codec(), b"warnings=true", np.full((rows, 2), 0.5, np.float32), body)["warnings"]
    assert [entry.get("row") for entry in found[:MAX_WARNINGS]] == list(range(MAX_WARNINGS))
    assert found[MAX_WARNINGS:] == ([{"warning": "7 more warnings are not listed"}] if rows > MAX_WARNINGS else [])
