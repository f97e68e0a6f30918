"""The engine of a Ray cluster: Ray Data gives the pieces to the machines, and returns the answers in order.

Each worker has its own copy of the model, and each copy must reproduce the golden outputs on its machine. Every machine
must see the input files under the same paths. The caller writes the output, so all answers pass through the machine of
the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from foldserve.service.commands.score.scorer import Scored
from foldserve.service.commands.score.work import Work
from foldserve.service.errors import ScoreError
from foldserve.service.runtime.load import load
from foldserve.service.runtime.session import Options


class _Worker:
    """Scores one piece after the other on one processor of the cluster."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runtime, _ = load(work.bundle, Options("cpu", threads=1))
        self._scorer = work.scorer(self._runtime.run)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for place, skipped in zip(batch["piece"].tolist(), batch["skipped"].tolist(), strict=True):
            for scored in self._work.score(self._scorer, place, skipped):
                cell = np.empty(1, object)
                cell[0] = scored
                yield {"scored": cell}


def score(work: Work, piece: int, chunk: int) -> Iterator[Scored]:
    """Score the input from chunk `chunk` of piece `piece` to the end of the input, and yield the results in order.

    Uses the cluster that the variable RAY_ADDRESS names, or starts Ray on this machine. Raises `ScoreError` if Ray is
    not installed.
    """
    try:
        import ray  # Only this engine needs Ray, so Ray is imported late.
        import ray.data
    except ImportError as error:
        raise ScoreError(f"Ray is not installed ({error}): pip install 'foldserve[ray]'") from error

    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    pieces = [{"piece": place, "skipped": chunk if place == piece else 0} for place in range(piece, len(work.pieces))]
    workers = max(1, min(len(pieces), int(ray.cluster_resources().get("CPU", 1)) - 1))
    scored = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _Worker,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    for row in scored.iter_rows():
        yield row["scored"]
