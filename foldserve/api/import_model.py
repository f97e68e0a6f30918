"""`foldserve.import_model`: reads its arguments, and calls the pipeline of `foldserve-train import`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foldserve.api.errors import TableWarning, in_python
from foldserve.api.extras import require
from foldserve.api.fit import open_table
from foldserve.service import bundle
from foldserve.service.errors import InvalidInput, SourceError
from foldserve.training.errors import DataError

_LIBRARIES = ("onnxruntime", "pyarrow", "sklearn", "torch")
_EXTRAS = "train,cpu"


def import_model(
    model: Any,
    data: Any = None,
    target: Any = None,
    *,
    name: str,
    models: str | os.PathLike[str] = "models",
    features: Sequence[str] = (),
    labels: Sequence[bundle.Label] = (),
    ranges: Mapping[str, tuple[float, float]] | tuple[float, float] | None = None,
    output: str = "",
    keep_unknown: bool = False,
    layers: str | os.PathLike[str] | None = None,
    drop: Sequence[str] = (),
    seed: int = 0,
) -> bundle.Bundle:
    """Fold a model that another framework trained, certify that it gives the same answers, and write a bundle.

    This function does the same as the command `foldserve-train import`, which docs/import.md describes. This function
    has more than 50 lines, because most of its lines describe arguments.

    model: the path of a file, or a model in memory. data: a table as in `fit`. The certificate uses the rows of this
    table. If `target` is given, the metrics of the model are computed on the same rows. name: the name of the model.
    models: the folder to write to. features: the names of the features, in the model's order. labels: the labels, in
    the order of the outputs. ranges: the range of each feature by name, or one range for all features; needed only if
    there is no table. output: the name of the output to use, if the model has several outputs. keep_unknown: whether an
    operator that the import does not understand stays in the graph unchanged. layers: a text file with the output of
    `print(model)`. The file in `layers` is needed for a PyTorch model file that has only weights. drop: columns of the
    table to leave out. seed: the seed of the random rows.

    Returns the written bundle, the next version of `name`. Each note is shown as a `TableWarning`. Raises `DataError`,
    which is a `ValueError`, for a table that does not fit the model. Raises `BundleError`, or a subclass of
    `TrainingError` other than `DataError`, if the import or the writing of the bundle fails. Raises `ValueError` for a
    wrong name, and `MissingExtra` if a library is not installed.
    """
    require(*_LIBRARIES, extra=_EXTRAS)
    if not bundle.NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a valid name for a model")
    from foldserve.training.imports.front_ends import read_model, read_object
    from foldserve.training.imports.imported import Options
    from foldserve.training.imports.pipeline import ImportPlan, run

    known = ranges if isinstance(ranges, Mapping) else {} if ranges is None else {"": ranges}
    options = Options(tuple(features), tuple(labels), output, keep_unknown, Path(layers) if layers else None, known)
    is_file = isinstance(model, str | os.PathLike)
    try:
        given, source = open_table(data, target) if data is not None else (None, None)
        if given is not None:
            given = replace(given, target=given.target if target is not None else None, drop=tuple(drop))
        imported = read_model(Path(model), options) if is_file else read_object(model, options)
        written = run(imported, ImportPlan(name, Path(models), given, known, seed), source)
    except (DataError, InvalidInput, SourceError) as error:
        raise DataError(in_python(str(error))) from error
    for note in written.notes:
        warnings.warn(in_python(note), TableWarning, stacklevel=2)
    return written.bundle
