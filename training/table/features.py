"""Derives the schema of the features and the array `x` from the cells of the columns. The schema of the training table
also encodes the columns of a test file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldserve.training.errors import DataError
from foldserve.training.plan import DataOptions
from foldserve.training.table.categories import MAX_CATEGORIES, category_indices, choose_categories
from foldserve.training.table.cells import Distinct, is_text
from foldserve.training.table.kinds import infer, read_as, read_declared
from foldserve.training.table.missing import first_missing, is_empty
from foldserve.training.table.notation import Marks
from foldserve.training.table.numbers import Values
from foldserve.training.table.schema import Category, Column, Kind
from foldserve.training.table.suspects import identifier_note
from foldserve.training.table.texts import category_note, has_minutes, read_note
from foldserve.training.text import flag_value, join_some

# A column is dropped as free text if it has more distinct texts than this number, and more distinct texts than half of
# its number of rows.
_MAX_FREE_TEXTS = 20
# Some integers above this number are not exact in float32.
_FLOAT32_EXACT = 2**24


class FeatureBuilder:
    """Encodes the columns one after the other, so that memory holds the encoded numbers of all columns, but never the
    cells of more than one column.
    """

    def __init__(self, options: DataOptions, rows: int, columns: int, *, typed: bool) -> None:
        """columns: the largest number of columns that the caller may add. typed: whether the source states the types of
        its cells.
        """
        declared: dict[Kind, tuple[str, ...]]
        declared = {"numeric": options.numeric, "boolean": options.boolean, "categorical": options.categorical}
        self._declared = {name: kind for kind, names in declared.items() for name in names}
        self._marks = Marks.of(options)
        self._typed = typed
        self._time = options.time
        self._columns: list[Column] = []
        self._x = np.empty((rows, columns), np.float32)
        self._notes: list[str] = []
        self._empty: list[str] = []
        self._constant: list[str] = []
        self._minutes: list[str] = []

    def add(self, name: str, cells: pa.ChunkedArray) -> None:
        """Encode a column, or drop the column and add a note with the reason.

        Raises `DataError` for a cell that does not fit the kind of the column.
        """
        if is_empty(cells):
            self._empty.append(name)
            return
        declared = self._declared.get(name)
        kind, found, reading = (
            read_declared(declared, name, cells, self._marks)
            if declared
            else infer(name, cells, self._marks, typed=self._typed)
        )
        categories: tuple[Category, ...] = ()
        if declared is None:
            self._note_texts(name, kind, cells, found)
        if isinstance(found, Distinct):
            if declared is None and self._is_free_text(name, found):
                return
            categories = self._choose_categories(name, found)
            values = category_indices(found, categories)
        else:
            values = found
        missing = np.isnan(values)
        if missing.all():
            self._empty.append(name)
            return
        self._x[:, len(self._columns)] = values
        self._columns.append(Column(name, kind, categories, missing=bool(missing.any()), reading=reading))
        self._note_precision(name, kind, values[~missing])
        if kind == "numeric" and name != self._time and (note := identifier_note(name, values)):
            self.note(note)

    def note(self, text: str) -> None:
        """Append `text` to the notes."""
        self._notes.append(text)

    def finish(self) -> tuple[tuple[Column, ...], npt.NDArray[np.float32], list[str]]:
        """Return the columns of the schema, the array `x` in C order, and the notes."""
        if self._empty:
            self.note(f"dropped, because no row has a value: {join_some(self._empty, 10)}")
        if self._minutes:
            self.note(f"times are read in whole hours, so their minutes are not used: {join_some(self._minutes, 10)}")
        if self._constant:
            self.note(f"constant, and so useless: {join_some(self._constant, 10)}")
        return tuple(self._columns), np.ascontiguousarray(self._x[:, : len(self._columns)]), self._notes

    def _is_free_text(self, name: str, found: Distinct) -> bool:
        """Whether the column has so many different texts that a new row would probably have a text that no training row
        has.

        If the result is true, the method also adds a note.
        """
        different = len(found.used)
        if different <= _MAX_FREE_TEXTS or different * 2 <= found.present:
            return False
        self.note(
            f"column {name!r} was dropped: most of its values are different ({different:,} texts in "
            f"{found.present:,} rows); use --categorical {flag_value(name)} to keep it"
        )
        return True

    def _note_texts(self, name: str, kind: Kind, cells: pa.ChunkedArray, found: Values | Distinct) -> None:
        note = None
        if isinstance(found, Distinct):
            note = category_note(name, cells, found, typed=self._typed)
        elif self._typed and is_text(cells):
            note = read_note(name, kind)
        if note:
            self.note(note)
        if kind == "time" and has_minutes(cells):
            self._minutes.append(name)

    def _choose_categories(self, name: str, found: Distinct) -> tuple[Category, ...]:
        categories, others = choose_categories(found)
        if others:
            self.note(
                f"column {name!r} has {len(found.used):,} categories; the {MAX_CATEGORIES:,} most frequent are kept, "
                f"and {others:,} rows have another one"
            )
        return categories

    def _note_precision(self, name: str, kind: Kind, values: Values) -> None:
        low, high = float(values.min()), float(values.max())
        if low == high:
            self._constant.append(name)
        largest = max(-low, high)
        if kind == "numeric" and largest > _FLOAT32_EXACT and bool((values != values.astype(np.float32)).any()):
            step = float(np.spacing(np.float32(largest))) / 2
            self.note(f"column {name!r} is rounded to float32, by up to {step:g} at {largest:.9g}")


def encode(column: Column, cells: pa.ChunkedArray, absent: str) -> Values:
    """Encode a column of a test file with the schema of the training table. Return float64 [rows].

    absent: the part of the error message that says why a missing value is not allowed. Raises `DataError` for a cell
    that does not fit the schema. Also raises `DataError` for a missing value if the column has no missing values in the
    training table.
    """
    found = read_as(column.kind, column.name, cells, column.reading)
    values = category_indices(found, column.categories) if isinstance(found, Distinct) else found
    if not column.missing and (row := first_missing(values)):
        raise DataError(f"column {column.name!r}: row {row} has no value, but {absent}")
    return values
