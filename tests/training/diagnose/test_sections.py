"""The page of a diagnosis is complete and escaped.

The same seed gives the same page. The page is complete even if all trainings diverge.
"""

import json
import re
from dataclasses import replace

import pytest

from foldserve.training.diagnose import run
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.sections import (
    Finding,
    Section,
    build_sections,
    render,
    render_sections,
)
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from tests.training.diagnose.support import NAN, OWN, TINY, Reader, assert_complete

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_report_is_one_small_file_with_a_sentence_for_each_picture(tiny):
    sections = build_sections(tiny)
    text = render(tiny, sections)
    assert_complete(text)
    assert len(text) < 1_000_000
    findings = [finding for section in sections for finding in section.findings]
    assert all(finding.table for finding in findings)
    assert sum(finding.plot is not None for finding in findings) == 8
    assert all(re.fullmatch(r"[A-Z0-9].*[.]", finding.sentence) for finding in findings)
    assert not any(re.search(r"[.:;] [A-Z]", finding.sentence) for finding in findings)  # one sentence each
    assert "all 150 rows" in text


def test_the_same_seed_gives_the_same_figures_except_latencies(tiny):
    def figures(diagnosis):
        found = json.loads(run.to_json(diagnosis))
        for model in (*found["saving"]["models"], *found["recipe"]["graphs"]):
            del model["latency"]
        for training in found["recipe"]["trainings"]:
            del training["seconds"]
        return found

    again = run.diagnose(load(OWN.data), TINY, OWN)
    assert figures(again) == figures(tiny)
    first, second = build_sections(tiny)[1], build_sections(again)[1]
    assert first == second  # all sentences, tables and pictures are equal
    other = run.diagnose(load(OWN.data), replace(TINY, seed=1), OWN)
    assert figures(other) != figures(tiny)


def test_a_diagnosis_in_which_everything_diverged_has_a_report(tiny):
    def lost(r):
        return replace(
            r,
            scores=(NAN,) * len(r.steps),
            percentiles=((NAN,) * 3,) * len(r.steps),
            means=((NAN,) * 3,) * len(r.steps),
            variances=((NAN,) * 3,) * len(r.steps),
            diverged=1,
        )

    lost_trainings = tuple(
        replace(t, losses=(), scores=(), best_epoch=0, test_loss=NAN, test_score=NAN, seconds=NAN)
        for t in tiny.recipe.trainings
    )
    broken = replace(
        tiny,
        recipe=replace(tiny.recipe, trainings=lost_trainings, graphs=()),
        convergence=tuple(map(lost, tiny.convergence)),
        gradients=tuple(
            replace(d, initial=(0.0,) * d.depth, trained=(NAN,) * d.depth, score=NAN, diverged=1)
            for d in tiny.gradients
        ),
        modes=tuple(Gap(g.batch, NAN, NAN, NAN, NAN) for g in tiny.modes),
        saving=None,
    )
    text = render(broken, build_sections(broken))
    assert_complete(text)
    assert "diverged" in text
    assert json.loads(run.to_json(broken))["gradients"][0]["trained"] == [None] * 4


def test_a_regression_is_scored_by_r2():
    diabetes = DataOptions("diabetes")
    text = render(measured := run.diagnose(load(diabetes), TINY, replace(OWN, data=diabetes)), build_sections(measured))
    assert "R2" in text
    assert "accuracy" not in text


def test_text_from_the_table_is_escaped():
    text = render_sections("<b>", ["<i>"], [Section("<u>", "&", (Finding("<s>", "<em>", table=(("<a>",), ("<q>",))),))])
    assert not {"b", "i", "u", "s", "em", "a", "q"} & {tag for tag, _ in Reader(text).tags}
