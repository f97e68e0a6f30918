"""Runs `foldserve`, but one process can't read a certain manifest. The environment variable MANIFEST has the path of
the manifest.

The first process that reads the manifest creates the file REFUSED, and fails.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from foldserve.service.cli import main

_chosen: list[bool] = []


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or str(arguments[0]) != os.environ["MANIFEST"]:
        return
    if not _chosen:
        try:
            os.close(os.open(os.environ["REFUSED"], os.O_CREAT | os.O_EXCL))
            _chosen.append(True)
        except FileExistsError:
            _chosen.append(False)
    if _chosen[0]:
        raise OSError(5, "Input/output error")


# The code below runs at import, because each worker is a separate process that imports this module.
sys.addaudithook(refuse)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
