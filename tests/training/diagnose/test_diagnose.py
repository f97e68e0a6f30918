"""`foldserve-train diagnose`: each figure has its own oracle; each sentence is tried on figures for and against it."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from foldserve.training.cli import main
from foldserve.training.diagnose import convergence, gradients, modes, run, saving
from foldserve.training.diagnose.convergence import Run
from foldserve.training.diagnose.gradients import Depth
from foldserve.training.diagnose.modes import Gap
from foldserve.training.diagnose.plan import DiagnosisPlan
from foldserve.training.diagnose.sample import MAX_ROWS, Sample, draw_sample, train_sgd
from foldserve.training.diagnose.saving import Model, Saving
from foldserve.training.diagnose.sections import (
    Finding,
    Section,
    build_sections,
    describe_rows,
    render,
    render_sections,
)
from foldserve.training.fit.loop import Examples
from foldserve.training.fold.export import to_onnx
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, DataOptions
from foldserve.training.table import schema
from foldserve.training.table.load import load

NAN = math.nan
TINY = DiagnosisPlan(
    steps=6, depths=(4,), gradient_steps=2, batch_sizes=(2, 16), mode_steps=5, latency_batches=(1, 8), rounds=2
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return draw_sample(load(DataOptions("digits")), 0)


@pytest.fixture(scope="module")
def tiny():
    return run.diagnose(load(DataOptions("iris")), TINY)


def nothing(*_):
    pass


def small_sample(rows=12, features=3, classes=3):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, features, generator=generator)
    part = Examples(x, torch.randint(classes, (rows,), generator=generator))
    return Sample("made", True, classes, part, part, rows)


def forward(layers, x, *, training):
    """Run the chain in NumPy: float64 [rows, features] -> the inputs of every layer, and the output last."""
    seen = [x]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().double().numpy().T
            if layer.bias is not None:
                x = x + layer.bias.detach().double().numpy()
        elif isinstance(layer, nn.BatchNorm1d):
            mean, var = (
                (x.mean(0), x.var(0)) if training else (layer.running_mean.numpy(), layer.running_var.double().numpy())
            )
            x = (x - mean) / np.sqrt(var + layer.eps) * layer.weight.detach().numpy() + layer.bias.detach().numpy()
        elif isinstance(layer, nn.Sigmoid):
            x = 1 / (1 + np.exp(-x))
        else:
            x = np.maximum(x, 0)
        seen.append(x)
    return seen


def log_loss(logits, y):
    logits = logits - logits.max(1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]))


# The sample


def table(x, y, labels=()):
    columns = tuple(
        schema.Column(f"c{place}", "numeric", missing=bool(np.isnan(values).any())) for place, values in enumerate(x.T)
    )
    return schema.Table("made", "classification" if labels else "regression", "y", columns, x.astype("f4"), y, labels)


def test_of_a_large_table_a_sample_is_drawn_and_reported():
    rows = 3 * MAX_ROWS
    sample = draw_sample(table(np.arange(2 * rows).reshape(rows, 2), np.arange(rows, dtype="f8")), 1)
    assert len(sample.train) + len(sample.held_out) <= MAX_ROWS
    assert describe_rows(sample) == "20,000 of 60,000 rows, drawn at random: 19,000 for training, 1,000 held out"
    both = torch.cat([sample.train.x, sample.held_out.x])[:, 0]
    assert len(both.unique()) == MAX_ROWS  # no row twice


def test_columns_are_standardised_by_the_training_rows():
    x = np.random.default_rng(0).normal(3, 5, (200, 3))
    x[:, 1] = 7
    x[::4, 2] = np.nan
    sample = draw_sample(table(x, x[:, 0]), 0)
    assert sample.features == 4  # with a column for the missing values of the third
    assert torch.allclose(sample.train.x.mean(0), torch.zeros(4), atol=1e-6)
    first = sample.train.x[:, 0].numpy()
    assert max(first.std(), np.ptp(first) / 6) == pytest.approx(1, abs=1e-5)
    assert (sample.train.x[:, 1] == 0).all()
    assert sample.train.x.isfinite().all()
    assert sample.held_out.x.isfinite().all()
    assert abs(float(sample.train.y.mean())) < 1e-6


def test_the_scores_are_scikit_learn_s():
    output, y = torch.randn(50, 3), torch.randint(3, (50,))
    assert small_sample().score(output, y) == pytest.approx(accuracy_score(y, output.argmax(1)))
    regression = replace(small_sample(), classification=False)
    value, target = torch.randn(50, 1), torch.randn(50)
    assert regression.score(value, target) == pytest.approx(r2_score(target, value[:, 0]))
    assert math.isnan(regression.score(torch.full((2, 1), torch.nan), torch.zeros(2)))


def test_sgd_is_plain_and_uses_every_row_once_per_pass():
    """One Dense and squared error: the gradient is computed by hand."""
    sample = replace(small_sample(), classification=False, outputs=1)
    y = torch.arange(12.0)
    sample = replace(sample, train=Examples(sample.train.x, y))
    network = nn.Linear(3, 1, bias=False)
    weight, x = network.weight.detach().double().numpy().copy(), sample.train.x.double().numpy()
    losses = [loss for _, loss in train_sgd(network, sample, batch=99, rate=0.1, steps=4, seed=0)]
    for loss in losses:  # a batch is the whole table, in any order
        error = x @ weight[0] - y.numpy()
        assert loss == pytest.approx(np.mean(error**2), rel=1e-5)
        weight = weight - 0.1 * 2 * (error @ x) / len(x)
    np.testing.assert_allclose(network.weight.detach().numpy(), weight, rtol=1e-4)


def test_sgd_stops_at_a_loss_that_is_not_finite():
    steps = list(train_sgd(nn.Linear(3, 3), small_sample(), batch=4, rate=1e38, steps=50, seed=0))
    assert len(steps) < 50
    assert not math.isfinite(steps[-1][1])
    assert all(math.isfinite(loss) for _, loss in steps[:-1])


# The inputs of the sigmoids


@pytest.mark.parametrize("batch_norm", [False, True])
def test_percentiles_means_and_variances_are_numpy_s(digits, batch_norm):
    plan = replace(TINY, steps=1, rates=(0.5,))
    measured = convergence.select_pair(convergence.measure(digits, plan, nothing), 0.5)[batch_norm]
    torch.manual_seed(plan.seed)
    architecture = Architecture(hidden=(100,) * 3, activation="sigmoid", batch_norm=batch_norm, dropout=0)
    network = build_mlp(64, 10, architecture)
    seen = forward(network, digits.held_out.x.double().numpy(), training=True)
    inputs = [x for layer, x in zip(network, seen, strict=False) if isinstance(layer, nn.Sigmoid)]
    np.testing.assert_allclose(measured.means[0], [x.mean() for x in inputs], atol=1e-6)
    np.testing.assert_allclose(measured.variances[0], [x.var(0).mean() for x in inputs], rtol=1e-4)
    of_units = np.percentile(inputs[-1], (15, 50, 85), axis=0).T
    assert np.abs(of_units - measured.percentiles[0]).max(1).min() < 1e-5
    assert measured.steps == (0, 1)


def test_measurements_leave_the_running_statistics_unchanged(digits):
    network = build_mlp(64, 10, Architecture(hidden=(5, 5, 5), activation="sigmoid", dropout=0))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    convergence.sigmoid_inputs(network, digits.held_out.x)
    modes.measure_gap(network, digits, 16, 0)
    gradients.gradient_norms(network, digits, digits.train)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_batch_norm_learns_digits_before_a_plain_network_does(digits):
    plan = replace(TINY, steps=100, rates=(0.1,))
    without, with_bn = convergence.select_pair(convergence.measure(digits, plan, nothing), 0.1)
    assert with_bn.scores[-1] > 0.9
    assert without.scores[-1] < 0.3


def made(batch_norm, scores, rate=1.0, medians=(0.0, 0.0), means=(0.0, 0.0), variances=(1.0, 1.0), diverged=None):
    steps = tuple(range(0, 10 * len(scores), 10))
    return Run(
        batch_norm,
        rate,
        steps,
        scores,
        tuple((m - 1, m, m + 1) for m in medians),
        tuple((m,) * 3 for m in means),
        tuple((v,) * 3 for v in variances),
        diverged,
    )


def test_the_sentence_on_speed_follows_the_figures():
    slow, fast, never = (0.1, 0.2, 0.4, 0.9), (0.1, 0.9, 0.9, 0.9), (0.1, 0.1, 0.1, 0.1)

    def said(without, with_bn):
        return convergence.describe_speed((made(False, without), made(True, with_bn)), 1.0, "accuracy")

    assert "takes 10 steps with BN and 30 steps without" in said(slow, fast)
    assert "supports the claim" in said(slow, fast)
    assert "(3.0 times as fast, in steps)" in said(slow, fast)
    assert "does not support the claim" in said(fast, slow)
    assert "does not support the claim" in said(fast, fast)
    assert "more than 30 steps without" in said(never, fast)
    assert "that supports" in said(never, fast)
    assert "does not support" in said(fast, never)
    assert "shows nothing" in said((-1.0, -2.0), (-3.0, -4.0))
    lost = made(False, (0.1, NAN), rate=9.0, diverged=3)
    runs = (made(False, slow), made(True, fast), lost, made(True, fast, rate=9.0))
    assert "diverged at 9 without BN" in convergence.describe_speed(runs, 1.0, "accuracy")


def test_the_best_rates_are_compared_too():
    """At one rate only BN learns; at its own best rate the plain network is as fast."""
    never, fast = (0.1, 0.1), (0.1, 0.9)
    runs = (made(False, never), made(True, fast), made(False, fast, rate=2.0), made(True, never, rate=2.0))
    sentence = convergence.describe_speed(runs, 1.0, "accuracy")
    assert "10 steps with BN and more than 10 steps without" in sentence
    assert "does not support" in sentence


def test_the_sentences_on_sigmoid_inputs_follow_the_figures():
    still, moved = made(True, (0.1, 0.9)), made(False, (0.1, 0.9), medians=(0, 3), means=(0, 2), variances=(1, 4))
    assert "does not" not in convergence.describe_percentiles(moved, still)
    assert "range of 0.00 with BN and of 3.00 without" in convergence.describe_percentiles(moved, still)
    assert "does not support" in convergence.describe_percentiles(still, moved)
    assert "keeps them constant" in convergence.describe_moments(moved, still)
    drifting = made(True, (0.1, 0.9), means=(0, 1), variances=(1, 2))
    assert "steadier, but not constant" in convergence.describe_moments(moved, drifting)
    mixed = made(True, (0.1, 0.9), means=(0, 1), variances=(1, 9))
    assert "one of the two steadier" in convergence.describe_moments(moved, mixed)
    assert "neither steadier" in convergence.describe_moments(still, drifting)
    lost = made(False, (0.1, NAN), medians=(0, NAN), means=(0, NAN), variances=(1, NAN), diverged=7)
    for about in (convergence.describe_percentiles, convergence.describe_moments):
        assert "diverged without BN (step 7)" in about(lost, still)


def test_a_divergence_is_a_result(digits):
    plan = replace(TINY, rates=(1e38,))
    for measured in convergence.measure(digits, plan, nothing):
        assert measured.diverged
        assert measured.steps[-1] == measured.diverged
        assert math.isnan(measured.scores[-1])
        assert all(map(math.isnan, measured.movement))


# Gradients


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_norms_are_those_of_finite_differences(activation, batch_norm):
    torch.manual_seed(3)
    sample = small_sample()
    network = build_mlp(
        3, 3, Architecture(hidden=(4, 4), activation=activation, batch_norm=batch_norm, dropout=0)
    ).double()
    x, y = sample.train.x.double().numpy(), sample.train.y.numpy()

    def loss():
        return log_loss(forward(network, x, training=True)[-1], y)

    expected = []
    for layer in [layer for layer in network if isinstance(layer, nn.Linear)][:-1]:
        squares = 0.0
        for value in layer.weight.detach().view(-1).split(1):
            was, step = value.item(), 1e-6
            value.fill_(was + step)
            above = loss()
            value.fill_(was - step)
            squares += ((above - loss()) / (2 * step)) ** 2
            value.fill_(was)
        expected.append(math.sqrt(squares))
    np.testing.assert_allclose(gradients.gradient_norms(network, sample, sample.train), expected, rtol=1e-5)


def test_growth_is_the_ratio_of_a_geometric_sequence():
    assert gradients.growth((999.0, 27.0, 9.0, 3.0, 1.0)) == pytest.approx(3)
    assert gradients.growth((999.0, 1.0, 2.0, 4.0)) == pytest.approx(0.5)
    for norms in ((1.0,), (1.0, 2.0), (1.0, 2.0, 0.0), (1.0, 2.0, NAN), (1.0, math.inf, 2.0)):
        assert math.isnan(gradients.growth(norms))


def test_digits_show_the_predicted_growth(digits):
    """1.467 in squared norm with BN (Yang and others, 2019); none without BN, by He's initialisation."""
    measured = gradients.measure(digits, replace(TINY, depths=(48,), gradient_steps=1), nothing)
    growth = {(m.activation, m.batch_norm): gradients.growth(m.initial) for m in measured}
    assert growth["relu", True] ** 2 == pytest.approx(1.467, rel=0.06)
    assert growth["relu", False] == pytest.approx(1, abs=0.06)
    assert growth["sigmoid", False] < 0.2  # the sigmoid's steepest slope, a quarter, times the weights' share
    assert growth["sigmoid", True] == pytest.approx(1, abs=0.06)
    assert pytest.approx(1.467, rel=1e-3) == gradients.PREDICTED_GROWTH**2


