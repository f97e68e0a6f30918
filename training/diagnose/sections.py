"""Turns measurements into sections of sentences, plots and tables, and into one HTML page. It measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnxruntime
import torch

from foldserve.service.figures import format_count
from foldserve.training.diagnose import convergence, gradients, modes, plots, saving
from foldserve.training.diagnose.run import Diagnosis
from foldserve.training.diagnose.sample import Sample
from foldserve.training.report.page import render_page


@dataclass(frozen=True)
class Finding:
    """One result: a sentence, and the <svg> or the table that shows the figures for the sentence.

    table: rows of cells. The first row has the titles. Texts are escaped later, but the svg is inserted without
    escaping.
    """

    title: str
    sentence: str
    svg: str = ""
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """The findings of one experiment. setting: the experiment in a few sentences."""

    title: str
    setting: str
    findings: tuple[Finding, ...]


def build_sections(diagnosis: Diagnosis) -> tuple[Section, ...]:
    """Draw every plot, and write the sentence for every result."""
    return (
        _convergence_section(diagnosis),
        _gradients_section(diagnosis),
        _modes_section(diagnosis),
        _saving_section(diagnosis),
    )


def _convergence_section(d: Diagnosis) -> Section:
    score = d.sample.score_name
    without, with_bn = convergence.select_pair(d.convergence, d.plan.rate)
    rates = ", ".join(f"{rate:g}" for rate in d.plan.rates)
    speed = convergence.describe_speed(d.convergence, d.plan.rate, score)
    percentiles = convergence.describe_percentiles(without, with_bn)
    moments = convergence.describe_moments(without, with_bn)
    return Section(
        "Does batch norm speed training up, and keep the inputs of each layer steady?",
        f"Three hidden layers of 100 sigmoids, batches of 60, plain SGD for {d.plan.steps:,} steps at learning rates "
        f"{rates}, as in figure 1 of Ioffe and Szegedy (2015), who claim both. The inputs of the sigmoids are measured "
        f"at {d.plan.rate:g}, on the held-out rows as one batch in training mode, after gamma and beta: before them BN "
        "gives mean 0 and variance 1 by construction.",
        (
            Finding(f"Steps and {score}", speed, plots.draw_speed(d.convergence, score)),
            Finding(
                "A typical sigmoid of the last hidden layer: 15th, 50th and 85th percentile of its input",
                percentiles,
                plots.draw_percentiles(without, with_bn),
            ),
            Finding(
                "Mean and variance of the sigmoids' inputs, layer by layer",
                moments,
                plots.draw_moments(without, with_bn),
            ),
        ),
    )


def _gradients_section(d: Diagnosis) -> Section:
    initial = gradients.describe_initial(d.gradients)
    trained = gradients.describe_trained(d.gradients, d.plan.gradient_steps, d.sample.score_name)
    return Section(
        "Does batch norm keep gradients from vanishing, and at what price?",
        f"Networks of {d.plan.depths[0]} to {d.plan.depths[-1]} hidden layers of 128. The norm of the gradient of each "
        "hidden Dense's weights is measured over one batch of 256 rows (all, if fewer), before and after "
        f"{d.plan.gradient_steps} steps of plain SGD at a learning rate of 0.1. For Dense - BN - ReLU at "
        "initialisation, Yang and others (2019) predict that it grows by a factor of "
        f"{gradients.PREDICTED_GROWTH:.3f} per layer towards the input.",
        (
            Finding("At initialisation", initial, plots.draw_gradients(d.gradients, trained=False)),
            Finding("After training", trained, plots.draw_gradients(d.gradients, trained=True)),
        ),
    )


def _modes_section(d: Diagnosis) -> Section:
    score = d.sample.score_name
    gap = modes.describe_gap(d.modes, score)
    return Section(
        "How large is the gap between training and evaluation mode?",
        f"The reference topology (two hidden layers of 64 ReLU, BN before each) is trained for {d.plan.mode_steps:,} "
        "steps of plain SGD at a learning rate of 0.1 with each batch size, then scored on the held-out rows in both "
        "modes.",
        (Finding("Batch size", gap, plots.draw_gaps(d.modes, score)),),
    )


def _saving_section(d: Diagnosis) -> Section:
    latency = saving.describe_latency(d.saving)
    return Section(
        "What does folding save?",
        "The reference topology, unfolded and folded, in ONNX Runtime on one thread of this machine's CPU. Latencies "
        f"are medians of {d.plan.rounds} runs, in which all models take turns. The bytes written per row are those of "
        "every operator's result, as if no operator overwrote its input.",
        (
            Finding("Nodes, parameters, memory", saving.describe_size(d.saving), table=_size_table(d.saving)),
            Finding("Latency", latency, plots.draw_latency(d.saving) if d.saving is not None else ""),
        ),
    )


def _size_table(measured: saving.Saving | None) -> tuple[tuple[str, ...], ...]:
    if measured is None:
        return ()
    titles = ("model", "nodes", "operators run", "parameters", "file, B", "written per row, B", "largest operator, B")
    return (
        titles,
        *(
            (
                f"{m.placement}, {'folded' if m.folded else 'unfolded'}",
                *map(format_count, (m.nodes, len(m.run), m.parameters, m.size, m.written, m.peak)),
            )
            for m in measured.models
        ),
    )


def describe_rows(sample: Sample) -> str:
    """Say how many rows were used."""
    train, held_out = len(sample.train), len(sample.held_out)
    used = train + held_out
    rows = f"all {used:,} rows" if used == sample.total else f"{used:,} of {sample.total:,} rows, drawn at random"
    return f"{rows}: {train:,} for training, {held_out:,} held out"


def render(diagnosis: Diagnosis, sections: Sequence[Section]) -> str:
    """Render the sections of `diagnosis` as one HTML page. Its text must be encoded in UTF-8."""
    sample, rows = diagnosis.sample, describe_rows(diagnosis.sample)
    return render_sections(
        f"Batch norm on {sample.source}",
        (
            f"{rows[0].upper()}{rows[1:]}. {sample.features} features, standardised; a missing value counts as the "
            f"mean of its column. Seed {diagnosis.plan.seed}, PyTorch {torch.__version__}, ONNX Runtime "
            f"{onnxruntime.__version__}.",
            "Each marked sentence follows from the figures of this run, whether they support the claim or not. One "
            "table and one seed are an example, not a proof.",
        ),
        sections,
    )


def render_sections(title: str, about: Sequence[str], sections: Sequence[Section]) -> str:
    """Render a page of `sections`. about: the paragraphs before the sections."""
    return render_page("diagnose/diagnosis.html.jinja", title=title, about=about, sections=sections)
