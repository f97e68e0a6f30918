"""The built-in tables: tables of scikit-learn that a training can name instead of a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from foldserve.service.sources import Source, from_arrays


def _load(name: str) -> Source:
    """Return a table of scikit-learn.

    The labels are scikit-learn's names of the classes: 0 to 9 for digits, texts for iris.
    """
    from sklearn import datasets  # imported here because the import takes a second, and files do not need scikit-learn

    raw = getattr(datasets, f"load_{name}")()
    y = raw.target_names[raw.target] if "target_names" in raw else raw.target
    return from_arrays(name, [str(feature) for feature in raw.feature_names], raw.data, "target", y)


BUILT_IN: dict[str, Callable[[], Source]] = {
    name: partial(_load, name) for name in ("breast_cancer", "diabetes", "digits", "iris", "wine")
}
