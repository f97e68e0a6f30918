"""Duplicates: test rows that are equal to rows seen in training. Duplicates would make the test figures too good.

This module compares whole rows: the features and the target. The module does not split the table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.training.table.schema import RowIndices, Table

# Rows are hashed in chunks of this size, to limit the memory.
_CHUNK = 65_536


def leave_out_duplicates(test: Table, table: Table, seen: RowIndices, *, keep: bool) -> Table:
    """Return the test rows that are not equal to any of the rows `seen` of `table`.

    A note says how many test rows are duplicates.

    keep: whether to keep the duplicates and only count them. Even if `keep` is False, the duplicates are kept if fewer
    than half of the test rows would be left, because many rows of such a table are equal by chance. For example, many
    rows are equal if the only feature has a few categories.
    """
    known = np.isin(_hash_rows(test), _hash_rows(table)[seen])
    count, rows = int(known.sum()), len(known)
    if not count:
        return replace(test, notes=())
    note = f"{count:,} of {rows:,} test rows are equal to a row that the model was trained with"
    if keep or count * 2 > rows or rows - count < 2:
        return replace(test, notes=(f"{note}; they are part of the test figures",))
    left_out = f"{note}, and are left out of the test; use --keep-duplicates to keep them"
    return replace(test.select(np.flatnonzero(~known)), notes=(left_out,))


def _hash_rows(table: Table) -> npt.NDArray[np.uint64]:
    """Return a hash of each row, uint64 [rows]. Equal rows have equal hashes. -0 and 0 count as equal."""
    # The hash of a row is a weighted sum over its columns, with a random odd factor for each column. The chance that
    # two different rows get the same hash is about 2^-63.
    factors = np.random.default_rng(0).integers(0, 2**63, table.x.shape[1] + 1, np.uint64) * np.uint64(2) + np.uint64(1)
    hashes: npt.NDArray[np.uint64] = _mix(_bits(table.y.astype(np.float64))) * factors[-1]
    for start in range(0, len(hashes), _CHUNK):
        part = table.x[start : start + _CHUNK]
        hashes[start : start + _CHUNK] += (_mix(_bits(part)) * factors[:-1]).sum(1, dtype=np.uint64)
    return hashes


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    whole = values + values.dtype.type(0)  # -0 becomes 0
    bits: npt.NDArray[Any] = whole.view(np.uint32 if whole.dtype == np.float32 else np.uint64)
    return bits.astype(np.uint64)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64 bits with the last step of SplitMix64 (Steele and others, 2014), so that similar numbers get unrelated
    results.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