def depths(sigmoid, sigmoid_bn, relu, relu_bn, trained_bn=1.0, diverged=None):
    def norms(rate, deep=16):
        return tuple(rate**-layer for layer in range(deep))

    return (
        Depth("sigmoid", False, 16, norms(sigmoid), norms(sigmoid), 0.1, None),
        Depth("sigmoid", True, 16, norms(sigmoid_bn), norms(sigmoid_bn), 0.9, None),
        Depth("relu", False, 16, norms(relu), (NAN,) * 16, NAN, 5),
        Depth("relu", True, 16, norms(relu_bn), norms(trained_bn), 0.8, diverged),
    )


def test_the_sentence_on_initial_gradients_follows_the_figures():
    usual = gradients.describe_initial(depths(0.2, 1.02, 1.0, 1.2))
    assert "sigmoid network vanishes (x 0.200 per layer) without BN and stays about the same (x 1.020" in usual
    assert "explodes (x 1.200 per layer) with it, which agrees with the predicted 1.211" in usual
    other = gradients.describe_initial(depths(1.5, 0.5, 0.7, 0.9))
    assert "sigmoid network explodes (x 1.500 per layer) without BN and vanishes (x 0.500 per layer) with it" in other
    assert "does not agree with the predicted 1.211 (-25.7%)" in other
    assert "can't be followed" in gradients.describe_initial(depths(0.2, 1.0, 1.0, NAN))


