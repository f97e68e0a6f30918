"""The estimators pass scikit-learn's own checks, and read the frames that `foldserve.fit` reads."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from foldserve import FoldedClassifier, FoldedRegressor, TableWarning
from tests.service.support import oracle

PENGUINS = Path(__file__).parents[2] / "examples" / "penguins.csv"

TINY = {"hidden": (16,), "bins": 0, "epochs": 5}


@parametrize_with_checks([FoldedClassifier(**TINY), FoldedRegressor(**TINY)])
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def penguins():
    frame = pd.read_csv(PENGUINS)
    return frame.drop(columns="species"), frame["species"]


@pytest.fixture(scope="module")
def classifier(penguins):
    return FoldedClassifier(epochs=10).fit(*penguins)


def test_a_frame_with_texts_and_missing_values_needs_no_preparation(classifier, penguins):
    x, y = penguins
    assert list(classifier.classes_) == ["Adelie", "Chinstrap", "Gentoo"]
    assert list(classifier.feature_names_in_) == list(x.columns)
    assert [feature.kind for feature in classifier.features_][:2] == ["categorical", "numeric"]
    assert classifier.score(x, y) > 0.95


def test_the_probabilities_are_those_of_the_onnx_file(classifier, penguins):
    x = penguins[0].iloc[5:60]
    island = x["island"].map({"Biscoe": 0, "Dream": 1, "Torgersen": 2})
    sex = x["sex"].map({"female": 0, "male": 1})
    rows = x.assign(island=island, sex=sex).to_numpy(np.float32)
    np.testing.assert_array_equal(classifier.predict_proba(x), oracle(classifier.onnx_)(rows))


def test_pandas_and_polars_give_the_same_model(classifier, penguins):
    x, y = penguins
    frame = pl.read_csv(PENGUINS, null_values="NA").drop("species")
    assert clone(classifier).fit(frame, y).onnx_ == classifier.onnx_
    np.testing.assert_array_equal(classifier.predict(frame), classifier.predict(x))


def test_a_pickle_predicts_the_same(classifier, penguins):
    again = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (the test made the pickle)
    np.testing.assert_array_equal(again.predict_proba(penguins[0]), classifier.predict_proba(penguins[0]))


def test_it_works_in_pipelines_cross_validation_and_searches():
    x, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), FoldedClassifier(**TINY))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.9
    search = GridSearchCV(FoldedRegressor(**TINY), {"hidden": [(4,), (32,)]}, cv=2).fit(*load_diabetes(return_X_y=True))
    assert search.best_params_["hidden"] in [(4,), (32,)]


def test_another_seed_gives_another_model_and_the_same_seed_the_same():
    x, y = load_wine(return_X_y=True)
    first, same, other = (FoldedClassifier(**TINY, random_state=seed).fit(x, y).onnx_ for seed in (1, 1, 2))
    assert first == same != other


def test_a_dropped_column_is_a_warning_and_unknown_values_are_errors(penguins):
    x, y = penguins
    names = x.assign(name=[f"penguin {i}" for i in range(len(x))])
    with pytest.warns(TableWarning, match="'name' was dropped"):
        found = FoldedClassifier(**TINY).fit(names, y)
    assert "name" not in [feature.name for feature in found.features_]
    with pytest.raises(ValueError, match="row 0, column 'year' is null, and the feature has no missing values"):
        found.predict(names.assign(year=None))
    with pytest.raises(ValueError, match="y has only one class"):
        FoldedClassifier(**TINY).fit(x, ["a"] * len(x))
    with pytest.raises(ValueError, match="contains NaN in 'x1', which had no NaN in fit"):
        FoldedRegressor(**TINY).fit(np.eye(20)[:, :2], np.arange(20)).predict([[0, np.nan]])


def test_texts_among_numbers_are_noted_and_read_with_the_named_arguments():
    frame = pd.DataFrame({"a": [str(row) if row % 10 else "?" for row in range(60)], "b": [*"xyz"] * 20})
    y = [*"pq"] * 30
    with pytest.warns(TableWarning) as seen:
        FoldedClassifier(epochs=1).fit(frame, y)
    assert any("use missing='?' and numeric='a' to read it as numbers" in str(note.message) for note in seen)
    read = FoldedClassifier(epochs=1, missing="?", numeric="a").fit(frame, y)
    assert [(feature.kind, feature.missing) for feature in read.features_] == [
        ("numeric", True),
        ("categorical", False),
    ]
    assert len(read.predict(frame)) == 60
