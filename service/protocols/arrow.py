"""Writes outputs as an Arrow stream: the column `prediction`, and for a classification the column `probabilities`.

This module defines the layout of the stream, which contains all rows in one record batch. In the column
`probabilities`, each value is a list of fixed size. This module does not handle HTTP headers.

The format: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import nanoarrow as na
import numpy as np
import numpy.typing as npt
import orjson
from nanoarrow.ipc import StreamWriter

from foldserve.service.arrays import Outputs
from foldserve.service.bundle import Decision, Label

Indices = npt.NDArray[np.intp]


class ArrowWriter:
    """Writes the outputs of one model. If the `Decision` has no labels, the model is a regression."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision
        self._labels = _column_of(decision.labels) if decision.labels else None

    def write(self, outputs: Outputs) -> bytes:
        """Return the stream of `outputs`, a float32 array [rows, outputs]."""
        count, width = outputs.shape
        values = np.ascontiguousarray(outputs)
        numbers = na.c_array_from_buffers(na.float32(), count * width, [None, values])
        if self._labels is None:
            kinds, children = {"prediction": na.float32()}, [numbers]
        else:
            kind, labels = self._labels
            listed = na.fixed_size_list(na.float32(), width)
            kinds = {"prediction": kind, "probabilities": listed}
            children = [
                labels(self._decision.classes(outputs)),
                na.c_array_from_buffers(listed, count, [None], children=[numbers]),
            ]
        stream = io.BytesIO()
        with StreamWriter.from_writable(stream) as writer:
            writer.write_stream(na.c_array_from_buffers(na.struct(kinds), count, [None], children=children))
        return stream.getvalue()


def _column_of(labels: tuple[Label, ...]) -> tuple[Any, Callable[[Indices], Any]]:
    """Return the Arrow type of the labels, and a function that makes a column from their indices.

    If all labels have the same JSON type, the column has this type. If the labels have different types, the column
    contains each label as JSON text.
    """
    types = set(map(type, labels))
    if types == {bool}:
        return na.bool_(), partial(_booleans, np.array(labels))
    if types <= {int, float}:
        values = np.array(labels)
        if values.dtype == np.int64:
            return na.int64(), partial(_numbers, na.int64(), values)
        exact = values.astype(np.float64)
        if exact.tolist() == list(labels):  # the lists differ if float64 can't represent a label
            return na.float64(), partial(_numbers, na.float64(), exact)
    return na.string(), partial(_strings, [_text(label).encode() for label in labels])


def _text(label: Label) -> str:
    return label if isinstance(label, str) else orjson.dumps(label).decode()


def _booleans(labels: npt.NDArray[np.bool_], indices: Indices) -> Any:
    return na.c_array_from_buffers(na.bool_(), len(indices), [None, np.packbits(labels[indices], bitorder="little")])


def _numbers(kind: Any, labels: npt.NDArray[Any], indices: Indices) -> Any:
    return na.c_array_from_buffers(kind, len(indices), [None, labels[indices]])


def _strings(labels: list[bytes], indices: Indices) -> Any:
    lengths = np.array([len(label) for label in labels], np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), lengths[indices].cumsum(dtype=np.int32)])
    content = b"".join([labels[i] for i in indices.tolist()])
    return na.c_array_from_buffers(na.string(), len(indices), [None, offsets, content])
