"""The table: from a source's cells to float32 features and one target, with a schema that another file can be read by.

    sources.py (file -> cells) -> cells.py (cells -> numbers) -> here -> split.py (which rows learn)

It knows no network. A schema is made from the training table alone; a test file is encoded by it.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service.bundle import Label, Task
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions, TaskOption
from foldserve.training.table import cells, sources
from foldserve.training.table.cells import MAX_CATEGORIES, Distinct
from foldserve.training.table.cells import Category as Category
from foldserve.training.table.cells import Kind as Kind
from foldserve.training.table.sources import Source
from foldserve.training.table.split import Rows as Rows
from foldserve.training.table.split import Split as Split
from foldserve.training.table.split import split as split
from foldserve.training.text import join_some

MAX_CLASSES = 4_096

# Numbers of at most so many different values, all whole, are classes.
_FEW = 20
# Above this number of rows the whole numbers of a float32 are no longer all there.
_FLOAT32_EXACT = 2**24

Hook = Callable[[float], None]


@dataclass(frozen=True)
class Column:
    """One feature.

    categories: the values of index 0, 1, ..., sorted: texts, or numbers where every cell is one; () for another kind.
    missing: whether some row of the table has no value.
    """

    name: str
    kind: Kind
    categories: tuple[Category, ...] = ()
    missing: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be learned from.

    x: float32 [rows, features], raw values: a number, a boolean's 0 or 1, a category's index, and len(categories) for
    one that is not in `categories`; NaN for no value. No infinities.
    y: classification: int64 [rows], indices into `labels`; regression: float64 [rows], finite.
    labels: the classes in index order, in the table's own JSON type; () for regression.
    group: int64 [rows], equal for rows to be kept together; time: float64 or int64 [rows], later is larger; None each
    where not asked for.
    notes: what the user should know of the reading, a line each.
    """

    source: str
    task: Task
    target: str
    columns: tuple[Column, ...]
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    labels: tuple[Label, ...]
    group: npt.NDArray[np.int64] | None = None
    time: npt.NDArray[Any] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def outputs(self) -> int:
        """How many columns a model of it gives: one a class, or the value."""
        return len(self.labels) or 1

    def rows(self, chosen: Rows) -> Table:
        """The table of the chosen rows, with the same schema."""
        group = None if self.group is None else self.group[chosen]
        time = None if self.time is None else self.time[chosen]
        return replace(self, x=self.x[chosen], y=self.y[chosen], group=group, time=time)

    def sha256(self) -> str:
        """Hash what is learned from: schema, labels, values, all in little-endian order."""
        digest = hashlib.sha256()
        schema = [(column.name, column.kind, column.categories, column.missing) for column in self.columns]
        digest.update(repr((self.task, self.target, schema, self.labels)).encode())
        digest.update(np.ascontiguousarray(self.x, "<f4").data)
        digest.update(np.ascontiguousarray(self.y, "<i8" if self.labels else "<f8").data)
        return digest.hexdigest()


def load(options: DataOptions, on_read: Hook = lambda _: None) -> Table:
    """Read the table that `options` describes, and infer what it doesn't say.

    on_read: gets the share of the work that is done, 0 to 1. Of a test file the names of the columns are
    checked, and its rows are not looked at. Raises `DataError`, in one line that names the column or row.
    """
    source = sources.read(options.source, options.missing, lambda share: on_read(share / 2))
    _check_names(options, source.names, source.name)
    target = options.target or source.names[-1]
    notes = list(source.notes) + _check_test(options, source.names, target)
    task, y, labels = _target(target, _take(source, target, options), options, typed=_typed(options.source))
    _check_classes(y, labels, 2 if options.test else 3)
    group, time, at_hand = _order(source, options)
    builder = _Builder(options, len(y), typed=_typed(options.source), notes=notes)
    left_out = {target, options.group, *options.drop}
    wanted = [name for name in source.names if name not in left_out]
    for place, name in enumerate(wanted):
        column = at_hand[name] if name in at_hand else _take(source, name, options)
        if name == options.time and cells.number_column(column) is None:
            notes.append(f"column {name!r} is the time of the rows, no feature")
        else:
            builder.add(name, column, len(wanted))
        on_read(0.5 + (place + 1) / len(wanted) / 2)
    columns, x = builder.finish()
    if not columns:
        raise DataError(f"{source.name} has no column to learn from beside the target, {target!r}")
    return Table(source.name, task, target, columns, x, y, labels, group, time, tuple(notes))


