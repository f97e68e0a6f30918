"""For fitted scikit-learn pipelines, the folded network gives the outputs of predict_proba and predict."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)

import foldserve
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.folding import fold
from foldserve.training.imports.front_ends import read_model, read_object
from foldserve.training.imports.imported import Options

ROWS = 80
CITIES = ("Bern", "Oslo", "Rome")


def table(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {name: random.normal(3, 2, ROWS).astype(np.float32).astype(float) for name in ("age", "income", "debt")}
    )
    frame.loc[random.random(ROWS) < 0.2, "income"] = np.nan
    frame["city"] = random.choice(np.array([*CITIES, None], object), ROWS)
    frame["rooms"] = random.integers(1, 4, ROWS)
    return frame


def codes(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Encode the table as a bundle does: a category is its index, a missing value is NaN."""
    rows = np.full((len(frame), 5), np.nan, np.float32)
    rows[:, :3] = frame[["age", "income", "debt"]]
    for i, city in enumerate(CITIES):
        rows[frame["city"] == city, 3] = i
    rows[:, 4] = frame["rooms"] - 1
    return rows


@st.composite
def pipeline(draw: st.DrawFn) -> Pipeline:
    scaler = draw(
        st.sampled_from(
            [
                StandardScaler(),
                StandardScaler(with_mean=False),
                RobustScaler(),
                MinMaxScaler(feature_range=(-1, 2), clip=True),
                MaxAbsScaler(),
                "passthrough",
            ]
        )
    )
    impute = SimpleImputer(
        strategy=draw(st.sampled_from(["mean", "median", "most_frequent", "constant"])),
        add_indicator=draw(st.booleans()),
    )
    one_hot = OneHotEncoder(
        handle_unknown=draw(st.sampled_from(["ignore", "error"])),
        drop=draw(st.sampled_from([None, "first", "if_binary"])),
        sparse_output=draw(st.booleans()),
    )
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    fill = SimpleImputer(strategy=draw(st.sampled_from(["most_frequent", "constant"])), fill_value="Oslo")
    city = draw(st.sampled_from([one_hot, ordinal, make_pipeline(fill, one_hot), make_pipeline(fill, ordinal)]))
    rest = draw(st.sampled_from(["drop", "passthrough", StandardScaler()]))
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(impute, scaler), ["income", "age"]),
            ("city", city, ["city"]),
            ("rooms", draw(st.sampled_from([OneHotEncoder(), "drop"])), [4]),
        ],
        remainder=rest,
    )
    network = {
        "hidden_layer_sizes": (6, 4),
        "max_iter": 3,
        "activation": draw(st.sampled_from(["relu", "tanh", "logistic", "identity"])),
    }
    last = draw(
        st.sampled_from(
            [
                LogisticRegression(),
                MLPClassifier(**network),
                MLPRegressor(**network),
                LinearRegression(),
                Ridge(),
            ]
        )
    )
    middle = draw(st.sampled_from(["passthrough", FeatureUnion([("a", MinMaxScaler()), ("b", StandardScaler())])]))
    return Pipeline([("columns", columns), ("middle", middle), ("last", last)])


def test_a_column_of_booleans_that_passes_through_stays_boolean(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"age": random.normal(40, 9, 60), "member": random.random(60) < 0.5})
    frame.loc[:4, "age"] = np.nan
    columns = ColumnTransformer(
        [("age", make_pipeline(SimpleImputer(), StandardScaler()), ["age"]), ("member", "passthrough", ["member"])]
    )
    target = frame["age"].fillna(40) + 5 * frame["member"]
    made = make_pipeline(columns, Ridge()).fit(frame, target)
    with pytest.warns(foldserve.TableWarning, match="boolean columns, which the model reads as 1 .*: member"):
        bundle = foldserve.import_model(made, frame.assign(target=target), "target", name="net", models=tmp_path)
    assert [feature.kind for feature in bundle.manifest.features] == ["numeric", "boolean"]
    found = foldserve.load(bundle.path).predict(frame)
    np.testing.assert_allclose(found, made.predict(frame), rtol=1e-4)
    ranges = read_object(made, Options()).ranges
    assert ranges is not None
    assert ranges[0, 0] < 20 < 60 < ranges[0, 1]  # the range of an imputed column comes from its scaler
    frame["member"] = frame["member"].astype(object)
    frame.loc[3, "member"] = None
    with pytest.raises(foldserve.DataError, match="row 4 has no value, but the model accepts no missing value"):
        foldserve.import_model(made, frame.assign(target=target), "target", name="net", models=tmp_path)


