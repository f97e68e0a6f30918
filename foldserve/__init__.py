"""Train a batch-norm MLP on a table, fold it, certify it, and serve it.

    bundle = foldserve.fit(frame, target="species")       train, and write a bundle
    bundle = foldserve.import_model("model.onnx", ...)    fold a model of another framework
    model = foldserve.load("models/penguins/1")           load a bundle in this process
    model.predict(frame), model.predict_proba(frame)
    foldserve.FoldedClassifier(), FoldedRegressor()       estimators for scikit-learn
    foldserve.Client("http://127.0.0.1:8000")             ask a server, also as AsyncClient

docs/python.md describes them. `import foldserve` is quick, because the libraries that a name needs are loaded only when
the name is first used. `foldserve.service` and `foldserve.training` are the folders `service/` and `training/` of the
repository.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foldserve.api.client import AsyncClient, Client
    from foldserve.api.errors import (
        AccessDenied,
        ClientError,
        DeadlineExceeded,
        MissingExtra,
        ModelNotFound,
        RequestRefused,
        ServerBusy,
        ServerFailed,
        ServerUnreachable,
        TableWarning,
    )
    from foldserve.api.estimators import FoldedClassifier, FoldedRegressor
    from foldserve.api.fit import fit
    from foldserve.api.import_model import import_model
    from foldserve.api.model import Model, load
    from foldserve.service.bundle import Bundle, Manifest
    from foldserve.service.errors import (
        BundleError,
        DeviceError,
        FoldserveError,
        InvalidInput,
        NonFiniteOutput,
        TableError,
    )
    from foldserve.training.errors import DataError, TrainingError

_HOMES = {
    "api.client": ("AsyncClient", "Client"),
    "api.errors": (
        *("AccessDenied", "ClientError", "DeadlineExceeded", "MissingExtra", "ModelNotFound", "RequestRefused"),
        *("ServerBusy", "ServerFailed", "ServerUnreachable", "TableWarning"),
    ),
    "api.estimators": ("FoldedClassifier", "FoldedRegressor"),
    "api.fit": ("fit",),
    "api.import_model": ("import_model",),
    "api.model": ("Model", "load"),
    "service.bundle": ("Bundle", "Manifest"),
    "service.errors": ("BundleError", "DeviceError", "FoldserveError", "InvalidInput", "NonFiniteOutput", "TableError"),
    "training.errors": ("DataError", "TrainingError"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Bundle",
    "BundleError",
    "Client",
    "ClientError",
    "DataError",
    "DeadlineExceeded",
    "DeviceError",
    "FoldedClassifier",
    "FoldedRegressor",
    "FoldserveError",
    "InvalidInput",
    "Manifest",
    "MissingExtra",
    "Model",
    "ModelNotFound",
    "NonFiniteOutput",
    "RequestRefused",
    "ServerBusy",
    "ServerFailed",
    "ServerUnreachable",
    "TableError",
    "TableWarning",
    "TrainingError",
    "fit",
    "import_model",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"foldserve.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names of `foldserve`."""
    return sorted({*globals(), *__all__})
