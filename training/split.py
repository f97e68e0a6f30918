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

from training.errors import DataError

if TYPE_CHECKING:
    from training.data import Table

Rows = npt.NDArray[np.int64]

# Two to train on, since a BN has no statistics of one; one to stop by, two to report on.
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
    if len(table.y) < _MIN_ROWS:
        raise DataError(f"{len(table.y)} rows are too few: at least {_MIN_ROWS} are needed")
    if table.group is not None:
        parts = _by_group(table, table.group, (test, validation), np.random.default_rng(seed))
    elif table.time is not None:
        parts = _by_time(table.time, (test, validation))
    else:
        parts = _by_class(table, test, validation, np.random.default_rng(seed))
    held_out, stop, train = (np.sort(part) for part in parts)
    for name, rows in (("train on", train), ("stop by", stop)) + ((("report on", held_out),) if test else ()):
        if len(rows) < (1 if name == "stop by" or table.labels else 2):
            raise DataError(f"the split leaves {len(rows)} rows to {name}")
    _check_classes(table, train)
    return Split(train, stop, held_out)


def folds(table: Table, rows: Rows, k: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide `rows` into k pairs (train, validation) whose validation parts are disjoint and together all of `rows`.

    Class by class, or by whole groups. By time there is one pair, given k times, whose validation part is the last
    k-th: all others would know the future. Raises `DataError` when there is too little to divide, `ValueError` for k
    below 2.
    """
    if k < 2:
        raise ValueError("folds are at least 2")
    if table.time is not None:
        _, stop, train = _by_time(table.time[rows], (0.0, 1 / k))
        return [(np.sort(rows[train]), np.sort(rows[stop]))] * k
    generator = np.random.default_rng(seed)
    fold = _deal_groups(table.group[rows], k, generator) if table.group is not None else None
    if fold is None:
        fold = _deal_rows(table.y[rows] if table.labels else np.zeros(len(rows), np.int64), k, generator)
    pairs = [(np.sort(rows[fold != number]), np.sort(rows[fold == number])) for number in range(k)]
    if any(len(validation) == 0 or len(train) < 2 for train, validation in pairs):
        raise DataError(f"{len(rows)} rows are too few for {k} folds")
    for train, _ in pairs:
        _check_classes(table, train)
    return pairs


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
    held_out = min(max(round(test * count), least), count - least - 1) if test else 0
    stop = min(max(round(validation * count), 1), count - held_out - least)
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


def _deal_rows(y: Rows, k: int, generator: np.random.Generator) -> Rows:
    """Deal the rows of one class after the other to the folds in turn, so that folds differ by one row at most."""
    order = generator.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), np.int64)
    fold[order] = np.arange(len(y)) % k
    return fold


def _deal_groups(group: Rows, k: int, generator: np.random.Generator) -> Rows:
    """Deal whole groups, the largest first, each to the fold that has the fewest rows."""
    groups, of = np.unique(group, return_inverse=True)
    if len(groups) < k:
        raise DataError(f"the group column has {len(groups)} different values, too few for {k} folds")
    sizes = np.bincount(of)
    order = generator.permutation(len(groups))
    fold, rows = np.empty(len(groups), np.int64), np.zeros(k, np.int64)
    for place in order[np.argsort(-sizes[order], kind="stable")]:
        fold[place] = rows.argmin()
        rows[fold[place]] += sizes[place]
    return fold[of]
