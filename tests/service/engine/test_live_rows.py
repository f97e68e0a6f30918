"""Tests how a model remembers the latest rows that clients sent. The tests check which rows are kept, and that each row
keeps its outputs.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.engine.live_rows import LiveRows


@given(st.integers(1, 40), st.lists(st.integers(1, 50), max_size=90), st.booleans())
def test_the_last_rows_are_kept_with_their_outputs(size: int, batches: list[int], sampled_often: bool) -> None:
    kept = LiveRows(3, 2, size)
    expected: list[float] = []
    number = 0
    for count in batches:
        rows = np.arange(number, number + count, dtype=np.float32).repeat(3).reshape(count, 3)
        number += count
        kept.add(rows, rows[:, :2] * 2)
        chosen = np.arange(count) if count <= size else np.linspace(0, count - 1, size).astype(int)
        expected = [*expected, *rows[chosen, 0].tolist()][-size:]
        rows[:] = np.nan  # the caller may overwrite its array afterwards
        if sampled_often:
            kept.sample()
    rows, outputs = kept.sample()
    assert sorted(rows[:, 0].tolist()) == expected
    assert (rows[:, :2] * 2 == outputs).all()
