"""Makes the request bodies that every contender gets, and checks the responses of the contenders.

Every contender gets the same rows of scikit-learn's digits. ONNX Runtime computes the expected probabilities.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from sklearn.datasets import load_digits

Array = npt.NDArray[np.float32]
COUNTS = (1, 1024)
HEAD_LENGTH = "Inference-Header-Content-Length"


class WrongResponseError(Exception):
    """Raised if a response does not have the probabilities of the model. The error message has one line."""


@dataclass(frozen=True)
class Body:
    """The body of a request: in memory for the check, in a file for wrk. expected: float32 [rows, classes]."""

    file: Path
    content: bytes
    headers: dict[str, str]
    expected: Array


def write_bodies(model: Path, folder: Path) -> dict[tuple[str, int], Body]:
    """Write a request body for each protocol and each number of rows. Also write `rows.npy`, for the session without a
    server.
    """
    rows = load_digits().data[: max(COUNTS)].astype(np.float32)
    np.save(folder / "rows.npy", rows)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    bodies = {}
    for count in COUNTS:
        expected = session.run(None, {"input": rows[:count]})[0]
        for protocol, (content, headers) in _contents(rows[:count]).items():
            file = folder / f"{protocol}-{count}"
            file.write_bytes(content)
            bodies[protocol, count] = Body(file, content, headers, expected)
    return bodies


def _contents(rows: Array) -> dict[str, tuple[bytes, dict[str, str]]]:
    tensor = _tensor(rows)
    as_json = {"Content-Type": "application/json"}
    return {
        "json": (_json({"instances": rows.tolist()}), as_json),
        "oip": (_json({"inputs": [tensor | {"data": rows.ravel().tolist()}]}), as_json),
        "binary": binary(rows),
    }


def binary(rows: Array) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a request with a binary tensor.

    The request asks for a binary tensor in the response.
    """
    raw = rows.astype("<f4").tobytes()
    head = _json(
        {
            "inputs": [_tensor(rows) | {"parameters": {"binary_data_size": len(raw)}}],
            "parameters": {"binary_data_output": True},
        }
    )
    return head + raw, {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(head))}


def _tensor(rows: Array) -> dict[str, Any]:
    return {"name": "input", "shape": rows.shape, "datatype": "FP32"}


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def ask(port: int, path: str, body: Body) -> tuple[bytes, http.client.HTTPMessage]:
    """Post the body once. Raises `WrongResponseError` if the status is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body.content, body.headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise WrongResponseError(f"no response: {error!r}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise WrongResponseError(f"{response.status} {content[:100].decode(errors='replace')}")
    return content, response.headers


def check(protocol: str, port: int, path: str, body: Body) -> None:
    """Post the body once, and compare the response with the reference. Raises `WrongResponseError`."""
    content, headers = ask(port, path, body)
    try:
        found = read(protocol, content, headers)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise WrongResponseError(f"not a response of {protocol}: {error!r}") from error
    if found.shape != body.expected.shape:
        raise WrongResponseError(f"the shape of the response is {found.shape}, expected {body.expected.shape}")
    used = np.abs(found - body.expected) / (1e-5 + 1e-4 * np.abs(body.expected))
    if not (used <= 1).all():
        raise WrongResponseError(f"the difference is {used.max():.3g} times the tolerance")


def read(protocol: str, content: bytes, headers: http.client.HTTPMessage) -> npt.NDArray[np.float64]:
    """Return the probabilities of a response, float64 [rows, classes].

    Raises `ValueError`, `KeyError`, `TypeError` or `IndexError` if the response has no probabilities.
    """
    if protocol == "json":
        document = json.loads(content)
        return np.array(document["probabilities"] if isinstance(document, dict) else document, dtype=np.float64)
    length = int(headers[HEAD_LENGTH]) if protocol == "binary" else len(content)
    outputs = json.loads(content[:length])["outputs"]
    output = next(one for one in outputs if one["name"] == "probabilities")
    if protocol == "oip":
        return np.array(output["data"], dtype=np.float64).reshape(output["shape"])
    raw = content[length : length + output["parameters"]["binary_data_size"]]
    return np.frombuffer(raw, dtype="<f4").astype(np.float64).reshape(output["shape"])
