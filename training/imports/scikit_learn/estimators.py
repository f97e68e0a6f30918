"""Maps the last step of a scikit-learn pipeline, the estimator, to the intermediate form."""

from __future__ import annotations

from typing import Any

import numpy as np

from foldserve.training.imports.form import refuse
from foldserve.training.imports.layers import Activation, Dense, Layer
from foldserve.training.imports.scikit_learn.values import Context, Value

_HIDDEN: dict[str, tuple[Layer, ...]] = {
    "identity": (),
    "logistic": (Activation("sigmoid"),),
    "tanh": (Activation("tanh"),),
    "relu": (Activation("relu"),),
    "exp": (Activation("exp"),),
    "softmax": (),
}
_LINEAR = ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor")
_LOGISTIC = ("LogisticRegression", "LogisticRegressionCV")
_NETWORKS = ("MLPClassifier", "MLPRegressor")


def map_estimator(context: Context, estimator: Any, value: Value, name: str) -> tuple[str, bool]:
    """Add the last step of the pipeline.

    Return the name of the output, and whether the output contains logits. The output of a regression is one value.

    For two classes, the output has one column: the logit of the second class. Raises `ModelImportError`.
    """
    kind = type(estimator).__name__
    known = (*_LINEAR, *_LOGISTIC, *_NETWORKS)
    if kind not in known or not type(estimator).__module__.startswith("sklearn."):
        remedy = f"supported are {', '.join(known)}"
        if hasattr(estimator, "classes_") and not hasattr(estimator, "predict_proba"):
            remedy = "it has no probabilities: fit a LogisticRegression"
        raise refuse(name, kind, "this model is not supported", remedy)
    source = context.numbers(value, name)
    if kind in _NETWORKS:
        return _network(context, estimator, source, name)
    classifier = kind in _LOGISTIC
    weight = np.atleast_2d(np.asarray(estimator.coef_, np.float64))
    one_for_rest = (
        getattr(estimator, "multi_class", "deprecated") == "ovr" or estimator.get_params().get("solver") == "liblinear"
    )
    if classifier and len(weight) > 1 and one_for_rest:
        raise refuse(name, kind, "it is one model for each class", "fit it with the solver 'lbfgs'")
    if classifier and len(weight) == 1 and getattr(estimator, "multi_class", "") == "multinomial":
        raise refuse(name, kind, "multi_class='multinomial' of two classes is not supported", "leave multi_class out")
    bias = np.broadcast_to(np.asarray(estimator.intercept_, np.float64).reshape(-1), len(weight)).copy()
    return context.builder.add(name, kind, Dense(weight, bias), source), classifier


def _network(context: Context, estimator: Any, value: str, name: str) -> tuple[str, bool]:
    kind, last = type(estimator).__name__, len(estimator.coefs_) - 1
    classifier = kind == "MLPClassifier"
    if classifier and estimator.n_outputs_ > 1 and estimator.out_activation_ != "softmax":
        raise refuse(name, kind, "it has several labels for a row", "fit one model for each label")
    for i, (weight, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        dense = Dense(np.ascontiguousarray(weight.T, np.float64), np.asarray(bias, np.float64))
        value = context.builder.add(f"{name}.{i}", kind, dense, value)
        function = estimator.activation if i < last else "identity" if classifier else estimator.out_activation_
        for layer in _HIDDEN[function]:
            value = context.builder.add(f"{name}.{i}.{function}", function, layer, value)
    return value, classifier
