"""Lays out figures as text: tables, what was measured on which machine, and the part of a document that is made so."""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from operator import ge, gt, le, lt
from pathlib import Path
from statistics import median

from rig.environments import ROOT

NONE = "-"
README = ROOT / "benchmarks" / "README.md"

Row = tuple[str, ...]

_HOLDS: dict[str, Callable[[float, float], bool]] = {"≥": ge, ">": gt, "≤": le, "<": lt}


def markdown(rows: Sequence[Row]) -> str:
    """Lay out a table that reads well as text too; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *rest = ("| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows)
    return "\n".join([head, "| " + " | ".join("-" * width for width in widths) + " |", *rest])


def spread(values: Sequence[float]) -> str:
    """Median, and if there are several the lowest and highest."""
    low, middle, high = (number(x) for x in (min(values), median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def number(value: float) -> str:
    """Three digits, thousands by commas."""
    if value == 0 or math.isnan(value):
        return NONE
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def target_row(text: str, values: list[float] | str, bound: float, *, at_least: bool) -> Row:
    """Hold the median of a ratio or figure against its target; a text in place of figures says why there are none."""
    aim = f"{'≥' if at_least else '≤'} {bound:.3g}"
    if isinstance(values, str):
        return (text, values, aim, NONE)
    if not values:
        return (text, "not measured", aim, NONE)
    middle = median(values)
    met = middle >= bound if at_least else middle <= bound
    return (text, spread(values), aim, "met" if met else "missed")


def verdict(text: str, value: float | None, sign: str, bound: float | None, form: str = "{:.4f}") -> Row:
    """Hold a figure against its target; sign: one of ≥, >, ≤ and <. Without either figure there is no verdict."""
    if value is None:
        return (text, "not measured", NONE, NONE)
    if bound is None:
        return (text, form.format(value), NONE, NONE)
    return (text, form.format(value), f"{sign} {form.format(bound)}", "met" if _HOLDS[sign](value, bound) else "missed")


def machine(versions: Sequence[str]) -> str:
    """Say which command measured, when, on what. A folder's place on this machine is nobody's business, its name is."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    given = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    command = shlex.join(["python", f"benchmarks/{_script()}", *given])
    return (
        f"`{command}`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n\n"
        f"{processor.group(1) if processor else platform.machine()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}; {', '.join(versions)}"
    )


def keep(text: str, document: Path = README, markers: tuple[str, str] | None = None) -> None:
    """Put what the running script found between its markers in a document, by default the README."""
    first, last = markers or (f"<!-- {_script()} --write: from here -->", f"<!-- {_script()} --write: to here -->")
    before, _, rest = document.read_text(encoding="utf-8").partition(first)
    _, found, after = rest.partition(last)
    if not found:
        raise SystemExit(f"{document} lacks the lines {first} and {last}")
    document.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")


def _script() -> str:
    return Path(sys.argv[0]).name
