"""Serves the model with granian, with one worker: `python serve_granian.py PORT MODEL fastapi|rsgi`.

`fastapi` runs the application of serve_fastapi.py on granian's ASGI interface. `rsgi` uses granian's own interface,
RSGI, and orjson, without a framework. According to granian's documentation, RSGI is its fastest interface.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson
from granian.constants import HTTPModes, Interfaces, Loops
from granian.server import Server

HEADERS = [("content-type", "application/json")]


def fastapi_app() -> Any:
    """Return the application of serve_fastapi.py, which reads the same arguments."""
    import serve_fastapi

    return serve_fastapi.app


def rsgi_app() -> Any:
    """Return an application that reads and writes JSON with orjson."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    async def app(scope: Any, protocol: Any) -> None:
        if scope.path != "/predict":
            protocol.response_str(200, HEADERS, "{}")
            return
        rows = np.array(orjson.loads(await protocol())["instances"], dtype=np.float32)
        (probabilities,) = session.run(None, {"input": rows})
        content = orjson.dumps({"probabilities": probabilities}, option=orjson.OPT_SERIALIZE_NUMPY)
        protocol.response_bytes(200, HEADERS, content)

    return app


if __name__ == "__main__":
    kind = sys.argv[3]
    Server(
        f"{Path(__file__).stem}:{kind}_app",
        factory=True,
        address="127.0.0.1",
        port=int(sys.argv[1]),
        interface=Interfaces.RSGI if kind == "rsgi" else Interfaces.ASGI,
        workers=1,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        log_enabled=False,
        working_dir=Path(__file__).parent,
    ).serve()
