"""Serves the model with LitServe, with batching: `python serve_litserve.py PORT MODEL`."""

import sys
from typing import Any

import litserve
import numpy as np
import numpy.typing as npt
import onnxruntime
from fastapi import Request

Rows = npt.NDArray[np.float32]


class Digits(litserve.LitAPI):
    """The model in LitServe's interface. A request is an array of rows, and a batch is a list of requests."""

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe passes it by name
        """Open the model in the worker's process."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    # LitServe reads the annotation of the argument `request`: the type `Request` means the parsed body. With `from
    # __future__ import annotations`, LitServe would see the string "Request" and not the type `Request`.
    def decode_request(self, request: Request) -> Rows:
        """Return the rows of the parsed body."""
        return np.array(request["instances"], dtype=np.float32)

    def batch(self, inputs: list[Rows]) -> list[Rows]:
        """Return the list of requests unchanged.

        Requests have different numbers of rows, so `predict` concatenates them.
        """
        return inputs

    def predict(self, x: list[Rows]) -> list[Rows]:
        """Run all requests of the batch in one call of the model."""
        (probabilities,) = self.session.run(None, {"input": np.concatenate(x)})
        return np.split(probabilities, np.cumsum([len(rows) for rows in x[:-1]]))

    def unbatch(self, output: list[Rows]) -> list[Rows]:
        """Return the list unchanged, because it already has one item for each request."""
        return output

    def encode_response(self, output: Rows) -> dict[str, Any]:
        """Build the body of the response from the output of the model."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    # With 32 connections, a wait of 1 ms gives larger batches and a higher rate. `fast_queue` is a ZeroMQ queue.
    server = litserve.LitServer(
        Digits(max_batch_size=32, batch_timeout=0.001), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
