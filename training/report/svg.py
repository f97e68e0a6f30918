"""Draws charts with matplotlib as SVG for an HTML page. The same numbers give the same bytes.

The module owns the style of matplotlib, and the conversion of an SVG file into a part of a page. It knows no particular
chart. The charts use the CSS custom properties of `COLOURS`. A page sets these properties, and may change them with the
reader's colour scheme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The CSS custom property of each colour, and the colour on a page that does not set this property.
COLOURS = {"chart-text": "#33383f", "chart-grid": "#d5d9df", "chart-first": "#0b5cad", "chart-second": "#b3500b"}
TEXT, GRID, FIRST, SECOND = COLOURS.values()

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",  # matplotlib includes this font, so the layout is the same on every machine
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",  # text stays text, so the file is smaller and a reader can search it
    "text.color": TEXT,
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": TEXT,
    "ytick.color": GRID,
    "ytick.labelcolor": TEXT,
}


def draw_svg(name: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.6, 2.9)) -> str:
    """Draw one chart and return it as an `<svg>` element. See `draw_grid`."""
    return draw_grid(name, alt, (1, 1), size, lambda axes: draw(axes[0, 0]))


def draw_grid(
    name: str, alt: str, shape: tuple[int, int], size: tuple[float, float], draw: Callable[[Any], None], **axes: Any
) -> str:
    """Draw a grid of axes [rows, columns].

    Return it as one `<svg>` element that does not refer to anything outside the element.

    name: a name that is unique on the page, so that the ids of two charts differ. alt: the description for a reader who
    can't see the chart.
    size: the size in inches; the page scales the width. axes: arguments of `Figure.subplots`.
    """
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(*shape, squeeze=False, **axes))
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _to_inline(content.getvalue(), alt)


def _to_inline(svg: str, alt: str) -> str:
    """Turn the text of matplotlib's SVG file into an element of a page."""
    root = re.compile(r'.*?<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
    svg = root.sub(rf'<svg class="chart" viewBox="\1" role="img" aria-label="{escape(alt)}">', svg, count=1)
    # The style and the ids are removed. The style would apply to every element of the page, and two charts would have
    # the same ids.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return re.sub(r"\s*\n\s*", "\n", svg)


def format_power_of_ten(value: float, _position: float = 0) -> str:
    """Write the label of a tick on a logarithmic axis, such as 10⁻³. matplotlib would write TeX source into the SVG."""
    exponent = round(math.log10(value))
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def legend_below(axes: Axes) -> None:
    """Put one legend for the whole figure below the figure. axes: an axes that contains all entries of the legend."""
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
