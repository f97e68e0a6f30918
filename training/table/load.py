"""Load a table: read a source, and return its features, its target and its schema.

    service/sources/ (file -> cells) -> missing.py, numbers.py, notation.py, kinds.py, categories.py (cells -> values)
        -> target.py, features.py, split_keys.py -> schema.Table

Only the training table decides the schema. A test file is read with the schema of the training table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.service import sources
from foldserve.service.errors import SourceError
from foldserve.service.sources import OnRead, ReadOptions, Source
from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.built_in import BUILT_IN
from foldserve.training.table.cells import simplify
from foldserve.training.table.duplicates import leave_out_duplicates
from foldserve.training.table.features import FeatureBuilder, encode
from foldserve.training.table.kinds import find_boolean
from foldserve.training.table.missing import remove_missing
from foldserve.training.table.numbers import number_column
from foldserve.training.table.schema import Column, Split, Table
from foldserve.training.table.split_keys import read_group, read_time
from foldserve.training.table.suspects import leak_notes
from foldserve.training.table.target import read_target, read_test_target, settle_rare_classes
from foldserve.training.text import join_some


def load(options: DataOptions, on_read: OnRead = lambda _: None, source: Source | None = None) -> Table:
    """Read the table that `options` describes. If `options` does not state the kind of a column, the function infers
    the kind.

    on_read: a function that is called with the finished share of the work, from 0 to 1. source: the table, if it is
    already in memory; `options.source` is then only the name of the table. If there is a test file, its column names
    are checked, but its rows are not read. Raises `DataError` with a message of one line, which names the column or
    row.
    """
    source = source or _open(options.source, options, on_read, options.more)
    target = options.target or source.names[-1]
    _check_flags(options, source, target)
    if len(source.names) == 1:
        sep = "" if source.typed else "; if another character separates its cells, use --sep"
        raise DataError(f"{source.name} has only one column, {target!r}, and needs a feature and a target{sep}")
    notes = [*source.notes, *_check_test_file(options, source.names, target)]
    read = read_target(target, _take(source, target, options), options, typed=source.typed)
    read, rows, rare_notes = settle_rare_classes(target, read, 2 if options.test else 3, options.rare)
    source = source if rows is None else source.select(rows)
    notes += rare_notes
    group = None if options.group is None else read_group(options.group, _take(source, options.group, options))
    time_cells = None if options.time is None else _take(source, options.time, options)
    time = None if options.time is None else read_time(options.time, time_cells)
    dropped = {target, options.group, *options.drop}
    names = [name for name in source.names if name not in dropped]
    builder = FeatureBuilder(options, len(read.y), len(names), typed=source.typed)
    for position, name in enumerate(names, start=1):
        cells = time_cells if name == options.time else _take(source, name, options)
        if name == options.time and number_column(cells) is None:
            builder.note(f"column {name!r} gives the time of the rows and is not a feature")
        else:
            builder.add(name, cells)
        on_read(0.5 + position / len(names) / 2)
    columns, x, noted = builder.finish()
    if not columns:
        raise DataError(f"{source.name} has no feature besides the target, {target!r}")
    kept = {target, *(column.name for column in columns)}
    table = Table(
        *(source.name, read.task, target, columns, x, read.y, read.labels, group, time),
        notes=(*notes, *noted),
        target_reading=read.reading,
        rare=read.rare,
        left_out=tuple(name for name in source.names if name not in kept),
    )
    return replace(table, notes=(*table.notes, *leak_notes(table)))


def load_test(options: DataOptions, table: Table, on_read: OnRead = lambda _: None) -> Table:
    """Read the file `options.test` with the schema of `table`.

    The function finds columns by their names. A category that the schema does not list gets the index len(categories).
    Raises `DataError` for a missing column, for an unknown label, and for a cell that does not fit the schema. Also
    raises `DataError` for a missing value if the column has no missing values in `table`.
    """
    source = _open(str(options.test), options, on_read)
    _check_test_file(options, (*table.features, table.target), table.target)
    test = _read_with_schema(source, options, table, on_read)
    if len(test.y) < 2:
        raise DataError(f"{source.name} has 1 row: a test file needs at least 2")
    return test


def load_for_model(options: DataOptions, table: Table, *, by_position: bool, given: Source | None = None) -> Table:
    """Read the table that `options` describes, and use the schema of a trained model.

    table: the schema of the model, in a table without rows. If `options.target` is None, the rows get no targets.
    by_position: True if the model has no names of features, so that the columns are found by their positions. If
    `by_position` is true, the features in the schema get the names of the columns. given: the table, if it is already
    in memory. A numeric feature becomes boolean if the cells of its column are true and false; a note says so. Raises
    `DataError` if a column is missing, or if a cell does not fit the schema.
    """
    source = given or _open(options.source, options, lambda _: None, options.more)
    _check_flags(options, source, options.target or "")
    names = [name for name in source.names if name != options.target and name not in options.drop]
    if by_position:
        if len(names) != len(table.columns):
            columns = f"{len(names)} columns besides the target" if options.target else f"{len(names)} columns"
            raise DataError(
                f"{source.name} has {columns}, and the model has {len(table.columns)} features without names; "
                "name the columns with --features, or leave columns out with --drop"
            )
        columns_by_position = zip(table.columns, names, strict=True)
        table = replace(table, columns=tuple(replace(column, name=name) for column, name in columns_by_position))
    if lacking := [column.name for column in table.columns if column.name not in source.names]:
        raise DataError(
            f"{source.name} has no column {lacking[0]!r}, a feature of the model; it has "
            f"{join_some(source.names, 10)}; name the features in the order of the model with --features"
        )
    unused = [name for name in names if name not in table.features]
    notes = [f"columns of {source.name} that the model does not use: {join_some(unused, 10)}"] if unused else []
    table = replace(table, target=options.target or "", notes=(*table.notes, *source.notes, *notes))
    read = _read_with_schema(source, options, table, lambda _: None, is_imported=True)
    before = {column.name: column.kind for column in table.columns}
    changed = [column.name for column in read.columns if column.kind != before[column.name]]
    said = [f"boolean columns, which the model reads as 1 for true and 0 for false: {join_some(changed, 10)}"]
    return replace(read, notes=(*table.notes, *(said if changed else [])), left_out=tuple(unused))


def _as_boolean(column: Column, cells: pa.ChunkedArray, options: DataOptions, *, typed: bool) -> Column:
    """Return a copy of `column` with the kind `boolean` if `column` is numeric and its cells are true and false."""
    is_boolean, reading = find_boolean(cells, options.missing, typed=typed)
    return replace(column, kind="boolean", reading=reading) if is_boolean and column.kind == "numeric" else column


def _read_with_schema(
    source: Source, options: DataOptions, table: Table, on_read: OnRead, *, is_imported: bool = False
) -> Table:
    """Read the rows of `source` with the schema of `table`. If `table` has no target, `y` is empty.

    is_imported: whether the schema comes from a model of another framework. An imported model does not distinguish
    numbers from booleans, so the cells decide whether a column is boolean.
    """
    x = np.empty((source.rows, len(table.columns)), np.float32)
    y: npt.NDArray[Any] = np.empty(0)
    absent = "every row of the training table has one"
    if is_imported:
        absent = "the model accepts no missing value in this column: fill the cell, or leave the row out"
    columns = []
    try:
        if table.target:
            y, rows = read_test_target(_take(source, table.target, options), table, options.rare)
            source, x = (source, x) if rows is None else (source.select(rows), x[: len(rows)])
        for index, column in enumerate(table.columns):
            cells = _take(source, column.name, options)
            columns.append(_as_boolean(column, cells, options, typed=source.typed) if is_imported else column)
            x[:, index] = encode(columns[-1], cells, absent)
            on_read(0.5 + (index + 1) / len(table.columns) / 2)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None
    return replace(table, source=source.name, columns=tuple(columns), x=x, y=y, group=None, time=None, notes=())


def load_held_out(options: DataOptions, table: Table, split: Split, on_read: OnRead = lambda _: None) -> Table:
    """Return the test rows. The test rows come from the test file if there is one, and otherwise from `table`.

    A test row that is equal to a training or validation row is left out, unless `options.keep_duplicates` is true. A
    note says how many test rows are equal to training or validation rows.
    """
    test = load_test(options, table, on_read) if options.test else table.select(split.test)
    seen = np.concatenate([split.train, split.validation])
    return leave_out_duplicates(test, table, seen, keep=options.keep_duplicates)


def _read_options(options: DataOptions) -> ReadOptions:
    return ReadOptions(options.missing, options.sep, options.encoding, options.sheet)


def _open(name: str, options: DataOptions, on_read: OnRead, more: Sequence[str] = ()) -> Source:
    with _refusing():
        return sources.read(name, _read_options(options), lambda share: on_read(share / 2), more, BUILT_IN)


def _take(source: Source, name: str, options: DataOptions) -> pa.ChunkedArray:
    with _refusing():
        cells = source.take(name)
    return remove_missing(simplify(name, cells), options.missing)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn a `SourceError` into a `DataError`."""
    try:
        yield
    except SourceError as error:
        raise DataError(str(error)) from error


