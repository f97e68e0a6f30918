"""Every value that is drawn for a feature is valid for this feature. Every kind of value is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foldserve.service import bundle
from tests.service.support import feature_fields


def draw(*, integers: bool = False, **feature: Any) -> np.ndarray:
    described_feature = bundle.Feature.model_validate(feature_fields({"name": "a", **feature}))
    values = bundle.draw_column(described_feature, 500, np.random.default_rng(0), integers=integers)
    assert (values.dtype, values.shape) == (np.float32, (500,))
    assert all(map(described_feature.admits, values.tolist()))
    return values


def test_numbers_are_uniform_in_the_training_range() -> None:
    values = draw(range=(-0.5, 1.5))
    assert -0.5 <= values.min() < -0.45
    assert 1.45 < values.max() <= 1.5
    assert len(set(values.tolist())) > 490


@pytest.mark.parametrize("edge", [0.1, 1e30, -7.0])
def test_a_range_of_one_value_gives_that_value(edge: float) -> None:
    assert (draw(range=(edge, edge)) == np.float32(edge)).all()


def test_integers_are_drawn_on_request() -> None:
    assert set(draw(range=(0.0, 16.0), integers=True).tolist()) == set(range(17))


def test_a_boolean_is_0_or_1() -> None:
    assert set(draw(kind="boolean").tolist()) == {0, 1}


def test_a_category_is_any_index_and_the_reserved_one() -> None:
    assert set(draw(kind="categorical", categories=("x", 1, 2.5)).tolist()) == {0, 1, 2, 3}


def test_no_value_is_missing() -> None:
    assert not np.isnan(draw(missing=True)).any()
