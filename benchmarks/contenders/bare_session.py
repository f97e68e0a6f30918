"""Measures ONNX Runtime alone, with one thread: `python bare_session.py MODEL ROWS.npy SECONDS COUNT...`.

Prints a JSON object: rows per second for each COUNT, the number of rows in a run.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime


def rows_per_second(session: onnxruntime.InferenceSession, rows: np.ndarray, seconds: float) -> float:
    """Run the session repeatedly for `seconds`."""
    for _ in range(100):
        session.run(None, {"input": rows})
    runs, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(10):
            session.run(None, {"input": rows})
        runs += 10
    return runs * len(rows) / elapsed


def main() -> None:
    """Measure the rate for each number of rows, and print the rates."""
    model, data, seconds = sys.argv[1:4]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = np.load(data)
    print(json.dumps({count: rows_per_second(session, rows[: int(count)], float(seconds)) for count in sys.argv[4:]}))


if __name__ == "__main__":
    main()