def _check_flags(options: DataOptions, source: Source, target: str) -> None:
    """Raise `DataError` if a flag names a column that does not exist, or if a flag other than --target names the
    target.
    """
    single = {"target": options.target, "group": options.group, "time": options.time}
    several = {kind: getattr(options, kind) for kind in ("categorical", "numeric", "boolean", "drop")}
    given = [(flag, name) for flag, name in single.items() if name is not None]
    given += [(flag, name) for flag, names in several.items() for name in names]
    for flag, name in given:
        if name not in source.names:
            raise DataError(f"--{flag}: {source.name} has no column {name!r}; it has {join_some(source.names, 10)}")
        if flag != "target" and name == target:
            raise DataError(f"--{flag}: column {name!r} is the target")


def _check_test_file(options: DataOptions, names: tuple[str, ...], target: str) -> list[str]:
    """Return a note that lists the unused columns of the test file. If all columns are used, return no note.

    Raises `DataError` if the test file lacks a column. The function reads only the header, so that the user sees the
    error before the training starts.
    """
    if options.test is None:
        return []
    with _refusing():
        found = sources.header(str(options.test), _read_options(options))
    optional = {*options.drop, options.group}
    if lacking := [name for name in names if name not in found and name not in optional]:
        role = "the target" if lacking[0] == target else "a column of the training table"
        raise DataError(f"{options.test.name} has no column {lacking[0]!r}, {role}; it has {join_some(found, 10)}")
    extra = [name for name in found if name not in names]
    return [f"columns of {options.test.name} that are not in the table: {join_some(extra, 10)}"] if extra else []
