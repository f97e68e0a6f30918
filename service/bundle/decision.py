"""Chooses the class of each row from the probabilities of a model and the threshold of the model's manifest.

Training, the service and every other reader of a bundle share this module, so that they give the same answers. This
module does not depend on protocols, and not even on NumPy, because it only calls methods of the caller's arrays.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from foldserve.service.bundle.manifest import Label, Manifest, Threshold

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Decision:
    """The decision rule of one classification model.

    labels: the label of each class. threshold: None if the class with the largest probability is predicted.
    positive: the index of the class whose probability is compared with the threshold; 0 if there is no threshold.
    names: a different text for each class. A name is the label itself if the label is a text, and otherwise the JSON
    text of the label. If two names would be equal, every name is the JSON text of its label.
    """

    def __init__(self, labels: tuple[Label, ...], threshold: Threshold | None = None) -> None:
        self.labels = labels
        self.threshold = threshold
        self.names = label_names(labels)
        kinds = [(type(label), label) for label in labels]
        self.positive = kinds.index((type(threshold.positive), threshold.positive)) if threshold else 0

    @classmethod
    def of(cls, manifest: Manifest) -> Decision:
        """Return the decision rule of a manifest."""
        return cls(manifest.labels, manifest.threshold)

    def classes(self, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.intp]:
        """Return the predicted class of each row, as intp [rows] of indices into `labels`.

        probabilities: [rows, classes]. If several classes have the largest probability, the first of them is predicted.
        """
        if self.threshold is None:
            likeliest: npt.NDArray[np.intp] = probabilities.argmax(1)
            return likeliest
        reached: npt.NDArray[np.bool_]
        reached = probabilities[:, self.positive].astype("float32", copy=False) >= self.threshold.value
        return (reached if self.positive else ~reached).astype("intp")

    def best_classes(self, probabilities: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.intp]:
        """Return the `count` classes with the largest probabilities in each row, or all classes if the model has fewer.

        The result is intp [rows, min(count, classes)] of indices into `labels`, with the largest probability first.
        Classes with equal probabilities keep the order of the labels. The decision threshold has no influence on this
        order.
        """
        return (-probabilities).argsort(1, kind="stable")[:, :count]


def label_names(labels: tuple[Label, ...]) -> tuple[str, ...]:
    """Return a different text for each label, as `Decision.names` describes."""
    texts = tuple(json.dumps(label, ensure_ascii=False) for label in labels)
    names = tuple(label if isinstance(label, str) else text for label, text in zip(labels, texts, strict=True))
    return names if len(set(names)) == len(names) else texts
