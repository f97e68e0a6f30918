"""The whole diagnosis in one place: table -> sample -> four experiments -> sections -> HTML and JSON."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime
import torch

from foldserve.training.diagnose import convergence, gradients, modes, plots, saving
from foldserve.training.diagnose.page import Finding, Section, page
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import Sample, Tick, draw
from foldserve.training.table.schema import Table


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured, before anything is said of it. saving: None when its training diverged."""

    plan: DiagnosisPlan
    sample: Sample
    convergence: tuple[convergence.Run, ...]
    gradients: tuple[gradients.Depth, ...]
    modes: tuple[modes.Gap, ...]
    saving: saving.Saving | None


def diagnose(table: Table, plan: DiagnosisPlan, tick: Tick = lambda *_: None) -> Diagnosis:
    """Measure everything that `plan` asks for on `table`, with one thread. A divergence is a figure, not an error."""
    sample = draw(table, plan.seed)
    with _one_thread():
        return Diagnosis(
            plan,
            sample,
            convergence.measure(sample, plan, tick),
            gradients.measure(sample, plan, tick),
            modes.measure(sample, plan, tick),
            saving.measure(sample, plan, tick),
        )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums that are split over two threads round differently from one. The caller's random state stays as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def rows_used(sample: Sample) -> str:
    """Say which rows were used."""
    learned, held_out = len(sample.train), len(sample.held_out)
    share = "all" if learned + held_out == sample.total else f"{learned + held_out:,} drawn at random"
    return f"{share} of {sample.total:,} rows: {learned:,} to learn from, {held_out:,} held out"


def sections(diagnosis: Diagnosis) -> tuple[Section, ...]:
    """Draw every plot and say of each what it shows."""
    d, score = diagnosis, diagnosis.sample.score_name
    without, with_bn = convergence.pair(d.convergence, d.plan.rate)
    rates = ", ".join(f"{rate:g}" for rate in d.plan.rates)
    folding = [Finding("Nodes, parameters, memory", saving.about_size(d.saving), table=_sizes(d.saving))]
    folding.append(
        Finding("Latency", saving.about_latency(d.saving), plots.latency(d.saving) if d.saving is not None else "")
    )
    return (
        Section(
            "Does batch norm speed training up, and keep what the layers see steady?",
            f"Three hidden layers of 100 sigmoids, batches of 60, plain SGD for {d.plan.steps:,} steps at learning "
            f"rates {rates}, as in figure 1 of Ioffe and Szegedy (2015), who claim both. What the sigmoids see is "
            f"measured at {d.plan.rate:g}, on the held-out rows as one batch in training mode, after gamma and beta: "
            "before them BN gives mean 0 and variance 1 by construction.",
            (
                Finding(
                    f"Steps and {score}",
                    convergence.about_speed(d.convergence, d.plan.rate, score),
                    plots.speed(d.convergence, score),
                ),
                Finding(
                    "A typical sigmoid of the last hidden layer: 15th, 50th and 85th percentile of its input",
                    convergence.about_percentiles(without, with_bn),
                    plots.percentiles(without, with_bn),
                ),
                Finding(
                    "Mean and variance of what each layer's sigmoids see",
                    convergence.about_moments(without, with_bn),
                    plots.moments(without, with_bn),
                ),
            ),
        ),
        Section(
            "Does batch norm keep gradients from vanishing, and at what price?",
            f"Networks of {d.plan.depths[0]} to {d.plan.depths[-1]} hidden layers of 128; the norm of the gradient of "
            "each hidden Dense's weights over one batch of 256 rows (all, if fewer), before and after "
            f"{d.plan.gradient_steps} steps of plain SGD at a learning rate of 0.1. For Dense - BN - ReLU at "
            f"initialisation Yang and others (2019) predict that it grows by {gradients.PREDICTED_GROWTH:.3f} a layer.",
            (
                Finding(
                    "At initialisation",
                    gradients.about_initial(d.gradients),
                    plots.gradients(d.gradients, trained=False),
                ),
                Finding(
                    "After training",
                    gradients.about_trained(d.gradients, d.plan.gradient_steps, score),
                    plots.gradients(d.gradients, trained=True),
                ),
            ),
        ),
        Section(
            "How far apart are training and evaluation mode?",
            f"The reference topology (two hidden layers of 64 ReLU, BN before each), {d.plan.mode_steps:,} steps of "
            "plain SGD at a learning rate of 0.1 with each batch size, then scored on the held-out rows in both modes.",
            (Finding("Batch size", modes.about(d.modes, score), plots.gaps(d.modes, score)),),
        ),
        Section(
            "What does folding save?",
            "The reference topology, unfolded and folded, in ONNX Runtime on one thread of this machine's CPU; "
            f"latencies are medians of {d.plan.rounds} runs, all models taking turns. Bytes written a row are "
            "those of every operator's result; none is taken to overwrite its input.",
            tuple(folding),
        ),
    )


def _sizes(measured: saving.Saving | None) -> tuple[tuple[str, ...], ...]:
    if measured is None:
        return ()
    head = ("model", "nodes", "operators run", "parameters", "file, B", "written a row, B", "one operator's most, B")
    return (
        head,
        *(
            (
                f"{m.placement}, {'folded' if m.folded else 'unfolded'}",
                *(f"{n:,}" for n in (m.nodes, len(m.run), m.parameters, m.size, m.written, m.peak)),
            )
            for m in measured.models
        ),
    )


def html(diagnosis: Diagnosis, told: tuple[Section, ...]) -> str:
    """Give the report that shows `told`, the sections of `diagnosis`."""
    about = (
        f"{rows_used(diagnosis.sample)}; {diagnosis.sample.features} features, standardised, a missing value being "
        f"its column's mean. Seed {diagnosis.plan.seed}, PyTorch {torch.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}.",
        "Each sentence beside a line is made from the figures of this run, whether they support the claim or not. One "
        "table and one seed are an example, no proof.",
    )
    return page(f"What batch norm does on {diagnosis.sample.source}", about, told)


def raw(diagnosis: Diagnosis) -> str:
    """Give every figure as JSON; what is not finite is null."""
    d = diagnosis
    return json.dumps(
        _plain(
            {
                "source": d.sample.source,
                "rows": {"table": d.sample.total, "train": len(d.sample.train), "held_out": len(d.sample.held_out)},
                "features": d.sample.features,
                "score": d.sample.score_name,
                "plan": asdict(d.plan),
                "convergence": [asdict(run) for run in d.convergence],
                "gradients": [asdict(depth) for depth in d.gradients],
                "predicted_growth": gradients.PREDICTED_GROWTH,
                "modes": [asdict(gap) for gap in d.modes],
                "saving": asdict(d.saving) if d.saving is not None else None,
            }
        ),
        allow_nan=False,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