@pytest.mark.parametrize("kind", ["list of lists", "frame"])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_null_category_is_encoded_as_scikit_learn_encodes_it(tmp_path: Path, kind: str, is_known: bool) -> None:
    cities = np.array([*CITIES * 20, *([None] * 20 if is_known else CITIES * 7)], object)
    rows: Any = cities[:, None] if kind == "list of lists" else pd.DataFrame({"city": cities})
    target = np.arange(len(cities)) % 7 + (cities == "Oslo") * 5.0
    made = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge()).fit(rows, target)
    with pytest.warns(foldserve.TableWarning):
        bundle = foldserve.import_model(made, name="net", models=tmp_path)
    (feature,) = bundle.manifest.features
    assert (feature.missing, feature.categories) == (True, CITIES)
    asked = pd.DataFrame({feature.name: ["Oslo", None, "Paris"]})
    expected = made.predict(np.array([["Oslo"], [None], ["Paris"]], object) if kind != "frame" else asked)
    np.testing.assert_allclose(foldserve.load(bundle.path).predict(asked), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=25)
@given(made=pipeline(), classes=st.integers(2, 4), seed=st.integers(0, 99))
def test_a_pipeline_gives_the_outputs_of_scikit_learn(made: Pipeline, classes: int, seed: int) -> None:
    frame, random = table(seed), np.random.default_rng(seed)
    classify = hasattr(made[-1], "predict_proba")
    target = random.permutation(np.arange(ROWS) % classes) if classify else random.normal(size=ROWS)
    made.fit(frame, target)
    imported = read_object(made, Options())
    expected = made.predict_proba(frame) if classify else made.predict(frame)[:, None]
    rows = codes(frame)
    for column, name in enumerate(("age", "income", "debt", "city", "rooms")):
        if imported.columns[column].kind == "numeric" and name == "rooms":
            rows[:, column] = frame["rooms"]
    for outputs in (
        imported.evaluate(rows),
        imported.network.evaluate(rows),
        fold(imported.network).network.evaluate(rows),
    ):
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-8)
    assert [column.name for column in imported.columns] == list(frame.columns)
    unseen = rows.copy()
    unseen[:, 3] = len(CITIES)
    np.testing.assert_allclose(imported.network.evaluate(unseen), imported.evaluate(unseen), rtol=1e-6, atol=1e-8)


