"""Serves the model with MLServer, with one process, a custom runtime, and no adaptive batching: `python
serve_mlserver.py PORT MODEL SPARE`.

Adaptive batching does not raise the rate at 32 connections, and it doubles the latency of a single connection. MLServer
always serves gRPC too, on the free port SPARE.
"""

from __future__ import annotations

import asyncio
import sys

import mlserver
import numpy as np
import onnxruntime
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import install_uvloop_event_loop


class Digits(mlserver.MLModel):
    """The model as a custom runtime of MLServer."""

    async def load(self) -> bool:
        """Open the ONNX Runtime session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute the probabilities of the rows."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        (probabilities,) = self.session.run(None, {"input": rows.astype(np.float32, copy=False)})
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])


async def serve() -> None:
    """Serve until a signal arrives."""
    port, _, grpc = sys.argv[1:4]
    settings = mlserver.Settings(
        host="127.0.0.1",
        http_port=int(port),
        grpc_port=int(grpc),
        metrics_endpoint=None,
        parallel_workers=0,
        gzip_enabled=False,
        debug=False,
    )
    await mlserver.MLServer(settings).start([mlserver.ModelSettings(name="digits", implementation=Digits)])


if __name__ == "__main__":
    install_uvloop_event_loop()
    asyncio.run(serve())
