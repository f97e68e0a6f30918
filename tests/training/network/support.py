"""Tables for the tests of encoding and standardisation, and a NumPy version of the encoding."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st

from foldserve.training.network.encode import Encode
from foldserve.training.network.preprocessing import choose_layout, fit_standardisation
from foldserve.training.table.schema import Column

NAN = np.nan
VALUES = {
    "numbers": st.floats(-1e3, 1e3).map(lambda value: round(value, 3)),
    "few": st.sampled_from([-1.0, 0.0, 2.5]),
    "constant": st.just(7.0),
    "moments": st.integers(1_700_000_000, 1_800_000_000).map(float),
    "huge": st.floats(-1e30, 1e30).map(lambda value: round(value, -20)),
    "boolean": st.sampled_from([0.0, 1.0]),
    "categorical": st.integers(0, 4).map(float),
}
CATEGORIES = ("a", "b", "c", "d")  # the index 4 in a row means an unseen category


@st.composite
def tables(draw):
    """Draw columns, training rows, and other rows with outliers, unseen categories and missing values."""
    styles = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    rows = draw(st.integers(2, 25))
    columns, seen, others = [], [], []
    for place, style in enumerate(styles):
        missing = draw(st.booleans())
        kind = style if style in ("boolean", "categorical") else "numeric"
        columns.append(Column(str(place), kind, CATEGORIES if kind == "categorical" else (), missing))
        cell = VALUES[style] | st.just(NAN) if missing else VALUES[style]
        seen.append(draw(st.lists(cell, min_size=rows, max_size=rows)))
        other = cell | st.sampled_from([-1e9, 1e9, -0.0]) if kind == "numeric" else cell
        others.append(draw(st.lists(other, min_size=6, max_size=6)))
    return columns, np.array(seen, np.float32).T.copy(), np.array(others, np.float32).T.copy()


def known(column):
    return column[~np.isnan(column)].astype(np.float64)


def edges_of(column, bins):
    values = known(column)
    if not bins or not len(values):
        return np.empty(0)
    # Edge k is the smallest value v such that at least k / bins of all values are <= v.
    ranked = list(enumerate(np.sort(values), start=1))
    return np.unique([next(v for i, v in ranked if i * bins >= k * len(ranked)) for k in range(bins + 1)])


def by_numpy(columns, seen, rows, bins):
    """Encode rows in float64.

    Return the encoded rows, and the error of each column. The error comes from the rounding of a bin's width to
    float32.
    """
    numbers, binned, categories, missing, off = [], [], [], [], []
    for column, before, values in zip(columns, seen.T, rows.T.astype(np.float64), strict=True):
        if column.kind == "categorical":
            categories += [values == index for index in np.unique(known(before))]
        else:
            fill = np.float32(known(before).mean()) if len(known(before)) else 0.0
            filled = np.where(np.isnan(values), fill, values)
            numbers.append(filled)
            edges = edges_of(before, bins if column.kind == "numeric" else 0)
            for low, high in pairwise(edges) if len(edges) > 2 else ():
                binned.append(np.interp(filled, [low, high], [0.0, 1.0]))
                off.append(2.0**-23)
        if np.isnan(before).any():
            missing.append(np.isnan(values))
    encoded = np.stack([*numbers, *binned, *categories, *missing], 1, dtype=np.float64)
    tolerance = np.zeros(encoded.shape[1])
    tolerance[len(numbers) : len(numbers) + len(binned)] = off
    return encoded, tolerance


def mixed():
    """Return columns of every kind, 500 training rows, and rows with unusual values."""
    generator = np.random.default_rng(1)
    columns = [
        Column("town", "categorical", ("a", "b", "c", "d"), missing=True),
        Column("income", "numeric", missing=True),
        Column("moment", "numeric"),
        Column("member", "boolean", missing=True),
        Column("size", "categorical", (1, 2)),
        Column("constant", "numeric"),
    ]
    seen = np.stack(
        [
            generator.integers(0, 3, 500),  # no training row has the last town
            generator.normal(0, 3, 500),
            1.7e9 + generator.uniform(0, 1e6, 500),
            generator.integers(0, 2, 500),
            generator.integers(0, 2, 500),
            np.full(500, 0.1),
        ],
        1,
    ).astype(np.float32)
    for place in (0, 1, 3):
        seen[generator.random(500) < 0.2, place] = NAN
    rows = seen[:200].copy()
    rows[0] = NAN, NAN, 1.7e9, NAN, 2, 0.1  # every optional value is missing, and the size has an unseen value
    rows[1] = 3, -0.0, 1.7e9, -0.0, -0.0, 0.1
    rows[2] = 4, 1e6, 1.8e9, 1, 1, 0.1
    rows[3] = -0.0, -1e6, 0, 0, 0, -5
    return columns, seen, rows


def standardised(columns, seen, bins, chunk=10_000):
    made = choose_layout(columns, seen, bins)
    encode = Encode(made)
    chunks = [encode(part) for part in torch.split(torch.from_numpy(seen), chunk)]
    return made, encode, fit_standardisation(made, lambda: chunks)
