"""Turns batches of JSON objects into float32 [rows, features]. If a value is bad, only its row is refused.

A JSON object follows the rules for an instance in the friendly protocol, with two exceptions. An object may lack the
name of a feature, because JSON lines usually leave out a missing value. An object may also have members that the model
does not use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Feature
from foldserve.service.errors import InvalidInput
from foldserve.service.protocols.categories import json_value
from foldserve.service.protocols.rows import Columns
from foldserve.service.tables.encoder import Encoded


class ObjectEncoder:
    """Encodes JSON objects for one model."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.names = tuple(feature.name for feature in features)
        self._columns = Columns(features)
        constants = {each.name: json_value(each, each.constant) for each in features if each.constant is not None}
        self._usual = [(name, constants.get(name)) for name in self.names]

    def encode(self, objects: Sequence[Any]) -> Encoded:
        """Encode parsed JSON values, one for each row. A value that is not an object is refused."""
        refused: dict[int, str] = {}
        rows = np.zeros((len(objects), len(self.names)), np.float32)
        whole = [place for place, each in enumerate(objects) if type(each) is dict]
        if len(whole) < len(objects):
            refused = dict.fromkeys(set(range(len(objects))) - set(whole), "the line is not a JSON object")
        self._fill(rows, [[objects[place].get(*usual) for usual in self._usual] for place in whole], whole, refused)
        return Encoded(rows, refused)

    def _fill(self, rows: Rows, values: list[list[Any]], places: Sequence[int], refused: dict[int, str]) -> None:
        """Write `values` into the rows `places`.

        If a batch has a bad value, halve the batch until the bad row is alone.
        """
        if not values:
            return
        try:
            rows[places] = self._columns.from_json_values(list(chain.from_iterable(values)))
        except InvalidInput as error:
            if len(values) == 1:
                refused[places[0]] = str(error).removeprefix("row 0, ")
                return
            half = len(values) // 2
            self._fill(rows, values[:half], places[:half], refused)
            self._fill(rows, values[half:], places[half:], refused)
