"""A model that is loaded in Python gives the same answers as a server.

If a table comes from a library, the results have the types of this library.
"""

from __future__ import annotations

import datetime
import shutil

import httpx
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import foldserve
from tests.api.conftest import PENGUINS
from tests.service.support import edit_manifest, flip_byte, serving, write_square_root


@pytest.fixture(scope="module")
def polars():
    return pl.read_csv(PENGUINS, null_values="NA")


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    with serving(bundle.path.parents[1], tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def answers(served, polars):
    """The answers of a server to the rows of the table. The request has the rows as JSON objects."""
    return httpx.post(f"{served.url}/predict", json={"instances": polars.to_dicts()}).raise_for_status().json()


def test_pandas_keeps_its_index(model, penguins, answers):
    labels, probabilities = model.predict(penguins), model.predict_proba(penguins)
    assert labels.tolist() == answers["predictions"]
    assert (labels.name, labels.index.name) == ("species", "id")
    assert labels.index.equals(penguins.index)
    assert probabilities.index.equals(penguins.index)
    assert list(probabilities.columns) == list(model.labels) == ["Adelie", "Chinstrap", "Gentoo"]
    np.testing.assert_allclose(probabilities, answers["probabilities"], rtol=1e-4, atol=1e-6)


def test_other_tables_get_their_own_kind_of_answer(model, polars, answers):
    series, frame = model.predict(polars), model.predict_proba(polars)
    assert (series.name, series.to_list()) == ("species", answers["predictions"])
    assert frame.columns == list(model.labels)
    arrow = polars.to_arrow()
    assert model.predict(arrow).to_pylist() == answers["predictions"]
    assert model.predict_proba(arrow).column_names == frame.columns
    for table in (polars.to_dict(as_series=False), polars.to_dicts(), polars.select(model.features).rows()):
        labels = model.predict(table)
        assert isinstance(labels, np.ndarray)
        assert labels.tolist() == answers["predictions"]
    objects = pd.read_csv(PENGUINS)[list(model.features)].to_numpy(dtype=object)
    assert model.predict(objects).tolist() == answers["predictions"]


def test_further_columns_and_their_order_have_no_effect(model, penguins):
    shuffled = penguins[penguins.columns[::-1]].assign(extra=[object()] * len(penguins))
    pd.testing.assert_frame_equal(model.predict_proba(shuffled), model.predict_proba(penguins))


def test_an_array_of_numbers_has_the_order_of_the_features(digits):
    model = foldserve.load(digits)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 17, (20_000, 64))
    labels = model.predict(rows)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(model.predict(rows.astype(np.float32)), labels)
    np.testing.assert_array_equal(model.predict(pd.DataFrame(rows, columns=list(model.features))).to_numpy(), labels)
    assert model.predict(rows[:0]).shape == model.predict([]).shape == (0,)
    assert model.predict_proba(rows[:0]).shape == (0, 10)


def test_a_regression_gives_values_and_has_no_probabilities(diabetes):
    model = foldserve.load(diabetes)
    rows = np.zeros((3, 10))
    assert model.predict(rows).dtype == np.float32
    with pytest.raises(TypeError, match="a regression has no probabilities: use predict"):
        model.predict_proba(rows)
    with pytest.raises(ValueError, match=r"the array has 9 columns, expected 10"):
        model.predict(rows[:, :9])


@pytest.mark.parametrize(
    "row",
    [
        {"body_mass_g": "heavy"},
        {"island": 3},
        {"year": None},
        {"body_mass_g": 1e39},
        {"body_mass_g": True},
        {"unknown": 1},
    ],
)
def test_a_refusal_has_the_text_of_the_server(model, served, polars, row):
    rows = [*polars.to_dicts()[:2], polars.to_dicts()[2] | row]
    answer = httpx.post(f"{served.url}/predict", json={"instances": rows})
    with pytest.raises(foldserve.InvalidInput) as refused:
        model.predict(rows)
    assert (answer.status_code, str(refused.value)) == (400, answer.json()["error"])
    assert isinstance(refused.value, ValueError)


