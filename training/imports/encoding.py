"""Encodes categories as numbers, with layers of the intermediate form. Several front ends use this module."""

from __future__ import annotations

import numpy as np

from foldserve.training.imports.form import INPUT, Builder
from foldserve.training.imports.layers import Array, Concat, Dense, OneHot, Select


def add_lookup(builder: Builder, name: str, kind: str, column: int, numbers: Array, unseen: float) -> str:
    """Add layers that map the category of a raw column to a number, and return the name of the new value.

    The new value has the shape [rows, 1]. numbers: the number for each category, float64 [categories]. unseen: the
    number for unseen categories, which have the index len(numbers). For an ordinal encoding, the numbers are 0, 1, 2,
    ...
    """
    count = len(numbers)
    if not (numbers == np.arange(count)).all():
        codes = builder.add(name, kind, OneHot(np.full(count, column), np.arange(count, dtype=np.float64)), INPUT)
        return builder.add(name, kind, Dense((numbers - unseen)[None], np.array([unseen])), codes)
    index = builder.add(name, kind, Select(np.array([column])), INPUT)
    if unseen == count:
        return index
    other = builder.add(name, kind, OneHot(np.array([column]), np.array([float(count)])), INPUT)
    both = builder.add(name, kind, Concat(), index, other)
    return builder.add(name, kind, Dense(np.array([[1.0, unseen - count]]), np.zeros(1)), both)
