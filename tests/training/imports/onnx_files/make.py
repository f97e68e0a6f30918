"""Makes the fixtures of this folder, with scikit-learn's own answers.

    python -m venv venv && venv/bin/pip install skl2onnx==1.20.0 scikit-learn==1.9.1 pandas && venv/bin/python make.py

sklearn-onnx writes NAME.onnx. rows.csv has the rows and their targets. NAME.json has the answers of scikit-learn for
the rows of rows.csv: probabilities or values in float64.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler

FOLDER = Path(__file__).parent
OPSETS = {"": 18, "ai.onnx.ml": 3}
NUMBERS = ["age", "income"]


def make_rows() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = 60
    frame = pd.DataFrame(
        {
            "age": generator.normal(40, 10, rows).round(1),
            "income": generator.lognormal(10, 1, rows).round(),
            "city": generator.choice(["Oslo", "Paris", "Rome"], rows),
            "size": generator.choice(["l", "m", "s"], rows),
        }
    )
    frame["rich"] = np.where(frame.income > frame.income.median(), "yes", "no")
    frame["class"] = pd.qcut(frame.income, 3, labels=["a", "b", "c"]).astype(str)
    frame["score"] = (frame.age / 10 + np.log(frame.income)).round(3)
    frame.loc[::7, "age"] = np.nan
    return frame.astype({"age": "float32", "income": "float32"})


def encoder() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("cities", OneHotEncoder(handle_unknown="ignore"), ["city"]),
            ("sizes", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["size"]),
        ]
    )


def main() -> None:
    frame = make_rows()
    frame.to_csv(FOLDER / "rows.csv", index=False)
    mixed, numbers = frame[[*NUMBERS, "city", "size"]], frame[["income", "score"]].to_numpy(np.float32)
    network = {"hidden_layer_sizes": (6, 4), "max_iter": 60, "random_state": 0}
    models = {
        "mixed_mlp": (make_pipeline(encoder(), MLPClassifier(**network)), mixed, "class", {}),
        "mixed_binary": (make_pipeline(encoder(), MLPClassifier(**network)), mixed, "rich", {"zipmap": False}),
        "mixed_logistic": (make_pipeline(encoder(), LogisticRegression()), mixed, "rich", {}),
        "mixed_value": (make_pipeline(encoder(), MLPRegressor(**network)), mixed, "score", {}),
        "numbers_tanh": (
            make_pipeline(MinMaxScaler(), MLPClassifier(**network, activation="tanh")),
            numbers,
            "class",
            {},
        ),
        "numbers_ovr": (make_pipeline(RobustScaler(), OneVsRestClassifier(LogisticRegression())), numbers, "class", {}),
        "numbers_ridge": (make_pipeline(StandardScaler(), Ridge()), numbers, "score", {}),
    }
    for name, (model, x, target, options) in models.items():
        model.fit(x, frame[target])
        exported = to_onnx(model, x[:1], target_opset=OPSETS, options=options or None)
        (FOLDER / f"{name}.onnx").write_bytes(exported.SerializeToString())
        answers = model.predict_proba(x) if hasattr(model, "predict_proba") else model.predict(x)[:, None]
        content = {"target": target, "answers": np.round(answers, 9).tolist()}
        (FOLDER / f"{name}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
