"""The sampler counts all rows if there are few rows, and a fair sample if there are many rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from foldserve.service.quality.sampler import Sampler
from foldserve.service.quality.tally import PARTS, Window


class Counted:
    """Collects the rows that a sampler counts."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.weights: list[int] = []
        self.executor = ThreadPoolExecutor(1)
        self.sampler = Sampler(64, 1, self.count, self.executor)

    def count(self, rows: np.ndarray, outputs: np.ndarray, weight: int) -> None:
        assert (rows[:, :1] == outputs).all()  # different rows have different outputs
        self.rows.append(rows[:, 0])
        self.weights.append(weight)

    def send(self, numbers: np.ndarray) -> None:
        rows = np.repeat(numbers.astype(np.float32)[:, None], 64, 1)
        self.sampler.add(rows, rows[:, :1])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_each_row_of_a_quiet_server_is_counted_once(size: int) -> None:
    counted = Counted()
    for start in range(0, 1000, size):
        counted.send(np.arange(start, min(1000, start + size)))
    counted.sampler.flush()
    assert np.concatenate(counted.rows).tolist() == list(range(1000))
    assert set(counted.weights) == {1}


@pytest.mark.parametrize("size", [1, 100, 1024])
def test_a_busy_server_counts_a_sample_whose_weights_add_up_to_all_rows(size: int) -> None:
    counted = Counted()
    total = 60_000
    for second in range(3):  # in the first second, the sampler does not know the load yet
        for start in range(second * total, (second + 1) * total, size):
            counted.send(np.arange(start, start + size) % total)
        counted.sampler.tick()
    counted.sampler.flush()
    taken = sum(map(len, counted.rows))
    assert taken < 3 * 5 * 1024
    weighted = sum(weight * len(rows) for weight, rows in zip(counted.weights, counted.rows, strict=True))
    assert weighted == pytest.approx(3 * total, rel=0.01)
    # The weighted sample represents all three thirds of a second equally.
    for low in range(0, total, total // 3):
        inside = [((rows >= low) & (rows < low + total // 3)).sum() for rows in counted.rows]
        assert np.dot(counted.weights, inside) == pytest.approx(total, rel=0.03)


def test_a_window_keeps_the_last_hours_and_no_more() -> None:
    now = 1000.0
    window = Window(1, PARTS * 10, lambda: now)
    for _ in range(3 * PARTS):
        window.add(np.ones(1))
        now += 10
    total, seconds = window.total()
    assert total.tolist() == [PARTS - 1]  # the current part has no rows yet
    assert PARTS * 10 - 10 <= seconds <= PARTS * 10
    window.clear()
    assert window.total() == (np.zeros(1), 0.0)
    now += 5
    window.add(np.ones(1))
    assert window.total() == (np.ones(1), 5.0)
