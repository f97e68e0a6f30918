"""Serves the model with Robyn, with one process and one worker: `python serve_robyn.py PORT MODEL`."""

from __future__ import annotations

import sys

port, model = sys.argv[1:3]
# Robyn reads the command line when it is imported.
sys.argv[1:] = ["--processes", "1", "--workers", "1", "--log-level", "ERROR", "--disable-openapi"]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import orjson  # noqa: E402
from robyn import Headers, Request, Response, Robyn  # noqa: E402

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
app = Robyn(__file__)
HEADERS = Headers({"content-type": "application/json"})


# The handlers are `async def`. Without `async def`, Robyn would use a thread for each request.
@app.post("/predict")
async def predict(request: Request) -> Response:
    """Compute the probabilities of the rows."""
    rows = np.array(orjson.loads(request.body)["instances"], dtype=np.float32)
    (probabilities,) = session.run(None, {"input": rows})
    content = orjson.dumps({"probabilities": probabilities}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(200, HEADERS, content)


@app.get("/health")
async def health() -> str:
    """Report readiness: the model is loaded before the server starts."""
    return "ready"


if __name__ == "__main__":
    app.start(host="127.0.0.1", port=int(port))
