"""The figures of the graphs before and after folding are compared with plain arithmetic.

Each sentence is tested with figures that support its claim, and with figures that contradict the claim.
"""

import pytest

from foldserve.training.diagnose import saving
from foldserve.training.diagnose.saving import Model, Saving
from foldserve.training.diagnose.tables import list_latencies, list_sizes
from tests.training.diagnose.support import TINY, nothing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("placement", "unfolded"), [("pre", 9_354), ("post", 9_482)])
def test_the_graphs_of_the_reference_topology_have_the_expected_nodes_and_parameters(digits, placement, unfolded):
    """The network has 64*64 + 64*64 + 64*10 weights and 138 biases.

    A BN has 4*64 numbers. With the placement "pre", the BN replaces 64 biases.
    """
    measured = saving.measure(digits, TINY, nothing)
    before, after = measured.pair(placement)
    assert (before.nodes, before.parameters) == (8, unfolded)
    assert (after.nodes, after.parameters) == (6, 8_970)
    assert "BatchNormalization" in before.run
    assert "BatchNormalization" not in after.run
    assert 0 < after.size < before.size
    # Each node writes float32 numbers. For one row, a node writes 64 numbers of a hidden layer, 10 logits or 10
    # probabilities.
    assert after.written == 4 * (64 + 64 + 10 + 10)
    assert after.written < before.written <= 4 * (6 * 64 + 20)
    assert after.peak == 4 * 128
    assert set(before.latency) == {False, True}
    assert all(set(by_rows) == {1, 8} and min(by_rows.values()) > 0 for by_rows in before.latency.values())
    assert 0 <= measured.apart < 1e-5


def timed(unfolded, folded):
    def model(placement, seconds, *, is_folded):
        latency = {on: {1: seconds} for on in (False, True)}
        return Model(placement, is_folded, 8 - 2 * is_folded, ("Gemm",), 100 - is_folded, 10, 8, 8, latency)

    pairs = zip(saving.PLACEMENTS, unfolded, folded, strict=True)
    models = [m for p, u, f in pairs for m in (model(p, u, is_folded=False), model(p, f, is_folded=True))]
    return Saving(tuple(models), 1e-7)


def test_the_sentences_on_folding_follow_the_figures():
    assert "every one of these models faster" in saving.describe_latency(timed((2e-5, 2e-5), (1e-5, 1e-5)))
    assert "some of these models faster, not all" in saving.describe_latency(timed((2e-5, 2e-5), (1e-5, 3e-5)))
    assert "none of these models faster" in saving.describe_latency(timed((2e-5, 2e-5), (2e-5, 3e-5)))
    assert "8 nodes to 6" in saving.describe_size(timed((1, 1), (1, 1)))
    for about in (saving.describe_size, saving.describe_latency):
        assert "diverged" in about(None)


def test_the_tables_of_folding_have_the_figures_of_every_model():
    measured = timed((2e-5, 2e-5), (1e-5, 3e-5))
    rows = list_latencies(measured)
    assert rows[1] == ("pre, on, 1", "20.0 µs", "10.0 µs", "-50%")
    assert [row[3] for row in rows[1:]] == ["-50%", "-50%", "+50%", "+50%"]
    sizes = list_sizes(measured)
    assert sizes[1] == ("pre, unfolded", "8", "1", "100", "10", "8", "8")
    assert [row[0] for row in sizes[1:]] == ["pre, unfolded", "pre, folded", "post, unfolded", "post, folded"]
