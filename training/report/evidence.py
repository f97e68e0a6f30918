"""The evidence of one training: the arrays and scores that the report shows. The module does not write sentences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Decision, Manifest
from foldserve.training.fit.loop import Epoch
from foldserve.training.report.curves import Curve, trace_curve
from foldserve.training.report.evaluate import ClassScores, Importances, score_baseline, score_classes
from foldserve.training.report.latency import Latency
from foldserve.training.report.previous import Previous

_CURVES = 3


@dataclass(frozen=True)
class Evidence:
    """The contents of a report. The contents include no data of the table besides the targets of the test rows.

    histories: the epochs of each member of the model; () for a member without a history. y: the targets of the test
    rows. For classification, int64 [rows], indices into `manifest.labels`; for regression, float64 [rows], in the units
    of the target. outputs: the outputs of the exported model for the same rows, [rows, outputs]. importances: one entry
    per feature of the manifest. notes: more sentences for the reader of the report. previous: the previous version of
    the model, if there is one. latency: the speed of the model on the machine of the training.
    """

    manifest: Manifest
    histories: tuple[tuple[Epoch, ...], ...]
    y: npt.NDArray[Any]
    outputs: npt.NDArray[np.floating[Any]]
    importances: Importances
    notes: tuple[str, ...] = ()
    previous: Previous | None = None
    latency: tuple[Latency, ...] = ()

    @cached_property
    def decision(self) -> Decision:
        """The decision rule of the model."""
        return Decision.of(self.manifest)

    @cached_property
    def predicted(self) -> npt.NDArray[np.intp]:
        """The predicted class of each test row, [rows]; only for classification."""
        return self.decision.classes(self.outputs)

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The metrics that the best constant answer gets on the test rows."""
        return score_baseline(self.manifest.task, self.y, self.outputs.shape[1], self.decision)

    @cached_property
    def classes(self) -> tuple[ClassScores, ...]:
        """The scores of each class, one entry per label; () for regression."""
        return score_classes(self.y, self.outputs, self.decision) if self.manifest.labels else ()

    @cached_property
    def curves(self) -> dict[int, Curve]:
        """The curve of some classes over all decision thresholds. The keys are the indices of these classes, and the
        most important class comes first.

        If there are two classes, only the positive class has a curve. If there are more, only the classes with the
        lowest AUC have a curve. Each curve is for one class against all other classes. A class without an AUC has no
        curve.
        """
        labels = len(self.manifest.labels)
        by_auc = sorted(range(labels), key=lambda i: (math.isnan(self.classes[i].auc), self.classes[i].auc))
        traced = {
            i: trace_curve(self.y == i, self.outputs[:, i])
            for i in ([self.positive] if labels == 2 else by_auc[:_CURVES])
        }
        return {i: curve for i, curve in traced.items() if curve is not None}

    @property
    def threshold(self) -> float:
        """The decision threshold, if there are two classes.

        A row gets the positive class if the probability of this class is at least the threshold.
        """
        threshold = self.manifest.threshold
        return 0.5 if threshold is None else float(np.float32(threshold.value))

    @property
    def positive(self) -> int:
        """The index of the positive class of a target with two classes. By default, the second class is the positive
        class.
        """
        return self.decision.positive if self.manifest.threshold else 1

    @property
    def worst_classes(self) -> list[int]:
        """The indices of the classes, sorted by F1 from the lowest to the highest. Classes without an F1 come last."""
        return sorted(range(len(self.classes)), key=lambda i: (math.isnan(self.classes[i].f1), self.classes[i].f1))

    @cached_property
    def residual(self) -> npt.NDArray[np.float64]:
        """The predicted values minus the true values, [rows]; only for regression."""
        residual: npt.NDArray[np.float64] = self.outputs[:, 0].astype(np.float64) - self.y
        return residual

    @property
    def ranking(self) -> npt.NDArray[np.int64]:
        """The indices of the features, with the most important feature first."""
        return np.argsort(-self.importances.mean, kind="stable")
