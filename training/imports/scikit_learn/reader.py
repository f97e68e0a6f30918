"""Reads a fitted scikit-learn pipeline as an imported model: from memory, or from a file of skops.

A pickle is never read, because loading it runs its code.
"""

from __future__ import annotations

import copy
import warnings
import zipfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service.bundle import Label, Task
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import check_entries, read_bytes
from foldserve.training.imports.imported import Evaluate, Imported, Options
from foldserve.training.imports.layers import Activation, Affine, Concat, Softmax
from foldserve.training.imports.meaning import choose_names, digest
from foldserve.training.imports.scikit_learn.estimators import map_estimator
from foldserve.training.imports.scikit_learn.steps import map_step, plain
from foldserve.training.imports.scikit_learn.values import Context, Raw, Value
from foldserve.training.table.schema import Column

# skops does not trust the following types by default, although these types contain no code. A fitted MLP contains an
# optimiser.
_DATA_TYPES = (
    "numpy.dtype",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
_MAX_ENTRIES = 10_000


def read(path: Path, options: Options) -> Imported:
    """Read a `.skops` file. Only types that contain no code are loaded. Raises `ModelImportError`."""
    try:
        from skops import io
    except ModuleNotFoundError:
        raise ModelImportError("files of skops need skops: pip install 'foldserve[train]'") from None
    content = read_bytes(path)
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            check_entries(archive.infolist(), _MAX_ENTRIES)
        if untrusted := sorted(set(io.get_untrusted_types(data=content)) - {*_DATA_TYPES}):
            raise ModelImportError(f"{path.name} has types that skops does not trust: {', '.join(untrusted)[:200]}")
        model = io.loads(content, trusted=list(_DATA_TYPES))
    except ModelImportError:
        raise
    except Exception as error:
        # skops raises many kinds of errors for a damaged file.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelImportError(f"can't read {path.name}: {reason}") from error
    return _read(model, options, path.name, sha256(content).hexdigest())


def read_object(model: Any, options: Options) -> Imported:
    """Read a fitted pipeline or estimator that is an object in memory.

    Raises `ModelImportError` with a one-line message.
    """
    return _read(model, options, type(model).__name__, "")


def _read(model: Any, options: Options, file: str, checksum: str) -> Imported:
    import sklearn

    steps = model.steps if type(model).__name__ == "Pipeline" else [(type(model).__name__, model)]
    count = getattr(model, "n_features_in_", None)
    if count is None:
        raise ModelImportError(f"the {type(model).__name__} is not fitted")
    given = tuple(str(name) for name in getattr(model, "feature_names_in_", ()))
    names, notes = choose_names(options.features, given, "--features")
    if len(names) not in (0, count):
        raise ModelImportError(f"--features has {len(names)} names, and the model has {count} features")
    context = Context(names or [f"x{i}" for i in range(count)])
    value: Value = Raw(tuple(range(count)))
    try:
        for name, step in steps[:-1]:
            value = map_step(context, step, value, name)
        last, is_logits = map_estimator(context, steps[-1][1], value, steps[-1][0])
    except (AttributeError, ValueError, KeyError) as error:
        raise ModelImportError(f"the pipeline is not fitted, or it is unusual: {error}") from error
    task: Task = "classification" if is_logits else "regression"
    labels: tuple[Label, ...] = ()
    if is_logits:
        classes = tuple(plain(each) for each in steps[-1][1].classes_)
        labels, renamed = choose_names(options.labels, classes, "--labels")
        notes += renamed
        last = _probabilities(context, last)
    elif options.labels:
        raise ModelImportError("the model gives a value and no classes: leave --labels out")
    columns, network = context.columns(), context.builder.network(last)
    return Imported(
        network=network,
        columns=columns,
        named=bool(names),
        task=task,
        labels=labels,
        framework="scikit-learn",
        framework_version=sklearn.__version__,
        file=file,
        sha256=checksum or digest(network),
        reference=f"scikit-learn {sklearn.__version__}, float64",
        evaluate=_original(model, columns, context.absent, given, is_logits),
        ranges=context.ranges,
        notes=(*notes, *context.notes),
    )


def _probabilities(context: Context, logits: str) -> str:
    builder = context.builder
    if builder.columns[logits] > 1:
        return builder.add("probabilities", "Softmax", Softmax(), logits)
    second = builder.add("second", "Sigmoid", Activation("sigmoid"), logits)
    first = builder.add("first", "Affine", Affine.of(-1, 0, 1, 1), second)
    return builder.add("probabilities", "Concat", Concat(), first, second)


def _original(
    model: Any, columns: tuple[Column, ...], absent: dict[int, Any], names: tuple[str, ...], classify: bool
) -> Evaluate:
    """Return a function that runs the original pipeline on raw rows.

    The function makes the encoders of the pipeline ignore unseen categories.

    absent: for each column that does not use NaN for a missing value, the value that the column uses instead.
    """
    model = copy.deepcopy(model)
    _ignore_unseen(model)

    def evaluate(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        categorical = any(column.categories for column in columns)
        table: Any = np.empty(rows.shape, object if categorical else np.float64)
        for i, column in enumerate(columns):
            is_known = bool(column.categories)
            table[:, i] = _decode(column, rows[:, i], absent.get(i, np.nan)) if is_known else rows[:, i].astype(float)
        if names:
            try:
                import pandas as pd
            except ImportError as error:
                raise ModelImportError(
                    "the pipeline was fitted on a data frame, and the certificate runs it on one: pip install pandas"
                ) from error
            frame = {}
            for i, name in enumerate(names):
                frame[name] = table[:, i] if columns[i].categories else table[:, i].astype(np.float64)
            table = pd.DataFrame(frame)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn warns about unseen categories, which are intended here
            outputs = model.predict_proba(table) if classify else model.predict(table)
        result: npt.NDArray[np.floating[Any]] = np.asarray(outputs, np.float64).reshape(len(rows), -1)
        return result

    return evaluate


def _decode(column: Column, codes: npt.NDArray[np.float32], absent: Any) -> npt.NDArray[Any]:
    """Return the category for each index.

    The index of an unseen category becomes a value that differs from all categories.
    """
    texts = all(isinstance(each, str) for each in column.categories)
    unseen: Any = "\0unseen" if texts else max(each for each in column.categories if not isinstance(each, str)) + 1
    values = np.array([*column.categories, unseen, absent], object)
    place = np.where(np.isnan(codes), len(values) - 1, codes).astype(np.int64)
    return values[np.minimum(place, len(values) - 1)]


def _ignore_unseen(step: Any) -> None:
    if type(step).__name__ == "OneHotEncoder" and step.handle_unknown == "error":
        step.handle_unknown = "ignore"
    parts = [part for _, part in getattr(step, "steps", ())] + [
        part for _, part in getattr(step, "transformer_list", ())
    ]
    for part in [*parts, *(each[1] for each in getattr(step, "transformers_", ()))]:
        _ignore_unseen(part)
