"""Random Keras models, for the test against a live Keras.

The caller must import Keras with its backend before it imports this module.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

ACTIVATIONS = [
    *("linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hard_sigmoid", "hard_silu", "hard_tanh", "softplus", "softsign", "log_sigmoid", "softmax"),
]


@st.composite
def layer(draw: st.DrawFn) -> Any:
    """Draw a layer that has one axis of features in its input and its output."""
    number = st.floats(0.05, 2).map(lambda value: round(value, 3))
    makers: dict[str, Any] = {
        "dense": lambda: layers.Dense(
            draw(st.integers(1, 5)), draw(st.sampled_from(ACTIVATIONS)), use_bias=draw(st.booleans())
        ),
        "bn": lambda: layers.BatchNormalization(
            center=draw(st.booleans()), scale=draw(st.booleans()), epsilon=draw(number)
        ),
        "activation": lambda: layers.Activation(draw(st.sampled_from(ACTIVATIONS))),
        "relu": lambda: layers.ReLU(max_value=draw(st.none() | number), negative_slope=draw(st.just(0.0) | number)),
        "threshold": lambda: layers.ReLU(max_value=draw(st.none() | st.just(3.0)), threshold=draw(number)),
        "leaky": lambda: layers.LeakyReLU(negative_slope=draw(number)),
        "prelu": lambda: layers.PReLU(shared_axes=draw(st.sampled_from([None, [1]]))),
        "elu": lambda: layers.ELU(draw(number)),
        "softmax": layers.Softmax,
        "dropout": lambda: layers.Dropout(0.5),
        "noise": lambda: layers.GaussianNoise(1.0),
        "flatten": layers.Flatten,
        "rescaling": lambda: layers.Rescaling(draw(number), draw(number)),
        "normalization": lambda: layers.Normalization(invert=draw(st.booleans())),
        "fixed": lambda: layers.Normalization(mean=draw(number), variance=draw(number)),
        "sequential": lambda: keras.Sequential([draw(layer()) for _ in range(draw(st.integers(1, 3)))]),
    }
    return makers[draw(st.sampled_from(sorted(makers)))]()


def _apply(draw: st.DrawFn, value: Any) -> Any:
    for _ in range(draw(st.integers(0, 3))):
        value = draw(layer())(value)
    return value


@st.composite
def model(draw: st.DrawFn) -> Any:
    """Draw a Sequential or Functional model with random weights. The model's output is either one value, or a
    probability for each class.
    """
    features, classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    end = layers.Dense(classes, "softmax" if classes > 1 else draw(st.sampled_from(["linear", "sigmoid"])))
    if draw(st.booleans()):
        drawn = [draw(layer()) for _ in range(draw(st.integers(1, 5)))]
        made = keras.Sequential([keras.Input((features,)), *drawn, end])
    else:
        inputs = [keras.Input((draw(st.integers(1, 3)),)) for _ in range(draw(st.integers(1, 2)))]
        value = inputs[0] if len(inputs) == 1 else layers.Concatenate()(inputs)
        branches = [_apply(draw, value) for _ in range(draw(st.integers(1, 3)))]
        joined = branches[0]
        if len(branches) > 1:
            kind = draw(st.sampled_from(["Concatenate", "Add", "Average", "Multiply", "Subtract"]))
            if kind != "Concatenate":
                branches = [layers.Dense(3)(branch) for branch in branches[: 2 if kind == "Subtract" else 3]]
            joined = getattr(layers, kind)()(branches)
        made = keras.Model(inputs, end(_apply(draw, joined)))
    _randomise(made, draw(st.integers(0, 2**16)))
    return made


def _randomise(made: Any, seed: int) -> None:
    """Give every weight a random value, so that a wrong order of weights changes the outputs."""
    random = np.random.default_rng(seed)
    for weight in made.weights:
        shape = tuple(weight.shape)
        values = random.uniform(0.3, 1.5, shape) if "var" in weight.path else random.normal(0, 0.7, shape)
        weight.assign(values.astype(weight.dtype))
    for each in made._flatten_layers():  # an adapted Normalization layer computes its constants from its weights
        if isinstance(each, layers.Normalization):
            each.finalize_state()
