"""`foldserve.fit`: reads its arguments, and calls the pipeline of `foldserve-train fit`."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from foldserve.api.errors import TableWarning, in_python
from foldserve.api.extras import require
from foldserve.api.frames import read_columns
from foldserve.service import bundle
from foldserve.service.errors import InvalidInput, SourceError
from foldserve.training.activations import Activation
from foldserve.training.errors import DataError, TrainingError
from foldserve.training.flags import default_name
from foldserve.training.plan import (
    PRESETS,
    Architecture,
    Binned,
    ClassWeight,
    DataOptions,
    Decimal,
    DecisionOptions,
    Device,
    Execution,
    Placement,
    Plan,
    Precision,
    PresetName,
    Rare,
    Recipe,
    Schedule,
    TaskOption,
    Thousands,
)
from foldserve.training.summary import describe_bundle, describe_table

if TYPE_CHECKING:
    from foldserve.service.sources import Source

_LIBRARIES = ("onnxruntime", "pyarrow", "safetensors", "sklearn", "torch")
_EXTRAS = "train,cpu"
_TARGET = "target"


class FitOptions(TypedDict, total=False):
    """The optional arguments of `foldserve.fit`.

    Each argument means the same as a flag of `foldserve-train fit`. docs/training.md explains the flags.

    An option that is not given has the value of the preset.
    """

    test: str | os.PathLike[str]
    task: TaskOption
    categorical: str | Sequence[str]
    numeric: str | Sequence[str]
    boolean: str | Sequence[str]
    drop: str | Sequence[str]
    rare: Rare
    keep_duplicates: bool
    missing: str | Sequence[str]
    sep: str
    encoding: str
    sheet: str
    decimal: Decimal
    thousands: Thousands
    group: str
    time: str
    test_share: float
    validation_share: float
    hidden: int | Sequence[int]
    placement: Placement
    activation: Activation
    members: int
    bins: int
    binned: Binned
    dropout: float
    batch_norm: bool
    input_norm: bool
    eps: float
    momentum: float
    epochs: int
    most_epochs: int
    patience: int
    batch_size: int
    steps: int
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    input_noise: float
    label_smoothing: float
    class_weight: ClassWeight
    calibrate: bool
    precision: Precision
    threshold: str | float
    positive: str
    device: Device
    compile: bool
    checkpoint: str | os.PathLike[str]
    resume: bool


def fit(
    data: Any,
    target: Any = None,
    *,
    preset: PresetName = "fast",
    name: str | None = None,
    models: str | os.PathLike[str] = "models",
    seed: int = 0,
    threads: int = 1,
    progress: bool = False,
    **options: Unpack[FitOptions],
) -> bundle.Bundle:
    """Train on a table, fold every affine step into the Dense weights, certify the result, and write a bundle.

    The training is the same as that of the command `foldserve-train fit`, with the same options and defaults. From the
    same file and options, the function and the command write the same `model.onnx`.

    data: a data frame of pandas or polars, an Arrow table, a dict of columns, an array [rows, columns], or the path of
    a file. The index of a pandas frame is not used. target: the name of the column to predict, by default the last
    column. `target` may also be an array of the values to predict, [rows]. preset: `fast` trains one small network,
    `best` six larger ones. name: the name of the model. If `data` is a file, the default name of the model is the name
    of the file without its suffix. If `data` is a table in memory, the default name of the model is the name of the
    target. models: the folder to write to. seed: the seed of all random numbers. threads: the number of CPU threads of
    the training. progress: whether to print the lines that the command prints. On a terminal, `progress` also shows the
    progress bars. By default nothing is printed, and each note on the table is a `TableWarning`.

    Returns the written bundle, the next version of `name`. Raises `DataError`, which is a `ValueError`, for a table
    that can't be used. Raises `BundleError`, or a subclass of `TrainingError` other than `DataError`, if the training
    or the writing of the bundle fails. Raises `ValueError` for a wrong option, and `MissingExtra` if a library is not
    installed.
    """
    require(*_LIBRARIES, extra=_EXTRAS)
    try:
        given, source = open_table(data, target)
        plan, execution = _plan(given, name, preset, Path(models), seed, threads, options)
        return _run(plan, execution, source, progress=progress)
    except (DataError, InvalidInput, SourceError) as error:
        raise DataError(in_python(str(error))) from error
    except TrainingError as error:
        if type(error).__init__ is not TrainingError.__init__:  # its constructor needs more than a message
            raise
        raise type(error)(in_python(str(error))) from error
    except bundle.BundleError:
        raise
    except ValueError as error:
        raise ValueError(in_python(str(error))) from error


def _run(plan: Plan, execution: Execution, source: Source | None, *, progress: bool) -> bundle.Bundle:
    """Train as `plan` says, and show the notes on the table.

    source: the table in memory; None if the plan names a file.
    """
    from rich.console import Console

    from foldserve.training.fit.distributed import join_processes
    from foldserve.training.pipeline import Context, run
    from foldserve.training.progress import FitProgress, ReadProgress
    from foldserve.training.report.sentences import summarise
    from foldserve.training.table.load import load
    from foldserve.training.table.target import check_decision

    started = time.perf_counter()
    bundle.require_writable(plan.models)
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(join_processes(execution.device))
        console = Console(stderr=True) if progress else Console(file=stack.enter_context(Path(os.devnull).open("w")))
        with ReadProgress(plan.data.source, console) as bar:
            table = load(plan.data, bar.update, source)
        check_decision(plan.decision, table)
        if progress:
            sys.stdout.write(describe_table(table) + "\n")
        with FitProgress(console) as fit_bar:
            context = Context(execution, world, fit_bar.update, fit_bar.update_within_epoch)
            written = run(plan, table, context)
    if written is None:
        raise TrainingError("only the first process of torchrun gets a bundle: call fit in a single process")
    if progress:
        seconds = time.perf_counter() - started
        found = describe_bundle(written.bundle, written.notes, summarise(written.evidence), seconds)
        sys.stdout.write(found + "\n")
    else:
        for note in (*table.notes, *written.notes):
            warnings.warn(in_python(note), TableWarning, stacklevel=3)
    return written.bundle


def open_table(data: Any, target: Any) -> tuple[DataOptions, Source | None]:
    """Return the options that name the table and its target. Also return the table itself if it is in memory, and
    otherwise None.
    """
    if isinstance(data, str | os.PathLike):
        if target is not None and not isinstance(target, str):
            raise DataError("the target of a file must be the name of a column")
        return DataOptions(os.fspath(data), target=target), None
    from foldserve.service.sources import Source

    columns = read_columns(data)
    if isinstance(target, int):  # pandas names columns by numbers if they have no header
        target = str(target)
    names, take, chosen = columns.names, columns.take, target
    if target is not None and not isinstance(target, str):
        chosen = str(getattr(target, "name", None) or _TARGET)
        values = read_columns({chosen: target})
        if chosen in names:
            raise DataError(f"{columns.name} has a column {chosen!r} already: give the target another name")
        if values.rows != columns.rows:
            raise DataError(f"the target has {values.rows} values, and the table has {columns.rows} rows")
        names = (*names, chosen)
        take = lambda name: (values if name == chosen else columns).take(name)  # noqa: E731
    if not columns.rows or not names:
        raise DataError(f"{columns.name} has no rows" if names else f"{columns.name} has no columns")
    kind = type(data).__name__
    return DataOptions(kind, target=chosen or names[-1]), Source(kind, names, columns.rows, typed=True, take=take)


def _plan(
    data: DataOptions,
    name: str | None,
    preset: PresetName,
    models: Path,
    seed: int,
    threads: int,
    options: Mapping[str, Any],
) -> tuple[Plan, Execution]:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}")
    owners = (DataOptions, Architecture, Recipe, DecisionOptions, Execution)
    known = {owner: {each.name for each in fields(owner)} & FitOptions.__annotations__.keys() for owner in owners}
    if unknown := options.keys() - FitOptions.__annotations__.keys():
        raise TypeError(f"fit() got an unexpected keyword argument {min(unknown)!r}")
    given = {
        owner: {key: _setting(key, value) for key, value in options.items() if key in names}
        for owner, names in known.items()
    }
    if name is None and (Path(data.source).suffix or Path(data.source).exists()):
        name = default_name(data.source)
    name = name or data.target or data.source
    if not bundle.NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} can't be the name of a model: letters and digits, with . _ - between them; use name="
        )
    chosen = PRESETS[preset]
    plan = Plan(
        data=replace(data, **given[DataOptions]),
        name=name,
        models=models,
        preset=preset,
        architecture=replace(chosen.architecture, **given[Architecture]),
        recipe=replace(chosen.recipe, **given[Recipe]),
        decision=DecisionOptions(**given[DecisionOptions]),
        seed=seed,
        threads=threads,
    )
    return plan, Execution(**given[Execution])


_TEXTS = ("categorical", "numeric", "boolean", "drop", "missing")


def _setting(key: str, value: Any) -> Any:
    """Convert a value to the type that the plan needs.

    A single text or number becomes a tuple, and a path becomes a Path.
    """
    if key in _TEXTS:
        return (value,) if isinstance(value, str) else tuple(value)
    if key == "hidden":
        return (value,) if isinstance(value, int) else tuple(value)
    if key in ("threshold", "positive"):
        return str(value)
    return Path(value) if key in ("test", "checkpoint") else value
