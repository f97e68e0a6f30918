"""A bundle that is loaded in this process.

The bundle must pass the same checks as on a server. The loaded model reads rows in the same way as a server.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foldserve.api.rows import RowReader
from foldserve.service.bundle import Bundle, Label, Manifest, find_bundle, require_place
from foldserve.service.errors import NonFiniteOutput
from foldserve.service.machine import cgroup
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.session import Device, Options

if TYPE_CHECKING:
    from foldserve.service.arrays import Outputs, Rows

# The largest number of rows in one run. A larger number would need more memory for the hidden layers.
_BATCH = 8192


def load(bundle: str | os.PathLike[str] | Bundle, *, device: Device = "auto", threads: int | None = None) -> Model:
    """Load a bundle in this process.

    The checks are the same as those of a server. The checks cover the seal and the hash of the bundle, the path of its
    folder, and the graph with its tensors. The checks also run the golden rows on the device that will run the model.

    bundle: the folder of a bundle, such as `models/penguins/1`, or the result of `fit`. `bundle` may also be the folder
    of a model. If `bundle` is the folder of a model, `load` takes the newest version of the model. device: `auto`
    chooses CUDA if CUDA works. `Model.device` gives the chosen device. threads: the threads of one run on the CPU; by
    default, one for each processor. Raises `BundleError` if a check fails, and `DeviceError` if ONNX Runtime or the
    device is missing.
    """
    found = bundle if isinstance(bundle, Bundle) else find_bundle(Path(bundle))
    require_place(found)
    return Model(found, Options(device, threads or cgroup.threads(), buckets=(), max_batch=_BATCH))


class Model:
    """A loaded model. `load` makes it. Several threads may use a model.

    A table may be a data frame of pandas or polars, an Arrow table, a dict of columns, an array [rows, features], or a
    list of rows. In a list of rows, each row is a dict or a list. Columns are found by name, and other columns are
    ignored. The values of an array or a list are in the order of `features`. A value is written as in the training
    table: a category as its text or number, and a missing value as null, None or NaN.
    """

    def __init__(self, bundle: Bundle, options: Options) -> None:
        self.bundle = bundle
        self._runtime, _ = runtime.load(bundle, options)
        self._reader = RowReader(bundle.manifest)
        self._lock = threading.Lock()  # only one thread at a time may call a runtime

    def __repr__(self) -> str:
        """Return one line with the name, the version and the device."""
        return f"<Model {self.manifest.name}/{self.manifest.version}: {self.manifest.task} on {self.device}>"

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle: features, labels, metrics, certificate and provenance."""
        return self.bundle.manifest

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features, in the order of an array's columns."""
        return tuple(feature.name for feature in self.manifest.features)

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels, in the order of the columns of `predict_proba`; empty for a regression."""
        return self.manifest.labels

    @property
    def device(self) -> str:
        """The name of the device in ONNX Runtime, and the reason why this device was chosen."""
        return f"{self._runtime.provider} ({self._runtime.why})"

    def predict(self, table: Any) -> Any:
        """Return the label of each row, or the value of each row in a regression.

        For a frame of pandas, the result is a Series with the index of the frame. The result is a Series for polars, an
        array for Arrow, and otherwise a NumPy array [rows]. Values of a regression are float32. Raises `InvalidInput`
        with the text that a server would send. Raises `TableError` for a table that lacks a column or has a column of
        the wrong type. `InvalidInput` and `TableError` are subclasses of `ValueError`. Raises `NonFiniteOutput` for a
        row whose numbers are far outside the model's range.
        """
        return self._reader.labels(table, self._run(self._reader.read(table)))

    def predict_proba(self, table: Any) -> Any:
        """Return the probability of each label, float32 [rows, labels].

        For a frame of pandas, the result is a frame with the same index. The result is a frame for polars, a table for
        Arrow, and otherwise a NumPy array. The result has one column for each label. Raises the same errors as
        `predict`, and `TypeError` for a regression.
        """
        if not self.labels:
            raise TypeError("a regression has no probabilities: use predict")
        return self._reader.probabilities(table, self._run(self._reader.read(table)))

    def _run(self, rows: Rows) -> Outputs:
        outputs = np.empty((len(rows), self.manifest.output.shape[1]), np.float32)
        with self._lock:
            for start in range(0, len(rows), _BATCH):
                outputs[start : start + _BATCH] = self._runtime.run(rows[start : start + _BATCH])
        finite = np.isfinite(outputs).all(axis=1)
        if not finite.all():
            raise NonFiniteOutput(f"the model gives an output that is not finite for row {int(finite.argmin())}")
        return outputs
