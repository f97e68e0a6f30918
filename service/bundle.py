"""THE contract between training and serving: what a bundle holds, how it is written, and how it is read.

    models/<name>/<version>/manifest.json    everything below, as JSON
                            model.onnx       float32 `input` [batch, features] -> `probabilities` or `value`
                            report.html      for people; nothing reads it, and a bundle may lack it

A bundle is whole or absent: it is written beside its place, synced and renamed. A reader gets the very bytes whose
hash was checked. Needs only the standard library and pydantic, so that any tool can read a bundle.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from service.errors import BundleError as BundleError  # the trainer meets the service in this module alone

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]

SCHEMA_VERSION = 1
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"

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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelFile(_Part):
    """`model.onnx`, so that one flipped byte is seen."""

    file: Literal["model.onnx"] = "model.onnx"
    size: int
    sha256: Sha256
    opset: int


class Tensor(_Part):
    """An input or output of the graph. -1 stands for any number of rows."""

    name: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[Literal[-1], int]


class Histogram(_Part):
    """How the training rows spread over equal bins: len(edges) == len(counts) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


# float32 tells every index below it from the next.
_MOST_CATEGORIES = 2**24 - 1


class Feature(_Part):
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


class Parity(_Part):
    """How far one runtime is from the reference, over `rows` rows.

    max_absolute: max |out - ref|.
    max_relative: max |out - ref| / |ref|, over the entries where the relative part of the tolerance is the larger.
    worst: max |out - ref| / (absolute + relative * |ref|): the share of the tolerance used; above 1 it fails.
    argmax_rows: the rows whose two largest reference outputs differ by more than the tolerance;
    argmax_agreement: the share of those rows with the same argmax. Both None for regression.
    """

    rows: int
    max_absolute: float
    max_relative: float
    worst: float
    argmax_rows: int | None
    argmax_agreement: float | None

    @property
    def holds(self) -> bool:
        """Whether the two are the same model as far as the tolerance tells."""
        return self.worst <= 1 and self.argmax_agreement in (None, 1.0)


class Tolerance(_Part):
    """|out - ref| <= absolute + relative * |ref|, for every output of every row."""

    absolute: float = Field(gt=0)
    relative: float = Field(gt=0)

    def measure(self, reference: Array, output: Array) -> Parity:
        """Compare `output` with `reference`, both [rows, outputs].

        Raises `BundleError` when the shapes differ or a value is not finite: no tolerance covers that.
        """
        if output.shape != reference.shape:
            raise BundleError(f"the model gives outputs of shape {output.shape}, expected {reference.shape}")
        size = abs(reference)
        difference = abs(output - reference)
        if not math.isfinite(difference.sum()):
            raise BundleError("the model gives an output that is not finite")
        allowed = self.absolute + self.relative * size
        relative_rules = size * self.relative >= self.absolute
        argmax_rows = agreement = None
        if reference.shape[1] > 1:
            best = reference.argmax(1)
            ordered = reference.copy()
            ordered.sort(1)
            clear = ordered[:, -1] - ordered[:, -2] > self.absolute + self.relative * abs(ordered[:, -1])
            argmax_rows = int(clear.sum())
            agreement = float((output.argmax(1) == best)[clear].mean()) if argmax_rows else 1.0
        return Parity(
            rows=len(reference),
            max_absolute=float(difference.max(initial=0.0)),
            max_relative=float((difference[relative_rules] / size[relative_rules]).max(initial=0.0)),
            worst=float((difference / allowed).max(initial=0.0)),
            argmax_rows=argmax_rows,
            argmax_agreement=agreement,
        )


# Of either part of a tolerance, but for the absolute part of a regression's, which has units.
_WIDEST = 1e-3


class Measurement(_Part):
    """One line of the certificate: this runtime, on these rows, in batches of this size."""

    runtime: str
    rows: Literal["held-out", "random"]
    batch: int
    parity: Parity


class Certificate(_Part):
    """The evidence that the exported model is the trained one."""

    reference: str
    tolerance: Tolerance
    measurements: tuple[Measurement, ...]


class Golden(_Part):
    """Rows drawn from the training ranges and categories, no person's data, and what the reference gives for them.

    inputs: [rows, features], a missing value is null. outputs: [rows, outputs], of the float64 reference.
    """

    inputs: tuple[tuple[float | None, ...], ...]
    outputs: tuple[tuple[float, ...], ...]


