"""Serves the model with BentoML, with one worker and adaptive batching: `python serve_bentoml.py PORT MODEL`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Digits:
    """A service whose only worker runs the model."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = os.environ["BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    # A batch has room for four requests of 1,024 rows. BentoML refuses a request that takes longer than
    # `max_latency_ms`. Every request of this benchmark takes less time than `max_latency_ms`.
    @bentoml.api(batchable=True, max_batch_size=4096, max_latency_ms=5000)
    def predict(self, instances: np.ndarray) -> np.ndarray:
        """Compute the probabilities of the rows."""
        (probabilities,) = self.session.run(None, {"input": instances.astype(np.float32)})
        return probabilities


if __name__ == "__main__":
    # BentoML imports this file again in its child processes, which get different arguments.
    os.environ |= {"BENCH_MODEL": str(Path(sys.argv[2]).resolve()), "BENTOML_DO_NOT_TRACK": "True"}
    program = [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Digits", "--host", "127.0.0.1"]
    program += ["--port", sys.argv[1], "--working-dir", str(Path(__file__).resolve().parent)]
    os.execv(sys.executable, program)  # noqa: S606
