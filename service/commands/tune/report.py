"""What a tuning found, for a person, for a program, and for a server: the table, the JSON, and the files.

It knows what was measured and chosen, and neither how nor why. The two files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from foldserve.service import bundle
from foldserve.service.commands.tune import curves
from foldserve.service.commands.tune.choose import Tuned
from foldserve.service.commands.tune.curves import duration
from foldserve.service.commands.tune.measure import GRAPHS, PLAIN, Curve, Latencies, cpu_name
from foldserve.service.errors import SettingsError

_FIRST_WORDS = "# foldserve tune"


def named(timed: Latencies) -> dict[str, Curve]:
    """Name each curve: the device, and how it was run there."""
    found = {cpu_name(threads): curve for threads, curve in timed.cpu.items()}
    return found | ({GRAPHS: timed.graphs, PLAIN: timed.plain} if timed.plain else {})


def table(timed: Latencies) -> str:
    """Write the median latency by batch, a column a curve."""
    columns = named(timed)
    batches = sorted({batch for curve in columns.values() for batch in curve})
    lines = [
        ["rows", *columns],
        *(
            [f"{batch:,}", *(duration(curve[batch]) if batch in curve else "-" for curve in columns.values())]
            for batch in batches
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def toml(tuned: Tuned) -> str:
    """Write the settings, each under the figures that decided, as `foldserve serve --config` reads them."""
    head = (
        f"{_FIRST_WORDS}, {tuned.when:%Y-%m-%d %H:%M} UTC: {tuned.model}, sha256 {tuned.manifest.model.sha256}",
        f"# {tuned.machine}",
        f"# {tuned.versions}",
        *(f"# {note}" for note in tuned.notes),
    )
    # A list of numbers and a text of plain letters are the same in JSON.
    lines = (f"\n# {choice.why}\n{choice.setting} = {json.dumps(choice.value)}" for choice in tuned.choices)
    return "\n".join([*map(_printable, head), *lines, ""])


def picture(tuned: Tuned) -> str:
    """Draw the curves, as SVG."""
    return curves.draw(
        f"Latency of {tuned.model} by batch",
        f"{tuned.machine}, {tuned.when:%Y-%m-%d}",
        "rows in a batch",
        "time of one run, median",
        named(tuned.latencies),
    )


def as_json(tuned: Tuned) -> dict[str, Any]:
    """Give all of it as JSON has it; times in seconds, by the rows of a batch; rates in rows per second."""
    return {
        "model": tuned.model,
        "sha256": tuned.manifest.model.sha256,
        "when": tuned.when.isoformat(),
        "machine": tuned.machine,
        "versions": tuned.versions,
        "latency": {name: dict(curve) for name, curve in named(tuned.latencies).items()},
        "workers": dict(tuned.throughput.rates),
        "chosen": {choice.setting: {"value": choice.value, "why": choice.why} for choice in tuned.choices},
        "notes": list(tuned.notes),
    }


def require_place(output: Path) -> None:
    """Raise unless `write` may write there: `BundleError` for no folder, `SettingsError` for what is in the way.

    A file of settings that a person wrote is not written over.
    """
    bundle.require_folder(output.parent)
    if output.suffix == ".svg":
        raise SettingsError(f"{output} is to be TOML; the picture goes beside it")
    if not os.access(output.parent, os.W_OK):
        raise SettingsError(f"can't write in {output.parent}")
    try:
        with output.open(encoding="utf-8", errors="replace") as there:
            ours = there.read(len(_FIRST_WORDS)) == _FIRST_WORDS
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsError(f"can't write {output}: {error.strerror}") from error
    if not ours:
        raise SettingsError(f"{output} is there, and not written by tune: name another file with -o")


def write(tuned: Tuned, output: Path) -> Path:
    """Write the settings to `output` and the picture beside it, each whole or not at all, and give the picture's path.

    Raises `SettingsError` when that can't be written.
    """
    drawn = output.with_suffix(".svg")
    # Beside their places, so that the rename stays inside one file system.
    partial = {file: file.with_name(f".partial-{os.getpid()}-{file.name}") for file in (drawn, output)}
    try:
        for file, text in ((drawn, picture(tuned)), (output, toml(tuned))):
            partial[file].write_text(text, encoding="utf-8")
        for file, written in partial.items():
            written.replace(file)
    except OSError as error:
        raise SettingsError(f"can't write {output}: {error.strerror}") from error
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)
    return drawn


def _printable(text: str) -> str:
    """Leave out what no line of a file of settings may hold."""
    return "".join(filter(str.isprintable, text))
