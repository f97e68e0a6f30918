"""Spreadsheets (.xlsx): reads one sheet, whose first row is the header.

A column that has only numbers, only booleans or only dates keeps its type. Any other column becomes a column of texts,
as in a CSV file.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from foldserve.service.errors import SourceError
from foldserve.service.sources.source import Source, check_names, one_line
from foldserve.service.text import join_some


def read(path: Path, sheet: str | None) -> Source:
    """Read the sheet named `sheet`, or the only sheet of the file. Raises `SourceError`."""
    header, *rows = _rows(path, sheet)
    names = check_names(path.name, [_text(cell).strip() for cell in header])
    while rows and not any(cell != "" for cell in rows[-1]):
        rows.pop()
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return Source(path.name, names, len(rows), typed=False, take=lambda name: _column(columns.pop(name)))


def header(path: Path, sheet: str | None) -> tuple[str, ...]:
    """Return the names of the columns. Raises `SourceError`."""
    return check_names(path.name, [_text(cell).strip() for cell in _rows(path, sheet)[0]])


def _rows(path: Path, sheet: str | None) -> list[list[Any]]:
    """Return the rows of a sheet.

    The result has at least one row, and all rows have equal lengths. An empty cell is an empty text.
    """
    try:
        import python_calamine  # imported here because only spreadsheets need the library
    except ImportError:
        raise SourceError(
            f"{path.name}: python-calamine is not installed, which reads .xlsx files: pip install 'foldserve[score]'"
        ) from None
    try:
        with python_calamine.load_workbook(str(path)) as workbook:
            names = workbook.sheet_names
            if sheet is None and len(names) != 1:
                raise SourceError(
                    f"{path.name} has {len(names)} sheets: use --sheet with one of {join_some(names, 10)}"
                )
            if sheet is not None and sheet not in names:
                raise SourceError(f"{path.name} has no sheet {sheet!r}; it has {join_some(names, 10)}")
            rows: list[list[Any]] = workbook.get_sheet_by_name(sheet or names[0]).to_python()
    except python_calamine.CalamineError as error:
        raise SourceError(f"{path.name} can't be read: {one_line(error)}") from None
    if not rows:
        raise SourceError(f"{path.name} is empty")
    return rows


def _column(cells: list[Any]) -> pa.ChunkedArray:
    known = [cell for cell in cells if cell != ""]
    values: list[Any] = [None if cell == "" else cell for cell in cells]
    if all(isinstance(cell, bool) for cell in known):
        found = pa.array(values, pa.bool_() if known else pa.null())
    elif all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in known):
        found = pa.array([None if value is None else float(value) for value in values], pa.float64())
    elif all(isinstance(cell, date) for cell in known):  # datetime is a subclass of date
        moments = [datetime.combine(v, datetime.min.time()) if type(v) is date else v for v in values]
        found = pa.array(moments, pa.timestamp("us"))
    else:
        found = pa.array([None if value is None else _text(value) for value in values], pa.string())
    return pa.chunked_array([found])


def _text(cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).lower() if isinstance(cell, bool) else str(cell)
