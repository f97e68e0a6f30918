"""Runs `foldserve`, and pauses before it reads a certain manifest. The environment variable MANIFEST has the path of
the manifest.

The pause ends when a writer has opened and closed the pipe at the path GATE.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from foldserve.service.cli import main


def wait_at_gate(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]) == os.environ["MANIFEST"]:
        Path(os.environ["GATE"]).read_bytes()


# The code below runs at import, because each worker is a separate process that imports this module.
sys.addaudithook(wait_at_gate)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
