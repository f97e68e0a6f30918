"""For random architectures, the folded model has the outputs of the original model in ONNX Runtime without
optimisation.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foldserve.training.imports.folding import fold
from tests.training.imports.support import Model, read, run_folded, run_unoptimised

FUNCTIONS = ("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "HardSigmoid", "Softsign")
COLUMNS = 5


@st.composite
def networks(draw):
    """A network of one to three blocks.

    A block has a batch norm before or after its activation, or a skip connection, or it returns the mean of three
    members.
    """
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    model = Model(COLUMNS)
    if draw(st.booleans()):
        mean, std = (generator.normal(size=COLUMNS).astype(np.float32) for _ in range(2))
        model.add("Sub", mean)
        model.add("Div", np.abs(std) + np.float32(0.1))
    for kind in draw(st.lists(st.sampled_from(["pre", "post", "skip", "members"]), min_size=1, max_size=3)):
        add_block(model, kind, draw(st.sampled_from(FUNCTIONS)), generator)
    model.dense(generator, COLUMNS, 3)
    if draw(st.booleans()):
        model.add("Mul", np.float32(0.5))
    model.add("Softmax")
    return model.build(), generator.normal(size=(20, COLUMNS)).astype(np.float32)


def add_block(model: Model, kind: str, function: str, generator: np.random.Generator) -> None:
    start = model.value
    if kind == "members":
        outputs = []
        for _ in range(3):
            model.value = start
            model.dense(generator, COLUMNS, 4)
            model.batch_norm(generator, 4)
            model.add(function)
            outputs.append(model.dense(generator, 4, COLUMNS))
        model.add("Mean", source=outputs)
        return
    model.dense(generator, COLUMNS, COLUMNS)
    if kind == "post":
        model.add(function)
        model.batch_norm(generator, COLUMNS)
        return
    model.batch_norm(generator, COLUMNS)
    model.add(function)
    if kind == "skip":
        inner = model.dense(generator, COLUMNS, COLUMNS)
        model.add("Add", source=[start, inner])


@given(networks())
@settings(max_examples=60, deadline=None)
def test_any_network_gives_the_answers_of_the_original(drawn):
    model, rows = drawn
    imported = read(model)
    outputs, kinds = run_folded(imported, rows)
    np.testing.assert_allclose(outputs, run_unoptimised(model, rows), rtol=2e-4, atol=2e-5)
    # Both are float64. In some drawn networks large terms cancel, which leaves a relative difference of 1.5e-7.
    np.testing.assert_allclose(imported.network.evaluate(rows), imported.evaluate(rows), rtol=1e-6, atol=1e-10)
    assert "BatchNormalization" not in kinds


def test_the_article_s_network_is_gemm_relu_and_softmax():
    generator = np.random.default_rng(0)
    model = Model(64)
    for inputs in (64, 64):
        model.dense(generator, inputs, 64)
        model.add("Relu")
        model.batch_norm(generator, 64)
    model.dense(generator, 64, 10)
    model.add("Softmax")
    rows = generator.uniform(0, 16, (50, 64)).astype(np.float32)
    outputs, kinds = run_folded(read(model.build()), rows)
    assert kinds == ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax"]
    np.testing.assert_allclose(outputs, run_unoptimised(model.build(), rows), rtol=2e-4, atol=1e-5)


def test_an_ensemble_becomes_one_network():
    generator = np.random.default_rng(0)
    model, members = Model(8), []
    for _ in range(3):
        model.value = "x"
        model.dense(generator, 8, 6)
        model.batch_norm(generator, 6)
        model.add("Relu")
        members.append(model.dense(generator, 6, 3))
    model.add("Mean", source=members)
    model.add("Softmax")
    rows = generator.normal(size=(20, 8)).astype(np.float32)
    outputs, kinds = run_folded(read(model.build()), rows)
    assert kinds == ["Gemm", "Relu", "Gemm", "Softmax"]
    np.testing.assert_allclose(outputs, run_unoptimised(model.build(), rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [(), ("stays", "leaves")], ids=["unnamed", "named"])
def test_a_mean_of_sigmoids_is_the_probability_of_the_second_label(labels):
    generator = np.random.default_rng(0)
    model, members = Model(4), []
    for _ in range(3):
        model.value = "x"
        model.dense(generator, 4, 6)
        model.add("Relu")
        model.dense(generator, 6, 1)
        members.append(model.add("Sigmoid"))
    model.add("Mean", source=members)
    rows = generator.normal(size=(20, 4)).astype(np.float32)
    imported = read(model.build(), labels=labels)
    expected = run_unoptimised(model.build(), rows)
    assert (imported.task, imported.labels) == ("classification", labels or (0, 1))
    np.testing.assert_allclose(run_folded(imported, rows)[0], np.hstack([1 - expected, expected]), atol=1e-6)
    np.testing.assert_allclose(imported.evaluate(rows)[:, 1:], expected, atol=1e-6)


def test_the_members_of_a_deep_ensemble_share_their_first_layer():
    generator = np.random.default_rng(0)
    model, members = Model(8), []
    for _ in range(3):
        model.value = "x"
        for inputs in (8, 6):
            model.dense(generator, inputs, 6)
            model.batch_norm(generator, 6)
            model.add("Relu")
        members.append(model.dense(generator, 6, 3))
    model.add("Sum", source=members)
    model.add("Softmax")
    rows = generator.normal(size=(20, 8)).astype(np.float32)
    outputs, kinds = run_folded(read(model.build()), rows)
    assert kinds == ["Gemm", "Relu", "Split", *["Gemm", "Relu"] * 3, "Concat", "Gemm", "Softmax"]
    np.testing.assert_allclose(outputs, run_unoptimised(model.build(), rows), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_on_a_skip_connection_is_kept_and_reported():
    generator = np.random.default_rng(0)
    model = Model(4)
    start = model.dense(generator, 4, 4)
    model.batch_norm(generator, 4)
    model.add("Relu")
    inner = model.dense(generator, 4, 4)
    model.add("Add", source=[start, inner])
    (line,) = fold(read(model.build(), labels=tuple("abcd")).network).report
    assert (line.rule, line.into) == ("kept: no Dense beside it", line.layer)


def test_a_large_offset_of_the_input_is_subtracted_first():
    generator = np.random.default_rng(0)
    model = Model(2)
    model.add("Sub", np.array([1.7e9, 0], np.float32))
    model.add("Div", np.array([1e4, 1], np.float32))
    model.dense(generator, 2, 3)
    model.add("Softmax")
    rows = np.stack([1.7e9 + 1e4 * generator.normal(size=50), generator.normal(size=50)], 1).astype(np.float32)
    imported = read(model.build())
    outputs, kinds = run_folded(imported, rows)
    assert kinds[0] == "Sub"
    np.testing.assert_allclose(outputs, imported.evaluate(rows), rtol=1e-4, atol=1e-5)