def test_the_sentence_on_trained_gradients_follows_the_figures():
    levelled = gradients.describe_trained(depths(0.2, 1, 1, 1.2, trained_bn=1.01), 7, "accuracy")
    assert levelled.startswith("After 7 steps")
    assert "x 1.010 per layer, from 1.200: training has levelled it" in levelled
    assert "relu without BN 16: diverged" in levelled
    assert "has not levelled it" in gradients.describe_trained(depths(0.2, 1, 1, 1.2, trained_bn=1.19), 7, "accuracy")
    assert "can't be followed" in gradients.describe_trained(depths(0.2, 1, 1, 1.2, trained_bn=NAN), 7, "accuracy")
    assert "diverged at step 3" in gradients.describe_trained(depths(0.2, 1, 1, 1.2, diverged=3), 7, "accuracy")


# The two modes


def test_both_losses_match_numpy():
    sample = small_sample()
    network = build_mlp(3, 3, Architecture(hidden=(4, 4), dropout=0))
    for _ in train_sgd(network, sample, batch=4, rate=0.1, steps=5, seed=0):
        pass
    measured = modes.measure_gap(network, sample, len(sample.held_out), 0)
    x, y = sample.held_out.x.double().numpy(), sample.held_out.y.numpy()
    evaluation, training = (forward(network, x, training=t)[-1] for t in (False, True))
    assert measured.evaluation_loss == pytest.approx(log_loss(evaluation, y), rel=1e-5)
    assert measured.training_loss == pytest.approx(log_loss(training, y), rel=1e-5)
    assert measured.evaluation_score == pytest.approx((evaluation.argmax(1) == y).mean())
    assert measured.training_score == pytest.approx((training.argmax(1) == y).mean())


