"""The number of threads depends on the model, the settings and the cores of the process."""

from __future__ import annotations

import pytest

from foldserve.service.engine.threads import threads_per_run
from foldserve.service.machine import cgroup
from foldserve.service.settings import Settings


@pytest.mark.parametrize(
    ("size", "settings", "threads"),
    [
        (2**10, {}, 1),
        (2**30, {"threads": 3, "workers": 2}, 3),
        (2**30, {}, cgroup.threads()),
        (2**30, {"workers": cgroup.threads() * 2}, 1),
    ],
    ids=["small", "set by the user", "large", "more workers than cores"],
)
def test_threads_fit_the_model_and_the_cores_of_the_process(size: int, settings: dict[str, int], threads: int) -> None:
    assert threads_per_run(Settings(**settings), size) == threads
