"""Maps the activations of Keras to the intermediate form. The module reads no file and no weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from foldserve.training.imports.form import refuse
from foldserve.training.imports.layers import Activation, Affine, Layer, Softmax

# Each activation becomes a chain of layers. The empty chain is the identity.
Chain = tuple[Layer, ...]

# The constants come from https://keras.io/api/layers/activations/.
_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}
_SIMPLE: dict[str, Chain] = {
    "linear": (),
    "relu": (Activation("relu"),),
    "relu6": (Activation("clip", {"low": 0, "high": 6}),),
    "leaky_relu": (Activation("leaky_relu", {"alpha": 0.2}),),
    "elu": (Activation("elu", {"alpha": 1}),),
    "celu": (Activation("celu", {"alpha": 1}),),
    "selu": (Activation("selu", _SELU),),
    "gelu": (Activation("gelu"),),
    "silu": (Activation("silu"),),
    "swish": (Activation("silu"),),
    "mish": (Activation("mish"),),
    "sigmoid": (Activation("sigmoid"),),
    "hard_sigmoid": (Activation("hard_sigmoid", {"alpha": 1 / 6, "beta": 0.5}),),
    "hard_silu": (Activation("hard_swish"),),
    "hard_swish": (Activation("hard_swish"),),
    "hard_tanh": (Activation("clip", {"low": -1, "high": 1}),),
    "tanh": (Activation("tanh"),),
    "softplus": (Activation("softplus"),),
    "softsign": (Activation("softsign"),),
    "exponential": (Activation("exp"),),
    "softmax": (Softmax(),),
    "log_softmax": (Softmax(log=True),),
}
# Keras 2 defines hard_sigmoid differently from Keras 3.
_KERAS_2 = {**_SIMPLE, "hard_sigmoid": (Activation("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),)}
_LAYERS = ("ReLU", "LeakyReLU", "ELU", "Softmax", "ThresholdedReLU")


def map_activation(activation: Any, name: str, columns: int, keras_2: bool) -> Chain:
    """Return the layers that compute an activation.

    activation: the name or the description of the activation. name: the name of the layer that has the activation, for
    messages. Raises `ModelImportError` if the activation is not known.
    """
    if activation is None:
        return ()
    if isinstance(activation, dict):
        kind, config = activation.get("class_name"), activation.get("config")
        if kind in _LAYERS and isinstance(config, dict):
            return map_layer(str(kind), config, name)
        activation = config if kind == "function" else kind
    known = _KERAS_2 if keras_2 else _SIMPLE
    if activation == "log_sigmoid":
        negative = Affine.of(-1, 0, 0, columns)
        return (negative, Activation("softplus"), negative)
    if not isinstance(activation, str) or activation not in known:
        raise refuse(name, "Activation", "its function is not one of Keras", f"replace it by one of {', '.join(known)}")
    return known[activation]


def map_layer(kind: str, config: dict[str, Any], name: str) -> Chain:
    """Return the layers that together compute the same as an activation layer of Keras."""
    if kind == "LeakyReLU":
        # `alpha` is the name of `negative_slope` in Keras 2; both have the same default.
        slope = config.get("negative_slope", config.get("alpha", 0.3))
        return (Activation("leaky_relu", {"alpha": _number(slope)}),)
    if kind == "ELU":
        return (Activation("elu", {"alpha": _number(config.get("alpha", 1.0))}),)
    if kind == "ThresholdedReLU":
        return (Activation("thresholded_relu", {"alpha": _number(config.get("theta", 1.0))}),)
    if kind == "Softmax":
        if config.get("axis", -1) not in (-1, 1, [-1], [1]):
            raise refuse(name, kind, "it does not normalise the last axis")
        return (Softmax(),)
    return _relu(config, name)


def _relu(config: dict[str, Any], name: str) -> Chain:
    slope, threshold = _number(config.get("negative_slope") or 0), _number(config.get("threshold") or 0)
    maximum = config.get("max_value")
    if slope and threshold:
        raise refuse(name, "ReLU", "it has a slope and a threshold", "use a LeakyReLU or a PReLU")
    chain: Chain
    if threshold:
        chain = (Activation("thresholded_relu", {"alpha": threshold}),)
    else:
        chain = (Activation("leaky_relu", {"alpha": slope}),) if slope else (Activation("relu"),)
    if maximum is None:
        return chain
    low = -np.inf if slope else 0.0
    clip = Activation("clip", {"low": low, "high": _number(maximum)})
    return (*chain, clip) if threshold or slope else (clip,)


def _number(value: Any) -> float:
    number = float(np.asarray(value, np.float64).reshape(()))
    if not np.isfinite(number):
        raise ValueError("a parameter of an activation is not finite")
    return number
