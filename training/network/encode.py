"""The encoding of a raw row: the first layer, which turns categories and missing values into numbers.

In a raw row, a category is an index and a missing value is NaN. The product of a weight and an index, or of a weight
and NaN, has no meaning. The module preprocessing.py chooses the layout. A table without categories, missing values and
bins needs no encoding layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import Tensor

from foldserve.training.network.graph import Graph
from foldserve.training.network.layers import Layer

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_UNIT = (("zero", 0.0), ("one", 1.0))


@dataclass(frozen=True)
class Layout:
    """The columns that `Encode` computes from [batch, features].

    The encoded columns are in four groups, in the order below. Each array of a group has one entry for each encoded
    column in this group.

    Numbers. numeric: for each column of numbers, the index of its feature, int64. fill: the value that replaces a
    missing number, float32; NaN if the feature has no missing values. Bins. binned: for each column of bins, the
    position of its feature in `numeric`, int64. low: the lower edge of the bin, float32. rate: 1 divided by the width
    of the bin, float32. Categories. categorical: for each column of categories, the index of its feature, int64. index:
    for each column of categories, the index of its category, float32. Missing values. missing: for each column that
    marks missing values, the index of its feature, int64. The encoded column is 1 where the feature is missing.
    """

    numeric: Indices
    fill: Floats
    binned: Indices
    low: Floats
    rate: Floats
    categorical: Indices
    index: Floats
    missing: Indices

    @property
    def is_needed(self) -> bool:
        """Whether the encoded columns differ from the raw columns."""
        groups = (self.binned, self.categorical, self.missing)
        return any(len(group) for group in groups) or not np.isnan(self.fill).all()


class Encode(Layer):
    """Map raw rows [batch, features] to [batch, columns] as a `Layout` describes: numbers, bins, categories, missing
    values.

    A missing number becomes `fill`. The column of a bin is clamp((x - low) * rate, 0, 1). Together, the bins of a
    feature form the piecewise-linear encoding of Gorishniy and others, 2022 (arXiv:2203.05556). One detail differs from
    the paper: outside the range of the training values, the columns of the outer bins stay at 0 or 1, and only the
    column with the number itself still changes. The column of a category is 1 where the feature has the index of this
    category, and 0 elsewhere. All category columns of a feature are 0 if its category is missing or occurs in no
    training row.
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
        """The number of encoded columns."""
        return len(self.numeric) + len(self.binned) + len(self.categorical) + len(self.missing)

    def forward(self, x: Tensor) -> Tensor:
        """Encode the rows `x`. The result has the dtype of `x`."""
        numbers = x[:, self.numeric]
        numbers = torch.where(numbers.isnan(), self.fill.to(x.dtype), numbers)
        bins = ((numbers[:, self.binned] - self.low.to(x.dtype)) * self.rate.to(x.dtype)).clamp(0, 1)
        categories = x[:, self.categorical] == self.index.to(x.dtype)
        missing = x[:, self.missing].isnan()
        return torch.cat([numbers, bins, categories.to(x.dtype), missing.to(x.dtype)], 1)

    def add_nodes(self, graph: Graph, name: str) -> None:
        """Add one chain of nodes for each group of columns, and a Concat that joins the groups.

        Each chain first compares the values or replaces missing values, so NaN never reaches arithmetic or a cast.
        """
        raw = graph.value
        groups = []
        if len(self.numeric):
            groups.append(self._add_numbers(graph, name))
        if len(self.binned):  # the current value is the group of numbers, from which bins are computed
            groups.append(self._add_bins(graph, name))
        if len(self.categorical):
            _gather(graph, raw, f"{name}.categorical", self.categorical)
            index = graph.constant(f"{name}.categorical.index", self.index)
            graph.node("Equal", f"{name}.categorical.equal", index)
            groups.append(graph.node("Cast", f"{name}.categorical", to=TensorProto.FLOAT))
        if len(self.missing):
            _gather(graph, raw, f"{name}.missing", self.missing)
            graph.node("IsNaN", f"{name}.missing.none")
            groups.append(graph.node("Cast", f"{name}.missing", to=TensorProto.FLOAT))
        graph.concatenate(name, groups)

    def _add_numbers(self, graph: Graph, name: str) -> str:
        if len(self.categorical):  # without categories, all features are numbers
            _gather(graph, graph.value, f"{name}.numeric", self.numeric)
        if not self.fill.isnan().all():
            numbers = graph.value
            is_missing = graph.node("IsNaN", f"{name}.numeric.missing")
            fill = graph.constant(f"{name}.numeric.fill", self.fill.nan_to_num())
            graph.value = is_missing
            graph.node("Where", f"{name}.numeric", fill, numbers)
        return graph.value

    def _add_bins(self, graph: Graph, name: str) -> str:
        _gather(graph, graph.value, f"{name}.binned", self.binned)
        graph.node("Sub", f"{name}.binned.above", graph.constant(f"{name}.binned.low", self.low))
        graph.node("Mul", f"{name}.binned.share", graph.constant(f"{name}.binned.rate", self.rate))
        zero, one = (graph.constant(f"{name}.{text}", torch.tensor(number)) for text, number in _UNIT)
        return graph.node("Clip", f"{name}.binned", zero, one)


def _gather(graph: Graph, source: str, name: str, columns: Tensor) -> None:
    """Add a Gather that selects `columns` of the tensor `source`. The result becomes the current value."""
    graph.value = source
    graph.node("Gather", f"{name}.raw", graph.constant(f"{name}.columns", columns), axis=1)
