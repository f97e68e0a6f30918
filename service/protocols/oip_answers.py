"""Writes the answers of the Open Inference Protocol: the tensors that a request asks for, as JSON or in binary.

A request may ask for the output of the model, for `label`, or for both. `label` is the predicted label as a text. The
predicted label depends on the decision threshold of the model. If a request uses the classification extension, the
answer contains the best classes of each row instead of the outputs. This module needs the outputs of the model and the
options of the request, but not the rows.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson

from foldserve.service.arrays import Outputs
from foldserve.service.bundle import Decision, Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.reply import JSON, Reply

HEAD_LENGTH = b"inference-header-content-length"
LABEL = "label"
_BINARY = (b"content-type", b"application/octet-stream")
_JSON_HEADERS = (JSON,)
_FLOAT = np.dtype("<f4")


class _Wanted(NamedTuple):
    """One tensor of the answer.

    classes: the tensor contains this number of best classes for each row; 0 if the tensor contains the outputs of the
    model.
    """

    name: str
    binary: bool
    classes: int


class OipAnswers:
    """Writes the answers of one model."""

    def __init__(self, manifest: Manifest) -> None:
        self._model = {"model_name": manifest.name, "model_version": str(manifest.version)}
        self._output = manifest.output.name
        self._start = orjson.dumps(self._model)[:-1]
        self.json = partial(self._json, self._start)  # encodes the answer to a request without options
        # The JSON text of the output tensor up to its shape, for answers that contain only this tensor.
        self._tensor_start = orjson.dumps({"name": self._output, "datatype": "FP32"})[:-1]
        self._decision = Decision.of(manifest)
        self._has_classes = bool(manifest.labels)

    def encoder(self, request: dict[str, Any], identity: str | None) -> Callable[[Outputs], Reply]:
        """Return the function that encodes the answer to a parsed request. Raises `InvalidInput`."""
        binary = flag(parameters(request), "binary_data_output", default=False)
        given = request.get("outputs", [])
        if type(given) is not list or any(type(output) is not dict for output in given):
            raise InvalidInput('"outputs" is not an array of objects')
        named = self._model if identity is None else {**self._model, "id": identity}
        start = self._start if identity is None else orjson.dumps(named)[:-1]
        if not given:
            return partial(self._binary if binary else self._json, start)
        wanted = [self._wanted(output, binary=binary) for output in given]
        if len({output.name for output in wanted}) < len(wanted):
            raise InvalidInput('"outputs" has a tensor more than once')
        if wanted[0] == _Wanted(self._output, binary, 0) and len(wanted) == 1:
            return partial(self._binary if binary else self._json, start)
        return partial(self._tensors, named, wanted)

    def _wanted(self, output: dict[str, Any], *, binary: bool) -> _Wanted:
        options = parameters(output)
        name = output.get("name")
        if name != self._output and (name != LABEL or not self._has_classes):
            allowed = f"{self._output!r} and {LABEL!r}" if self._has_classes else repr(self._output)
            raise InvalidInput(f'"outputs" has another tensor than {allowed}')
        classes = options.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidInput('the parameter "classification" is not a number of classes')
        if classes and (not self._has_classes or name == LABEL):
            raise InvalidInput('the parameter "classification" is only for the probabilities of classes')
        return _Wanted(name, flag(options, "binary_data", default=binary), classes)

    # --- only the output of the model, which nearly all requests want ------------------------------------------------

    # The texts around the numbers are already known, so orjson writes only the numbers. `start` is the text of the
    # answer before its member `outputs`.

    def _json(self, start: bytes, outputs: Outputs) -> Reply:
        data = orjson.dumps(outputs.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
        shape = outputs.shape
        body = b'%b,"outputs":[%b,"shape":[%d,%d],"data":%b}]}' % (start, self._tensor_start, *shape, data)
        return Reply(200, _JSON_HEADERS, body)

    def _binary(self, start: bytes, outputs: Outputs) -> Reply:
        form = b'%b,"outputs":[%b,"shape":[%d,%d],"parameters":{"binary_data_size":%d}}]}'
        head = form % (start, self._tensor_start, *outputs.shape, 4 * outputs.size)
        return Reply(200, (_BINARY, (HEAD_LENGTH, b"%d" % len(head))), head + _floats(outputs))

    # --- any tensors --------------------------------------------------------------------------------------------------

    def _tensors(self, named: dict[str, Any], wanted: Sequence[_Wanted], outputs: Outputs) -> Reply:
        tensors, contents = [], []
        for name, binary, classes in wanted:
            tensor: dict[str, Any]
            if name == LABEL or classes:
                texts = self._labels(outputs) if name == LABEL else self._best_classes(outputs, classes)
                tensor = {"name": name, "datatype": "BYTES", "shape": [len(outputs), len(texts) // len(outputs)]}
                data: Any = texts
                content = b"".join(_text(text) for text in texts) if binary else b""
            else:
                tensor = {"name": name, "datatype": "FP32", "shape": outputs.shape}
                data = np.ascontiguousarray(outputs).ravel()
                content = _floats(outputs) if binary else b""
            tensors.append(self._with_size(tensor, content) if binary else {**tensor, "data": data})
            contents.append(content)
        if any(output.binary for output in wanted):
            return self._with_content(named, tensors, b"".join(contents))
        answer = {**named, "outputs": tensors}
        return Reply(200, (JSON,), orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))

    def _labels(self, outputs: Outputs) -> list[str]:
        return [self._decision.names[i] for i in self._decision.classes(outputs).tolist()]

    def _best_classes(self, outputs: Outputs, count: int) -> list[str]:
        """Return the best classes of each row as texts `value:index:label`, one row after the other."""
        names = self._decision.names
        best = self._decision.best_classes(outputs, count)
        values = np.take_along_axis(outputs, best, axis=1)
        flat = zip(values.ravel().tolist(), best.ravel().tolist(), strict=True)
        return [f"{value:f}:{i}:{names[i]}" for value, i in flat]

    def _with_size(self, tensor: dict[str, Any], content: bytes) -> dict[str, Any]:
        return {**tensor, "parameters": {"binary_data_size": len(content)}}

    def _with_content(self, named: dict[str, Any], tensors: list[dict[str, Any]], content: bytes) -> Reply:
        head = orjson.dumps({**named, "outputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(200, (_BINARY, (HEAD_LENGTH, b"%d" % len(head))), head + content)


def parameters(holder: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request or a tensor. Raises `InvalidInput`."""
    given = holder.get("parameters")
    if given is None and "parameters" not in holder:
        return {}
    if type(given) is not dict:
        raise InvalidInput('"parameters" is not an object')
    for name in given:
        if name.startswith("shared_memory"):
            raise InvalidInput("the shared memory extensions are not offered: send the tensor itself")
    return given


def flag(given: dict[str, Any], name: str, *, default: bool) -> bool:
    """Return the parameter `name`, which must be true or false.

    Raises `InvalidInput` if the parameter is neither true nor false.
    """
    value = given.get(name, default)
    if type(value) is not bool:
        raise InvalidInput(f'the parameter "{name}" is neither true nor false')
    return value


def _floats(outputs: Outputs) -> bytes:
    return outputs.astype(_FLOAT, copy=False).tobytes()


def _text(text: str) -> bytes:
    """Return the binary form of a text: its length in bytes, followed by the text."""
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded
