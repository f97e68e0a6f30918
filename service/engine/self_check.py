"""Lets each idle model predict a golden row every few seconds.

A model that fails the self-check is not ready until it passes the check again. The check runs on the event loop. This
module does not find out why a model fails.
"""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np

from foldserve.service.arrays import Outputs
from foldserve.service.engine.repository import Model, Repository
from foldserve.service.errors import Overloaded, RequestError

log = logging.getLogger("foldserve")

_TIMEOUT = 10.0  # the run of the check must begin within this number of seconds


class SelfCheck:
    """Checks the models of a repository. interval: the seconds between two checks; 0 turns the checks off."""

    def __init__(self, repository: Repository, interval: float) -> None:
        self._repository = repository
        self._interval = interval
        self._runs: dict[int, int] = {}  # the number of runs of each model at the last call of `_look`

    def start(self) -> None:
        """Begin to check the models. Call this method only on the event loop."""
        if self._interval:
            asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        """Check each model that has not run since the last call, and each model that failed its last check."""
        before, self._runs = self._runs, {}
        for model in self._repository.ready_models():
            runs = self._runs[id(model)] = model.batcher.runs
            if before.get(id(model)) == runs or self._repository.failure(model) is not None:
                self._check(model)
        asyncio.get_running_loop().call_later(self._interval, self._look)

    def _check(self, model: Model) -> None:
        def judge(result: Outputs | RequestError) -> None:
            # The check itself is a run of the model. Without this line, the model would not count as idle in the next
            # call of `_look`.
            self._runs[id(model)] = model.batcher.runs
            if isinstance(result, Overloaded):
                return  # an overloaded model is not idle
            reason = str(result) if isinstance(result, RequestError) else _difference(model, result)
            if reason is not None and self._repository.failure(model) is None:
                log.error("%s/%d fails its check: %s", model.manifest.name, model.manifest.version, reason)
            elif reason is None and self._repository.failure(model) is not None:
                log.info("%s/%d passes its check again", model.manifest.name, model.manifest.version)
            self._repository.set_failure(model, reason)

        try:
            model.batcher.submit(model.batcher.unobserved, time.monotonic() + _TIMEOUT, judge)
        except RequestError as error:
            judge(error)


def _difference(model: Model, outputs: Outputs) -> str | None:
    """Describe how `outputs` differ from the golden outputs; return None if both agree within the tolerance."""
    reference = np.array(model.manifest.golden.outputs[:1], np.float64)
    parity = model.tolerance.measure(reference, outputs)
    return None if parity.holds else f"a golden output differs by {parity.max_absolute:.3g}"
