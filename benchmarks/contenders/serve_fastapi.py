"""Serves the model with plain FastAPI, as a competent developer writes such a server in an hour: `python
serve_fastapi.py PORT MODEL`.

The server checks the body with a pydantic model, runs one ONNX Runtime session, and returns lists of probabilities. The
server runs on uvicorn with one worker.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Instances(BaseModel):
    """The body of a request."""

    instances: list[list[float]]


# The handlers are `async def`. Without `async def`, FastAPI would use a thread for each request. On one core, the
# thread would cost more than the model.
@app.post("/predict")
async def predict(body: Instances) -> dict[str, list[list[float]]]:
    """Compute the probabilities of the rows."""
    (probabilities,) = session.run(None, {"input": np.array(body.instances, dtype=np.float32)})
    return {"probabilities": probabilities.tolist()}


@app.get("/health")
async def health() -> dict[str, bool]:
    """Report readiness: the model is loaded before the server starts."""
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
