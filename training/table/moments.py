"""Moments: converts dates and times to whole days or hours since an origin. A `Reading` stores the unit and the origin.

A column of times is stored in whole days if all of its times are midnight, or if they are many centuries apart;
otherwise, it is stored in whole hours. In float32, the number of every day is exact, and the number of every hour
within 1,900 years is exact.
"""

from __future__ import annotations

from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from foldserve.service.bundle import MAX_MOMENT, MOMENT_PATTERN, Reading
from foldserve.training.errors import DataError
from foldserve.training.table.buffers import copy_numbers, find_nulls
from foldserve.training.table.cells import is_text, is_time
from foldserve.training.table.numbers import Values, matches, without_blanks

_DAY = 86_400_000_000  # in microseconds, like all times in this module
_HOUR = _DAY // 24
_ZONED = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})$"


def find_moments(cells: pa.ChunkedArray, missing: tuple[str, ...]) -> tuple[Values, Reading] | None:
    """Return the dates or times of a column as float64 [rows], and the `Reading` that stores their unit and origin. A
    missing value is NaN.

    Returns None in two cases: a cell is not a date or time of ISO 8601, or only some of the cells have a time zone.
    """
    found = _microseconds(cells)
    if found is None:
        return None
    times, absent, zoned = found
    known = times[~absent]
    fits = known.max() - known.min() < MAX_MOMENT * _HOUR - 366 * _DAY
    year = int(known.min().astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64)) + 1970
    step = "hour" if fits and (known % _DAY).any() else "day"
    reading = Reading.model_validate(
        {"missing": missing, "step": step, "origin": date(max(year, 1), 1, 1), "zoned": zoned}
    )
    return _count(times, absent, reading), reading


def read_moments(name: str, cells: pa.ChunkedArray, reading: Reading) -> Values:
    """Convert the dates or times of a column with the unit and origin in `reading`. Raises `DataError` if a cell does
    not fit `reading`.
    """
    found = _microseconds(cells)
    if found is None or found[2] != reading.zoned:
        form = "with a time zone" if reading.zoned else "without a time zone"
        raise DataError(f"column {name!r} must be a date or time {form}, as in the training table")
    values = _count(found[0], found[1], reading)
    if (far := np.abs(values) > MAX_MOMENT).any():
        raise DataError(f"column {name!r}: row {int(far.argmax()) + 1} is too far from the times of the training table")
    return values


def _count(times: npt.NDArray[np.int64], absent: npt.NDArray[np.bool_], reading: Reading) -> Values:
    origin = int(np.datetime64(reading.origin, "us").astype(np.int64))
    return np.where(absent, np.nan, (times - origin) // (_DAY if reading.step == "day" else _HOUR))


def _microseconds(
    cells: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], bool] | None:
    """Return three results: the times as int64 microseconds since 1970 [rows], a bool array [rows] that is True for a
    missing value, and whether the times have a time zone.

    Times with a zone are converted to UTC.
    """
    zoned = False
    if is_text(cells):
        texts = without_blanks(cells)
        if not all(matches(part, MOMENT_PATTERN) for part in (texts.slice(0, 64), texts)):
            return None
        zoned = bool(pc.any(pc.match_substring_regex(texts, _ZONED), min_count=0).as_py())
        cells = pc.replace_substring_regex(texts, r"([.][0-9]{6})[0-9]+", r"\1")
    elif not is_time(cells):
        return None
    elif pa.types.is_timestamp(cells.type):
        zoned = cells.type.tz is not None
    try:
        times = cells.cast(pa.timestamp("us", "UTC" if zoned else None), **({} if is_text(cells) else {"safe": False}))
    except pa.ArrowInvalid:  # the cast fails for a day such as 2023-02-30, and if only some texts have a time zone
        return None
    if times.null_count == len(times):
        return None
    return copy_numbers(times.cast(pa.int64()), 0), find_nulls(times), zoned
