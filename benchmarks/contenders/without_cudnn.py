"""Runs a model on CUDA in a process without torch: `python without_cudnn.py MODEL FEATURES OPTIONS`.

OPTIONS is a JSON object of options for the CUDA provider. Prints a JSON object. `why` is the reason for a failure, or
null. `cudnn` says whether a cuDNN library was loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

_SILENT = 4


def run(model: str, features: int, given: dict[str, str]) -> str | None:
    """Run the model once, on random rows. Return the reason for a failure, or None."""
    ort.set_default_logger_severity(_SILENT)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls(cudnn=False)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(
            model, options, providers=[("CUDAExecutionProvider", given)], enable_fallback=False
        )
        if session.get_providers()[0] != "CUDAExecutionProvider":
            return f"the session runs on {session.get_providers()[0]}"
        rows = np.random.default_rng(0).standard_normal((7, features), np.float32)
        outputs = session.run(None, {session.get_inputs()[0].name: rows})[0]
    except Exception as error:  # noqa: BLE001
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return (lines or [type(error).__name__])[0][:300]
    return None if np.isfinite(outputs).all() else "its outputs are not finite"


def main() -> None:
    """Run the model, and print the result."""
    model, features, given = sys.argv[1:]
    why = run(model, int(features), json.loads(given))
    print(json.dumps({"why": why, "cudnn": "libcudnn" in Path("/proc/self/maps").read_text()}))


if __name__ == "__main__":
    main()
