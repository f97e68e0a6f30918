"""Tests the columns that give each row's group and time."""

import numpy as np
import pytest

from foldserve.training.errors import DataError
from tests.training.table.support import Y


def test_a_group_is_not_a_feature_and_a_time_only_if_it_is_numeric(load_columns):
    columns = {"a": range(10), "who": [*"aabbccddee"], "t": range(10), "day": ["2024-01-02", "2024-01-01"] * 5, "y": Y}
    grouped = load_columns(columns, group="who", drop=("day",))
    assert grouped.features == ("a", "t")
    assert len(set(grouped.group)) == 5
    numbered = load_columns(columns, time="t", drop=("day", "who"))
    assert numbered.features == ("a", "t")
    np.testing.assert_array_equal(numbered.time, range(10))
    dated = load_columns(columns, time="day", drop=("who",))
    assert dated.features == ("a", "t")
    np.testing.assert_array_equal(dated.time[::2] - dated.time[1::2], [86_400_000_000] * 5)
    with pytest.raises(DataError, match="column 'who' is not a time"):
        load_columns(columns, time="who")
    with pytest.raises(DataError, match="column 'who', the group: row 1 has no value"):
        load_columns(columns | {"who": ["", *"abcdefghi"]}, group="who")
