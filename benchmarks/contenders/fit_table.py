"""Fits a model of another library: `python fit_table.py NAME TRAIN.csv TEST.csv TARGET SEED`. NAME is a key of
`CONTENDERS`.

The program prints a JSON object. `seconds` is only the processor time of the fit: it does not include the imports and
the reading of the files. The metrics on the test rows are `accuracy` and `log_loss` (in nats), or `rmse` and `r2`. Each
contender has its default settings. Categories are one-hot encoded, and numbers are imputed and standardised, if the
contender needs this preparation.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

Classifies = bool


def hist_gradient_boosting(seed: int, table: pd.DataFrame, classifies: Classifies) -> Pipeline:
    """Build scikit-learn's boosted trees, which support missing values."""
    kind = HistGradientBoostingClassifier if classifies else HistGradientBoostingRegressor
    return make_pipeline(_prepared(table, "passthrough", _one_hot()), kind(random_state=seed))


def sklearn_mlp(seed: int, table: pd.DataFrame, classifies: Classifies) -> Pipeline:
    """Build scikit-learn's MLP, which needs standardised features and targets, and no missing values."""
    kind = MLPClassifier if classifies else MLPRegressor
    network = kind(hidden_layer_sizes=(256, 256), early_stopping=True, random_state=seed)
    if not classifies:
        network = TransformedTargetRegressor(network, transformer=StandardScaler())
    return make_pipeline(_prepared(table, make_pipeline(SimpleImputer(), StandardScaler()), _one_hot()), network)


def realmlp(seed: int, table: pd.DataFrame, classifies: Classifies) -> Pipeline:
    """Build RealMLP-TD. RealMLP encodes and scales the features itself. RealMLP does not support missing numbers."""
    # pytabkit imports torch, so it is imported only if RealMLP is fitted.
    from pytabkit import RealMLP_TD_Classifier, RealMLP_TD_Regressor

    kind = RealMLP_TD_Classifier if classifies else RealMLP_TD_Regressor
    prepare = _prepared(table, SimpleImputer(), "passthrough").set_output(transform="pandas")
    return make_pipeline(prepare, kind(device="cpu", n_threads=1, random_state=seed))


def _prepared(table: pd.DataFrame, numbers: object, categories: object) -> ColumnTransformer:
    categorical = [str(name) for name in table.select_dtypes("category").columns]
    numeric = [str(name) for name in table.columns if str(name) not in categorical]
    return ColumnTransformer([("numbers", numbers, numeric), ("categories", categories, categorical)])


def _one_hot() -> OneHotEncoder:
    return OneHotEncoder(handle_unknown="ignore", sparse_output=False)


CONTENDERS: dict[str, Callable[[int, pd.DataFrame, Classifies], Pipeline]] = {
    "hgb": hist_gradient_boosting,
    "mlp": sklearn_mlp,
    "realmlp": realmlp,
}


def read(train: str, test: str, target: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read both files. An empty cell is a missing value, and a text column is categorical.

    Classes are text. The categories are the values of the training rows.
    """
    kinds = {"label": str} if target == "label" else None
    tables = [pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""]) for path in (train, test)]
    features = tables[0].drop(columns=target)
    for name in features.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in features.dtypes]]:
        known = pd.CategoricalDtype(sorted(tables[0][name].dropna().unique()))
        for table in tables:
            table[name] = table[name].astype(known)
    return tables[0], tables[1]


def scores(model: Pipeline, x: pd.DataFrame, y: pd.Series, classifies: Classifies) -> dict[str, float]:
    """Return the model's metrics on the test rows."""
    if not classifies:
        values = np.ravel(model.predict(x))
        return {"rmse": root_mean_squared_error(y, values), "r2": r2_score(y, values)}
    probabilities = model.predict_proba(x).astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = np.asarray(model.classes_)[probabilities.argmax(1)]
    return {
        "accuracy": accuracy_score(y, predicted),
        "log_loss": log_loss(y, probabilities, labels=list(model.classes_)),
    }


def main() -> None:
    """Fit, score, and print the result."""
    name, train, test, target, seed = sys.argv[1:]
    warnings.simplefilter("ignore")  # warnings of a contender do not affect its figures
    fitted, held_out = read(train, test, target)
    x, y = fitted.drop(columns=target), fitted[target].to_numpy()
    classifies = target == "label"
    model = CONTENDERS[name](int(seed), x, classifies)
    started = time.process_time()
    model.fit(x, y)
    seconds = time.process_time() - started
    found = scores(model, held_out.drop(columns=target), held_out[target].to_numpy(), classifies)
    print(json.dumps({"seconds": seconds, **{metric: float(value) for metric, value in found.items()}}))


if __name__ == "__main__":
    main()