def test_without_batch_norm_there_is_no_gap():
    measured = modes.measure_gap(build_mlp(3, 3, Architecture(batch_norm=False, dropout=0)), small_sample(), 4, 0)
    assert measured.loss == pytest.approx(0, abs=1e-6)
    assert measured.score == 0


def test_the_sentence_on_the_gap_follows_the_figures():
    wide, narrow, lost = Gap(2, 1.5, 1.0, 0.5, 0.75), Gap(64, 0.4, 0.5, 0.9, 0.88), Gap(8, NAN, NAN, NAN, NAN)
    usual = modes.describe_gap((wide, lost, narrow), "accuracy")
    assert "batches of 2 rows the loss is 0.500 lower in evaluation mode" in usual
    assert "the accuracy 0.250 higher" in usual
    assert "the gap closes as batches grow; training diverged with batches of 8." in usual
    assert "does not close" in modes.describe_gap((replace(wide, batch=2, evaluation_loss=1.45), narrow), "accuracy")
    assert "nothing to compare" in modes.describe_gap((lost, narrow), "accuracy")
    assert "nothing to compare" in modes.describe_gap((), "accuracy")


# Folding


@pytest.mark.parametrize(("placement", "unfolded"), [("pre", 9_354), ("post", 9_482)])
def test_the_graphs_of_the_reference_topology_have_the_expected_nodes_and_parameters(digits, placement, unfolded):
    """64*64, 64*64 and 64*10 weights and 138 biases; a BN has 4*64 numbers and, in pre, replaces 64 biases."""
    measured = saving.measure(digits, TINY, nothing)
    before, after = measured.pair(placement)
    assert (before.nodes, before.parameters) == (8, unfolded)
    assert (after.nodes, after.parameters) == (6, 8_970)
    assert "BatchNormalization" in before.run
    assert "BatchNormalization" not in after.run
    assert 0 < after.size < before.size
    # Each node writes a hidden layer's 64 columns, 10 logits or 10 probabilities in float32.
    assert after.written == 4 * (64 + 64 + 10 + 10)
    assert after.written < before.written <= 4 * (6 * 64 + 20)
    assert after.peak == 4 * 128
    assert set(before.latency) == {False, True}
    assert all(set(by_rows) == {1, 8} and min(by_rows.values()) > 0 for by_rows in before.latency.values())
    assert 0 <= measured.apart < 1e-5


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_unfolded_graph_is_the_network(placement, task):
    torch.manual_seed(0)
    network = build_mlp(3, 3, Architecture(hidden=(4, 5), placement=placement, dropout=0))
    for layer in network:
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 3)
    content = to_onnx(network.eval(), 3, 3, task, unfolded=True)
    kinds = [node.op_type for node in onnx.load_model_from_string(content).graph.node]
    assert kinds.count("BatchNormalization") == 2
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    expected = forward(network, x.astype(np.float64), training=False)[-1]
    if task == "classification":
        expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    output = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def timed(unfolded, folded):
    def model(placement, seconds, *, is_folded):
        latency = {on: {1: seconds} for on in (False, True)}
        return Model(placement, is_folded, 8 - 2 * is_folded, ("Gemm",), 100 - is_folded, 10, 8, 8, latency)

    pairs = zip(saving.PLACEMENTS, unfolded, folded, strict=True)
    models = [m for p, u, f in pairs for m in (model(p, u, is_folded=False), model(p, f, is_folded=True))]
    return Saving(tuple(models), 1e-7)


