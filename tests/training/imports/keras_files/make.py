"""Makes the Keras files of this folder. Run `python make.py` once with Keras 3 and once with TensorFlow 2.15 (Keras 2).

For each model, the script writes a Keras file and an .npz file. The .npz file has rows, and Keras' outputs for these
rows.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import layers

HERE = Path(__file__).parent
VERSION = keras.__version__.partition(".")[0]


def article() -> Any:
    """Build the network of the article, with few units: Dense, BN, Dense, BN, Dense."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(),
            layers.Dense(8, "relu"),
            layers.BatchNormalization(scale=False),
            layers.Dense(3, "softmax"),
        ]
    )


def branches() -> Any:
    """Build a Functional model with two inputs, branches, a model in a model, and a call of one layer twice."""
    age, rest = keras.Input((1,), name="age"), keras.Input((4,), name="rest")
    scaled = layers.Normalization(name="standardise")
    scaled.adapt(np.random.default_rng(0).normal(5, 2, (50, 4)))
    value = layers.Concatenate()([age, scaled(rest)])
    shared = layers.Dense(5, "tanh", name="zz_shared")
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.BatchNormalization(), layers.PReLU()])
    left = layers.Dropout(0.5)(shared(value))
    right = shared(layers.Rescaling(0.5, offset=0.1)(value))
    joined = layers.Concatenate()([inner(layers.Add()([left, right])), layers.LeakyReLU()(left)])
    head = layers.Dense(1, "sigmoid", name="aa_head")(
        layers.ReLU(max_value=2)(layers.Activation("hard_sigmoid")(joined))
    )
    return keras.Model([age, rest], head)


def image() -> Any:
    """Build a model for small pictures. The loss of the model declares that the output is logits."""
    model = keras.Sequential(
        [keras.Input((2, 3)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(4, "elu"), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def randomise(model: Any) -> None:
    """Replace the initial weights by random values."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "count" not in weight.name and "/mean" not in getattr(weight, "path", "") and len(weight.shape):
            values = (
                random.uniform(0.5, 1.5, weight.shape) if "var" in weight.name else random.normal(0, 0.5, weight.shape)
            )
            weight.assign(values.astype("float32"))


def save(model: Any, name: str) -> None:
    """Write the model and its outputs. Keras writes an archive without compression, so this function compresses the
    archive.
    """
    path = HERE / name
    model.save(path)
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            entries = {each: archive.read(each) for each in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in entries.items():
                archive.writestr(each, content)
    random = np.random.default_rng(2)
    inputs = [random.normal(0, 2, (9, *each.shape[1:])).astype("float32") for each in model.inputs]
    outputs = np.asarray(model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0))
    flat = np.concatenate([each.reshape(9, -1) for each in inputs], 1)
    np.savez_compressed(path.with_suffix(path.suffix + ".npz"), rows=flat, outputs=outputs)


def main() -> None:
    """Write the files of the installed version of Keras."""
    for build in (article, branches, image):
        model = build()
        if build is not branches:
            randomise(model)
        for suffix in ("keras", "h5"):
            save(model, f"{build.__name__}_{VERSION}.{suffix}")


if __name__ == "__main__":
    main()
