"""Turns the outputs of a model into Arrow columns: the predictions, and the probabilities of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from foldserve.service.arrays import Outputs
from foldserve.service.bundle import Decision, Label, Manifest


class AnswerColumns:
    """The columns of the answers of one model. with_all: whether the columns include the probabilities of all classes.

    width: the number of outputs of a row. fields: the names and types of the columns.
    """

    def __init__(self, manifest: Manifest, *, with_all: bool) -> None:
        self._decision = Decision.of(manifest) if manifest.labels else None
        self._labels = _label_array(manifest.labels) if manifest.labels else None
        self.width = len(manifest.labels) or 1
        names = self._decision.names if self._decision and with_all else ()
        kind = pa.float32() if self._labels is None else self._labels.type
        self.fields = [pa.field("prediction", kind), *(pa.field(f"probability_{name}", pa.float32()) for name in names)]

    def columns(self, outputs: Outputs) -> list[pa.Array]:
        """Return the columns. outputs: float32 [rows, width]."""
        if self._decision is None or self._labels is None:
            return [pa.array(outputs[:, 0])]
        predictions = self._labels.take(pa.array(self._decision.classes(outputs)))
        return [predictions, *(pa.array(outputs[:, place]) for place in range(len(self.fields) - 1))]


def _label_array(labels: Sequence[Label]) -> pa.Array:
    """Return the labels as an Arrow array. Labels of several types become texts."""
    kinds = {type(label) for label in labels}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return pa.array([str(label) for label in labels], pa.string())
    return pa.array([float(label) for label in labels] if len(kinds) > 1 else list(labels))
