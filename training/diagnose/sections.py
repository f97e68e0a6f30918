"""Turns measurements into one HTML page with sections of sentences, plots and tables. The module does not measure
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnxruntime
import torch

from foldserve.service.figures import count_of, format_figure, format_value
from foldserve.training.diagnose import convergence, gradients, modes, plots, recipe, saving, tables
from foldserve.training.diagnose.run import Diagnosis
from foldserve.training.diagnose.sample import Sample
from foldserve.training.report.page import render_page


@dataclass(frozen=True)
class Finding:
    """One result of a diagnosis: a sentence, with a plot and a table of the figures that support the sentence.

    table: rows of cells. The first row has the titles of the columns. The template escapes the texts, but inserts the
    plot without escaping.
    """

    title: str
    sentence: str
    plot: plots.Plot | None = None
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """The section of one experiment. setting: a few sentences that describe the experiment."""

    title: str
    setting: str
    findings: tuple[Finding, ...]


def build_sections(diagnosis: Diagnosis) -> tuple[Section, ...]:
    """Draw every plot, and write the sentence for every result."""
    return (
        _recipe_section(diagnosis),
        _convergence_section(diagnosis),
        _gradients_section(diagnosis),
        _modes_section(diagnosis),
        _saving_section(diagnosis),
    )


def _recipe_section(d: Diagnosis) -> Section:
    study, score = d.recipe, d.sample.score_name
    plan, (train, validation, test) = study.plan, study.rows
    used = sum(study.rows)
    part = f" {used:,} of {study.total:,} rows, drawn at random, are used." if used < study.total else ""
    members = f" One of its {plan.architecture.members} members is trained." if plan.architecture.members > 1 else ""
    layers = (
        f"hidden layers {', '.join(map(str, plan.architecture.hidden))}" if plan.architecture.hidden else "no layers"
    )
    times = {1: "once", 2: "twice"}.get(d.plan.repeats, f"{d.plan.repeats} times")
    return Section(
        "Does batch norm help with your recipe?",
        f"The network of fit with your flags (preset {plan.preset}, {layers}, placement {plan.architecture.placement}) "
        f"is trained {times} with and without batch norm on {train:,} rows; {validation:,} rows decide when to stop, "
        f"and {test:,} rows are the test.{members}{part}",
        (
            Finding(
                "With and without batch norm",
                recipe.describe_trainings(study),
                plots.draw_trainings(study, score),
                tables.list_trainings(study, score),
            ),
            Finding("Folding your network", recipe.describe_graphs(study), table=tables.list_graphs(study)),
        ),
    )


def _convergence_section(d: Diagnosis) -> Section:
    score = d.sample.score_name
    pair = convergence.select_pair(d.convergence, d.plan.rate)
    rates = ", ".join(map(format_value, d.plan.rates))
    return Section(
        "Does batch norm speed training up, and keep the inputs of each layer steady?",
        f"Three hidden layers of 100 sigmoids, batches of 60, plain SGD for {d.plan.steps:,} steps at learning rates "
        f"{rates}, as in figure 1 of Ioffe and Szegedy (2015), who claim both. The inputs of the sigmoids are measured "
        f"at {format_value(d.plan.rate)}, on the held-out rows as one batch in training mode, after gamma and beta: "
        "before them BN gives mean 0 and variance 1 by construction.",
        (
            Finding(
                f"Steps and {score}",
                convergence.describe_speed(d.convergence, score),
                plots.draw_speed(d.convergence, score),
                tables.list_speeds(d.convergence, score),
            ),
            Finding(
                "A typical sigmoid of the last hidden layer: 15th, 50th and 85th percentile of its input",
                convergence.describe_percentiles(*pair),
                plots.draw_percentiles(*pair),
                tables.list_medians(pair),
            ),
            Finding(
                "Mean and variance of the sigmoids' inputs, layer by layer",
                convergence.describe_moments(*pair),
                plots.draw_moments(*pair),
                tables.list_moments(pair),
            ),
        ),
    )


def _gradients_section(d: Diagnosis) -> Section:
    return Section(
        "Does batch norm keep gradients from vanishing, and at what price?",
        f"Networks of {d.plan.depths[0]} to {d.plan.depths[-1]} hidden layers of 128. The norm of the gradient of each "
        "hidden Dense's weights is measured over one batch of 256 rows (all, if fewer), before and after "
        f"{count_of(d.plan.gradient_steps, 'step')} of plain SGD at a learning rate of 0.1. For Dense - BN - ReLU with "
        "He's initialisation, Yang and others (2019) predict that it grows by a factor of "
        f"{format_figure(gradients.PREDICTED_GROWTH)} per layer towards the input.",
        (
            Finding(
                "At initialisation",
                gradients.describe_initial(d.gradients),
                plots.draw_gradients(d.gradients, trained=False),
                tables.list_growth(d.gradients),
            ),
            Finding(
                "After training",
                gradients.describe_trained(d.gradients, d.plan.gradient_steps),
                plots.draw_gradients(d.gradients, trained=True),
                tables.list_scores(d.gradients, d.sample.score_name),
            ),
        ),
    )


def _modes_section(d: Diagnosis) -> Section:
    score = d.sample.score_name
    return Section(
        "How large is the gap between training and evaluation mode?",
        f"The reference topology (two hidden layers of 64 ReLU, BN before each) is trained for {d.plan.mode_steps:,} "
        "steps of plain SGD at a learning rate of 0.1 with each batch size, then scored on the held-out rows in both "
        "modes.",
        (
            Finding(
                "Batch size",
                modes.describe_gap(d.modes),
                plots.draw_gaps(d.modes, score),
                tables.list_gaps(d.modes, score),
            ),
        ),
    )


def _saving_section(d: Diagnosis) -> Section:
    return Section(
        "What does folding save?",
        "The reference topology, unfolded and folded, in ONNX Runtime on one thread of this machine's CPU. Latencies "
        f"are medians of {d.plan.rounds} runs, in which all models take turns. The bytes written per row are those of "
        "every operator's result, as if no operator overwrote its input.",
        (
            Finding("Nodes, parameters, memory", saving.describe_size(d.saving), table=tables.list_sizes(d.saving)),
            Finding(
                "Latency",
                saving.describe_latency(d.saving),
                plots.draw_latency(d.saving) if d.saving is not None else None,
                tables.list_latencies(d.saving),
            ),
        ),
    )


def describe_rows(sample: Sample) -> str:
    """Say how many rows the textbook experiments used."""
    train, held_out = len(sample.train), len(sample.held_out)
    used = train + held_out
    rows = f"all {used:,} rows" if used == sample.total else f"{used:,} of {sample.total:,} rows, drawn at random"
    return f"{rows}: {train:,} for training, {held_out:,} held out"


def render(diagnosis: Diagnosis, sections: Sequence[Section]) -> str:
    """Render the sections of `diagnosis` as one HTML page. The text of the page must be encoded in UTF-8."""
    sample, rows = diagnosis.sample, describe_rows(diagnosis.sample)
    return render_sections(
        f"Batch norm on {sample.source}",
        (
            f"The textbook experiments use {rows}. They have {sample.features} features, standardised; a missing "
            f"value counts as the mean of its column. Seed {diagnosis.plan.seed}, PyTorch {torch.__version__}, ONNX "
            f"Runtime {onnxruntime.__version__}.",
            "Each marked sentence follows from the figures of this run, whether they support the claim or not. One "
            "table and one seed are an example, not a proof.",
        ),
        sections,
    )


def render_sections(title: str, about: Sequence[str], sections: Sequence[Section]) -> str:
    """Render `sections` as one HTML page. about: the paragraphs before the sections."""
    return render_page("diagnose/diagnosis.html.jinja", title=title, about=about, sections=sections)
