"""Reads a table in the Open Inference Protocol: one tensor for each column.

Clients of KServe and MLServer send one tensor for each column of a table. The values of a tensor have the same form as
in the friendly protocol. A category is written as its text or number, and a boolean as true or false. A missing value
is null in JSON, and NaN in binary. The service interprets a text by the same rules that were used for the training
table. The pandas codec of MLServer writes a column of mixed values as JSON texts, with the content type `pd_json`. This
module turns the tensors of a request into rows. This module does not depend on other parts of the request, or on the
answer.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md#tensor-data-types
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Feature, Manifest
from foldserve.service.errors import InvalidInput
from foldserve.service.metrics import Unusual
from foldserve.service.protocols.categories import NUMBERS
from foldserve.service.protocols.names import ColumnNames
from foldserve.service.protocols.oip_answers import parameters
from foldserve.service.protocols.oip_tensors import DTYPES, checked_numbers
from foldserve.service.protocols.rows import Columns

_TEXT = "BYTES"
_JSON_TEXTS = "pd_json"  # the content type of a tensor whose texts are JSON
# In binary data, the length of each text in bytes comes directly before the text.
_LENGTH = struct.Struct("<I")


class ColumnTensors:
    """Reads requests with one tensor for each column, for one model."""

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self.names = ColumnNames(manifest)
        self.columns = {feature.name: _Column(feature) for feature in manifest.features}
        self.max_rows = max_rows
        one = manifest.input.name
        self.where = f'"inputs" is neither the one tensor {one!r} nor a tensor for each feature: it'

    def read(self, tensors: Iterable[Any], content: memoryview | None) -> tuple[Rows, Counter[tuple[Unusual, str]]]:
        """Read the tensors of a request, in any order, as float32 [rows, features].

        content: the bytes after the JSON; None if no header gives the length of the JSON. Also returns counts for the
        metrics: the number of rows for each ignored column, and for each constant that the request leaves out. Raises
        `InvalidInput`.
        """
        table = _Table(self)
        for tensor in tensors:  # for a large request, `tensors` yields one tensor at a time to save memory
            table.add(tensor)
        return table.finish(content)


class _Table:
    """Collects the columns of one request."""

    def __init__(self, model: ColumnTensors) -> None:
        self._model = model
        self._count = 0  # rows
        self._read: dict[str, Rows | None] = {}  # a value is None if the bytes of its column come after the JSON
        self._binary: list[tuple[str, str, Any]] = []  # name, datatype and size of each binary tensor
        self._json_texts: set[str] = set()  # the names of the tensors whose texts are JSON

    def add(self, tensor: Any) -> None:
        """Read one tensor. If the tensor is binary, `finish` reads its bytes later."""
        name = tensor.get("name") if type(tensor) is dict else None
        place = len(self._read) + 1
        if type(name) is not str:
            raise InvalidInput(f'"inputs" has a tensor without a name, number {place}')
        if name in self._read:
            raise InvalidInput(f'"inputs" has two tensors with one name, number {place} is the second')
        self._check_shape(tensor.get("shape"), place)
        datatype = tensor.get("datatype")
        if type(datatype) is not str or (datatype != _TEXT and datatype not in DTYPES):
            raise InvalidInput(f"the datatype of tensor number {place} is not one of the protocol")
        options = parameters(tensor)
        size = options.get("binary_data_size")
        if datatype == _TEXT and options.get("content_type") == _JSON_TEXTS:
            self._json_texts.add(name)
        data = tensor.get("data")
        column = self._model.columns.get(name)
        self._read[name] = None
        if size is not None:
            if "data" in tensor:
                raise InvalidInput(f'tensor number {place} has both "data" and a binary_data_size')
            self._binary.append((name, datatype, size))
        elif type(data) is not list:
            raise InvalidInput(f'tensor number {place} has neither an array "data" nor a binary_data_size')
        elif column is not None:
            self._read[name] = column.read(self._values(name, _from_json(name, datatype, data, self._count)))

    def finish(self, content: memoryview | None) -> tuple[Rows, Counter[tuple[Unusual, str]]]:
        """Return the rows, and the counts that `ColumnTensors.read` describes.

        content: the bytes after the JSON; None if no header gives the length of the JSON.
        """
        model = self._model
        ignored, filled = model.names.match(self._read.keys(), model.where)
        self._read_binary(content)
        rows = np.empty((self._count, len(model.columns)), np.float32)
        for place, (name, column) in enumerate(model.columns.items()):
            rows[:, place] = column.read([model.names.constants[name]]) if name in filled else self._read[name]
        counted: Counter[tuple[Unusual, str]] = Counter()
        counted.update({("ignored", name): self._count for name in ignored})
        counted.update({("filled", name): self._count for name in filled})
        return rows, counted

    def _check_shape(self, shape: Any, place: int) -> None:
        """Check that a tensor is one column that has as many rows as the earlier tensors."""
        sizes = shape if type(shape) is list and all(type(size) is int for size in shape) else []
        if len(sizes) not in (1, 2) or sizes[1:] not in ([], [1]) or sizes[0] < 1:
            raise InvalidInput(
                f"the shape of tensor number {place} is neither [rows] nor [rows, 1] with at least one row"
            )
        if sizes[0] > self._model.max_rows:
            raise InvalidInput(f'"inputs" has more rows than the {self._model.max_rows} that are allowed')
        if self._count and sizes[0] != self._count:
            raise InvalidInput('the tensors in "inputs" have different numbers of rows')
        self._count = int(sizes[0])

    def _values(self, name: str, values: list[Any]) -> list[Any]:
        return _parsed(name, values) if name in self._json_texts else values

    def _read_binary(self, content: memoryview | None) -> None:
        """Read the bytes of the binary tensors, which are in the order of the tensors."""
        start = 0
        for name, datatype, size in self._binary:
            if content is None:
                raise InvalidInput("there is a binary_data_size, and no header Inference-Header-Content-Length")
            if type(size) is not int or not 0 <= size <= len(content) - start:
                raise InvalidInput("a binary_data_size is not within the body")
            part = content[start : start + size]
            start += size
            column = self._model.columns.get(name)
            if column is not None:
                read = _texts if datatype == _TEXT else _numbers
                self._read[name] = column.read(self._values(name, read(name, datatype, part, self._count)))
        if content is not None and start != len(content):
            raise InvalidInput("there are more bytes after the JSON than the tensors' binary_data_size")


class _Column:
    """One feature."""

    def __init__(self, feature: Feature) -> None:
        self.name = feature.name
        self._is_boolean = feature.kind == "boolean"
        self._columns = Columns((feature,))

    def read(self, values: list[Any]) -> Rows:
        """Return the values of the column as float32 [rows]. Raises `InvalidInput`."""
        if self._is_boolean:  # a data frame stores booleans as numbers if values are missing
            values = [value == 1 if type(value) in (int, float) and value in (0, 1) else value for value in values]
        return self._columns.from_json_values(values)[:, 0]


def _from_json(name: str, datatype: str, data: list[Any], count: int) -> list[Any]:
    """Return the values of one tensor as a flat list. Raises `InvalidInput` if a value does not fit the datatype."""
    values = [value[0] if type(value) is list and len(value) == 1 else value for value in data]
    if len(values) != count:
        raise InvalidInput(f'the "data" of column {name!r} has {len(values)} values, its shape {count}')
    given = [value for value in values if value is not None]
    if datatype == _TEXT:
        if any(type(value) is not str for value in given):
            raise InvalidInput(f"column {name!r} is BYTES, and holds a value that is not a text")
        return values
    if datatype != "BOOL" and any(type(value) not in NUMBERS for value in given):
        raise InvalidInput(f"column {name!r} is {datatype}, and holds a value that is not a number")
    checked = iter(checked_numbers(f"column {name!r}", given, datatype))
    return [None if value is None else next(checked) for value in values]


def _parsed(name: str, texts: list[str | None]) -> list[Any]:
    """Parse each text as one JSON value. Raises `InvalidInput`.

    An array or an object is refused without parsing, because a small text can need much memory.
    """
    values: list[Any] = []
    for row, text in enumerate(texts):
        if text is not None and text.lstrip().startswith(("[", "{")):
            raise InvalidInput(f"row {row}, column {name!r} is an array or an object")
        try:
            values.append(None if text is None else orjson.loads(text))
        except orjson.JSONDecodeError:
            raise InvalidInput(
                f"row {row}, column {name!r} is not JSON, as its content type is {_JSON_TEXTS}"
            ) from None
    return values


def _texts(name: str, _: str, content: memoryview, count: int) -> list[str | None]:
    """Read texts in UTF-8. The length of each text comes before the text."""
    texts: list[str | None] = []
    start, end = 0, len(content)
    while start < end and len(texts) < count:
        if end - start < _LENGTH.size:
            break
        (length,) = _LENGTH.unpack_from(content, start)
        start += _LENGTH.size
        if length > end - start:
            break
        try:
            texts.append(str(content[start : start + length], "utf-8"))
        except UnicodeDecodeError:
            raise InvalidInput(f"row {len(texts)}, column {name!r} is not UTF-8") from None
        start += length
    if len(texts) != count or start != end:
        raise InvalidInput(f"the bytes of column {name!r} are not {count} texts, each after its length")
    return texts


def _numbers(name: str, datatype: str, content: memoryview, count: int) -> list[Any]:
    dtype = DTYPES[datatype]
    if len(content) != count * dtype.itemsize:
        raise InvalidInput(f"the bytes of column {name!r} are not {count} values of {datatype}")
    array = np.frombuffer(content, dtype)
    if datatype == "BOOL":
        if (array > 1).any():
            raise InvalidInput(f"column {name!r} is BOOL, and holds a byte that is neither 0 nor 1")
        return [bool(value) for value in array.tolist()]
    if datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    values: list[Any] = array.tolist()
    if array.dtype.kind == "f":
        infinite = np.isinf(array)
        if infinite.any():
            raise InvalidInput(f"row {int(infinite.argmax())}, column {name!r} is infinite")
        values = [None if math.isnan(value) else value for value in values]
    return values