def test_the_sentences_on_folding_follow_the_figures():
    assert "every one of these faster" in saving.describe_latency(timed((2e-5, 2e-5), (1e-5, 1e-5)))
    assert "20 to 10 µs (-50%)" in saving.describe_latency(timed((2e-5, 2e-5), (1e-5, 1e-5)))
    assert "some of these faster" in saving.describe_latency(timed((2e-5, 2e-5), (1e-5, 3e-5)))
    slower = saving.describe_latency(timed((2e-5, 2e-5), (2e-5, 3e-5)))
    assert "none of these faster" in slower
    assert "(no difference)" in slower
    assert "(+50%)" in slower
    size = saving.describe_size(timed((1, 1), (1, 1)))
    assert "8 nodes to 6" in size
    assert "stays at 1" in size
    assert "parameters -1.0%" in size
    assert "size of the file unchanged" in size
    for about in (saving.describe_size, saving.describe_latency):
        assert "diverged" in about(None)


# The whole


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.captions, self.svgs = [], 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def assert_complete(text):
    """Check that the document loads nothing, and that each picture has its sentence."""
    tags = Reader(text).tags
    for tag, attributes in tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "base", "metadata"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href"}:
                assert value.startswith("#")
            if not name.startswith("xmlns"):
                assert "//" not in (value or "")
    assert not re.search(r"@import|url\((?!#)", text)
    names = [tag for tag, _ in tags]
    assert names.count("figure") == names.count("figcaption") == 8
    assert sum(tag == "svg" for tag in names) + names.count("table") <= 8


