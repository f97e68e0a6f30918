"""A sample of the predictions goes to Parquet files, which other tools and `foldserve score` read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import helper

from foldserve.service import bundle
from foldserve.service.metrics.prometheus import PrometheusMetrics
from foldserve.service.prediction_log.log import Limits, PredictionLog
from tests.service.http.test_workers import until
from tests.service.support import (
    Served,
    assert_refused_in_one_line,
    constant,
    foldserve,
    manifest,
    onnx_model,
    oracle,
    serving,
    tensor,
    write_square_root,
)

FEATURES = (
    {"name": "time", "kind": "time", "range": (0.0, 9.0), "reading": {"step": "hour", "zoned": True}},
    {"name": "town", "kind": "categorical", "categories": ("Oslo", "l'eau"), "missing": True},
    {"name": "size", "kind": "categorical", "categories": (1, 2, 40)},
    {"name": "smokes", "kind": "boolean", "missing": True},
    {"name": "income", "missing": True},
    {"name": "country", "kind": "categorical", "categories": ("no",)},
)
LABELS = ("maybe", "yes")
WEIGHTS = np.array([[0.1, -0.2], [0.3, 0.5], [-1.0, 0.7], [0.4, 0.1], [2.0, -1.0], [0.0, 0.0]], np.float32)


def write_people(models: Path) -> bundle.Bundle:
    """Write a model with a feature of each kind. One feature has the same name as a column of the log."""
    model = onnx_model(
        [
            helper.make_node("IsNaN", ["input"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "input"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"]),
        ],
        [constant("zero", 0.0), constant("weights", WEIGHTS)],
        inputs=[tensor("input", "batch", 6)],
        outputs=[tensor("probabilities", "batch", 2)],
    )
    rows = [[1.0, 0.0, 2.0, 1.0, 0.5, 0.0]]
    golden = bundle.Golden(inputs=rows, outputs=oracle(model)(rows).tolist())
    made = {"name": "people", "features": FEATURES, "labels": LABELS, "golden": golden}
    return bundle.write(models, "people", model, lambda n: manifest(model, version=n, **made))


ROWS = (
    ["1970-01-01T05:30Z", "l'eau", 40, True, 0.25, "no"],
    ["1970-01-01T00:00+01:00", None, 7, None, None, "no"],
    ["1970-01-02T00:00Z", "Rome", 1, False, -1.5, "no"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logged")


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[dict]:
    """The answers of a server with two workers. The server has logged the answers and has stopped."""
    write_people(folder / "models")
    flags = ("--prediction-log", folder / "log", "--prediction-log-share", 1, "--prediction-log-exclude", "country,x")
    with serving(folder / "models", folder / "stderr", "--workers", 2, *flags) as server:
        path = "/v1/models/people:predict"
        bodies = [{"instances": ROWS[:2]}, {"instances": ROWS[2:]}]
        found = [
            server.send("POST", path, f"X-Request-Id: order-{place}", body=json.dumps(body).encode())
            for place, body in enumerate(bodies)
        ]
        values = {"name": "input", "shape": [1, 6], "datatype": "FP32", "data": [0, 0, 0, 0, 0, 0]}
        infer = {"id": "from the body", "inputs": [values]}
        assert server.send("POST", "/v2/models/people/infer", body=json.dumps(infer).encode()).status == 200
        assert server.send("POST", path, body=b'{"instances": [[]]}').status == 400
        assert server.send("POST", "/v1/models/people:explain", body=json.dumps(bodies[0]).encode()).status
    return [answer.json() for answer in found]


def logged(folder: Path) -> Path:
    return folder / "log" / "people" / "1"


def test_the_log_has_the_inputs_and_the_answers_in_their_own_types(answers: list[dict], folder: Path) -> None:
    table = pq.read_table(logged(folder)).sort_by([("request_id", "ascending"), ("row", "ascending")])
    expected = {
        **{"time_": pa.timestamp("us", "UTC"), "request_id": pa.string(), "row": pa.int32(), "model": pa.string()},
        **{"version": pa.int64(), "time": pa.timestamp("us", "UTC"), "town": pa.string(), "size": pa.int64()},
        **{"smokes": pa.bool_(), "income": pa.float32(), "prediction": pa.string()},
        **{"probability_maybe": pa.float32(), "probability_yes": pa.float32()},
    }
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == expected
    rows = table.to_pylist()
    assert [row["request_id"] for row in rows] == ["order-0", "order-0", "order-1", None]
    assert [row["row"] for row in rows] == [0, 1, 0, 0]
    assert [row["time"].replace(tzinfo=UTC) for row in rows[:3]] == [
        datetime(1970, 1, 1, 5, tzinfo=UTC),
        datetime(1969, 12, 31, 23, tzinfo=UTC),
        datetime(1970, 1, 2, tzinfo=UTC),
    ]
    assert [row["town"] for row in rows] == ["l'eau", None, "(unseen)", "Oslo"]
    assert [row["size"] for row in rows] == [40, 41, 1, 1]
    assert [row["smokes"] for row in rows[:3]] == [True, None, False]
    assert [row["income"] for row in rows[:3]] == [0.25, None, -1.5]
    assert [row["prediction"] for row in rows[:3]] == [label for each in answers for label in each["predictions"]]
    probabilities = [[row["probability_maybe"], row["probability_yes"]] for row in rows[:3]]
    np.testing.assert_allclose(probabilities, [row for each in answers for row in each["probabilities"]], rtol=1e-6)
    text = (folder / "stderr").read_text()
    assert "the prediction log of people/1 has 'time' as 'time_': a feature has this name" in text
    assert "--prediction-log-exclude: the predictions of people/1 have no column 'x'" in text


@pytest.mark.usefixtures("answers")
def test_pandas_and_polars_read_the_files(folder: Path) -> None:
    assert len(pd.read_parquet(logged(folder))) == 4
    assert len(pl.read_parquet(logged(folder) / "*.parquet")) == 4


@pytest.mark.usefixtures("answers")
def test_only_the_owner_may_read_the_files(folder: Path) -> None:
    modes = {found.stat().st_mode & 0o777 for found in (folder / "log").rglob("*") if found.is_file()}
    assert modes == {0o600}
    assert (folder / "log").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("answers")
def test_score_gives_the_logged_answers_again(folder: Path) -> None:
    output = folder / "scored.parquet"
    model = folder / "models" / "people" / "1"
    done = foldserve("score", model, logged(folder), "-o", output, "--columns", "request_id,row", "--probabilities")
    assert done.returncode == 0, done.stderr
    by_request = [("request_id", "ascending"), ("row", "ascending")]
    before, after = pq.read_table(logged(folder)).sort_by(by_request), pq.read_table(output).sort_by(by_request)
    assert after["prediction"].equals(before["prediction"])
    np.testing.assert_allclose(after["probability_yes"], before["probability_yes"], rtol=1e-6)


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    write_square_root(tmp_path / "models")
    return tmp_path / "models"


BODY = b'{"instances": [[1, 3]]}'


@pytest.fixture
def served(roots: Path, tmp_path: Path) -> Iterator[Served]:
    """A server whose folder has a file of a killed server, an old file, and a file of the user."""
    files = tmp_path / "log" / "roots" / "1"
    files.mkdir(parents=True)
    (files / ".partial-20260101T000000000000Z-0123456789abcdef.parquet").write_bytes(b"PAR1")
    (files / "mine.parquet").write_bytes(b"")
    old, large = (files / f"2026010{day}T000000000000Z-0123456789abcdef.parquet" for day in (1, 2))
    for file in (old, large, files / "mine.parquet"):
        file.write_bytes(b"")
        os.utime(file, (0, 0))
    large.write_bytes(bytes(2**20 + 1))
    os.utime(large, (time.time() + 60, time.time() + 60))
    flags = ("--prediction-log", tmp_path / "log", "--prediction-log-share", 1, "--prediction-log-size", 2**20)
    with serving(roots, tmp_path / "stderr", *flags, "--prediction-log-interval", 0.05) as server:
        yield server


def test_old_files_and_the_files_of_killed_servers_are_removed(served: Served, tmp_path: Path) -> None:
    files = tmp_path / "log" / "roots" / "1"
    until(lambda: [file.name for file in files.iterdir()] == ["mine.parquet"])
    served.send("POST", "/predict", body=BODY)
    until(lambda: len(list(files.glob("2*.parquet"))) == 1)


def test_requests_are_answered_and_rows_are_counted_if_the_folder_can_not_be_written(
    served: Served, tmp_path: Path
) -> None:
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    (tmp_path / "log").write_bytes(b"")
    dropped = 'foldserve_prediction_log_rows_total{outcome="dropped"} 2.0'
    assert served.send("POST", "/predict", body=b'{"instances": [[1, 3], [2, 2]]}').status == 200
    until(lambda: dropped in served.send("GET", "/metrics").body.decode())
    assert served.send("POST", "/predict", body=BODY).status == 200
    assert "the prediction log dropped 2 rows: " in served.log.read_text()


def test_a_folder_that_can_not_be_used_is_refused_with_the_remedy(roots: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, reason in (
        (tmp_path / "missing" / "log", f"{tmp_path / 'missing'} does not exist; make it first"),
        (tmp_path / "file", "it is a file; choose a folder"),
        (roots / "log", "it is in the folder of the models"),
    ):
        done = foldserve("serve", "--models", roots, "--port", 0, "--prediction-log", path)
        assert_refused_in_one_line(done, f"--prediction-log {path}: ", reason)


def test_samples_above_the_limit_of_memory_are_dropped(tmp_path: Path) -> None:
    metrics = PrometheusMetrics()
    log = PredictionLog(tmp_path / "log", Limits(2**30, 60.0, 3600.0), (), tmp_path / "models", metrics)
    recorder = log.open(manifest(name="roots"))
    recorder.add("large", np.broadcast_to(np.float32(1), (2**24, 2)), np.zeros((2**24, 1), np.float32))
    recorder.add("small", np.ones((3, 2), np.float32), np.zeros((3, 1), np.float32))
    log.close()
    assert pq.read_table(tmp_path / "log")["request_id"].to_pylist() == ["small"] * 3
    metrics.flush()
    text = metrics.text().decode()
    assert 'foldserve_prediction_log_rows_total{outcome="written"} 3.0' in text
    assert 'foldserve_prediction_log_rows_total{outcome="dropped"} 1.6777216e+07' in text
