"""`foldserve` with a simulated GPU.

The environment variable FAILURE has the path of a file. If the file that FAILURE names exists, the simulated GPU fails
once, with the text of the file as its error.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from foldserve.service.cli import main
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from tests.service.simulated_cuda import SimulatedGpu

FAILURE = "FAILURE"


def failure() -> Exception | None:
    """Return the failure that the file describes. Remove the file, so that the failure happens only once."""
    path = Path(os.environ[FAILURE])
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return RuntimeError(text)


# The code below runs at import, because each worker is a separate process that imports this module.
gpu = SimulatedGpu(fails=failure)
runtime.CudaRunner = partial(  # type: ignore[assignment, misc]
    CudaRunner, connect=gpu.connect, open_session=gpu.open_session
)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
