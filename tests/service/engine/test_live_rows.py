"""The last live rows of a model: which rows are kept, and that each row keeps its outputs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.engine.live_rows import LiveRows

IGNORED = np.full((1, 3), -1.0, np.float32)


@given(st.integers(1, 40), st.lists(st.integers(1, 50), max_size=90), st.booleans())
def test_the_last_rows_are_kept_with_their_outputs(size: int, batches: list[int], sampled_often: bool) -> None:
    kept = LiveRows(IGNORED, 2, size)
    run = kept.watch(lambda rows: rows[:, :2] * 2)
    expected: list[float] = []
    number = 0
    for count in batches:
        rows = np.arange(number, number + count, dtype=np.float32).repeat(3).reshape(count, 3)
        number += count
        run(rows)
        run(IGNORED)
        chosen = np.arange(count) if count <= size else np.linspace(0, count - 1, size).astype(int)
        expected = [*expected, *rows[chosen, 0].tolist()][-size:]
        rows[:] = np.nan  # the caller may use the array again
        if sampled_often:
            kept.sample()
    rows, outputs = kept.sample()
    assert sorted(rows[:, 0].tolist()) == expected
    assert (rows[:, :2] * 2 == outputs).all()


def test_with_size_0_no_row_is_kept() -> None:
    def run(rows: Rows) -> Outputs:
        return rows

    assert LiveRows(IGNORED, 2, 0).watch(run) is run
