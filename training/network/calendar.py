"""The calendar layer turns a number of days or hours since an origin into the parts of the date and time, such as the
month.

The parts are computed with whole numbers, which float32 holds exactly up to 2^24. Each part that repeats, such as the
month, also gets a sine and a cosine. Other modules convert the text of a date to the number of days or hours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from foldserve.training.network.graph import Graph
from foldserve.training.network.layers import Layer
from foldserve.training.table.schema import Column

# The number of days from 0000-03-01 to 1970-01-01. In this module, a year starts on March 1, so that a leap day is the
# last day of a year.
_EPOCH = 719_468

NUMBERS = ("year", "month", "day of week", "hour")
CYCLES = tuple(f"{function} of {part}" for part in NUMBERS[1:] for function in ("sine", "cosine"))


class _Number(Protocol):
    """The arithmetic operations that `compute_parts` uses.

    A tensor has these operations, and so does a `_Symbol`, which stands for a tensor in a graph.
    """

    def __add__(self: N, other: float | N, /) -> N: ...
    def __sub__(self: N, other: float | N, /) -> N: ...
    def __mul__(self: N, other: float | N, /) -> N: ...
    def __truediv__(self: N, other: float | N, /) -> N: ...
    def floor(self: N) -> N: ...
    def sin(self: N) -> N: ...
    def cos(self: N) -> N: ...


N = TypeVar("N", bound=_Number)


def compute_parts(x: N, per_day: N, origin: N) -> list[N]:
    """Compute the parts of dates and times: first `NUMBERS`, then `CYCLES`. All parts of a missing date (NaN) are NaN.

    x: whole numbers of days or hours since an origin. per_day: 1 for days, 24 for hours. origin: the origin in days
    since 0000-03-01. January is 1, and Monday is 0. The date is in the proleptic Gregorian calendar. The computation
    uses the algorithm `civil_from_days` of Howard Hinnant (https://howardhinnant.github.io/date_algorithms.html).
    """
    day = (x / per_day).floor()
    hour = (x - day * per_day) * 24.0 / per_day
    z = day + origin
    weekday = z + 2.0
    weekday = weekday - (weekday / 7.0).floor() * 7.0
    era = (z / 146_097.0).floor()
    day_of_era = z - era * 146_097.0
    leap_days = (day_of_era / 1_460.0).floor() - (day_of_era / 36_524.0).floor() + (day_of_era / 146_096.0).floor()
    year_of_era = ((day_of_era - leap_days) / 365.0).floor()
    first = year_of_era * 365.0 + (year_of_era / 4.0).floor() - (year_of_era / 100.0).floor()
    month_from_march = (((day_of_era - first) * 5.0 + 2.0) / 153.0).floor()  # in this variable, March is 0
    next_year = (month_from_march / 10.0).floor()  # 1 in January and February, and otherwise 0
    month = month_from_march + 3.0 - next_year * 12.0
    year = era * 400.0 + year_of_era + next_year
    cycles = [part * (2 * math.pi / length) for part, length in ((month, 12), (weekday, 7), (hour, 24))]
    return [year, month, weekday, hour, *(wave for angle in cycles for wave in (angle.sin(), angle.cos()))]


class Calendar(Layer):
    """Map [batch, features] to [batch, features + parts]: the unchanged features, followed by the parts of the dates.

    The parts are ordered by their kind: first the year of every date column, then the month of every date column, and
    so on.
    """

    places: Tensor
    per_day: Tensor
    origin: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        """columns: the columns of the table. The layer computes parts only for columns of the kind `time`."""
        super().__init__()
        readings = {place: c.reading for place, c in enumerate(columns) if c.kind == "time" and c.reading}
        self.features = len(columns)
        self.register_buffer("places", torch.tensor(list(readings), dtype=torch.int64))
        self.register_buffer("per_day", torch.tensor([24.0 if r.step == "hour" else 1.0 for r in readings.values()]))
        days = [_EPOCH + (r.origin - date(1970, 1, 1)).days for r in readings.values()]
        self.register_buffer("origin", torch.tensor(days, dtype=torch.float32))

    @property
    def columns(self) -> int:
        """The number of output columns."""
        return self.features + len(self.places) * (len(NUMBERS) + len(CYCLES))

    def forward(self, x: Tensor) -> Tensor:
        """Append the parts of the dates to `x`. The computation uses the dtype of `x`."""
        parts = compute_parts(x[:, self.places], self.per_day.to(x.dtype), self.origin.to(x.dtype))
        return torch.cat([x, *parts], 1)

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add one node for each operation of `compute_parts`, and a Concat."""
        raw = graph.value
        moments = graph.node("Gather", f"{name}.raw", graph.constant(f"{name}.columns", self.places), axis=1)
        symbols = _Symbols(graph, name)
        constants = (graph.constant(f"{name}.{part}", getattr(self, part)) for part in ("per_day", "origin"))
        parts = compute_parts(*(_Symbol(symbols, value) for value in (moments, *constants)))
        graph.concatenate(name, [raw, *(part.value for part in parts)])


class _Symbols:
    """Adds the nodes of an expression to a graph. This class names each value, and stores each constant only once."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph = graph
        self._name = name
        self._constants: dict[float, str] = {}
        self._count = 0

    def add(self, operator: str, *operands: _Symbol | float) -> _Symbol:
        first, *others = [
            operand.value if isinstance(operand, _Symbol) else self._constant(operand) for operand in operands
        ]
        self._graph.value = first
        self._count += 1
        return _Symbol(self, self._graph.node(operator, f"{self._name}.{self._count}", *others))

    def _constant(self, number: float) -> str:
        if number not in self._constants:
            name = f"{self._name}.constant.{len(self._constants)}"
            self._constants[number] = self._graph.constant(name, torch.tensor(number))
        return self._constants[number]


@dataclass(frozen=True)
class _Symbol:
    """Stands for a tensor in the graph. Each arithmetic operation on a symbol adds a node to the graph."""

    symbols: _Symbols
    value: str

    def __add__(self, other: float | _Symbol) -> _Symbol:
        return self.symbols.add("Add", self, other)

    def __sub__(self, other: float | _Symbol) -> _Symbol:
        return self.symbols.add("Sub", self, other)

    def __mul__(self, other: float | _Symbol) -> _Symbol:
        return self.symbols.add("Mul", self, other)

    def __truediv__(self, other: float | _Symbol) -> _Symbol:
        return self.symbols.add("Div", self, other)

    def floor(self) -> _Symbol:
        return self.symbols.add("Floor", self)

    def sin(self) -> _Symbol:
        return self.symbols.add("Sin", self)

    def cos(self) -> _Symbol:
        return self.symbols.add("Cos", self)


@dataclass(frozen=True)
class Parts:
    """The columns of a table after the calendar layer: the features, followed by the parts of the dates."""

    columns: tuple[Column, ...]
    calendar: Calendar | None


def with_parts(columns: Sequence[Column]) -> Parts:
    """Return the columns followed by the parts of their dates, and the layer that computes these parts.

    The layer is None if the table has no column of the kind `time`.

    The year, month, day of week and hour are new columns of the kind `numeric`, which may have bins. The sines and
    cosines are new columns of the kind `time`, which have no bins.
    """
    moments = [column for column in columns if column.kind == "time"]
    if not moments:
        return Parts(tuple(columns), None)
    named = [(part, "numeric") for part in NUMBERS] + [(part, "time") for part in CYCLES]
    parts = [
        Column(f"{part} of {column.name}", "numeric" if kind == "numeric" else "time", missing=column.missing)
        for part, kind in named
        for column in moments
    ]
    return Parts((*columns, *parts), Calendar(columns))
