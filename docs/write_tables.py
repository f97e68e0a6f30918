"""Writes the two generated tables of docs/deployment.md: `make docs`. A test checks that they are current.

The settings come from service/settings.py, and the sizes from the measurements in benchmarks/README.md. This script
depends only on the two comments around each table. It does not depend on the rest of the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from foldserve.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deployment.md"

_LOADS = (
    ("1 row per request, 1 connection", "json"),
    ("1 row per request, 32 connections", "json"),
    ("1,024 rows per request, 4 connections", "json"),
    ("1,024 rows per request, 4 connections", "binary"),
)


def settings_table() -> str:
    """Return the table of settings in Markdown: flag, variable, default, description."""
    lines = ["| flag | variable | default | |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        value = field.default
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        default = "" if value in (None, ()) else f"`{text}`"
        lines.append(
            f"| `--{name.replace('_', '-')}` | `{PREFIX}{name.upper()}` | {default} | {_escape(field.description)} |"
        )
    return "\n".join(lines)


def _escape(text: str | None) -> str:
    """Escape the characters that have a meaning in Markdown."""
    return re.sub(r"([<|*_`])", r"\\\1", text or "")


def sizes_table(measured: str) -> str:
    """Return a table in Markdown: the loads that one core answers, the start time and the memory of the server.

    measured: the text of benchmarks/README.md. Raises `ValueError` if `measured` lacks a figure of foldserve.
    """
    lines = ["| load on one core | rows/s | p50, ms | p99, ms |", "| --- | --- | --- | --- |"]
    for load, protocol in _LOADS:
        rows, _, p50, p99 = _measured(measured, load, protocol)
        lines.append(f"| {load}, {protocol} | {rows} | {p50} | {p99} |")
    seconds, memory = _measured(measured, "Start and memory")
    ready = f"One server process is ready in {seconds} s. It takes {memory} MB after these loads."
    return "\n".join([*lines, "", ready])


def _measured(measured: str, table: str, protocol: str = "") -> list[str]:
    """Return the cells after foldserve's name, and after the protocol if given, in the table below a heading."""
    _, _, rest = measured.partition(f"\n{table}:\n\n")
    for line in rest.partition("\n\n")[0].splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "foldserve" and (not protocol or cells[0] == protocol):
            return cells[1:] if protocol else cells
    raise ValueError(f"benchmarks/README.md has no line for foldserve below {table!r} {protocol}")


def written(page: str, measured: str) -> str:
    """Return the page with its tables rewritten."""
    for name, table in (("settings", settings_table()), ("sizes", sizes_table(measured))):
        start, end = f"<!-- {name}: from here, by `make docs` -->", f"<!-- {name}: to here -->"
        before, _, rest = page.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{PAGE.name} has no comments around the table {name!r}")
        page = f"{before}{start}\n\n{table}\n\n{end}{after}"
    return page


def main() -> int:
    """Rewrite the page. With --check, write nothing, and return 1 if the page is out of date."""
    page = PAGE.read_text(encoding="utf-8")
    new = written(page, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        if new != page:
            sys.stderr.write(f"{PAGE.relative_to(ROOT)} is out of date: run make docs\n")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
