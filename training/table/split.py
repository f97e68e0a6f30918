"""Splits: which rows a model learns from, which it stops by, and which it is reported on.

Drawn class by class with a seed; or by whole groups, so that nobody is on both sides; or by time, so that the future
is not known. It knows no columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foldserve.training.errors import DataError

if TYPE_CHECKING:
    from foldserve.training.table.load import Table

Rows = npt.NDArray[np.int64]

# Two to train on, since a BN has no statistics of one; two to report on; one to stop by, two if by R2.
_MIN_ROWS = 5
# Groups are of all sizes and mixtures: of this many draws the one nearest to the shares is taken.
_DRAWS = 16


@dataclass(frozen=True)
class Split:
    """Row indices, int64, ascending, disjoint: rows to fit on, to stop by, and to report on.

    test: empty where the rows to report on are those of a test file.
    """

    train: Rows
    validation: Rows
    test: Rows


def split(table: Table, *, test: float, validation: float, seed: int) -> Split:
    """Divide the rows of `table`; `test` and `validation` are shares of them, `test` 0 for a table with a test file.

    Class by class, so that each class is in every part; where the table has groups, by whole groups, and by the whole
    values of its time otherwise. Raises `DataError` when there are too few rows, groups or moments for that.
    """
    least = _MIN_ROWS if table.labels else _MIN_ROWS + 1
    if len(table.y) < least:
        raise DataError(f"{len(table.y)} rows are too few: at least {least} are needed")
    if table.group is not None:
        parts = _by_group(table, table.group, (test, validation), np.random.default_rng(seed))
    elif table.time is not None:
        parts = _by_time(table.time, (test, validation))
    else:
        parts = _by_class(table, test, validation, np.random.default_rng(seed))
    held_out, stop, train = (np.sort(part) for part in parts)
    for name, rows in (("train on", train), ("stop by", stop)) + ((("report on", held_out),) if test else ()):
        if len(rows) < (1 if table.labels else 2):
            count = f"{len(rows)} row" + ("" if len(rows) == 1 else "s")
            raise DataError(f"the split leaves {count} to {name}, too few of a regression")
    _check_classes(table, train)
    return Split(train, stop, held_out)


def _check_classes(table: Table, train: Rows) -> None:
    counts = np.bincount(table.y[train], minlength=len(table.labels)) if table.labels else np.ones(1)
    if not counts.all():
        raise DataError(f"the split leaves class {table.labels[int(counts.argmin())]!r} without a row to train on")


def _by_class(table: Table, test: float, validation: float, generator: np.random.Generator) -> list[Rows]:
    classes = [np.flatnonzero(table.y == index) for index in range(len(table.labels))] or [np.arange(len(table.y))]
    least = 1 if table.labels else 2  # of one row there is no R2, and no BN
    parts = [_cut(generator.permutation(rows), test, validation, least) for rows in classes]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _cut(rows: Rows, test: float, validation: float, least: int) -> tuple[Rows, Rows, Rows]:
    count = len(rows)
    held_out = min(max(round(test * count), least), count - 2 * least) if test else 0
    stop = min(max(round(validation * count), least), count - held_out - least)
    return rows[:held_out], rows[held_out : held_out + stop], rows[held_out + stop :]


def _by_time(time: npt.NDArray[Any], shares: Sequence[float]) -> list[Rows]:
    """The latest rows first; rows of the same time stay together."""
    moments, of = np.unique(time, return_inverse=True)
    if len(moments) < 1 + sum(share > 0 for share in shares):
        raise DataError(f"the time column has {len(moments)} different values, too few to split by")
    latest_first = len(moments) - 1 - of
    return _portion(latest_first, np.bincount(latest_first), shares)


def _portion(of: Rows, sizes: npt.NDArray[np.int64], shares: Sequence[float]) -> list[Rows]:
    """Give the units 0, 1, ... (`of` says each row's, `sizes` their rows) to one part after the other.

    A part ends where its share is nearest, and takes one unit at least; the rest is the last part.
    """
    ends = np.cumsum(sizes)
    parts, first, wanted = [], 0, 0.0
    for place, share in enumerate(shares):
        wanted += share * len(of)
        left = sum(later > 0 for later in shares[place + 1 :])
        last = first
        if share:
            nearest = int(np.abs(ends - wanted).argmin()) + 1
            last = min(max(nearest, first + 1), len(sizes) - 1 - left)
        parts.append(np.flatnonzero((of >= first) & (of < last)))
        first = last
    return [*parts, np.flatnonzero(of >= first)]


def _by_group(table: Table, group: Rows, shares: tuple[float, float], generator: np.random.Generator) -> list[Rows]:
    groups, of = np.unique(group, return_inverse=True)
    if len(groups) < 1 + sum(share > 0 for share in shares):
        raise DataError(f"the group column has {len(groups)} different values, too few to split by")
    sizes = np.bincount(of)
    best: tuple[float, list[Rows]] | None = None
    for _ in range(_DRAWS):
        order = generator.permutation(len(groups))
        place = np.empty_like(order)
        place[order] = np.arange(len(groups))
        parts = _portion(place[of], sizes[order], shares)
        off = _off(table, parts, shares)
        if best is None or off < best[0]:
            best = off, parts
    return best[1] if best else []


def _off(table: Table, parts: Sequence[Rows], shares: tuple[float, float]) -> float:
    """How far the parts are from their shares, and each class from its share in every part; more for a class that is
    not trained on."""
    rows, classes = len(table.y), len(table.labels)
    off = sum(abs(len(part) / rows - share) for part, share in zip(parts, shares, strict=False))
    if not classes:
        return off
    whole = np.bincount(table.y, minlength=classes) / rows
    for part in parts:
        if len(part):
            off += float(np.abs(np.bincount(table.y[part], minlength=classes) / len(part) - whole).max())
    return off + float((np.bincount(table.y[parts[-1]], minlength=classes) == 0).sum())
