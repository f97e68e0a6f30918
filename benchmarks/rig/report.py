"""Writes figures as text: tables, a description of the machine, and the generated part of a document."""

from __future__ import annotations

import datetime
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from operator import ge, gt, le, lt
from pathlib import Path
from statistics import median

from foldserve.service.machine import processor
from rig.environments import ROOT

NONE = "-"
README = ROOT / "benchmarks" / "README.md"

Row = tuple[str, ...]

_HOLDS: dict[str, Callable[[float, float], bool]] = {"≥": ge, ">": gt, "≤": le, "<": lt}


def markdown(rows: Sequence[Row]) -> str:
    """Write an aligned Markdown table. The first row is the header of the table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *rest = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([head, "| " + " | ".join("-" * width for width in widths) + " |", *rest])


def median_and_range(values: Sequence[float]) -> str:
    """Write the median. If there is more than one value, also write the lowest and the highest value."""
    low, middle, high = (number(x) for x in (min(values), median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def number(value: float) -> str:
    """Write a number with three significant digits, and with commas between thousands."""
    if value == 0 or math.isnan(value):
        return NONE
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def target_row(text: str, values: list[float] | str, bound: float, *, at_least: bool) -> Row:
    """Write a table row that compares the median with its target.

    If there are no figures, `values` is a text with the reason.
    """
    target = f"{'≥' if at_least else '≤'} {bound:.3g}"
    if isinstance(values, str):
        return (text, values, target, NONE)
    if not values:
        return (text, "not measured", target, NONE)
    middle = median(values)
    met = middle >= bound if at_least else middle <= bound
    return (text, median_and_range(values), target, "met" if met else "missed")


def figure_row(text: str, value: float | None, sign: str, bound: float | None, form: str = "{:.4f}") -> Row:
    """Write a table row that compares a figure with its target.

    If the figure or the target is None, the row has no verdict. sign: one of ≥, >, ≤ and <.
    """
    if value is None:
        return (text, "not measured", NONE, NONE)
    if bound is None:
        return (text, form.format(value), NONE, NONE)
    return (text, form.format(value), f"{sign} {form.format(bound)}", "met" if _HOLDS[sign](value, bound) else "missed")


def machine(versions: Sequence[str]) -> str:
    """Describe the measurement by its command, date, machine and versions. Paths are shortened to their last part."""
    arguments = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{_script()}", *arguments])
    return (
        f"`{command}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n\n"
        f"{processor.model_name()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}; {', '.join(versions)}"
    )


def write_section(text: str, document: Path = README, markers: tuple[str, str] | None = None) -> None:
    """Write `text` into a document, by default benchmarks/README.md, between the markers of the running script."""
    first, last = markers or (f"<!-- {_script()} --write: from here -->", f"<!-- {_script()} --write: to here -->")
    before, _, rest = document.read_text(encoding="utf-8").partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise SystemExit(f"{document} lacks the lines {first} and {last}")
    document.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")


def _script() -> str:
    return Path(sys.argv[0]).name
