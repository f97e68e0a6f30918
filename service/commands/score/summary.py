"""The lines that the user of a scoring run sees: notes about the input before the run, and counts after the run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from foldserve.service.bundle import Manifest
from foldserve.service.commands.score.output import Output
from foldserve.service.commands.score.scorer import Scored
from foldserve.service.figures import count_of
from foldserve.service.sources import Stream
from foldserve.service.text import join_some, printable

# A line names at most this number of columns.
_MOST_NAMES = 10


@dataclass
class Counted:
    """The counts of one scoring run. rows: the input rows. unusual: the values that training has not seen, by kind and
    feature.

    first: the first refused row as text: its number, its file, and the reason.
    """

    rows: int = 0
    refused: int = 0
    unusual: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: str | None = None

    def add(self, scored: Scored) -> None:
        """Count a chunk."""
        self.rows += scored.rows
        self.unusual.update(scored.unusual)
        if scored.refused is not None:
            self.refused += len(scored.refused)
            self.note_first(scored.refused)

    def note_first(self, refused: pa.RecordBatch) -> None:
        """If no refused row was kept before, keep the first row of `refused`."""
        if self.first is None:
            file, row, reason = (refused.column(place)[0].as_py() for place in range(3))
            self.first = f"row {row} of {file}: {reason}"


def describe_input(
    manifest: Manifest, streams: Sequence[Stream], names: Sequence[str], kept: Sequence[str]
) -> Iterator[str]:
    """Yield a note for each decision that the program has made about the input. names: the columns of the input."""
    yield from dict.fromkeys(note for stream in streams for note in stream.notes)
    features = {feature.name for feature in manifest.features}
    if ignored := [repr(name) for name in names if name not in features and name not in kept]:
        yield f"ignored, because the model has no such features: {join_some(ignored, _MOST_NAMES)}"
    if filled := [repr(name) for name in features if name not in names]:
        yield f"not in the input, so their only training values are used: {join_some(sorted(filled), _MOST_NAMES)}"


def print_note(text: str) -> None:
    """Print a note on standard error."""
    print(f"note: {printable(text)}", file=sys.stderr)


def summarise(output: Output, counted: Counted, manifest: Manifest, provider: str, seconds: float) -> None:
    """Print the counts. If the answers go to standard output, the counts go to standard error."""
    stream = sys.stdout if output.path else sys.stderr
    model = f"{manifest.name}/{manifest.version}"
    scored = counted.rows - counted.refused
    where = f"wrote {output.path}: " if output.path else ""
    rate = f"{counted.rows / seconds:,.0f} rows/s"
    print(f"{where}{count_of(scored, 'row')} scored by {model} on {provider} in {seconds:.1f} s ({rate})", file=stream)
    if counted.refused:
        named = f"{output.refused} has the reasons" if output.refused else "use --refused FILE for the reasons"
        first = f"; the first is {printable(counted.first)}" if counted.first else ""
        print(f"{count_of(counted.refused, 'row')} refused: {named}{first}", file=sys.stderr)
    kinds = {"unseen": "categories that training has not seen", "outside": "values outside the training range"}
    for kind, text in kinds.items():
        found = [f"{name!r} {count:,}" for (each, name), count in sorted(counted.unusual.items()) if each == kind]
        if found:
            print_note(f"{text}: {join_some(found, _MOST_NAMES)}")
