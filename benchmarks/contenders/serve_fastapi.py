"""Plain FastAPI: what a competent person writes in an hour. `python serve_fastapi.py PORT MODEL`.

A pydantic model of the body, one ONNX Runtime session, the probabilities as lists; uvicorn[standard], one worker.
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
    """The body."""

    instances: list[list[float]]


# Not `def`: handing each row to a thread costs more than the model, and there is one core.
@app.post("/predict")
async def predict(body: Instances) -> dict[str, list[list[float]]]:
    """Rows to probabilities."""
    (probabilities,) = session.run(None, {"input": np.array(body.instances, dtype=np.float32)})
    return {"probabilities": probabilities.tolist()}


@app.get("/health")
async def health() -> dict[str, bool]:
    """Answer once the model is loaded."""
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