class Folding(_Part):
    """What became of one affine layer."""

    layer: str
    rule: str
    into: str


_Setting = StrictBool | StrictInt | StrictFloat | StrictStr


class Provenance(_Part):
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


class Manifest(_Part):
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


@dataclass(frozen=True)
class Bundle:
    """A manifest and the bytes that it certifies."""

    path: Path
    manifest: Manifest
    model: bytes


def read(path: Path) -> Bundle:
    """Read the bundle in the folder `path`, checked against its manifest.

    Raises `BundleError`, with the reason: a missing file, a manifest of another schema, a size or hash that is not
    the manifest's.
    """
    require_folder(path, "no such bundle")
    manifest = _read_manifest(path)
    model = _read_bytes(path / MODEL_FILE)
    if len(model) != manifest.model.size:
        raise BundleError(f"{MODEL_FILE} has {len(model)} bytes, the manifest says {manifest.model.size}", path)
    if hashlib.sha256(model).hexdigest() != manifest.model.sha256:
        raise BundleError(f"{MODEL_FILE} is not the certified one: its sha256 is not the manifest's", path)
    return Bundle(path, manifest, model)


def require_folder(path: Path, reason: str = "no such folder; make it first") -> None:
    """Raise `BundleError`, for `reason`, unless `path` is a folder."""
    try:
        if not path.is_dir():
            raise BundleError(reason, path)
    except OSError as error:  # is_dir raises where a folder above is closed to us
        raise BundleError(f"can't be read: {error.strerror}", path) from error


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"can't read {file.name}: {error.strerror}", file.parent) from error


def _read_manifest(path: Path) -> Manifest:
    try:
        content = from_json(_read_bytes(path / MANIFEST_FILE), allow_inf_nan=False)
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON", path) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and SCHEMA_VERSION < version < 2**63:
        raise BundleError(
            f"made by a newer foldserve: manifest schema {version}, this one reads {SCHEMA_VERSION}", path
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BundleError(f"{MANIFEST_FILE} is no manifest: {where}: {first['msg']}", path) from error


def versions(model: Path) -> list[int]:
    """List the versions in the folder of one model, ascending. Anything but a plain integer is no version."""
    return _numbers(entry.name for entry in model.iterdir() if entry.is_dir())


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name))


def write(
    models: Path,
    name: str,
    model: bytes,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None = None,
) -> Bundle:
    """Write the next version of `name` under `models`, and read it back.

    manifest_for: called with the version, which is settled last, since two trainers may write at once.
    report_for: called with that manifest, gives the HTML to keep beside it.
    Raises `BundleError` when `models` is not a folder or can't be written to, when `name` is no name, when the
    manifest is of another model; nothing is left behind then.
    """
    if not NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no name of a model")
    require_folder(models)
    folder = models / name
    try:
        # Beside its place, so that the rename stays inside one file system. The dot hides it from every reader.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=models))
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", models) from error
    try:
        partial.chmod(0o755)
        _write_synced(partial / MODEL_FILE, model)
        return _number(partial, folder, manifest_for, report_for)
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _number(
    partial: Path,
    folder: Path,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None,
) -> Bundle:
    """Complete `partial` as the next version in `folder`, check it, and give it its place."""
    while True:
        # Whatever has the number as its name, a file too, keeps it.
        taken = _numbers(entry.name for entry in folder.iterdir()) if folder.exists() else []
        version = max(taken, default=0) + 1
        manifest = manifest_for(version)
        if (manifest.name, manifest.version) != (folder.name, version):
            raise BundleError(f"the manifest is of {manifest.name}/{manifest.version}", folder / str(version))
        _write_synced(partial / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
        if report_for:
            _write_synced(partial / REPORT_FILE, report_for(manifest).encode())
        read(partial)
        _sync_folder(partial)
        folder.mkdir(exist_ok=True)
        try:
            partial.rename(folder / str(version))
        except OSError:
            if not (folder / str(version)).exists():
                raise
            continue  # another trainer took this version
        _sync_folder(folder)
        _sync_folder(folder.parent)
        return read(folder / str(version))


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
