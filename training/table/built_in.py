"""The built-in tables. The user can give the name of a table of scikit-learn instead of a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from foldserve.service.sources import Source, from_arrays


def _load(name: str) -> Source:
    """Load one of the tables that are part of scikit-learn.

    The labels are the names that scikit-learn gives to the classes, such as 0 to 9 for digits, and texts for iris.
    """
    from sklearn import datasets  # imported only for a built-in table, because the import takes a second

    raw = getattr(datasets, f"load_{name}")()
    y = raw.target_names[raw.target] if "target_names" in raw else raw.target
    return from_arrays(name, [str(feature) for feature in raw.feature_names], raw.data, "target", y)


BUILT_IN: dict[str, Callable[[], Source]] = {
    name: partial(_load, name) for name in ("breast_cancer", "diabetes", "digits", "iris", "wine")
}
