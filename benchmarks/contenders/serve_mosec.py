"""mosec: one worker. `python serve_mosec.py PORT MODEL json|msgspec|single`.

`json` is mosec with its dynamic batching and its own JSON, as its documentation shows them. `msgspec` overrides the two
methods that read and write, as that documentation allows, with a faster JSON. `single` is `json` without batching.
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
    """A batch is a list of bodies."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run all requests of the batch at once."""
        requests = [np.array(one["instances"], dtype=np.float32) for one in data]
        (probabilities,) = self.session.run(None, {"input": np.concatenate(requests)})
        ends = np.cumsum([len(rows) for rows in requests[:-1]])
        return [{"probabilities": part.tolist()} for part in np.split(probabilities, ends)]


class Single(Digits):
    """One request at a time."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        """Run it."""
        return super().forward([data])[0]


class FastJson(Digits):
    """The same with msgspec's JSON."""

    def deserialize(self, data: bytes) -> Any:
        """Read one body."""
        return msgspec.json.decode(data)

    def serialize(self, data: Any) -> bytes:
        """Write one answer."""
        return msgspec.json.encode(data)


if __name__ == "__main__":
    # By the environment: mosec's worker processes import this file anew, with these arguments.
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": sys.argv[1], "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    if sys.argv[3] == "single":
        server.append_worker(Single)
    else:
        # As many as there are connections; of waits of 0, 1 and 2 ms, 1 is best.
        server.append_worker({"json": Digits, "msgspec": FastJson}[sys.argv[3]], max_batch_size=32, max_wait_time=1)
    server.run()
