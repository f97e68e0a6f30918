"""Writes the tables of docs/deployment.md that say again what stands elsewhere: `make docs`, and a test holds them.

The settings are service/settings.py's, the sizes those that benchmarks/README.md has measured. It knows nothing else of
the page than the two lines around each table.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from foldserve.service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deployment.md"

_LOADS = (
    ("1 row a request, 1 connection", "json"),
    ("1 row a request, 32 connections", "json"),
    ("1,024 rows a request, 4 connections", "json"),
    ("1,024 rows a request, 4 connections", "binary"),
)


def settings_table() -> str:
    """One line a setting: flag, variable, default, what it means; Markdown."""
    lines = ["| flag | variable | default | |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        value = field.default
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        default = "" if value is None else f"`{text}`"
        lines.append(
            f"| `--{name.replace('_', '-')}` | `{PREFIX}{name.upper()}` | {default} | {_plain(field.description)} |"
        )
    return "\n".join(lines)


def _plain(text: str | None) -> str:
    """Escape what Markdown would take for its own."""
    return re.sub(r"([<|*_`])", r"\\\1", text or "")


def sizes_table(measured: str) -> str:
    """One line a load: what one core answers, from benchmarks/README.md, then its start and memory; Markdown.

    Raises `ValueError` when a figure of foldserve's is not there.
    """
    lines = ["| load on one core | rows/s | p50, ms | p99, ms |", "| --- | --- | --- | --- |"]
    for load, protocol in _LOADS:
        rows, _, p50, p99 = _measured(measured, load, protocol)
        lines.append(f"| {load}, {protocol} | {rows} | {p50} | {p99} |")
    seconds, memory = _measured(measured, "Start and memory")
    return "\n".join([*lines, "", f"One process is ready in {seconds} s, and takes {memory} MB after these loads."])


def _measured(measured: str, table: str, protocol: str = "") -> list[str]:
    """What stands behind foldserve's name, and the protocol, in the table under a heading."""
    _, _, rest = measured.partition(f"\n{table}:\n\n")
    for line in rest.partition("\n\n")[0].splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "foldserve" and (not protocol or cells[0] == protocol):
            return cells[1:] if protocol else cells
    raise ValueError(f"benchmarks/README.md has no line of foldserve's under {table!r} {protocol}")


def written(page: str, measured: str) -> str:
    """Give the page with its tables anew."""
    for name, table in (("settings", settings_table()), ("sizes", sizes_table(measured))):
        start, end = f"<!-- {name}: from here, by `make docs` -->", f"<!-- {name}: to here -->"
        before, _, rest = page.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{PAGE.name} has no place for {name}")
        page = f"{before}{start}\n\n{table}\n\n{end}{after}"
    return page


def main() -> int:
    """Rewrite the page; with --check only say whether it is what it should be."""
    page = PAGE.read_text(encoding="utf-8")
    new = written(page, (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))
    if "--check" in sys.argv[1:]:
        if new != page:
            sys.stderr.write(f"{PAGE.relative_to(ROOT)} is not what the settings and figures say: make docs\n")
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
