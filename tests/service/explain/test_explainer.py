"""Explanations are compared with PyTorch's derivatives in float64, and with a linear model that is written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from torch import nn

from foldserve.service import bundle
from foldserve.service.errors import NotExplainable
from foldserve.service.explain.curves import normal_cdf
from foldserve.service.explain.explainer import Explainer
from foldserve.training.fold.export import to_onnx
from foldserve.training.fold.merge import fold_mean
from foldserve.training.network.encode import Encode
from foldserve.training.network.layers import ACTIVATIONS, Shift
from tests.service.mixed import FEATURES, FILLED, GOLDEN, WEIGHTS, WIDTHS, codes, mixed_bundle
from tests.service.support import bundle_in_memory, constant, onnx_model, oracle, square_root
from tests.training.fold.test_merge import ensemble, mean_in_float64

KINDS = (
    {"name": "a", "range": (-3.0, 3.0), "histogram": {"edges": (-3.0, 0.0, 3.0), "counts": (1, 3)}},
    {"name": "b", "kind": "categorical", "categories": ("x", "y", "z")},
    {"name": "c", "missing": True, "missing_share": 0.2},
    {"name": "d"},
)


def explained(count, *, encoded, outputs=3, **architecture):
    """Return an explainer of an ensemble, its members, rows, the layers in front of the networks, and the merged
    network.
    """
    members, rows = ensemble(count, encoded=encoded, far=False, outputs=outputs, **architecture)
    merged = fold_mean(members).network
    model = to_onnx(merged, 4, outputs, "classification")
    features = KINDS if encoded else ("a", "b", "c", "d")
    golden = [[None if math.isnan(value) else value for value in row] for row in rows[:3].tolist()]
    expected = oracle(model)(rows[:3]).tolist()
    made = bundle_in_memory(
        model, bundle.Golden(inputs=golden, outputs=expected), features=features, labels=("u", "v", "w")[:outputs]
    )
    front = nn.Sequential(*[layer for layer in merged if isinstance(layer, Encode | Shift)])
    network = nn.Sequential(*[layer for layer in merged if not isinstance(layer, Encode | Shift)]).double()
    return Explainer(made.model, made.manifest), members, rows, front, network


def source_columns(encoded, front):
    """Return the feature of each encoded column. The groups of columns have the same order as in `Layout`."""
    if not encoded:
        return [0, 1, 2, 3]
    layout = front[0]
    numeric = layout.numeric.tolist()
    return [*numeric, *(numeric[i] for i in layout.binned), *layout.categorical.tolist(), *layout.missing.tolist()]


@settings(max_examples=25)
@given(
    count=st.integers(1, 3),
    hidden=st.lists(st.integers(1, 9), max_size=3).map(tuple),
    placement=st.sampled_from(["pre", "post"]),
    encoded=st.booleans(),
)
def test_contributions_of_a_relu_network_are_its_derivatives_times_the_distance_from_the_reference(
    count, encoded, **architecture
):
    explainer, members, rows, front, network = explained(count, encoded=encoded, **architecture)
    found = explainer.explain(rows)
    logits = mean_in_float64(members, rows)
    np.testing.assert_array_equal(found.chosen, logits.argmax(1))
    scale = np.abs(np.column_stack([found.offset, found.contributions])).max(1)
    # The folded weights are float32, and the reference network has the unfolded weights in float64.
    np.testing.assert_allclose(found.output, logits.max(1), rtol=1e-4, atol=1e-4)
    assert (np.abs(found.offset + found.contributions.sum(1) - found.output) <= 1e-9 * scale).all()
    columns = front(torch.from_numpy(rows)).double().requires_grad_()
    (slopes,) = torch.autograd.grad(network(columns)[range(len(rows)), found.chosen].sum(), columns)
    distance = columns.detach().numpy() - explainer.reference
    expected = np.zeros_like(found.contributions)
    for column, feature in enumerate(source_columns(encoded, front)):
        expected[:, feature] += slopes[:, column].numpy() * distance[:, column]
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-6, atol=1e-7 * scale.max())


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"relu"}))
def test_integrated_gradients_agree_with_a_fine_sum_of_derivatives(activation):
    explainer, _, rows, front, network = explained(2, encoded=True, hidden=(6, 5), activation=activation)
    rows = rows[:6]
    found = explainer.explain(rows, np.full(len(rows), 1))
    assert explainer.method == "integrated gradients"
    gap = np.abs(found.offset + found.contributions.sum(1) - found.output)
    assert (gap <= 1e-6 * np.abs(np.column_stack([found.offset, found.contributions])).max(1)).all()
    start = torch.from_numpy(explainer.reference)
    way = front(torch.from_numpy(rows)).double() - start
    steps = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1] + 1 / 4000
    points = (start + way[:, None] * steps[:, None]).requires_grad_()
    (slopes,) = torch.autograd.grad(network(points.reshape(-1, len(start)))[:, 1].sum(), points)
    parts = (slopes.mean(1) * way).numpy()
    expected = np.zeros_like(found.contributions)
    for column, feature in enumerate(source_columns(encoded=True, front=front)):
        expected[:, feature] += parts[:, column]
    np.testing.assert_allclose(found.contributions, expected, rtol=1e-4, atol=1e-4)


def test_every_kind_of_feature_of_a_linear_model_has_the_contribution_of_a_hand_calculation():
    made = mixed_bundle()
    found = Explainer(made.model, made.manifest).explain(codes(GOLDEN), np.full(len(GOLDEN), 2))
    # The histogram of a numeric feature has one bin from 0 to 1. The histogram of a categorical feature has one row in
    # each category.
    shares = {"income": 0.25, "size": 0.125}
    start = 0
    for place, feature in enumerate(FEATURES):
        weights = WEIGHTS[start : start + WIDTHS[place], 2].astype(float)
        start += WIDTHS[place]
        missing = shares.get(feature["name"], 0.0)
        for row, values in enumerate(GOLDEN):
            value = values[place]
            if "categories" in feature:
                known = feature["categories"]
                columns = [float(value == each and value is not None) for each in known]
                columns.append(float(value is not None and value not in known))
                mean = [(1 - missing) / len(known)] * len(known) + [0.0]
            else:
                # For a boolean, 0.5 is rounded to the even number 0.
                middle = 0.5 if feature.get("kind") != "boolean" else 0.0
                columns = [FILLED if value is None else float(value), float(value is None)]
                mean = [(1 - missing) * middle + missing * FILLED, missing]
            expected = float(weights @ (np.array(columns) - mean))
            assert found.contributions[row, place] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_feature_moved_within_the_gates_of_its_row_changes_the_output_by_the_change_of_its_contribution(diabetes):
    explainer = Explainer(diabetes.model, diabetes.manifest)
    rows = np.array(diabetes.manifest.golden.inputs, np.float32)
    before = explainer.explain(rows)
    for feature in range(rows.shape[1]):
        moved = rows.copy()
        moved[:, feature] *= np.float32(1 + 2**-18)
        after = explainer.explain(moved)
        change = after.contributions[:, feature] - before.contributions[:, feature]
        np.testing.assert_allclose(after.output - before.output, change, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(before.output, oracle(diabetes.model)(rows)[:, 0], rtol=1e-4)


def test_the_threshold_of_a_model_chooses_the_class_that_is_explained():
    model, golden = two_classes()
    made = bundle_in_memory(model, golden, labels=("no", "yes"))
    threshold = bundle.Threshold(positive="yes", value=0.9, rule="value")
    row = np.array([[1.0, 0.0]], np.float32)
    assert Explainer(made.model, made.manifest).explain(row).chosen == [1]
    changed = made.manifest.model_copy(update={"threshold": threshold})
    assert Explainer(made.model, changed).explain(row).chosen == [0]


def two_classes():
    nodes = [
        helper.make_node("Gemm", ["input", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    outputs = [helper.make_tensor_value_info("probabilities", 1, ["batch", 2])]
    model = onnx_model(nodes, [constant("weight", [[0, 1], [1, 0]])], outputs=outputs)
    return model, bundle.Golden(inputs=((0.0, 0.0),), outputs=((0.5, 0.5),))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Exp", ["input"], ["x"], "bend"), ("Gemm", "x")], "'bend' (Exp): its operator is not known"),
        ([("Gemm", "input", "y"), helper.make_node("Exp", ["y"], ["value"], "end")], "'end' (Exp)"),
        (
            [
                helper.make_node("Gather", ["input", "swapped"], ["other"], axis=1),
                helper.make_node("Mul", ["input", "other"], ["x"], "both"),
                ("Gemm", "x"),
            ],
            "'both' (Mul): it combines several features",
        ),
    ],
    ids=["before", "after", "crossed"],
)
def test_a_graph_with_an_unknown_part_is_refused_with_the_name_of_its_node(nodes, reason):
    made = [
        helper.make_node(node[0], [node[1], "weight"], [node[2] if len(node) > 2 else "value"])
        if isinstance(node, tuple)
        else node
        for node in nodes
    ]
    model = onnx_model(made, [constant("weight", [[1], [1]]), constant("swapped", [1, 0], np.int64)])
    rows = bundle.Golden(inputs=((0.0, 0.0),), outputs=((0.0,),))
    with pytest.raises(NotExplainable, match="can't be explained") as refusal:
        Explainer(model, bundle_in_memory(model, rows).manifest)
    assert reason in str(refusal.value)


def test_a_graph_without_a_matrix_product_is_refused():
    model, golden = square_root()
    with pytest.raises(NotExplainable, match="no Gemm"):
        Explainer(model, bundle_in_memory(model, golden).manifest)


def test_weights_that_do_not_reproduce_the_golden_rows_are_refused():
    made = mixed_bundle()
    golden = made.manifest.golden.model_copy(update={"outputs": made.manifest.golden.outputs[::-1]})
    with pytest.raises(NotExplainable, match="golden rows"):
        Explainer(made.model, made.manifest.model_copy(update={"golden": golden}))


def test_the_normal_distribution_function_is_right_to_eleven_digits():
    x = np.linspace(-9, 9, 20_011)
    expected = [0.5 * math.erfc(-each / math.sqrt(2)) for each in x.tolist()]
    np.testing.assert_allclose(normal_cdf(x), expected, rtol=0, atol=1e-11)
