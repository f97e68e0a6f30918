"""A label must be one of the table's own values: true does not count as 1, but 1.0 does."""

from __future__ import annotations

import pytest

from foldserve.service.bundle import Label
from foldserve.service.quality.feedback import LabelReader


@pytest.mark.parametrize(
    ("labels", "value", "place"),
    [
        ((False, True), True, 1),
        ((False, True), 1, None),
        ((0, 1), 1.0, 1),
        ((0, 1), True, None),
        ((0.5, 2), 2, 1),
        (("1", "2"), "2", 1),
        (("1", "2"), 2, None),
    ],
)
def test_a_label_has_the_type_of_the_labels_of_the_model(
    labels: tuple[Label, ...], value: Label, place: int | None
) -> None:
    reader = LabelReader(labels)
    assert reader.read(None) is None
    if place is None:
        with pytest.raises(ValueError, match="not one of the model's labels"):
            reader.read(value)
    else:
        assert reader.read(value) == place
