"""The schema of `manifest.json`, and the rules that its parts must keep. It does not know files."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from foldserve.service.bundle.parity import Parity, Part, Tolerance

SCHEMA_VERSION = 1

# A name is a folder and a part of a URL; nothing in it needs escaping in either.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")

Task = Literal["classification", "regression"]


def _not_from_an_integer(value: object) -> object:
    if type(value) is int:  # which pydantic takes for a float, even a strict one
        raise ValueError("an integer of more than 64 bits")
    return value


# What JSON can carry from here to any client and back: an integer of 64 bits, a number that is finite.
Category = (
    Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]
    | Annotated[StrictFloat, BeforeValidator(_not_from_an_integer)]
    | StrictStr
)
Label = StrictBool | Category
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelFile(Part):
    """`model.onnx`, so that one flipped byte is seen."""

    file: Literal["model.onnx"] = "model.onnx"
    size: int
    sha256: Sha256
    opset: int


class Tensor(Part):
    """An input or output of the graph. -1 stands for any number of rows."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[Literal[-1], int]


class Histogram(Part):
    """How the training rows spread over equal bins: len(edges) == len(counts) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


# float32 tells every index below it from the next.
_MOST_CATEGORIES = 2**24 - 1


class Feature(Part):
    """One column of the input, which holds numbers alone: a missing value is NaN there, and NaN is nothing else.

    kind: `numeric`, the raw value; `boolean`, 0 or 1; `categorical`, the index of one of `categories`, and after the
    last of them the index of the reserved bucket, for whatever else.
    missing: whether a row may have no value.
    range: of the training rows that have a value; None for a categorical feature, whose indices have no order.
    histogram: of the same rows; of a categorical feature a bin for each category, with the edges -0.5, 0.5, ...
    missing_share: of the training rows.
    """

    name: str
    kind: Literal["numeric", "boolean", "categorical"] = "numeric"
    missing: bool = False
    categories: tuple[Category, ...] = ()
    range: tuple[float, float] | None = None
    histogram: Histogram
    missing_share: float = Field(default=0.0, ge=0, le=1)

    @property
    def largest_code(self) -> int | None:
        """The largest number that stands for a value: 1, or the reserved bucket's index. None: every number does."""
        return {"numeric": None, "boolean": 1, "categorical": len(self.categories)}[self.kind]

    def admits(self, value: float | None) -> bool:
        """Whether a row may have `value` in this column of the input; None is a missing value."""
        if value is None:
            return self.missing
        return self.largest_code is None or (value.is_integer() and 0 <= value <= self.largest_code)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Feature:
        categorical = self.kind == "categorical"
        if categorical != bool(self.categories):
            raise ValueError("a categorical feature has categories, and no other")
        if categorical != (self.range is None):
            raise ValueError("a feature has a range, unless it is categorical")
        if len(self.categories) > _MOST_CATEGORIES:
            raise ValueError("there are more categories than float32 has indices")
        if len(set(self.categories)) < len(self.categories):  # 1 and 1.0 are one number to JSON
            raise ValueError("two categories are the same")
        if categorical and len(self.histogram.counts) != len(self.categories):
            raise ValueError("the histogram has not one bin for each category")
        if self.missing_share and not self.missing:
            raise ValueError("a share of the rows is missing in a feature without missing values")
        return self


# Of either part of a tolerance, but for the absolute part of a regression's, which has units.
_WIDEST = 1e-3


class Measurement(Part):
    """One line of the certificate: this runtime, on these rows, in batches of this size."""

    runtime: str
    rows: Literal["held-out", "random"]
    batch: int
    parity: Parity


class Certificate(Part):
    """The evidence that the exported model is the trained one."""

    reference: str
    tolerance: Tolerance
    measurements: tuple[Measurement, ...]


class Golden(Part):
    """Rows drawn from the training ranges and categories, no person's data, and what the reference gives for them.

    inputs: [rows, features], a missing value is null. outputs: [rows, outputs], of the float64 reference.
    """

    inputs: tuple[tuple[float | None, ...], ...]
    outputs: tuple[tuple[float, ...], ...]


class Folding(Part):
    """What became of one affine layer."""

    layer: str
    rule: str
    into: str


_Setting = StrictBool | StrictInt | StrictFloat | StrictStr


class Provenance(Part):
    """What it takes to make `model.onnx` again, byte for byte."""

    source: str
    data_sha256: Sha256
    rows: dict[Literal["train", "validation", "test"], int]
    seed: int
    threads: int
    cpu: str
    hyperparameters: dict[
        str, StrictBool | StrictInt | StrictFloat | StrictStr | tuple[StrictInt, ...] | tuple[StrictStr, ...]
    ]
    versions: dict[str, str]


class Manifest(Part):
    """`manifest.json`."""

    schema_version: Annotated[StrictInt, Field(ge=1, le=SCHEMA_VERSION)]
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    version: Annotated[int, Field(ge=1)]
    created: datetime
    task: Task
    model: ModelFile
    input: Tensor
    output: Tensor
    features: tuple[Feature, ...]
    labels: tuple[Label, ...]
    certificate: Certificate
    golden: Golden
    folded: tuple[Folding, ...]
    metrics: dict[Literal["validation", "test"], dict[str, float]]
    provenance: Provenance

    @model_validator(mode="after")
    def _names_are_unique(self) -> Manifest:
        if len({(type(label), label) for label in self.labels}) < len(self.labels):
            raise ValueError("two labels are the same")
        if len({frozenset(values) for values in self.metrics.values()}) > 1:
            raise ValueError("validation and test have different metrics")
        if len({feature.name for feature in self.features}) < len(self.features):
            raise ValueError("two features have the same name")
        return self

    @model_validator(mode="after")
    def _certificate_certifies(self) -> Manifest:
        measurements = self.certificate.measurements
        if not measurements or not all(measurement.parity.holds for measurement in measurements):
            raise ValueError("the certificate has no measurements, or one that does not hold")
        tolerance = self.certificate.tolerance
        if tolerance.relative > _WIDEST or (self.task == "classification" and tolerance.absolute > _WIDEST):
            raise ValueError("the certificate's tolerance is too wide to certify anything")
        return self
