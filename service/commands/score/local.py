"""The engine of one machine: scores one piece after the other with all processors, or on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

from foldserve.service.commands.score.scorer import Scored
from foldserve.service.commands.score.work import Work
from foldserve.service.runtime.load import Runtime


def score(work: Work, runtime: Runtime, piece: int, chunk: int) -> Iterator[Scored]:
    """Score the input from chunk `chunk` of piece `piece` to the end of the input, and yield the results in order."""
    scorer = work.scorer(runtime.run)
    for place in range(piece, len(work.pieces)):
        yield from work.score(scorer, place, chunk if place == piece else 0)
