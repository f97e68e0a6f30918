"""The statistics of one model in one process: the distribution of its live rows, its predictions, and its labels."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.bundle import Decision, Manifest
from foldserve.service.quality.bins import FeatureBins, Numbers
from foldserve.service.quality.feedback import LabelReader, Outcome
from foldserve.service.quality.predictions import Predictions
from foldserve.service.quality.sampler import Sampler
from foldserve.service.quality.stability import Stability
from foldserve.service.quality.tally import SUMS, Sum, Window

_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Options:
    """The settings of all monitors.

    drift: whether live rows are counted. seconds: the length of the window. remembered: the largest number of rows
    whose predictions are kept until their labels arrive. executor: an executor with one thread, which counts the rows.
    """

    drift: bool
    seconds: float
    remembered: int
    executor: Executor


class Snapshot(BaseModel):
    """The statistics of one process. seconds: the time since the beginning of the window.

    sums: an array of float64, encoded in base64.
    """

    seconds: float
    sums: str


class Monitor:
    """Counts the live rows, the predictions and the labels of one model.

    The sums are one array: first the numbers of `Sum`, then the counts in the bins of the features, and then the counts
    of the predicted classes. predictions: the remembered predictions; None if the server remembers no predictions.
    """

    def __init__(self, manifest: Manifest, options: Options) -> None:
        self.manifest = manifest
        self.options = options
        self.bins = FeatureBins(manifest.features)
        self.stability = Stability(manifest.features, self.bins)
        self._decision = Decision.of(manifest) if manifest.labels else None
        self._reader = LabelReader(manifest.labels)
        self._of_features = slice(SUMS, SUMS + self.bins.size)
        self.size = self._of_features.stop + len(manifest.labels)
        self.window = Window(self.size, options.seconds)
        columns = manifest.input.shape[1], manifest.output.shape[1]
        self.sampler = Sampler(*columns, self._count, options.executor) if options.drift else None
        self.predictions = Predictions(options.remembered) if options.remembered else None

    @cached_property
    def center(self) -> float:
        """A constant that is subtracted from each output of a regression. Without this subtraction, the sums of squares
        would lose digits.
        """
        return float(np.mean(self.manifest.golden.outputs)) if self.manifest.golden.outputs else 0.0

    def tick(self) -> None:
        """Do the work that must be done once a second."""
        if self.sampler is not None:
            self.sampler.tick()
        if self.predictions is not None:
            self.predictions.tick()

    def reset(self) -> None:
        """Start a new window. Predictions that wait for labels are kept."""
        if self.sampler is not None:
            self.sampler.flush()
        self.window.clear()

    def snapshot(self) -> Snapshot:
        """Return the statistics of this process."""
        if self.sampler is not None:
            self.sampler.flush()
        sums, seconds = self.window.total()
        return Snapshot(seconds=seconds, sums=base64.b64encode(sums.astype("<f8").tobytes()).decode())

    def join(self, snapshots: Sequence[Snapshot]) -> tuple[Numbers, float]:
        """Add up the sums of several processes.

        Returns the total sums, and the seconds since the earliest window began.
        """
        total = np.zeros(self.size)
        for snapshot in snapshots:
            total += np.frombuffer(base64.b64decode(snapshot.sums), "<f8")
        return total, max((snapshot.seconds for snapshot in snapshots), default=0.0)

    def features_of(self, sums: Numbers) -> Numbers:
        """Return the part of `sums` that counts the rows in the bins of all features."""
        return sums[self._of_features]

    def classes_of(self, sums: Numbers) -> Numbers:
        """Return the part of `sums` that counts the predicted classes."""
        return sums[self._of_features.stop :]

    def _count(self, rows: Rows, outputs: Outputs, weight: int) -> None:
        """Count rows and their outputs. Each row is counted `weight` times."""
        sums = np.zeros(self.size)
        sums[Sum.ROWS] = weight * len(rows)
        sums[Sum.COUNTED] = len(rows)
        sums[Sum.SQUARES] = weight * weight * len(rows)
        self.features_of(sums)[:] = weight * self.bins.count(rows)
        finite = outputs[np.isfinite(outputs).all(axis=1)]
        sums[Sum.PREDICTED] = weight * len(finite)
        if self._decision is None:
            values = finite[:, 0].astype(np.float64) - self.center
            sums[Sum.OUTPUTS] = weight * values.sum()
            sums[Sum.OUTPUT_SQUARES] = weight * (values * values).sum()
        else:
            classes = self._decision.classes(finite)
            confidences = np.take_along_axis(finite, classes[:, None], axis=1)
            sums[Sum.OUTPUTS] = weight * confidences.sum(dtype=np.float64)
            self.classes_of(sums)[:] = weight * np.bincount(classes, minlength=len(self.manifest.labels))
        self.window.add(sums)

    # --- labels -------------------------------------------------------------------------------------------------------

    def label(self, request_id: str, labels: Sequence[object]) -> Outcome:
        """Count the labels of one request. labels: one JSON value for each row of the request."""
        found = None if self.predictions is None else self.predictions.find(request_id.encode())
        if found is None:
            return Outcome()
        try:
            values = [self._reader.read(label) for label in labels]
        except ValueError:
            return Outcome(problem="mismatched")
        if len(values) != len(found.labelled):
            return Outcome(problem="mismatched")
        known = np.array([value is not None for value in values])
        new = known & ~found.labelled
        repeated = bool((known & found.labelled).any())
        found.labelled |= known
        if new.any():
            self._score(found.outputs[new], np.array(values, np.float64)[new])
        return Outcome(accepted=int(new.sum()), problem="repeated" if repeated else "")

    def _score(self, outputs: Outputs, labels: npt.NDArray[np.float64]) -> None:
        """Count labelled rows and the errors of their outputs.

        labels: float64 [rows]; each number is a class index, or the value of a regression. This method uses the same
        formulas as `training/report/evaluate.py`, which computes the metrics in the manifest.
        """
        sums = np.zeros(self.size)
        sums[Sum.LABELLED] = len(labels)
        if self._decision is None:
            errors = outputs[:, 0].astype(np.float64) - labels
            sums[Sum.CORRECT] = (errors * errors).sum()
            sums[Sum.LOSS] = abs(errors).sum()
        else:
            classes = labels.astype(np.intp)
            sums[Sum.CORRECT] = (self._decision.classes(outputs) == classes).sum()
            shares = np.take_along_axis(outputs, classes[:, None], axis=1)[:, 0] / outputs.sum(1, dtype=np.float64)
            sums[Sum.LOSS] = -np.log(shares.clip(_EPSILON, 1 - _EPSILON)).sum()
        self.window.add(sums)
