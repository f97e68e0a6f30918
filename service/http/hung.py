"""Ends the process if a run of a model hangs, so that a supervisor can start another process."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

from foldserve.service.compose import Service
from foldserve.service.engine.batcher import Batcher
from foldserve.service.engine.watchdog import Watchdog
from foldserve.service.settings import Settings

log = logging.getLogger("foldserve")

# If a run hangs, the server has drain_timeout plus _GRACE_SECONDS to stop, and then _REPORT_SECONDS to report the
# error.
_GRACE_SECONDS, _REPORT_SECONDS = 5.0, 1.0


def end_if_hung(settings: Settings, service: Service, stopped: threading.Event) -> None:
    """End the process if a run hangs. stopped: an event that is set when the server has stopped."""

    def end(name: str, blocks_loop: bool) -> None:
        service.lifecycle.lose(f"a run of {name} has taken more than {settings.run_timeout:g} s")
        if blocks_loop:  # the event loop is blocked, so only this thread can log the error
            log.error("%s; stopping", service.lifecycle.loss)
        else:
            stopped.wait(settings.drain_timeout + _GRACE_SECONDS)
            time.sleep(_REPORT_SECONDS)
        # A normal exit would wait for the thread of the run that hangs.
        sys.stderr.flush()
        os._exit(1)

    def batchers() -> Iterator[tuple[str, Batcher]]:
        for model in service.repository.running_models():
            for batcher in model.batchers:
                yield f"{model.manifest.name}/{model.manifest.version}", batcher

    Watchdog(settings.run_timeout, batchers, end).start()
