"""Serves the model with Triton from nvidia-pytriton, with ONNX Runtime in a Python function: `python serve_triton.py
PORT MODEL [GRPC_PORT]`.

The package does not contain Triton's own ONNX Runtime backend, so this comparison does not measure that backend.
"""

from __future__ import annotations

import os
import sys
import sysconfig

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve until a signal arrives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])

    @batch
    def infer(input: np.ndarray) -> list[np.ndarray]:  # noqa: A002  (the name of the model's input)
        return session.run(None, {"input": input})

    # The Python backend of Triton links libpython. Without LD_LIBRARY_PATH, Triton would load the system's libpython,
    # which has a different patch version.
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    grpc_port = int(sys.argv[3]) if len(sys.argv) > 3 else None
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(sys.argv[1]),
        allow_grpc=grpc_port is not None,
        grpc_address="127.0.0.1",
        grpc_port=grpc_port,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="digits",
            infer_func=infer,
            inputs=[Tensor(name="input", dtype=np.float32, shape=(64,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(10,))],
            config=ModelConfig(max_batch_size=1024, batcher=DynamicBatcher()),
        )
        triton.serve()


if __name__ == "__main__":
    main()