def load_test(options: DataOptions, table: Table, on_read: Hook = lambda _: None) -> Table:
    """Read `options.test` by the schema of `table`: columns by name, an unseen category is the reserved index.

    Raises `DataError` for a missing column, a missing value where the table has none, an unseen label, a bad cell.
    """
    source = sources.read(str(options.test), options.missing, lambda share: on_read(share / 2))
    _check_test(options, (*table.features, table.target), table.target)
    x = np.empty((source.rows, len(table.columns)), np.float32)
    try:
        y = _like_target(_take(source, table.target, options), table)
        for place, column in enumerate(table.columns):
            x[:, place] = _like(column, _take(source, column.name, options))
            on_read(0.5 + (place + 1) / len(table.columns) / 2)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None
    if len(y) < 2:
        raise DataError(f"{source.name} has 1 row: 2 at least are needed to report on")
    return replace(table, source=source.name, x=x, y=y, group=None, time=None, notes=())


def held_out(options: DataOptions, table: Table, parts: Split, on_read: Hook = lambda _: None) -> Table:
    """The rows to report on: the test file's, read only now, or the table's own."""
    return load_test(options, table, on_read) if options.test else table.rows(parts.test)


# Names ----------------------------------------------------------------------------------------------------------------


def _typed(source: str) -> bool:
    return source in sources.BUILT_IN or source.lower().endswith((".parquet", ".npz"))


def _take(source: Source, name: str, options: DataOptions) -> pa.ChunkedArray:
    return cells.without(cells.plain(name, source.take(name)), options.missing)


def _check_names(options: DataOptions, names: tuple[str, ...], source: str) -> None:
    target = options.target or names[-1]
    single = {"target": options.target, "group": options.group, "time": options.time}
    many = {kind: getattr(options, kind) for kind in ("categorical", "numeric", "boolean", "drop")}
    asked = [(flag, name) for flag, name in single.items() if name is not None]
    asked += [(flag, name) for flag, listed in many.items() for name in listed]
    for flag, name in asked:
        if name not in names:
            raise DataError(f"--{flag}: {source} has no column {name!r}; it has {join_some(names, 10)}")
        if flag != "target" and name == target:
            raise DataError(f"--{flag}: column {name!r} is the target")


def _check_test(options: DataOptions, names: tuple[str, ...], target: str) -> list[str]:
    """Refuse a test file that lacks a column, before the training rather than after it; note what it has beside."""
    if options.test is None:
        return []
    there = sources.header(str(options.test))
    not_needed = {*options.drop, options.group}
    if lacking := [name for name in names if name not in there and name not in not_needed]:
        what = "the target" if lacking[0] == target else "a column of the table"
        raise DataError(f"{options.test.name} has no column {lacking[0]!r}, {what}; it has {join_some(there, 10)}")
    extra = [name for name in there if name not in names]
    return [f"columns of {options.test.name} that the table has not: {join_some(extra, 10)}"] if extra else []


# Rows that belong together --------------------------------------------------------------------------------------------


def _order(
    source: Source, options: DataOptions
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[Any] | None, dict[str, pa.ChunkedArray]]:
    """Group and time of the rows, and the cells of the time column, which may be a feature as well."""
    group = time = None
    at_hand = {}
    if options.group is not None:
        group = cells.distinct(_take(source, options.group, options)).codes
        _require_values(options.group, "the group", group)
    if options.time is not None:
        at_hand[options.time] = _take(source, options.time, options)
        time = _time(options.time, at_hand[options.time])
    return group, time, at_hand


