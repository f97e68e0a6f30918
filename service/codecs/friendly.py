"""The friendly protocol: JSON instances in, labels and probabilities out.

    {"instances": [[0.5, 3, ...], ...]}  or  {"instances": [{"column": 0.5, ...}, ...]}
    -> {"model": ..., "version": ..., "predictions": [label or value, ...], "probabilities": [[...], ...]}

A missing value is null. What is refused is named by row and column, in a fixed text that never echoes the input.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from service.bundle import Manifest
from service.errors import InvalidInput

# Of exactly these types: a bool is an int to Python, and no number to a client.
_NUMBERS = {int, float}


class FriendlyCodec:
    """Reads and writes for one model."""

    def __init__(self, manifest: Manifest, max_rows: int) -> None:
        self._model = {"model": manifest.name, "version": manifest.version}
        self._labels = manifest.labels
        self._names = tuple(feature.name for feature in manifest.features)
        self._name_set = frozenset(self._names)
        self._nullable = np.array([feature.missing for feature in manifest.features])
        self._max_rows = max_rows
        # Twice what a body of that many rows can hold of brackets, those inside the features' names included, and
        # some for the small mistakes that a clearer text waits for.
        in_names = sum(name.count("[") + name.count("{") for name in self._names)
        self._max_brackets = 2 * max_rows * (1 + in_names) + 200_000

    def decode(self, body: bytes) -> npt.NDArray[np.float32]:
        """Read float32 [rows, features]. Raises `InvalidInput`."""
        instances = self._instances(body)
        if isinstance(instances[0], dict):
            instances = [self._by_name(i, row) for i, row in enumerate(instances)]
        width = len(self._names)
        for i, row in enumerate(instances):
            if type(row) is not list:
                raise InvalidInput(f"row {i} is not an array of {width} values")
            if len(row) != width:
                raise InvalidInput(f"row {i} has {len(row)} values, expected {width}")
        return self._float32(list(chain.from_iterable(instances)))

    def encode(self, outputs: npt.NDArray[np.float32]) -> bytes:
        """Write float32 [rows, outputs] as the answer."""
        answer: dict[str, Any] = dict(self._model)
        if self._labels:
            answer["predictions"] = [self._labels[i] for i in outputs.argmax(1).tolist()]
            answer["probabilities"] = outputs
        else:
            answer["predictions"] = outputs[:, 0]
        return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)

    def _instances(self, body: bytes) -> list[Any]:
        # Counted before anything is parsed: millions of empty rows would hold the interpreter for seconds.
        if body.count(b"[") + body.count(b"{") > self._max_brackets:
            raise InvalidInput(
                f'"instances" has too many rows, or rows inside rows; at most {self._max_rows} are allowed'
            )
        try:
            # Refuses NaN, infinities and numbers past a double, invalid UTF-8, lone surrogates and deep nesting.
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # The error holds the whole document: unchained, so that no log ever writes it out.
            raise InvalidInput(f"the body is not valid JSON, at character {error.pos}") from None
        instances = document.get("instances") if type(document) is dict else None
        if type(instances) is not list:
            raise InvalidInput('the body is not an object with an array "instances"')
        if not instances:
            raise InvalidInput('"instances" has no rows')
        if len(instances) > self._max_rows:
            raise InvalidInput(f'"instances" has {len(instances)} rows, at most {self._max_rows} are allowed')
        return instances

    def _by_name(self, i: int, row: Any) -> list[Any]:
        if type(row) is not dict:
            raise InvalidInput(f"row {i} is not an object, as the rows before it are")
        if row.keys() != self._name_set:
            missing = next((name for name in self._names if name not in row), None)
            raise InvalidInput(
                f"row {i} has a feature that is unknown"
                if missing is None
                else f"row {i} lacks the feature {missing!r}"
            )
        return [row[name] for name in self._names]

    def _float32(self, values: list[Any]) -> npt.NDArray[np.float32]:
        types = set(map(type, values))
        if not types <= _NUMBERS:
            self._refuse_other_types(values)
        # An integer past 64 bits came as a float. None becomes NaN.
        exact = np.array(values, dtype=np.float64).reshape(-1, len(self._names))
        with np.errstate(over="ignore"):
            rows = exact.astype(np.float32)
        self._refuse_at(np.isinf(rows), "is too large for float32")
        return rows

    def _refuse_other_types(self, values: list[Any]) -> None:
        shape = (-1, len(self._names))
        null = np.array([value is None for value in values]).reshape(shape)
        number = np.array([type(value) in _NUMBERS for value in values]).reshape(shape)
        self._refuse_at(~number & ~null, "is not a number")
        self._refuse_at(null & ~self._nullable, "is null, and the feature has no missing values")

    def _refuse_at(self, bad: npt.NDArray[np.bool_], reason: str) -> None:
        if bad.any():
            row, column = np.argwhere(bad)[0].tolist()
            raise InvalidInput(f"row {row}, column {self._names[column]!r} {reason}")
