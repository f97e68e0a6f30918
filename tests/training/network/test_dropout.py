"""Dropout with random bytes drops the documented share of the values, and keeps the mean."""

import pytest
import torch

from foldserve.training.network.dropout import Dropout


@pytest.mark.parametrize(("p", "used"), [(0.15, 38 / 256), (0.5, 0.5), (0.001, 1 / 256), (0.999, 255 / 256)])
def test_it_drops_the_documented_share_and_keeps_the_mean(p, used):
    torch.manual_seed(0)
    count = 4_000_001  # the size is not a multiple of 8
    y = Dropout(p)(torch.ones(count, 1))
    deviation = (used * (1 - used) / count) ** 0.5
    assert float((y == 0).double().mean()) == pytest.approx(used, abs=5 * deviation)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 1 / (1 - used)])


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(100_000, 16)) != 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(16, dtype=torch.float64)
    assert float(correlation.abs().max()) < 0.02


def test_the_gradient_uses_the_same_mask_as_the_value():
    torch.manual_seed(0)
    x = torch.randn(8, 5, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_in_eval_mode_and_with_p_0_it_is_the_identity():
    x = torch.randn(8, 5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_masks_of_the_shares_make_up_the_mask_of_the_batch():
    x = torch.randn(7, 5)
    torch.manual_seed(3)
    whole = Dropout(0.4)(x)
    parts = []
    for rows in (slice(0, 3), slice(3, 7)):
        torch.manual_seed(3)
        dropout = Dropout(0.4)
        dropout.share_mask(rows, batch_size=7)
        parts.append(dropout(x[rows]))
    assert torch.equal(torch.cat(parts), whole)
