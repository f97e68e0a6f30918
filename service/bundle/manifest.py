"""The schema of `manifest.json`, and the rules that its values must keep. This module does not depend on files."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from foldserve.service.bundle.parity import FrozenModel, Parity, Tolerance
from foldserve.service.bundle.reading import MAX_MOMENT, Reading

# A file of schema 2 also has a seal (seal.py). A file of schema 1 lacks some fields, which get default values.
SCHEMA_VERSION = 2
UNSEALED_SCHEMA = 1

# A model's name is used as the name of a folder and as a segment of a URL. The characters of a model's name need no
# escapes in a folder's name or in a URL.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_])?")

Task = Literal["classification", "regression"]


def _refuse_integer(value: object) -> object:
    if type(value) is int:  # pydantic accepts an integer as a float, even in strict mode
        raise ValueError("an integer of more than 64 bits")
    return value


# The types of values that every JSON client reads exactly: text, integers of 64 bits, and finite numbers.
Category = (
    Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]
    | Annotated[StrictFloat, BeforeValidator(_refuse_integer)]
    | StrictStr
)
Label = StrictBool | Category
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelFile(FrozenModel):
    """The size and hash of `model.onnx`. The hash detects even one flipped bit."""

    file: Literal["model.onnx"] = "model.onnx"
    size: int
    sha256: Sha256
    opset: int


class Tensor(FrozenModel):
    """An input or output of the graph. The value -1 in a shape means any number of rows."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[Literal[-1], int]


