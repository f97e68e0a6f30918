"""Makes the files of this folder: `python make.py tf2onnx|keras|torch|hummingbird`. README.md lists the versions of the
exporters.

For each model, the script writes NAME.onnx and NAME.npz. NAME.npz has rows, and the framework's own outputs for these
rows.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

HERE = Path(__file__).parent
ROWS = np.random.default_rng(2).normal(0, 2, (9, 6)).astype(np.float32)


def save_outputs(name: str, outputs: Any) -> None:
    np.savez_compressed(HERE / f"{name}.npz", rows=ROWS, outputs=np.asarray(outputs))


def keras_models() -> dict[str, Any]:
    """Return the network of the article with few units, and a Functional model with a skip connection."""
    import keras
    from keras import layers

    article = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            layers.Dense(3, "softmax"),
        ]
    )
    start = keras.Input((6,))
    value = layers.Dense(5)(layers.Rescaling(0.5, 0.1)(start))
    inner = layers.Dense(5, "tanh")(layers.Dropout(0.5)(layers.BatchNormalization()(value)))
    joined = layers.Concatenate()([layers.Add()([value, inner]), layers.LeakyReLU()(value)])
    skip = keras.Model(start, layers.Dense(1, "sigmoid")(joined))
    random = np.random.default_rng(1)
    for model in (article, skip):
        for weight in model.weights:
            spread = (
                random.uniform(0.5, 1.5, weight.shape) if "var" in weight.name else random.normal(0, 0.5, weight.shape)
            )
            weight.assign(spread.astype("float32"))
    return {"article": article, "skip": skip}


def make_tf2onnx() -> None:
    import tf2onnx

    for name, model in keras_models().items():
        tf2onnx.convert.from_keras(model, opset=17, output_path=HERE / f"tf2onnx_{name}.onnx")
        save_outputs(f"tf2onnx_{name}", model.predict(ROWS, verbose=0))


def make_keras() -> None:
    for name, model in keras_models().items():
        save_outputs(f"keras_{name}", model.predict(ROWS, verbose=0))
        model.export(HERE / f"keras_{name}.onnx", format="onnx")


def make_torch() -> None:
    import torch
    from torch import nn

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.SiLU(), nn.Dropout(0.5))
            self.inner, self.last = nn.Sequential(nn.Linear(5, 5), nn.GELU()), nn.Linear(10, 3)

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            return self.last(torch.cat([x + self.inner(x), torch.clamp(x, -1, 1)], 1)).log_softmax(1)

    torch.manual_seed(0)
    chain = nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Hardswish(), nn.Linear(4, 1))
    )
    for name, model in {"chain": chain, "skip": Skip()}.items():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm1d):
                nn.init.normal_(part.running_mean)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
        model.eval()
        x = torch.from_numpy(ROWS)
        for way, flags in {
            "dynamo": {"dynamo": True, "external_data": False, "dynamic_shapes": ({0: torch.export.Dim("rows")},)},
            "unoptimised": {
                **{"dynamo": True, "external_data": False, "dynamic_shapes": ({0: torch.export.Dim("rows")},)},
                "optimize": False,
            },
            "torchscript": {"dynamo": False, "dynamic_axes": {"x": {0: "rows"}}, "input_names": ["x"]},
        }.items():
            torch.onnx.export(model, (x[:2],), HERE / f"{way}_{name}.onnx", **flags)
            with torch.no_grad():
                save_outputs(f"{way}_{name}", model(x))


def make_hummingbird() -> None:
    import functools

    import onnx
    import torch

    # Hummingbird 0.4 passes arguments for PyTorch's older exporter, which is no longer the default.
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    from hummingbird.ml import convert
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    random = np.random.default_rng(0)
    x = random.normal(3, 2, (60, 6)).astype(np.float32)
    network = {"hidden_layer_sizes": (5,), "max_iter": 40, "random_state": 0}
    models = {
        "mlp": (
            make_pipeline(StandardScaler(), MLPClassifier(**network)),
            np.arange(60) % 3,
        ),
        "logistic": (make_pipeline(MinMaxScaler(), LogisticRegression()), np.arange(60) % 2),
        "value": (
            make_pipeline(StandardScaler(), MLPRegressor(**network)),
            x[:, 0],
        ),
    }
    for name, (model, y) in models.items():
        model.fit(x, y)
        onnx.save(convert(model, "onnx", x[:2]).model, HERE / f"hummingbird_{name}.onnx")
        save_outputs(
            f"hummingbird_{name}", model.predict_proba(ROWS) if name != "value" else model.predict(ROWS)[:, None]
        )


if __name__ == "__main__":
    {"tf2onnx": make_tf2onnx, "keras": make_keras, "torch": make_torch, "hummingbird": make_hummingbird}[sys.argv[1]]()
