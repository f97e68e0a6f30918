"""Draws one chart as an `<svg>` element of an HTML page. The same numbers give the same bytes.

The module draws axes, lines, points and bars. The module does not depend on a particular chart. Each element of a chart
has CSS classes. The page defines the colours, lines and fonts of these classes, so that it can use other colours in a
dark colour scheme. A chart is about as wide as a phone, so that its text is readable on a phone. On a wide page, charts
are side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
import numpy.typing as npt

from foldserve.training.report.axis import Axis, Values

Colour = Literal["first", "second", "ink", "pale"]
Dash = Literal["", "dashed", "dotted"]

# All sizes are in units of the viewBox. On a phone, one unit is about one pixel.
_WIDTH, _HEIGHT = 400, 250
_RIGHT, _TOP, _BOTTOM = 12, 12, 42
_LEFT_OF_LABELS, _RIGHT_OF_LABELS = 22, 6
_TITLE = 20
_TICK, _CHARACTER = 4, 6.2
# The gap between two labels of the x axis is at least this wide.
_LABEL_GAP = 12


@dataclass
class Chart:
    """A chart. The lines, points and bars are drawn in the order in which the caller adds them. title: a line above the
    chart.
    """

    x: Axis
    y: Axis
    title: str = ""
    _marks: list[str] = field(default_factory=list)

    def line(self, x: Values, y: Values, colour: Colour, dash: Dash = "", *, opacity: float = 1.0) -> None:
        """Draw a line through points. The line is interrupted at a value that is not finite."""
        columns, rows = self._places(x, y)
        parts, pen = list[str](), "M"
        for column, row in zip(columns.tolist(), rows.tolist(), strict=True):
            if not (np.isfinite(column) and np.isfinite(row)):
                pen = "M"
                continue
            parts.append(f"{pen}{_number(column)} {_number(row)}")
            pen = "L"
        faint = f' style="opacity:{opacity:.2g}"' if opacity < 1 else ""
        self._marks.append(f'<path class="line {colour} {dash}"{faint} d="{"".join(parts)}"/>')

    def points(self, x: Values, y: Values, colour: Colour, *, size: float = 3.0, faint: bool = False) -> None:
        """Draw dots. All dots of one call are one SVG element, so that a chart with many dots is a small file."""
        columns, rows = self._places(x, y)
        shown = np.isfinite(columns) & np.isfinite(rows)
        dots = zip(columns[shown].tolist(), rows[shown].tolist(), strict=True)
        path = "".join(f"M{_number(column)} {_number(row)}h0" for column, row in dots)
        style = f"stroke-width:{2 * size:g}" + (";opacity:.5" if faint else "")
        self._marks.append(f'<path class="dots {colour}" style="{style}" d="{path}"/>')

    def bars(self, low: Values, high: Values, heights: Values, colour: Colour, floor: Values | None = None) -> None:
        """Draw a bar for each of `heights`.

        On the x axis, each bar goes from `low` to `high`. floor: the values on the y axis where the bars begin; by
        default, the lower end of the axis.
        """
        left, tops = self._places(low, heights)
        right, bottoms = self._places(high, np.full(len(heights), self.y.low) if floor is None else floor)
        bars = zip(*(ends.tolist() for ends in (left, right, tops, bottoms)), strict=True)
        path = "".join(
            f"M{_number(a)} {_number(bottom)}V{_number(top)}H{_number(b)}V{_number(bottom)}Z"
            for a, b, top, bottom in bars
            if np.isfinite(top) and top < bottom
        )
        self._marks.append(f'<path class="area {colour}" d="{path}"/>')

    def band(self, x: Values, low: Values, high: Values, colour: Colour) -> None:
        """Fill the area between two lines. Points that are not finite are left out."""
        columns, lower = self._places(x, low)
        _, upper = self._places(x, high)
        shown = np.isfinite(columns) & np.isfinite(lower) & np.isfinite(upper)
        there = zip(columns[shown].tolist(), lower[shown].tolist(), strict=True)
        back = zip(columns[shown][::-1].tolist(), upper[shown][::-1].tolist(), strict=True)
        path = "L".join(f"{_number(column)} {_number(row)}" for column, row in (*there, *back))
        if path:
            self._marks.append(f'<path class="band {colour}" d="M{path}Z"/>')

    def text(self, x: float, y: float, text: str, anchor: Literal["start", "middle", "end"] = "middle") -> None:
        """Write a text a little above a point."""
        columns, rows = self._places(np.array([x]), np.array([y]))
        place = f'x="{_number(float(columns[0]))}" y="{_number(float(rows[0]) - 4)}"'
        self._marks.append(f'<text {place} text-anchor="{anchor}">{escape(text)}</text>')

    def note(self, text: str) -> None:
        """Write a text in the lower left corner of the chart."""
        place = f'x="{self._left + 8}" y="{self._bottom - 8}"'
        self._marks.append(f"<text {place}>{escape(text)}</text>")

    def svg(self, alt: str) -> str:
        """Return the chart as an SVG element. alt: a description of the chart for a reader who can't see the chart."""
        title = (
            f'<text class="title" x="{self._left}" y="{_TITLE - 4}">{escape(self.title)}</text>' if self.title else ""
        )
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {self._height}" role="img" aria-label="{escape(alt)}">'
            f"{title if self.title else ''}{self._grid()}{''.join(self._marks)}</svg>"
        )

    @property
    def _left(self) -> float:
        longest = max((len(label) for _, label in self.y.ticks), default=0)
        return round(_LEFT_OF_LABELS + _CHARACTER * longest + _RIGHT_OF_LABELS)

    @property
    def _top(self) -> float:
        return _TOP + (_TITLE if self.title else 0)

    @property
    def _height(self) -> int:
        return _HEIGHT + (_TITLE if self.title else 0)

    @property
    def _bottom(self) -> float:
        return self._height - _BOTTOM

    def _places(self, x: Values, y: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Convert points to positions in the units of the viewBox.

        A point outside the range of an axis is moved to the end of the axis.
        """
        columns = self._left + (_WIDTH - self._left - _RIGHT) * self.x.place(x).clip(0, 1)
        rows = self._bottom - (self._bottom - self._top) * self.y.place(y).clip(0, 1)
        return columns, rows

    def _grid(self) -> str:
        left, right, bottom = self._left, _WIDTH - _RIGHT, self._bottom
        ticks_x, ticks_y = self._thinned(self.x.ticks), self.y.ticks
        columns, _ = self._places(np.array([value for value, _ in ticks_x]), np.full(len(ticks_x), self.y.low))
        _, rows = self._places(np.full(len(ticks_y), self.x.low), np.array([value for value, _ in ticks_y]))
        lines = "".join(f"M{left} {_number(row)}H{right}" for row in rows.tolist())
        axis = f"M{left} {_number(bottom)}H{right}"
        axis += "".join(f"M{_number(column)} {_number(bottom)}v{_TICK}" for column in columns.tolist())
        labels = [
            f'<text x="{_number(column)}" y="{_number(bottom + 16)}" text-anchor="middle">{escape(label)}</text>'
            for column, (_, label) in zip(columns.tolist(), ticks_x, strict=True)
        ] + [
            f'<text x="{left - _RIGHT_OF_LABELS}" y="{_number(row + 4)}" text-anchor="end">{escape(label)}</text>'
            for row, (_, label) in zip(rows.tolist(), ticks_y, strict=True)
        ]
        middle_x, middle_y = (left + right) / 2, (self._top + bottom) / 2
        labels.append(
            f'<text x="{_number(middle_x)}" y="{self._height - 6}" text-anchor="middle">{escape(self.x.label)}</text>'
            f'<text transform="translate(12 {_number(middle_y)}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.label)}</text>"
        )
        return f'<path class="rule" d="{lines}"/><path class="axis" d="{axis}"/>{"".join(labels)}'

    def _thinned(self, ticks: Sequence[tuple[float, str]]) -> Sequence[tuple[float, str]]:
        """Leave out ticks until the labels of the remaining ticks fit side by side."""
        longest = max((len(label) for _, label in ticks), default=0)
        fitting = max(1, int((_WIDTH - self._left) / (_CHARACTER * longest + _LABEL_GAP)))
        return ticks[:: -(-len(ticks) // fitting)] if ticks else ticks


def legend(*entries: tuple[Colour, Dash | Literal["dot", "area"], str]) -> str:
    """Return the HTML list that explains the colours and lines of charts. entries: for each entry, its colour, its mark
    and its meaning.
    """
    items = "".join(
        f'<li><span class="key {colour} {mark or "solid"}"></span>{escape(text)}</li>' for colour, mark, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _number(value: float) -> str:
    """Write a coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")
