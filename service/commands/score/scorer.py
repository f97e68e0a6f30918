"""Scores chunks: turns a chunk of input rows into answers and refused rows. The module does not depend on files or
output formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from foldserve.service.arrays import Outputs, Run
from foldserve.service.bundle import Manifest
from foldserve.service.commands.score.inputs import Chunk, Piece, keep
from foldserve.service.errors import RuntimeFailure, TableError
from foldserve.service.protocols.ranges import Ranges
from foldserve.service.runtime.session import one_line
from foldserve.service.tables import AnswerColumns, Encoded, ObjectEncoder, TableEncoder

NOT_FINITE = "the model gives a value that is not finite, because the numbers are far outside its range"


@dataclass(frozen=True)
class Scored:
    """The result of one chunk.

    piece, chunk: the numbers of the piece and of the chunk in the input. rows: the number of input rows. answers: the
    answers to the accepted rows. refused: the refused rows with their reasons; None if there are none. unusual: the
    number of values that training has not seen, by kind and feature. share: as in `Chunk`.
    """

    piece: int
    chunk: int
    rows: int
    answers: pa.RecordBatch
    refused: pa.RecordBatch | None
    unusual: Mapping[tuple[str, str], int] = field(default_factory=dict)
    share: float = 0.0


class Scorer:
    """Scores the chunks of any piece. kept: the fields of the input columns that are copied into the output."""

    def __init__(self, manifest: Manifest, run: Run, kept: Sequence[pa.Field], *, typed: bool, with_all: bool) -> None:
        """typed: as in `Stream`. with_all: whether the answers have the probabilities of all classes."""
        self._run = run
        self._kept = list(kept)
        self._answers = AnswerColumns(manifest, with_all=with_all)
        self._ranges = Ranges(manifest.features)
        self._tables = TableEncoder(manifest.features, typed=typed)
        self._objects = ObjectEncoder(manifest.features)
        self.schema = pa.schema([*kept, *self._answers.fields])
        names = self.schema.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise TableError(f"--columns: the answers have a column {twice!r} too: rename the column of the input")
        self.refused_schema = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), *kept])

    def score(self, place: int, piece: Piece, number: int, chunk: Chunk) -> Scored:
        """Score chunk `number` of the piece `place`. Raises `TableError`, `RuntimeFailure` and `DeviceLost`."""
        kept = keep(chunk.rows, self._kept, chunk.first_row)
        encoded = self._encode(chunk)
        refused = dict(encoded.refused)
        accepted = encoded.accepted()
        rows = encoded.rows if accepted is None else encoded.rows[accepted]
        outputs = self._outputs(rows, chunk)
        if not np.isfinite(outputs).all():
            places = np.arange(len(encoded.rows)) if accepted is None else np.flatnonzero(accepted)
            finite = np.isfinite(outputs).all(axis=1)
            refused |= dict.fromkeys(places[~finite].tolist(), NOT_FINITE)
            rows, outputs = rows[finite], outputs[finite]
        if refused:
            mask = Encoded(encoded.rows, refused).accepted()
            answered = [column.filter(pa.array(mask)) for column in kept]
        else:
            answered = kept
        return Scored(
            place,
            number,
            len(encoded.rows),
            _batch([*answered, *self._answers.columns(outputs)], self.schema),
            self._refusals(piece, chunk, refused, kept) if refused else None,
            {(kind, column): count for (kind, column), count in (self._ranges.count(rows) or {}).items()},
            chunk.share,
        )

    def _encode(self, chunk: Chunk) -> Encoded:
        if isinstance(chunk.rows, list):
            return self._objects.encode(chunk.rows)
        return self._tables.encode(chunk.rows)

    def _outputs(self, rows: Any, chunk: Chunk) -> Outputs:
        if not len(rows):
            return np.empty((0, self._answers.width), np.float32)
        try:
            return self._run(rows)
        except RuntimeFailure:
            raise
        except Exception as error:
            raise RuntimeFailure(f"after row {chunk.first_row}, the model failed to run: {one_line(error)}") from error

    def _refusals(
        self, piece: Piece, chunk: Chunk, refused: Mapping[int, str], kept: Sequence[pa.ChunkedArray]
    ) -> pa.RecordBatch:
        places = sorted(refused)
        rows = pa.array([chunk.first_row + place + 1 for place in places], pa.int64())
        reasons = pa.array([refused[place] for place in places], pa.string())
        file = pa.array([piece.file] * len(places), pa.string())
        return _batch([file, rows, reasons, *(column.take(pa.array(places)) for column in kept)], self.refused_schema)


def _batch(columns: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [each.combine_chunks() if isinstance(each, pa.ChunkedArray) else each for each in columns]
    arrays = [each.chunk(0) if isinstance(each, pa.ChunkedArray) else each for each in arrays]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
