"""`foldserve`, which waits before it reads the file MANIFEST until the pipe GATE has had a writer and lost it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from foldserve.service.cli import main


def wait_at_gate(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]) == os.environ["MANIFEST"]:
        Path(os.environ["GATE"]).read_bytes()


# At import: each worker is a process of its own, which imports this module.
sys.addaudithook(wait_at_gate)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
