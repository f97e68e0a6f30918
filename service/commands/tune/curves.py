"""A picture of curves over two logarithmic axes, as SVG: text in, text out.

It knows names, numbers and units of time, nothing of models or devices. The picture needs no script, no font and no
other file, and follows the reader's light or dark colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

Curve = Mapping[int, float]

_WIDTH, _HEIGHT = 860, 480
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 72, 610, 416  # of the plot, in the picture; the legend is right of it
_LEGEND_STEP = 24
# Okabe and Ito's colours, told apart by the colour-blind as well, without the two that are lost on black or on white:
# https://jfly.uni-koeln.de/color/ A second round of them is dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = ("none", "7 4", "2 4")

_STYLE = """
  svg { background: #ffffff; font-family: system-ui, sans-serif; font-size: 13px }
  .ground { fill: #ffffff }
  text { fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .faint { fill: #59636e }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 }
    .ground { fill: #0d1117 }
    text { fill: #e6edf3 }
    .faint { fill: #9198a1 }
    .grid { stroke: #30363d }
  }
"""


def duration(seconds: float) -> str:
    """Write a time with three digits and the unit that suits it: 4.21 µs, 13.7 ms, 150 ms, 1.50 s."""
    unit, size = _unit(seconds)
    value = seconds / size
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def draw(title: str, subtitle: str, x_title: str, y_title: str, curves: Mapping[str, Curve]) -> str:
    """Draw a line for each of `curves`, by its name: x, a whole number above 0, to y, seconds above 0.

    Each x of any curve gets a tick. Raises `ValueError` where there is no point at all.
    """
    xs = sorted({x for curve in curves.values() for x in curve})
    ys = [y for curve in curves.values() for y in curve.values()]
    # Whole decades, so that the steepness of two pictures can be compared.
    low = math.floor(math.log10(min(ys)))
    high = max(low + 1, math.ceil(math.log10(max(ys))))
    across = _scale(math.log(xs[0]), math.log(xs[-1]), _LEFT, _RIGHT)
    up = _scale(low, high, _BOTTOM, _TOP)
    middle = (_TOP + _BOTTOM) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{_HEIGHT}"/>',
        _text(_LEFT, 28, title, "title"),
        _text(_LEFT, 50, subtitle, "faint"),
        *(_tick_x(across(math.log(x)), x) for x in xs),
        *(_tick_y(up(decade), decade) for decade in range(low, high + 1)),
        _text((_LEFT + _RIGHT) / 2, _BOTTOM + 46, x_title, anchor="middle"),
        f'<text text-anchor="middle" transform="translate(18 {middle:g}) rotate(-90)">{escape(y_title)}</text>',
    ]
    for place, (name, curve) in enumerate(curves.items()):
        points = [(across(math.log(x)), up(math.log10(y))) for x, y in sorted(curve.items())]
        lines += _curve(place, name, points)
    return "\n".join([*lines, "</svg>", ""])


def _scale(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    """Map [first, last] to the pixels [start, end], and a single value to their middle."""
    if first == last:
        return lambda _: (start + end) / 2
    return lambda value: start + (value - first) / (last - first) * (end - start)


def _curve(place: int, name: str, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    colour = _COLOURS[place % len(_COLOURS)]
    dash = _DASHES[place // len(_COLOURS) % len(_DASHES)]
    stroke = f'stroke="{colour}" stroke-dasharray="{dash}"'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline class="curve" {stroke} points="{path}"><title>{escape(name)}</title></polyline>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    left, line = _RIGHT + 24, _TOP + 8 + place * _LEGEND_STEP
    yield f'<line class="curve" {stroke} x1="{left}" y1="{line}" x2="{left + 28}" y2="{line}"/>'
    yield f'<circle cx="{left + 14}" cy="{line}" r="3.5" fill="{colour}"/>'
    yield _text(left + 38, line + 4.5, name)


def _tick_x(x: float, number: int) -> str:
    line = f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}"/>'
    return line + _text(x, _BOTTOM + 20, f"{number:,}", anchor="middle")


def _tick_y(y: float, decade: int) -> str:
    unit, size = _unit(10.0**decade)
    line = f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>'
    return line + _text(_LEFT - 8, y + 4.5, f"{10.0**decade / size:g} {unit}", anchor="end")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _unit(seconds: float) -> tuple[str, float]:
    return ("µs", 1e-6) if seconds < 999.5e-6 else ("ms", 1e-3) if seconds < 999.5e-3 else ("s", 1.0)