def _time(name: str, column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Numbers, or microseconds since 1970 where the cells are dates or points in time, in ISO 8601 if texts."""
    values: npt.NDArray[Any] | None = cells.number_column(column)
    if values is None:
        try:
            moments = (
                column.cast(pa.timestamp("us")) if cells.is_text(column) else column.cast(pa.timestamp("us"), False)
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(
                f"column {name!r} is no time: expected numbers, or dates as 2024-12-31 or 2024-12-31T23:59:59"
            ) from None
        codes = moments.cast(pa.int64())
        missing = np.concatenate([chunk.is_null().to_numpy(zero_copy_only=False) for chunk in codes.chunks])
        _require_values(name, "the time", np.where(missing, -1, 0))
        return np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in codes.chunks])
    _require_values(name, "the time", values)
    return values


def _require_values(name: str, role: str, values: npt.NDArray[Any]) -> None:
    if row := cells.first_missing(values):
        raise DataError(f"column {name!r}, {role}: row {row} has no value")


# Target ---------------------------------------------------------------------------------------------------------------


def _target(
    name: str, column: pa.ChunkedArray, options: DataOptions, *, typed: bool
) -> tuple[Task, npt.NDArray[Any], tuple[Label, ...]]:
    numbers = _numbers(column, options, typed=typed)
    found = cells.distinct(column) if numbers is None else None
    task = _task(name, options.task, numbers, found)
    if task == "regression":
        values = cells.numeric(name, column)
        _require_values(name, "the target", values)
        if (values == values[0]).all():
            raise DataError(f"column {name!r}, the target, has one value only, {values[0]:g}")
        return "regression", values, ()
    found = found or cells.distinct(column)
    if numbers is not None:
        # NaN in one spelling or another is no class.
        _require_values(name, "the target", numbers)
        if row := cells.first_missing(np.where(np.isinf(numbers), np.nan, numbers)):
            raise DataError(f"column {name!r}, the target: row {row} is infinite")
    _require_values(name, "the target", found.codes)
    if len(found.values) > MAX_CLASSES:
        raise DataError(
            f"column {name!r}, the target, has {len(found.values):,} classes: {MAX_CLASSES:,} at most can be told apart"
            + ("; is it --task regression?" if numbers is not None else "")
        )
    by_code = _labels(found, numbers is not None)
    labels = tuple(sorted(set(by_code)))
    if len(labels) < 2:
        raise DataError(f"column {name!r}, the target, has one class only, {labels[0]!r}")
    places = {label: place for place, label in enumerate(labels)}
    return "classification", np.array([places[label] for label in by_code], np.int64)[found.codes], labels


def _numbers(column: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> npt.NDArray[np.float64] | None:
    """The target as numbers, unless its cells are texts to their source, or codes."""
    if options.task != "regression" and ((typed and cells.is_text(column)) or cells.has_codes(column)):
        return None
    return cells.number_column(column)


def _task(name: str, asked: TaskOption, numbers: npt.NDArray[np.float64] | None, found: Distinct | None) -> Task:
    if asked != "auto":
        return asked
    if numbers is None:
        if found is not None and (wrong := cells.nearly_numeric(found)):
            raise DataError(
                f"column {name!r}, the target, looks numeric, but {wrong}; mend it, or --task classification"
            )
        return "classification"
    values = numbers[np.isfinite(numbers)]
    few = len(np.unique(values)) <= _FEW and bool((values == np.rint(values)).all())
    return "classification" if few else "regression"


def _labels(found: Distinct, numeric: bool) -> list[Any]:
    """Every distinct value as a label, in the table's own JSON type: whole numbers, numbers, booleans, or texts."""
    if numeric:
        whole = [cells.whole(value) for value in found.values]
        if all(value is not None and -(2**63) <= value < 2**63 for value in whole):
            return whole
        return [float(value) for value in found.values]
    return cells.truths(found) or [str(value) for value in found.values]


def _check_classes(y: npt.NDArray[Any], labels: tuple[Label, ...], least: int) -> None:
    for label, rows in zip(labels, np.bincount(y, minlength=len(labels)) if labels else (), strict=True):
        if rows < least:
            count = f"{rows} row" + ("" if rows == 1 else "s")
            raise DataError(f"class {label!r} has {count}: it needs {least}, one in each part of the split")


def _like_target(column: pa.ChunkedArray, table: Table) -> npt.NDArray[Any]:
    if table.task == "regression":
        values = cells.numeric(table.target, column)
        _require_values(table.target, "the target", values)
        return values
    found = cells.distinct(column)
    _require_values(table.target, "the target", found.codes)
    # 1 and 1.0 are one class, and so one key; True is not, though Python takes it for 1.
    places = {(type(label) is bool, label): place for place, label in enumerate(table.labels)}
    numeric = not isinstance(table.labels[0], str | bool) and cells.number_column(column) is not None
    labels = _labels(found, numeric) if not isinstance(table.labels[0], str) else list(map(str, found.values))
    by_code = np.array([places.get((type(label) is bool, label), -1) for label in labels], np.int64)
    y = by_code[found.codes]
    if row := cells.first_missing(y):
        label = found.values[found.codes[row - 1]]
        raise DataError(f"column {table.target!r}, the target: row {row} is {label!r}, no class of the table")
    return y


# Features -------------------------------------------------------------------------------------------------------------


class _Builder:
    """Encodes one column after the other, so that the cells of one alone need be held beside the numbers of all."""

    def __init__(self, options: DataOptions, rows: int, *, typed: bool, notes: list[str]) -> None:
        declared: dict[Kind, tuple[str, ...]]
        declared = {"numeric": options.numeric, "boolean": options.boolean, "categorical": options.categorical}
        self._declared = {name: kind for kind, names in declared.items() for name in names}
        self._typed, self._rows, self._notes = typed, rows, notes
        self._columns: list[Column] = []
        self._x = np.empty((rows, 0), np.float32)
        self._empty: list[str] = []
        self._constant: list[str] = []

    def add(self, name: str, column: pa.ChunkedArray, of: int) -> None:
        """Encode a column of `of`, or leave it out and note why."""
        if not self._columns:
            self._x = np.empty((self._rows, of), np.float32)
        declared = self._declared.get(name)
        if cells.is_empty(column):
            self._empty.append(name)
            return
        kind, found = self._read(name, column, declared)
        if isinstance(found, Distinct):
            known = self._categories(name, found, declared is not None)
            if known is None:
                return
            values, schema = cells.index(found, known), Column(name, kind, known)
        else:
            values, schema = found, Column(name, kind)
        missing = np.isnan(values)
        if missing.all():
            self._empty.append(name)
            return
        self._x[:, len(self._columns)] = values
        self._columns.append(replace(schema, missing=bool(missing.any())))
        self._look(name, kind, values[~missing])

    def _read(
        self, name: str, column: pa.ChunkedArray, declared: Kind | None
    ) -> tuple[Kind, npt.NDArray[np.float64] | Distinct]:
        if declared == "numeric":
            return declared, cells.numeric(name, column)
        if declared == "boolean":
            return declared, cells.boolean(name, column)
        if declared == "categorical":
            return declared, cells.distinct(column)
        return cells.infer(name, column, typed=self._typed)

    def _categories(self, name: str, found: Distinct, declared: bool) -> tuple[Category, ...] | None:
        """The categories to tell apart; None for a column of names, of which nothing can be learned by heart."""
        different = int(np.count_nonzero(found.counts))
        if not declared and different > _FEW and different * 2 > found.present:
            self._notes.append(
                f"column {name!r} left out: {different:,} different texts in {found.present:,} rows tell nothing of "
                f"the next; --categorical {cells.listed(name)} keeps it"
            )
            return None
        if not declared and cells.are_dates(found):
            self._notes.append(
                f"column {name!r} holds dates, as categories: a later date is unseen; make a number of it, "
                f"--time {shlex.quote(name)} to split by it, or --drop {cells.listed(name)}"
            )
        known, others = cells.categories(found)
        if others:
            self._notes.append(
                f"column {name!r}: of {different:,} categories the {MAX_CATEGORIES:,} most frequent are told apart; "
                f"{others:,} rows have another"
            )
        return known

    def _look(self, name: str, kind: Kind, values: npt.NDArray[np.float64]) -> None:
        low, high = float(values.min()), float(values.max())
        if low == high:
            self._constant.append(name)
        largest = max(-low, high)
        if kind == "numeric" and largest > _FLOAT32_EXACT and bool((values != values.astype(np.float32)).any()):
            step = float(np.spacing(np.float32(largest))) / 2
            self._notes.append(f"column {name!r} is rounded to float32, by up to {step:g} at {largest:.9g}")

    def finish(self) -> tuple[tuple[Column, ...], npt.NDArray[np.float32]]:
        """The schema and the features, C order."""
        if self._empty:
            self._notes.append(f"left out, without a value in any row: {join_some(self._empty, 10)}")
        if self._constant:
            self._notes.append(f"constant, and so of no use: {join_some(self._constant, 10)}")
        return tuple(self._columns), np.ascontiguousarray(self._x[:, : len(self._columns)])


def _like(column: Column, read: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    if column.kind == "numeric":
        values = cells.numeric(column.name, read)
    elif column.kind == "boolean":
        values = cells.boolean(column.name, read)
    else:
        values = cells.index(cells.distinct(read), column.categories)
    if not column.missing and (row := cells.first_missing(values)):
        raise DataError(f"column {column.name!r}: row {row} has no value, and the training table has no such row")
    return values
