"""Serves the model with mosec, with one worker: `python serve_mosec.py PORT MODEL json|msgspec|single`.

`json` uses dynamic batching and mosec's JSON, as mosec's documentation shows. `msgspec` overrides the methods
`serialize` and `deserialize` to use a faster JSON library, as the documentation allows. `single` is `json` without
batching.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from mosec import Server, Worker


class Digits(Worker):
    """A worker that gets a list of bodies as a batch."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run all requests of the batch in one call of the model."""
        requests = [np.array(one["instances"], dtype=np.float32) for one in data]
        (probabilities,) = self.session.run(None, {"input": np.concatenate(requests)})
        ends = np.cumsum([len(rows) for rows in requests[:-1]])
        return [{"probabilities": part.tolist()} for part in np.split(probabilities, ends)]


class Single(Digits):
    """A worker that gets one body at a time."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Run one request."""
        return super().forward([data])[0]


class FastJson(Digits):
    """A worker that reads and writes JSON with msgspec."""

    def deserialize(self, data: bytes) -> Any:
        """Read one body."""
        return msgspec.json.decode(data)

    def serialize(self, data: Any) -> bytes:
        """Write one response."""
        return msgspec.json.encode(data)


if __name__ == "__main__":
    # Environment variables configure mosec, because its worker processes import this file again with the same
    # arguments.
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": sys.argv[1], "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    if sys.argv[3] == "single":
        server.append_worker(Single)
    else:
        # The largest batch has one request from each connection. With a wait of 1 ms, mosec is faster than with 0 or 2
        # ms.
        server.append_worker({"json": Digits, "msgspec": FastJson}[sys.argv[3]], max_batch_size=32, max_wait_time=1)
    server.run()