def test_the_report_is_one_small_file_with_a_sentence_for_each_picture(tiny):
    sections = build_sections(tiny)
    text = render(tiny, sections)
    assert_complete(text)
    assert len(text) < 1_000_000
    findings = [finding for section in sections for finding in section.findings]
    assert all(finding.svg or finding.table for finding in findings)
    assert all(re.fullmatch(r"[A-Z].*\.", finding.sentence) for finding in findings)
    assert "All 150 rows" in text


def test_the_same_seed_gives_the_same_figures_except_latencies(tiny):
    def figures(diagnosis):
        found = json.loads(run.to_json(diagnosis))
        for model in found["saving"]["models"]:
            del model["latency"]
        return found

    again = run.diagnose(load(DataOptions("iris")), TINY)
    assert figures(again) == figures(tiny)
    first, second = build_sections(tiny)[0], build_sections(again)[0]
    assert first == second  # with their pictures
    other = run.diagnose(load(DataOptions("iris")), replace(TINY, seed=1))
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

    broken = replace(
        tiny,
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
    text = render(measured := run.diagnose(load(DataOptions("diabetes")), TINY), build_sections(measured))
    assert "R2" in text
    assert "accuracy" not in text


def test_the_progress_of_each_experiment_reaches_its_end():
    seen = {}
    run.diagnose(load(DataOptions("iris")), TINY, lambda stage, done, of: seen.update({stage: (done, of)}))
    assert list(seen) == ["convergence", "gradients", "batch sizes", "folding"]
    assert all(done == of for done, of in seen.values())


def test_text_from_the_table_is_escaped():
    text = render_sections("<b>", ["<i>"], [Section("<u>", "&", (Finding("<s>", "<em>", table=(("<a>",), ("<q>",))),))])
    assert not {"b", "i", "u", "s", "em", "a", "q"} & {tag for tag, _ in Reader(text).tags}


def test_the_command_writes_report_and_figures_and_prints_the_findings(tmp_path, capsys):
    output, figures = tmp_path / "report.html", tmp_path / "figures.json"
    arguments = ["--quick", "--steps", "4", "--seed", "3", "--output", str(output), "--json", str(figures)]
    assert main(["diagnose", "iris", *arguments]) == 0
    assert_complete(output.read_text(encoding="utf-8"))
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert (found["source"], found["plan"]["steps"], found["plan"]["seed"]) == ("iris", 4, 3)
    said = capsys.readouterr()
    assert "iris: all 150 rows" in said.out
    assert said.out.count("\n  - ") == 8
    assert str(output) in said.out
    assert said.err == ""  # without a terminal there are no progress bars


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nothing",), "unknown source 'nothing'"),
        (("--output", "nowhere/report.html"), "not a file in an existing folder"),
        (("--json", "."), "not a file in an existing folder"),
        (("--steps", "0"), "steps are at least 1"),
        (("--seed", "-1"), "the seed is from 0"),
    ],
)
def test_a_refusal_is_one_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["diagnose", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("foldserve-train: error: ")
    assert reason in line
    assert not list(tmp_path.iterdir())


def test_help_loads_no_torch():
    script = (
        "import sys; from foldserve.training.cli import main\n"
        "try: main(['diagnose', '--help'])\n"
        "finally: assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


def test_the_plan_is_recorded(tiny):
    recorded = json.loads(run.to_json(tiny))["plan"]
    assert recorded == json.loads(json.dumps(asdict(TINY)))
