"""Runs a diagnosis: draws a sample of the table, runs the five experiments on it, and writes the figures as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from foldserve.training.diagnose import convergence, gradients, modes, recipe, saving
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import OnProgress, Sample, draw_sample
from foldserve.training.fit.determinism import deterministic
from foldserve.training.plan import Plan
from foldserve.training.table.schema import Table


@dataclass(frozen=True)
class Diagnosis:
    """All measurements of a diagnosis. saving: the measurements of the folding; None if the training before the folding
    diverged.
    """

    plan: DiagnosisPlan
    sample: Sample
    recipe: recipe.Study
    convergence: tuple[convergence.Run, ...]
    gradients: tuple[gradients.Depth, ...]
    modes: tuple[modes.Gap, ...]
    saving: saving.Saving | None


def diagnose(table: Table, plan: DiagnosisPlan, own: Plan, on_progress: OnProgress = lambda *_: None) -> Diagnosis:
    """Run the experiments of `plan` on `table`, on one thread. A training that diverges is a result, not an error.

    own: the plan with the user's recipe. The trainings with the user's recipe use the number of threads in `own`.
    """
    sample = draw_sample(table, plan.seed)
    study = recipe.measure(table, own, plan, on_progress)
    with deterministic(threads=1):
        return Diagnosis(
            plan,
            sample,
            study,
            convergence.measure(sample, plan, on_progress),
            gradients.measure(sample, plan, on_progress),
            modes.measure(sample, plan, on_progress),
            saving.measure(sample, plan, on_progress),
        )


def to_json(diagnosis: Diagnosis) -> str:
    """Write every figure as JSON. A number that is not finite becomes null."""
    d = diagnosis
    return json.dumps(
        _to_plain(
            {
                "source": d.sample.source,
                "rows": {"table": d.sample.total, "train": len(d.sample.train), "held_out": len(d.sample.held_out)},
                "features": d.sample.features,
                "score": d.sample.score_name,
                "plan": asdict(d.plan),
                "recipe": {
                    "architecture": asdict(d.recipe.plan.architecture),
                    "recipe": asdict(d.recipe.plan.recipe),
                    "rows": dict(zip(("train", "validation", "test"), d.recipe.rows, strict=True)),
                    "trainings": [asdict(training) for training in d.recipe.trainings],
                    "graphs": [asdict(graph) for graph in d.recipe.graphs],
                },
                "convergence": [asdict(run) for run in d.convergence],
                "gradients": [asdict(depth) for depth in d.gradients],
                "predicted_growth": gradients.PREDICTED_GROWTH,
                "modes": [asdict(gap) for gap in d.modes],
                "saving": asdict(d.saving) if d.saving is not None else None,
            }
        ),
        allow_nan=False,
    )


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _to_plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
