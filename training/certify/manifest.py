"""Builds the manifest of a new bundle.

The module describes each feature with statistics of the training rows, and puts all parts of the manifest together.

The module does not train or measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

import numpy as np
import numpy.typing as npt

from foldserve.service import bundle
from foldserve.training.fold.export import INPUT, OPSET, OUTPUT
from foldserve.training.table.schema import Column, Table

_HISTOGRAM_BINS = 10

Metrics = dict[Literal["validation", "test"], dict[str, float]]


def describe_features(columns: Sequence[Column], train: npt.NDArray[np.float32]) -> tuple[bundle.Feature, ...]:
    """Describe each feature with statistics of the training rows. train: raw values, float32 [rows, features]."""
    return tuple(_describe(column, values) for column, values in zip(columns, train.T, strict=True))


def _describe(column: Column, values: npt.NDArray[np.float32]) -> bundle.Feature:
    present = values[~np.isnan(values)].astype(np.float64)
    low, high = (float(present.min()), float(present.max())) if len(present) else (0.0, 0.0)
    if column.kind == "categorical":
        # The index of an unknown category follows the index of the last category. No bin of the histogram stands for
        # unknown categories, so rows with unknown categories are not counted.
        count = len(column.categories)
        edges = np.arange(count + 1) - 0.5
        counts = np.bincount(present.astype(np.int64), minlength=count)[:count]
    else:
        # If all values are equal, NumPy widens the range of the histogram by 0.5 on both sides. A float64 above 2^53
        # does not change when 0.5 is added.
        margin = max(0.5, 1e-3 * abs(low)) if low == high else 0.0
        counts, edges = np.histogram(present, _HISTOGRAM_BINS, (low - margin, high + margin))
    return bundle.Feature(
        name=column.name,
        kind=column.kind,
        missing=column.missing,
        categories=column.categories,
        range=None if column.kind == "categorical" else (low, high),
        histogram=bundle.Histogram(edges=edges.tolist(), counts=counts.tolist()),
        missing_share=1 - len(present) / len(values),
        reading=column.reading,
    )


def build_manifest(
    version: int,
    *,
    name: str,
    model: bytes,
    table: Table,
    features: tuple[bundle.Feature, ...],
    target: bundle.Target | None,
    folded: Sequence[bundle.Folding],
    certificate: bundle.Certificate,
    golden: bundle.Golden,
    metrics: Metrics,
    provenance: bundle.Provenance,
    threshold: bundle.Threshold | None = None,
    imported: bundle.ImportedModel | None = None,
) -> bundle.Manifest:
    """Build the manifest of a new bundle. The manifest records the current time as the time of creation.

    model: the content of the ONNX file. imported: the facts about an imported model; None for a model that foldserve
    trained.
    """
    return bundle.Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        name=name,
        version=version,
        created=datetime.now(UTC).replace(microsecond=0),
        task=table.task,
        model=bundle.ModelFile(size=len(model), sha256=sha256(model).hexdigest(), opset=OPSET),
        input=bundle.Tensor(name=INPUT, shape=(-1, len(features))),
        output=bundle.Tensor(name=OUTPUT[table.task], shape=(-1, table.outputs)),
        features=features,
        labels=table.labels,
        target=target,
        left_out=table.left_out,
        threshold=threshold,
        certificate=certificate,
        golden=golden,
        folded=tuple(folded),
        metrics=metrics,
        provenance=provenance,
        source=imported,
    )
