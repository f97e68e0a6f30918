"""The work of one run: everything that an engine needs to score the pieces of the input, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from foldserve.service.arrays import Run
from foldserve.service.bundle import Bundle
from foldserve.service.commands.score.inputs import Piece, ahead, chunk_rows, read_chunks
from foldserve.service.commands.score.scorer import Scored, Scorer
from foldserve.service.sources import ReadOptions


@dataclass(frozen=True)
class Work:
    """The pieces of one scoring run, and the settings for scoring these pieces.

    kept: the fields of the input columns that the output repeats. typed: as in `Stream`. with_all: whether the answers
    have the probabilities of all classes.
    """

    bundle: Bundle
    pieces: tuple[Piece, ...]
    options: ReadOptions
    kept: tuple[pa.Field, ...]
    typed: bool
    with_all: bool

    def scorer(self, run: Run) -> Scorer:
        """Return a `Scorer` that scores chunks with this model. run: the model, which has passed its checks."""
        return Scorer(self.bundle.manifest, run, self.kept, typed=self.typed, with_all=self.with_all)

    def score(self, scorer: Scorer, place: int, skipped: int) -> Iterator[Scored]:
        """Score the piece `place`, chunk by chunk. skipped: the number of chunks to leave out."""
        piece, features = self.pieces[place], self.bundle.manifest.features
        columns = list(dict.fromkeys([*(feature.name for feature in features), *(field.name for field in self.kept)]))
        chunks = read_chunks(piece, columns, self.options, chunk_rows(len(features)), skipped)
        for number, chunk in enumerate(ahead(chunks), skipped):
            yield scorer.score(place, piece, number, chunk)