class Histogram(FrozenModel):
    """The distribution of the training rows over bins of equal width: len(edges) == len(counts) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


# Up to 2**24, float32 represents every integer.
_MOST_CATEGORIES = 2**24 - 1


class Feature(FrozenModel):
    """One column of the model's input. The input has only numbers, and NaN is a missing value.

    kind: the value of a `numeric` feature is the raw number. The value of a `boolean` feature is 0 or 1. The value of a
    `categorical` feature is an index into `categories`. The index len(categories) is reserved for unseen categories.
    The value of a `time` feature is a whole number of days or hours; its `reading` says which.
    missing: whether a row may lack a value of this feature.
    range: minimum and maximum over the training rows that have a value; None for a categorical feature.
    histogram: the histogram of the feature over the training rows that have a value. A categorical feature has one bin
    for each category, with the edges -0.5, 0.5, ...
    missing_share: the share of training rows without a value.
    reading: how a text in a request becomes a value; None if the training table had no texts in the column.
    """

    name: str
    kind: Literal["numeric", "boolean", "categorical", "time"] = "numeric"
    missing: bool = False
    categories: tuple[Category, ...] = ()
    range: tuple[float, float] | None = None
    histogram: Histogram
    missing_share: float = Field(default=0.0, ge=0, le=1)
    reading: Reading | None = None

    @property
    def largest_code(self) -> int | None:
        """The largest number that stands for a value: 1 for a boolean feature, the reserved index for a categorical
        feature; None for other features.
        """
        return {"numeric": None, "time": None, "boolean": 1, "categorical": len(self.categories)}[self.kind]

    @property
    def constant(self) -> float | None:
        """The value of every training row, if all training rows have the same value; None for other features."""
        if self.missing:
            return None
        if self.range is None:
            return 0.0 if len(self.categories) == 1 else None
        low, high = self.range
        return low if low == high else None

    def admits(self, value: float | None) -> bool:
        """Return whether a row of the input may have `value` in this column. The value None is a missing value."""
        if value is None:
            return self.missing
        if self.kind == "time":
            return value.is_integer() and abs(value) <= MAX_MOMENT
        return self.largest_code is None or (value.is_integer() and 0 <= value <= self.largest_code)

    @model_validator(mode="after")
    def _check_kind(self) -> Feature:
        categorical = self.kind == "categorical"
        if categorical != bool(self.categories):
            raise ValueError("a categorical feature has categories, and no other")
        if categorical != (self.range is None):
            raise ValueError("a feature has a range, unless it is categorical")
        if len(self.categories) > _MOST_CATEGORIES:
            raise ValueError("there are more categories than float32 has indices")
        if len(set(self.categories)) < len(self.categories):  # 1 and 1.0 are the same number in JSON
            raise ValueError("two categories are the same")
        if categorical and len(self.histogram.counts) != len(self.categories):
            raise ValueError("the histogram has not one bin for each category")
        if self.kind == "time" and self.reading is None:
            raise ValueError("a feature of times has no reading")
        if self.missing_share and not self.missing:
            raise ValueError("a share of the rows is missing in a feature without missing values")
        return self


# The largest absolute tolerance and the largest relative tolerance. In a regression, the absolute tolerance has no
# upper limit, because it is in the unit of the target.
_WIDEST = 1e-3


class Measurement(FrozenModel):
    """The parity of one runtime, measured on one set of rows with one batch size."""

    runtime: str
    rows: Literal["held-out", "random"]
    batch: int
    parity: Parity


class Certificate(FrozenModel):
    """The evidence that the exported model is the trained model.

    reference: names the framework, its version and the arithmetic whose outputs the model must reproduce. widened:
    `tolerance` divided by the usual tolerance. `widened` is above 1 only for some imported models: those whose float32
    outputs use more than half of the usual tolerance even before the model is folded.
    """

    reference: str
    tolerance: Tolerance
    measurements: tuple[Measurement, ...]
    widened: Annotated[float, Field(ge=1)] = 1.0


class Golden(FrozenModel):
    """Random rows from the training ranges and categories, and the reference's outputs for these rows.

    The rows contain no personal data. inputs: [rows, features]; a missing value is null. outputs: [rows, outputs]; the
    reference has computed them in float64.
    """

    inputs: tuple[tuple[float | None, ...], ...]
    outputs: tuple[tuple[float, ...], ...]


class Folding(FrozenModel):
    """A folded affine layer, the rule that folded it, and the layer that now contains it."""

    layer: str
    rule: str
    into: str


class Provenance(FrozenModel):
    """Everything that is needed to make `model.onnx` again, byte for byte.

    data_sha256: None if no table was given for an imported model. rows: the number of rows in each part of the split.
    threads: the number of threads of each matrix product. cpu: the model of the CPU, and the instruction set that
    PyTorch uses. versions: maps the name of each library to its version.
    """

    source: str
    data_sha256: Sha256 | None
    rows: dict[Literal["train", "validation", "test"], int]
    seed: int
    threads: int
    cpu: str
    hyperparameters: dict[
        str, StrictBool | StrictInt | StrictFloat | StrictStr | tuple[StrictInt, ...] | tuple[StrictStr, ...]
    ]
    versions: dict[str, str]


class ImportedModel(FrozenModel):
    """The origin of an imported model, which another framework trained.

    version: the version of the framework, empty if the model does not record it. file: the name of the model's file. If
    the model was an object in memory, `file` is the name of its class. sha256: the hash of the file. If the model was
    an object in memory, `sha256` is the hash of its weights.
    """

    framework: str
    version: str
    file: str
    sha256: Sha256


class Target(FrozenModel):
    """The column that the model predicts. reading: how a text becomes a number, if the model is a regression and the
    column of the target has texts.
    """

    name: str
    reading: Reading | None = None


class Threshold(FrozenModel):
    """The decision threshold of a model with two labels.

    A row gets the label `positive` if the probability of this label is at least `value`. If the probability is less
    than `value`, the row gets the other label. The probability and `value` are compared in float32. rule: the rule that
    chose the value: `f1`, `cost:FP,FN` or `value`.
    """

    positive: Label
    value: Annotated[float, Field(ge=0, le=1)]
    rule: Annotated[str, Field(pattern="^(f1|value|cost:[0-9.e+-]+,[0-9.e+-]+)$")]

    @property
    def costs(self) -> tuple[float, float] | None:
        """The costs of a false positive and of a false negative; None if the threshold was not chosen by costs."""
        if not self.rule.startswith("cost:"):
            return None
        false_positive, false_negative = self.rule.removeprefix("cost:").split(",")
        return float(false_positive), float(false_negative)


class Manifest(FrozenModel):
    """The contents of `manifest.json`.

    target: None if the bundle does not record the target. left_out: the columns of the training table that are neither
    features nor the target. threshold: None if the class with the largest probability is predicted. source: the origin
    of a model that was imported; None for a model that foldserve trained.
    """

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
    target: Target | None = None
    left_out: tuple[str, ...] = ()
    threshold: Threshold | None = None
    certificate: Certificate
    golden: Golden
    folded: tuple[Folding, ...]
    metrics: dict[Literal["validation", "test"], dict[str, float]]
    provenance: Provenance
    source: ImportedModel | None = None

    @property
    def ignored(self) -> tuple[str, ...]:
        """The columns of the training table that are not features.

        A request may include columns that are not features, and the server ignores their values.
        """
        return self.left_out if self.target is None else (*self.left_out, self.target.name)

    @model_validator(mode="after")
    def _check_unique_names(self) -> Manifest:
        if len({(type(label), label) for label in self.labels}) < len(self.labels):
            raise ValueError("two labels are the same")
        if len({frozenset(values) for values in self.metrics.values()}) > 1:
            raise ValueError("validation and test have different metrics")
        if len({feature.name for feature in self.features}) < len(self.features):
            raise ValueError("two features have the same name")
        if not {feature.name for feature in self.features}.isdisjoint(self.ignored):
            raise ValueError("a feature is among the columns that training left out")
        return self

    @model_validator(mode="after")
    def _check_threshold(self) -> Manifest:
        if self.threshold is not None:
            positive = self.threshold.positive
            if len(self.labels) != 2 or (type(positive), positive) not in {(type(each), each) for each in self.labels}:
                raise ValueError("a threshold needs two labels, and one of them is its positive label")
        return self

    @model_validator(mode="after")
    def _check_certificate(self) -> Manifest:
        measurements = self.certificate.measurements
        if not measurements or not all(measurement.parity.holds for measurement in measurements):
            raise ValueError("the certificate has no measurements, or one that does not hold")
        tolerance = self.certificate.tolerance
        if tolerance.relative > _WIDEST or (self.task == "classification" and tolerance.absolute > _WIDEST):
            raise ValueError("the certificate's tolerance is too wide to certify anything")
        return self
