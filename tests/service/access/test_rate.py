"""The rate and the burst of a token bucket are compared with a simulation. Several processes may share one token
bucket.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from foldserve.service.access.rate import Bucket, bucket_state
from tests.service.support import PATIENCE, environment


class Reference:
    """A token bucket as a textbook describes it."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.size = rate, max(1.0, rate)
        self.tokens, self.last = self.size, now

    def take(self, now: float) -> bool:
        self.tokens = min(self.size, self.tokens + (now - self.last) * self.rate)
        self.last = now
        if self.tokens < 1 - 1e-6 * self.rate:
            return False
        self.tokens -= 1
        return True


@pytest.mark.parametrize("rate", [0.25, 1, 7, 1000])
def test_it_accepts_the_same_requests_as_a_textbook_token_bucket(rate: float) -> None:
    random.seed(int(rate * 4))
    now = 1000.0
    bucket, reference = Bucket(rate, bucket_state(None)), Reference(rate, now)
    passed = 0
    for _ in range(5000):
        now += random.expovariate(rate * 1.3)
        taken = bucket.take(now) == 0
        assert taken == reference.take(now)
        passed += taken
    assert 1000 < passed < 5000


def test_the_wait_is_the_time_until_the_next_request_passes() -> None:
    bucket = Bucket(2, bucket_state(None))
    assert [bucket.take(10.0), bucket.take(10.0)] == [0, 0]
    wait = bucket.take(10.0)
    assert wait == pytest.approx(0.5)
    assert bucket.take(10.0 + wait - 0.01) > 0
    assert bucket.take(10.0 + wait) == 0


def test_processes_share_a_bucket_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "bucket"
    mine = Bucket(3, bucket_state(file))
    assert mine.take(50.0) == 0
    code = (
        "import sys; from pathlib import Path; from foldserve.service.access.rate import Bucket, bucket_state\n"
        "bucket = Bucket(3, bucket_state(Path(sys.argv[1]))); print([bucket.take(50.0) == 0 for _ in range(3)])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, file],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "[True, True, False]\n"
    assert mine.take(50.0) > 0
