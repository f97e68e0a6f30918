"""Makes the documents of the Open Inference Protocol: the extensions of the server, and the metadata, configuration and
statistics of a model.

The functions of this module are pure: their results depend only on a manifest and on given counts. This module does not
depend on requests or routes.

https://github.com/kserve/open-inference-protocol, and the model configuration and statistics extensions:
https://github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foldserve.service.bundle import Manifest
from foldserve.service.metrics import Totals

_PLATFORM = "onnxruntime_onnx"


def extensions(*, statistics: bool) -> list[str]:
    """Return the names of the protocol's extensions. statistics: whether the server counts the requests."""
    found = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
    return [*found, "statistics"] if statistics else found


def metadata(manifest: Manifest, versions: Sequence[str], **parameters: str) -> dict[str, Any]:
    """Return the model metadata. versions: the numbers of all versions that answer requests."""
    tensors = {
        kind: [{"name": tensor.name, "datatype": "FP32", "shape": list(tensor.shape)}]
        for kind, tensor in (("inputs", manifest.input), ("outputs", manifest.output))
    }
    return {
        "name": manifest.name,
        "versions": list(versions),
        "platform": _PLATFORM,
        **tensors,
        "parameters": parameters,
    }


def configuration(manifest: Manifest, max_rows: int) -> dict[str, Any]:
    """Return the model configuration.

    The dimensions of the tensors do not contain the batch dimension. max_rows: the largest number of rows in one
    request.
    """
    tensors = {
        kind: [{"name": tensor.name, "data_type": "TYPE_FP32", "dims": list(tensor.shape[1:])}]
        for kind, tensor in (("input", manifest.input), ("output", manifest.output))
    }
    return {
        "name": manifest.name,
        "platform": _PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": max_rows,
        **tensors,
    }


def statistics(manifest: Manifest, totals: Totals) -> dict[str, Any]:
    """Return the statistics of one model: counts of requests, and their times in nanoseconds.

    A run computes the rows of several requests, so the time of a single request is unknown, and the time of
    `compute_infer` is the total time of all runs. The count of `compute_infer` is the number of successful requests, as
    the protocol requires.
    """

    def duration(count: int, seconds: float) -> dict[str, int]:
        return {"count": count, "ns": int(seconds * 1e9)}

    not_measured = duration(totals.succeeded, 0)
    return {
        "name": manifest.name,
        "version": str(manifest.version),
        "last_inference": int(totals.last_request * 1e3),
        "inference_count": totals.rows,
        "execution_count": totals.runs,
        "inference_stats": {
            "success": duration(totals.succeeded, totals.request_seconds),
            "fail": duration(totals.failed, 0),
            "queue": duration(totals.queued, totals.queue_seconds),
            "compute_input": not_measured,
            "compute_infer": duration(totals.succeeded, totals.runtime_seconds),
            "compute_output": not_measured,
            "cache_hit": duration(0, 0),
            "cache_miss": duration(0, 0),
        },
        "batch_stats": [],
    }
