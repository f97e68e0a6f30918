"""Encoding: what of a raw row no affine map can use as it is, as a layer in front of the network.

A category is an index, a missing value is NaN: neither can be multiplied by a weight. Which columns come out, and
from what, is settled by the training rows; nothing here is learned. A table without categories and missing values has
no such layer, unless an architecture asks for bins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from foldserve.training.network.layers import Affine
from foldserve.training.plan import Binned
from foldserve.training.table.schema import Column

Rows = npt.NDArray[np.float32]

_LEAST_WIDTH = 1e-30
_CHUNK = 65_536  # rows

# A normal column's range is 2.3 times as wide as where nine of ten of its values lie with 5,000 rows, 3 with a million.
_TAILS = 4.0
_FEW = 32


def fit_preprocessing(columns: Sequence[Column], x: Rows, bins: int, binned: Binned = "all") -> nn.Sequential:
    """Give what stands before a network: raw features [batch, features] to standardised columns.

    x: float32 [rows, features], the training rows. bins, binned: see `choose_layout`.
    """
    plan = choose_layout(columns, x, bins, binned)
    encode = OrderedDict[str, nn.Module](encode=Encode(plan)) if plan.is_needed else OrderedDict()
    encoded = partial(_chunks, nn.Sequential(encode), x)
    return nn.Sequential(encode | {"standardise": fit_standardisation(plan, encoded)})


def transform(front: nn.Module, x: Rows) -> Tensor:
    """Give what `front` makes of `x`, some rows at a time: float32 [rows, columns]."""
    return torch.cat(list(_chunks(front, x)))


@torch.no_grad()
def _chunks(front: nn.Module, x: Rows) -> Iterator[Tensor]:
    for start in range(0, len(x), _CHUNK):
        yield front(torch.from_numpy(x[start : start + _CHUNK]))


@dataclass(frozen=True)
class Layout:
    """What `Encode` makes of [batch, features], its parts side by side; every array is as long as its part.

    numeric: int64, the features taken as numbers; fill: float32, what a missing one counts as, NaN where none may be.
    binned: int64, positions among `numeric`; low, rate: float32, a bin's lower edge and 1 / its width.
    categorical: int64, features; index: float32, the category that the column stands for.
    missing: int64, the features whose absence is a column.
    """

    numeric: npt.NDArray[np.int64]
    fill: Rows
    binned: npt.NDArray[np.int64]
    low: Rows
    rate: Rows
    categorical: npt.NDArray[np.int64]
    index: Rows
    missing: npt.NDArray[np.int64]

    @property
    def is_needed(self) -> bool:
        """Whether anything else comes out than goes in."""
        parts = (self.binned, self.categorical, self.missing)
        return any(len(part) for part in parts) or not np.isnan(self.fill).all()


class Encode(nn.Module):
    """[batch, features], raw -> [batch, columns]: numbers, bins, categories and absences of a `Layout`, in this order.

    A number that is missing counts as `fill`. A bin gives clamp((x - low) * rate, 0, 1): together a column's bins are
    the piecewise-linear encoding of Gorishniy and others, 2022 (arXiv:2203.05556), here flat outside the training
    range too, so that an outlier moves a prediction by its own column alone. A category gives 1 where the feature is
    its index and 0 elsewhere: one that training has not seen, or that is missing, equals none.
    """

    numeric: Tensor
    fill: Tensor
    binned: Tensor
    low: Tensor
    rate: Tensor
    categorical: Tensor
    index: Tensor
    missing: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        for name in Layout.__annotations__:
            self.register_buffer(name, torch.from_numpy(getattr(layout, name)))

    @property
    def columns(self) -> int:
        """How many columns come out."""
        return len(self.numeric) + len(self.binned) + len(self.categorical) + len(self.missing)

    def forward(self, x: Tensor) -> Tensor:
        """Encode in the dtype of `x`."""
        numbers = x[:, self.numeric]
        numbers = torch.where(numbers.isnan(), self.fill.to(x.dtype), numbers)
        bins = ((numbers[:, self.binned] - self.low.to(x.dtype)) * self.rate.to(x.dtype)).clamp(0, 1)
        categories = x[:, self.categorical] == self.index.to(x.dtype)
        missing = x[:, self.missing].isnan()
        return torch.cat([numbers, bins, categories.to(x.dtype), missing.to(x.dtype)], 1)


def choose_layout(columns: Sequence[Column], x: Rows, bins: int, binned: Binned = "all") -> Layout:
    """Settle what becomes of each feature, by the training rows `x` [rows, features].

    bins: at most so many for a numeric feature, between quantiles; 0 for none. binned: which features get bins; of
    `tails` those of many values whose range is four times as wide as where nine of ten rows lie, or wider: an affine
    scale that fits the range leaves nothing to see of most rows there, and one that fits them lets the rest run away.
    """
    features = np.arange(len(columns))
    is_category = np.array([column.kind == "categorical" for column in columns], dtype=bool)
    numeric, categorical = features[~is_category], features[is_category]
    # A category that is not among the training rows has no column: its weights would stay at their random start.
    seen = [_known(np.unique(x[:, feature])) for feature in categorical]
    chosen = [columns[i].kind == "numeric" and (binned == "all" or _has_tails(x[:, i])) for i in numeric]
    edges = [_edges(x[:, i], bins if has_bins else 0) for i, has_bins in zip(numeric, chosen, strict=True)]
    widths = [np.diff(e) for e in edges]
    return Layout(
        numeric=numeric,
        fill=np.array([_mean(x[:, i]) if columns[i].missing else np.nan for i in numeric], np.float32),
        binned=np.repeat(np.arange(len(numeric)), [len(width) for width in widths]),
        low=np.concatenate([*(e[:-1] for e in edges), np.empty(0)]).astype(np.float32),
        rate=(1 / np.concatenate([*widths, np.empty(0)])).astype(np.float32),
        categorical=np.repeat(categorical, [len(values) for values in seen]),
        index=np.concatenate([*seen, np.empty(0, np.float32)]).astype(np.float32),
        missing=features[np.isnan(x).any(0)],
    )


def _known(column: Rows) -> Rows:
    return column[~np.isnan(column)]


def _mean(column: Rows) -> float:
    known = _known(column)
    return float(known.mean(dtype=np.float64)) if len(known) else 0.0


def _has_tails(column: Rows) -> bool:
    known = _known(column)
    if len(known) == 0 or len(np.unique(known)) <= _FEW:
        return False
    low, least, most, high = np.quantile(known.astype(np.float64), [0.0, 0.05, 0.95, 1.0])
    return bool(high - low >= _TAILS * (most - least))


def _edges(column: Rows, bins: int) -> npt.NDArray[np.float64]:
    """Give the edges of at most `bins` bins with about as many rows each; fewer than three are none.

    An edge is a value of the column, and so a float32: between two values there is nothing to tell apart.
    """
    known = _known(column).astype(np.float64)
    if not bins or not len(known):
        return np.empty(0)
    # The smallest value with k / bins of the rows at or below it, in whole numbers: a float k / bins may be a row off.
    places = np.maximum(-(-np.arange(bins + 1) * len(known) // bins) - 1, 0)
    edges = np.unique(np.partition(known, places)[places])
    # What is nearer has a reciprocal that float32 can't hold.
    edges = edges[np.append(True, np.diff(edges) > _LEAST_WIDTH)]
    return edges if len(edges) > 2 else np.empty(0)  # one bin is the column itself


def fit_standardisation(layout: Layout, chunks: Callable[[], Iterable[Tensor]]) -> Affine:
    """Standardise what `Encode` gives, (x - mean) / spread by the training rows, in float64.

    chunks: gives the encoded training rows, [some, columns] at a time; asked twice.

    Of a number the spread is the standard deviation, and at least a sixth of the range: else a value that is rare in
    training (a corner pixel that is nearly always 0) would lie 30 deviations out and decide a prediction by itself.
    The bins share one spread, the root mean square of theirs: apart they would make the rare ones loud. What is 0 or 1
    is only centred. A column that is constant in training becomes 0 whatever it holds later: its weights would stay at
    their random start, and decide by it all the same.
    """
    chunked = [
        (chunk.double().sum(0), chunk.amin(0).double(), chunk.amax(0).double(), len(chunk)) for chunk in chunks()
    ]
    sums, least, most, counts = zip(*chunked, strict=True)
    rows, span = sum(counts), torch.stack(most).amax(0) - torch.stack(least).amin(0)
    mean = torch.stack(sums).sum(0) / rows
    std = (torch.stack([(chunk.double() - mean).square().sum(0) for chunk in chunks()]).sum(0) / rows).sqrt()
    numbers, binned = len(layout.numeric), len(layout.binned)
    spread = torch.ones_like(std)
    spread[:numbers] = torch.maximum(std, span / 6)[:numbers]
    if binned:
        spread[numbers : numbers + binned] = std[numbers : numbers + binned].square().mean().sqrt()
    scale = torch.where(span > 0, 1 / torch.where(spread > 0, spread, 1.0), 0.0)
    return Affine(scale, -mean * scale)
