"""Reports changes of files in a folder. This module does not depend on models.

inotify sees changes of local files. The caller also looks at the folder every few seconds, because inotify does not see
changes that another machine makes on a network volume, and may miss that a link is replaced.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

log = logging.getLogger("foldserve")

_DEBOUNCE_MS = 500  # changes within this time may lead to a single call of `on_change`
_STEP_MS = 50  # `on_change` is called when no file has changed for this time
_STOP_MS = 1000  # the thread notices `stopped` after at most this time
_RETRY_SECONDS = 5.0


def watch(folder: Path, on_change: Callable[[], object], stopped: threading.Event) -> None:
    """Call `on_change` on a thread after each change in `folder`, until `stopped` is set."""
    threading.Thread(target=_watch, args=(folder, on_change, stopped), name="watch", daemon=True).start()


def _watch(folder: Path, on_change: Callable[[], object], stopped: threading.Event) -> None:
    warned = False
    while not stopped.is_set():
        try:
            for _ in watchfiles.watch(
                folder,
                watch_filter=None,
                debounce=_DEBOUNCE_MS,
                step=_STEP_MS,
                rust_timeout=_STOP_MS,
                stop_event=stopped,
                raise_interrupt=False,
                ignore_permission_denied=True,
            ):
                on_change()
                if not folder.is_dir():  # inotify does not stop when the folder is removed
                    break
        except (OSError, RuntimeError) as error:
            if not warned:
                log.warning("can't be told of changes in %s: %s; looking every few seconds", folder, error)
            warned = True
        stopped.wait(_RETRY_SECONDS)
