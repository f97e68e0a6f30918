"""`foldserve` with runs on the CPU that are slow, fail, hang or leak. Each run of the model reads the JSON file that
`--faults FILE` names.

The file maps each fault to its probability in one run, for example {"slow": 0.1, "hang": 0.001}. Without the file there
are no faults, so a test can switch the faults on after the model has reproduced its golden outputs.

slow: the run takes 30 ms longer. fail: the run raises. hang: the run never returns. leak: the run keeps a megabyte, a
descriptor and a thread for ever. explanation_hang: the computation of an explanation never returns.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from pathlib import Path

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.cli import main
from foldserve.service.engine import loader
from foldserve.service.explain.runner import ExplanationRunner
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cpu import CpuRunner

FAULTS = "FAULTS"
SLOW_SECONDS = 0.03

_random = random.Random(0)  # noqa: S311
_leaked: list[object] = []


class FaultyRunner(CpuRunner):
    """Runs a model with the faults that the JSON file lists."""

    def run(self, rows: Rows) -> Outputs:
        faults = _faults()
        for kind, act in _ACTS.items():
            if _random.random() < faults.get(kind, 0):
                act()
        return super().run(rows)


class FaultyExplanationRunner(ExplanationRunner):
    """Explains rows. A run hangs with the probability that the file gives."""

    def run(self, rows: Rows) -> Outputs:
        if _random.random() < _faults().get("explanation_hang", 0):
            _ACTS["hang"]()
        return super().run(rows)


def _faults() -> dict[str, float]:
    try:
        found: dict[str, float] = json.loads(Path(os.environ[FAULTS]).read_text(encoding="utf-8"))
    except (OSError, KeyError):
        return {}
    return found


def _fail() -> None:
    raise RuntimeError("a fault that the test asked for")


def _leak() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    _leaked.append((bytes(2**20).replace(b"\0", b"x"), os.dup(0)))


_ACTS = {
    "slow": lambda: time.sleep(SLOW_SECONDS),
    "leak": _leak,
    "fail": _fail,
    "hang": lambda: threading.Event().wait(),
}

# The code below runs at import, because each worker is a separate process that imports this module.
runtime.CpuRunner = FaultyRunner  # type: ignore[misc]
loader.ExplanationRunner = FaultyExplanationRunner  # type: ignore[misc]

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--faults" in arguments:
        place = arguments.index("--faults")
        os.environ[FAULTS] = arguments[place + 1]
        del arguments[place : place + 2]
    sys.exit(main(arguments))
