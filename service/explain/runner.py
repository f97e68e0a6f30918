"""Runs the rows of explanation requests in batches, as the runtime runs the rows of predictions.

This module reads the weights of the network only when the first explanation request arrives, so that a server without
explanation requests needs no memory for them. This module owns the arrays between the codec and the explainer. This
module does not depend on batchers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from foldserve.service import bundle
from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Manifest
from foldserve.service.errors import BundleError, ModelNotReady, NotExplainable
from foldserve.service.explain.explainer import Explainer, Explanations, Method

PREDICTED = -1
"""This number in place of a wanted class means the predicted class."""

_HEAD = 3  # the number of columns before the contributions


def join(rows: Rows, wanted: int) -> Rows:
    """Append a column to the rows, float32 [rows, features], that contains the index of the wanted class."""
    return np.column_stack([rows, np.full(len(rows), wanted, np.float32)])


def split(outputs: Outputs) -> Explanations:
    """Return the explanations that `ExplanationRunner.run` has put into one array."""
    exact = outputs.astype(np.float64)
    return Explanations(exact[:, 0].astype(np.intp), exact[:, 1], exact[:, 2], exact[:, _HEAD:])


class ExplanationRunner:
    """Explains the rows of one bundle. path: the folder of the bundle."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
        self._loaded: Explainer | NotExplainable | None = None

    @property
    def method(self) -> Method | None:
        """How the contributions are computed; None before the first run."""
        return self._loaded.method if isinstance(self._loaded, Explainer) else None

    def run(self, rows: npt.NDArray[np.float32]) -> Outputs:
        """Explain rows that `join` has made. The function `split` decodes the returned array.

        Raises `NotExplainable`. Raises `ModelNotReady` if the files of the bundle have changed since it was loaded.
        After `ModelNotReady`, the next call reads the bundle again, because the files may have been repaired.
        """
        if self._loaded is None:
            self._loaded = self._load()
        if isinstance(self._loaded, NotExplainable):
            raise NotExplainable(str(self._loaded))
        found = self._loaded.explain(rows[:, :-1], rows[:, -1].astype(np.intp))
        head = (found.chosen, found.output, found.offset)
        with np.errstate(over="ignore"):  # the codec refuses a row with an infinite number
            return np.column_stack([*head, found.contributions]).astype(np.float32)

    def _load(self) -> Explainer | NotExplainable:
        try:
            contents = bundle.read(self._path)
        except BundleError as error:
            raise ModelNotReady(f"the model can't be explained now: {error.reason}") from error
        if contents.manifest.model.sha256 != self._manifest.model.sha256:
            raise ModelNotReady("the model can't be explained now: its files are not those that were loaded")
        try:
            return Explainer(contents.model, self._manifest)
        except NotExplainable as error:
            return error