def test_a_frame_that_does_not_fit_is_refused_in_one_line(model, penguins):
    with pytest.raises(foldserve.InvalidInput, match="row 3, column 'year' is null, and the feature has no missing"):
        model.predict(penguins.assign(year=penguins["year"].where(penguins.index != 1003)))
    with pytest.raises(foldserve.TableError, match=r"column 'body_mass_g' has the type string, but .* is numeric"):
        model.predict(penguins.assign(body_mass_g="heavy"))
    with pytest.raises(foldserve.TableError, match="the frame has no column 'sex', a feature of the model"):
        model.predict(penguins.drop(columns="sex"))
    with pytest.raises(foldserve.InvalidInput, match="a row has a value that JSON can't represent"):
        model.predict([{"island": object()}])


def test_a_row_with_an_output_that_is_not_finite_is_named(tmp_path):
    model = foldserve.load(write_square_root(tmp_path), device="cpu")
    assert model.predict(np.array([[1.0, 3.0]])).tolist() == [2.0]
    with pytest.raises(foldserve.NonFiniteOutput, match="not finite for row 1"):
        model.predict(np.array([[1.0, 3.0], [-1.0, -3.0]]))


def test_dates_and_booleans_come_as_their_own_types(tmp_path):
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(days=3 * i) for i in range(60)]
    table = {"day": days, "open": [i % 3 == 0 for i in range(60)], "sold": [float(i % 7) for i in range(60)]}
    model = foldserve.load(foldserve.fit(table, "sold", models=tmp_path, epochs=2, task="regression"))
    assert [feature.kind for feature in model.manifest.features] == ["time", "boolean"]
    texts = [{"day": str(day), "open": is_open} for day, is_open in zip(days, table["open"], strict=True)]
    for same in (table, pd.DataFrame(table).astype({"day": "datetime64[ns]"}), pl.DataFrame(table), pa.table(table)):
        np.testing.assert_array_equal(np.asarray(model.predict(same)), model.predict(texts))


def test_a_bundle_that_a_server_refuses_is_refused(bundle, tmp_path):
    place = tmp_path / "penguins" / "1"
    shutil.copytree(bundle.path, place)
    flip_byte(place / "model.onnx", 2000)
    with pytest.raises(foldserve.BundleError, match="is not the certified one"):
        foldserve.load(place)
    shutil.copyfile(bundle.path / "model.onnx", place / "model.onnx")
    edit_manifest(place, lambda content: content["golden"]["outputs"].reverse())
    with pytest.raises(foldserve.BundleError, match="the golden outputs differ"):
        foldserve.load(place)
    shutil.move(place, tmp_path / "penguins" / "7")
    with pytest.raises(foldserve.BundleError, match="`foldserve copy` gives a bundle another name"):
        foldserve.load(str(tmp_path / "penguins" / "7"))
    with pytest.raises(foldserve.BundleError, match="no such bundle"):
        foldserve.load(place)


def test_cuda_is_cuda_or_an_error(bundle):
    if "CUDAExecutionProvider" in foldserve.load(bundle).device:
        pytest.skip("this machine has CUDA")
    with pytest.raises(foldserve.DeviceError):
        foldserve.load(bundle, device="cuda")


def test_a_threshold_of_the_manifest_decides(tmp_path):
    a = np.random.default_rng(0).normal(size=(300, 2))
    table = {"a": a[:, 0], "y": np.where(a.sum(axis=1) > 0, "yes", "no")}
    found = foldserve.fit(table, "y", models=tmp_path, epochs=2)
    strict = foldserve.fit(table, "y", models=tmp_path, epochs=2, threshold=1.0, positive="yes")
    assert set(foldserve.load(found).predict(table)) == {"no", "yes"}
    assert set(foldserve.load(strict).predict(table)) == {"no"}
