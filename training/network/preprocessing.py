"""Preprocessing: fits the encoding and the standardisation in front of a network to the training rows.

The module decides the encoded columns, and their bins, means and scales. Gradient descent does not change the
preprocessing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldserve.training.network.calendar import with_parts
from foldserve.training.network.encode import Encode, Floats, Layout
from foldserve.training.network.layers import Affine
from foldserve.training.plan import Binned
from foldserve.training.table.schema import Column

# A bin is at least this wide, because float32 could not hold the reciprocal of a much smaller width.
_MIN_BIN_WIDTH = 1e-30
# Rows are transformed in chunks of this size, to limit the memory.
_CHUNK = 65_536

# A feature has tails if its whole range is at least this many times as wide as the interval with the middle 90% of its
# values. In a normal distribution, the range of 5,000 values is 2.3 times as wide as their middle 90%, and the range of
# a million values is 3 times as wide as their middle 90%.
_TAILS = 4.0
# A feature counts as a feature without tails if it has at most this many different values.
_FEW_VALUES = 32


def fit_preprocessing(columns: Sequence[Column], x: Floats, bins: int, binned: Binned = "all") -> nn.Sequential:
    """Fit the layers in front of a network. The layers map raw [batch, features] to standardised [batch, columns].

    x: the training rows, float32 [rows, features]. bins, binned: the arguments of `choose_layout`.
    """
    parts, raw = with_parts(columns), x
    layers = OrderedDict[str, nn.Module]()
    if parts.calendar is not None:
        layers["calendar"] = parts.calendar
        x = transform(parts.calendar, x).numpy()
    layout = choose_layout(parts.columns, x, bins, binned, raw=len(columns))
    if layout.is_needed:
        layers["encode"] = Encode(layout)
    encoded = partial(_transform_chunks, nn.Sequential(layers), raw)
    return nn.Sequential(layers | {"standardise": fit_standardisation(layout, encoded)})


def transform(preprocessing: nn.Module, x: Floats) -> Tensor:
    """Apply `preprocessing` to float32 [rows, features], a chunk of rows at a time. Return a float32 tensor of shape
    [rows, columns].
    """
    return torch.cat(list(_transform_chunks(preprocessing, x)))


@torch.no_grad()
def _transform_chunks(preprocessing: nn.Module, x: Floats) -> Iterator[Tensor]:
    for start in range(0, len(x), _CHUNK):
        yield preprocessing(torch.from_numpy(x[start : start + _CHUNK]))


def choose_layout(
    columns: Sequence[Column], x: Floats, bins: int, binned: Binned = "all", raw: int | None = None
) -> Layout:
    """Choose the encoded columns of each feature from the training rows `x`, float32 [rows, features].

    bins: the largest number of bins of a numeric feature; the edges are quantiles. binned: with `all`, all numeric
    features get bins; with `tails`, only the features with tails get bins. A feature with tails has many different
    values, and a few of these values are extreme: see `_TAILS`. If the standardisation of a feature with tails used the
    whole range, most rows would have almost equal values. If the standardisation used only the middle 90% of the
    values, the extreme values could be arbitrarily large.

    raw: the number of columns of the table, which come before the columns with parts of dates. Only features of the
    table itself get an extra column for missing values; parts of dates do not get one.
    """
    features = np.arange(len(columns))
    is_category = np.array([column.kind == "categorical" for column in columns], dtype=bool)
    numeric, categorical = features[~is_category], features[is_category]
    # A category gets no column if no training row has it, because training would not change the random initial weights
    # of such a column.
    seen = [_known(np.unique(x[:, feature])) for feature in categorical]
    gets_bins = [columns[i].kind == "numeric" and (binned == "all" or _has_tails(x[:, i])) for i in numeric]
    edges = [_bin_edges(x[:, i], bins if wanted else 0) for i, wanted in zip(numeric, gets_bins, strict=True)]
    widths = [np.diff(e) for e in edges]
    return Layout(
        numeric=numeric,
        fill=np.array([_mean(x[:, i]) if columns[i].missing else np.nan for i in numeric], np.float32),
        binned=np.repeat(np.arange(len(numeric)), [len(width) for width in widths]),
        low=np.concatenate([*(e[:-1] for e in edges), np.empty(0)]).astype(np.float32),
        rate=(1 / np.concatenate([*widths, np.empty(0)])).astype(np.float32),
        categorical=np.repeat(categorical, [len(values) for values in seen]),
        index=np.concatenate([*seen, np.empty(0, np.float32)]).astype(np.float32),
        missing=features[:raw][np.isnan(x[:, :raw]).any(0)],
    )


def _known(column: Floats) -> Floats:
    return column[~np.isnan(column)]


def _mean(column: Floats) -> float:
    known = _known(column)
    return float(known.mean(dtype=np.float64)) if len(known) else 0.0


def _has_tails(column: Floats) -> bool:
    known = _known(column)
    if len(known) == 0 or len(np.unique(known)) <= _FEW_VALUES:
        return False
    low, percentile_5, percentile_95, high = np.quantile(known.astype(np.float64), [0.0, 0.05, 0.95, 1.0])
    return bool(high - low >= _TAILS * (percentile_95 - percentile_5))


def _bin_edges(column: Floats, bins: int) -> npt.NDArray[np.float64]:
    """Choose the edges of at most `bins` bins with about equal numbers of rows.

    Return an empty array if the column would have fewer than two bins.

    Each edge is a value of the column, so float32 represents it exactly.
    """
    known = _known(column).astype(np.float64)
    if not bins or not len(known):
        return np.empty(0)
    # Edge k is a quantile: it is the smallest value v for which the share of rows with a value of at most v is at least
    # k / bins. The positions are computed with integers, because the rounding of k / bins could select a neighbouring
    # row.
    positions = np.maximum(-(-np.arange(bins + 1) * len(known) // bins) - 1, 0)
    edges = np.unique(np.partition(known, positions)[positions])
    edges = edges[np.append(True, np.diff(edges) > _MIN_BIN_WIDTH)]
    return edges if len(edges) > 2 else np.empty(0)  # a single bin would be a copy of the column


def fit_standardisation(layout: Layout, chunks: Callable[[], Iterable[Tensor]]) -> Affine:
    """Fit the standardisation (x - mean) / std to the encoded training rows, in float64.

    The function computes std differently for numbers, bins, and columns of 0 and 1.

    chunks: a function that returns the encoded training rows in chunks, each with any number of rows. `chunks` is
    called twice, for two passes over the rows.

    For a column of numbers, std is at least a sixth of the column's range. Without this minimum of std, a value that is
    rare in training, such as a bright pixel in a nearly always dark corner of an image, could be 30 standard deviations
    from the mean and alone decide a prediction. All bins of all features share one std, which is the root mean square
    of the stds of the bins. If each bin had its own std, a bin with few rows would get a very large scale. For columns
    of 0 and 1, std is 1. If a column is constant in training, its standardised value is always 0. Training does not
    change the random initial weights of a constant column, so these weights must not influence a prediction.
    """
    sums, lowest, highest, counts = zip(
        *((chunk.double().sum(0), chunk.amin(0).double(), chunk.amax(0).double(), len(chunk)) for chunk in chunks()),
        strict=True,
    )
    rows, span = sum(counts), torch.stack(highest).amax(0) - torch.stack(lowest).amin(0)
    mean = torch.stack(sums).sum(0) / rows
    exact = (torch.stack([(chunk.double() - mean).square().sum(0) for chunk in chunks()]).sum(0) / rows).sqrt()
    numbers, binned = len(layout.numeric), len(layout.binned)
    std = torch.ones_like(exact)
    std[:numbers] = torch.maximum(exact, span / 6)[:numbers]
    if binned:
        std[numbers : numbers + binned] = exact[numbers : numbers + binned].square().mean().sqrt()
    scale = torch.where(span > 0, 1 / torch.where(std > 0, std, 1.0), 0.0)
    return Affine(scale, -mean * scale)
