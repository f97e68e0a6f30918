"""The result of `foldserve tune` in three forms: a table for people, TOML for the server, JSON for programs.

This module does not depend on how the settings are measured or chosen. The TOML file is written completely or not at
all.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from foldserve.service.bundle import Manifest, require_folder
from foldserve.service.bundle.atomic import replace_file
from foldserve.service.commands.tune.choose import Choice
from foldserve.service.commands.tune.latency import Latencies
from foldserve.service.commands.tune.throughput import Throughput
from foldserve.service.errors import SettingsError
from foldserve.service.figures import format_duration

# Every file that `tune` writes starts with this text. A file that starts with other words is not overwritten.
_FIRST_WORDS = "# foldserve tune"


@dataclass(frozen=True)
class Tuning:
    """The measurements of a model on a machine, and the settings chosen from them.

    busy: a warning if other programs used the machine.
    """

    manifest: Manifest
    machine: str
    versions: str
    when: datetime
    busy: str | None
    latencies: Latencies
    throughput: Throughput
    choices: tuple[Choice, ...]

    @property
    def model(self) -> str:
        """The name and version of the model."""
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of the measurements: one line for each omitted measurement, with the reason, and one line if the
        machine was busy.
        """
        skipped = self.latencies.skipped + self.throughput.skipped
        return (*(f"not measured: {text}" for text in skipped), *([self.busy] if self.busy else []))


def table(latencies: Latencies) -> str:
    """Write the median latencies as a table, with a row for each batch size and a column for each variant."""
    columns = latencies.by_name
    batches = sorted({batch for curve in columns.values() for batch in curve})
    lines = [
        ["rows", *columns],
        *(
            [f"{batch:,}", *(format_duration(curve[batch]) if batch in curve else "-" for curve in columns.values())]
            for batch in batches
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("   ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def toml(tuning: Tuning) -> str:
    """Write the settings for `foldserve serve --config`. Above each setting is a comment with the measured figures."""
    head = (
        f"{_FIRST_WORDS}, {tuning.when:%Y-%m-%d %H:%M} UTC: {tuning.model}, sha256 {tuning.manifest.model.sha256}",
        f"# {tuning.machine}",
        f"# {tuning.versions}",
        *(f"# {note}" for note in tuning.notes),
    )
    # JSON and TOML write a list of numbers, or a plain word in quotes, in the same way.
    lines = (f"\n# {choice.why}\n{choice.setting} = {json.dumps(choice.value)}" for choice in tuning.choices)
    return "\n".join([*map(_printable, head), *lines, ""])


def as_json(tuning: Tuning) -> dict[str, Any]:
    """Return the whole result for JSON: the seconds for each batch size, and the rows per second for each number of
    processes.
    """
    return {
        "model": tuning.model,
        "sha256": tuning.manifest.model.sha256,
        "when": tuning.when.isoformat(),
        "machine": tuning.machine,
        "versions": tuning.versions,
        "latency": {name: dict(curve) for name, curve in tuning.latencies.by_name.items()},
        "workers": dict(tuning.throughput.rates),
        "chosen": {choice.setting: {"value": choice.value, "why": choice.why} for choice in tuning.choices},
        "notes": list(tuning.notes),
    }


def require_writable(output: Path) -> None:
    """Check before a long measurement that `write` may write to `output`, so that no result is lost.

    Raises `BundleError` if the folder of `output` does not exist. Raises `SettingsError` if the file can't be written,
    or if `tune` did not write the existing file.
    """
    require_folder(output.parent)
    if not os.access(output.parent, os.W_OK):
        raise SettingsError(f"can't write in {output.parent}")
    try:
        with output.open(encoding="utf-8", errors="replace") as file:
            ours = file.read(len(_FIRST_WORDS)) == _FIRST_WORDS
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingsError(f"can't write {output}: {error.strerror}") from error
    if not ours:
        raise SettingsError(f"{output} exists and was not written by tune: name another file with -o")


def write(tuning: Tuning, output: Path) -> None:
    """Write the settings to `output`, completely or not at all. Raises `SettingsError` if the file can't be written."""
    try:
        replace_file(output, toml(tuning).encode())
    except OSError as error:
        raise SettingsError(f"can't write {output}: {error.strerror}") from error


def _printable(text: str) -> str:
    """Remove the characters that TOML forbids in comments."""
    return "".join(filter(str.isprintable, text))