def fitted() -> Pipeline:
    frame = table(0)
    encode = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income", "debt"]),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("rooms", "passthrough", ["rooms"]),
        ]
    )
    target = np.where(frame["age"] > 3, "old", "young")
    return make_pipeline(encode, MLPClassifier((8,), max_iter=400, random_state=0)).fit(frame, target)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_in_memory_becomes_a_bundle_that_predicts_the_same(tmp_path: Path) -> None:
    made, frame = fitted(), table(1)
    foldserve.import_model(made, name="people", models=tmp_path, data=frame)
    model = foldserve.load(tmp_path / "people" / "1")
    assert model.manifest.labels == ("old", "young")
    np.testing.assert_allclose(model.predict_proba(frame), made.predict_proba(frame), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_skops_gives_the_same_network(tmp_path: Path) -> None:
    made = fitted()
    skops.io.dump(made, tmp_path / "people.skops")
    imported = read_model(tmp_path / "people.skops", Options())
    rows = codes(table(2))
    np.testing.assert_allclose(imported.network.evaluate(rows), read_object(made, Options()).network.evaluate(rows))


X, Y = np.random.default_rng(0).uniform(1, 2, (30, 2)), np.arange(30) % 2
REFUSED = [
    (make_pipeline(PolynomialFeatures(), LogisticRegression()), "PolynomialFeatures 'polynomialfeatures': this step"),
    (make_pipeline(FunctionTransformer(np.log1p), Ridge()), "it has code; apply the function to the table before"),
    (RidgeClassifier(), "it has no probabilities: fit a LogisticRegression"),
    (RandomForestClassifier(2), "this model is not supported; supported are LinearRegression"),
    (make_pipeline(OrdinalEncoder(), Ridge()), "fit it with handle_unknown='use_encoded_value'"),
    (
        make_pipeline(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), Ridge()),
        "an unknown category as NaN; set unknown_value to a number",
    ),
    (make_pipeline(OneHotEncoder(min_frequency=2), Ridge()), "infrequent categories are not supported"),
    (make_pipeline(SimpleImputer(missing_values=-1), Ridge()), "missing_values is not NaN"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("made", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_a_step_that_is_not_understood_is_refused_with_the_remedy(made: Any, message: str) -> None:
    with pytest.raises(ModelImportError) as error:
        read_object(made.fit(X, Y), Options())
    assert message in str(error.value)


def test_a_pipeline_that_is_not_fitted_is_refused() -> None:
    with pytest.raises(ModelImportError, match="is not fitted"):
        read_object(make_pipeline(StandardScaler(), Ridge()), Options())


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    for suffix in (".pkl", ".joblib"):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(pickle.dumps(Ridge()))
        with pytest.raises(ModelImportError, match=r"is a pickle, and loading it would run its code: .* skops.io.dump"):
            read_model(path, Options())


def test_a_file_of_skops_with_foreign_types_or_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    skops.io.dump(Pipeline([("code", FunctionTransformer(codes))]), path)
    with pytest.raises(ModelImportError, match="has types that skops does not trust"):
        read_model(path, Options())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelImportError, match=r"can't read model\.skops"):
        read_model(path, Options())


RENAMED = {
    "labels in another order": ({"labels": ("no", "yes")[::-1]}, "--labels has .* in another order.* is no, yes$"),
    "features in another order": ({"features": ("b", "a")}, "--features has .* in another order.* is a, b$"),
    "an output": ({"output": "y"}, "--output is only for ONNX and Keras"),
    "operators to keep": ({"keep_unknown": True}, "--keep-unknown is only for ONNX"),
}


def two_columns() -> tuple[pd.DataFrame, list[str]]:
    return pd.DataFrame({"a": [0.0, 1, 2, 3], "b": [1.0, 0, 1, 0]}), ["no", "no", "yes", "yes"]


@pytest.mark.parametrize(("given", "reason"), RENAMED.values(), ids=RENAMED)
def test_names_in_another_order_and_flags_without_effect_are_refused(given: dict[str, Any], reason: str) -> None:
    model = LogisticRegression().fit(*two_columns())
    with pytest.raises(ModelImportError, match=reason):
        read_object(model, Options(**given))


def test_other_names_replace_those_of_the_model_and_a_note_says_so() -> None:
    model = LogisticRegression().fit(*two_columns())
    found = read_object(model, Options(features=("age", "b"), labels=(0, 1)))
    assert ([column.name for column in found.columns], found.labels) == (["age", "b"], (0, 1))
    assert found.notes == (
        "--features replaces the names of the model: a, b",
        "--labels replaces the names of the model: no, yes",
    )


def test_labels_for_a_regression_are_refused() -> None:
    model = LinearRegression().fit(two_columns()[0], [0.0, 1, 2, 3])
    with pytest.raises(ModelImportError, match="leave --labels out"):
        read_object(model, Options(labels=("a", "b")))
