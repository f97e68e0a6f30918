"""Explains the outputs of one model: each output is the sum of an offset and the contributions of the features.

If all activations of a network are piecewise linear, such as ReLU, the network is an affine map near each row. The
output of a piecewise linear network is the offset, plus the sum of slope * (column - reference) over all columns, and
the contributions are exact. The offset is the value of this affine map at the reference. The reference is the mean of
the training rows. The slopes come from one backward pass at the row.

For other activations, the contributions are integrated gradients on the straight line from the reference to the row
(Sundararajan, Taly, Yan, 2017, https://arxiv.org/abs/1703.01365). The integrals come from Gauss-Legendre quadrature.
The offset is the output at the reference.

The contribution of a feature is the sum over the feature's encoded columns. This module does not depend on requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foldserve.service.arrays import Rows
from foldserve.service.bundle import Decision, Manifest
from foldserve.service.errors import NotExplainable
from foldserve.service.explain.graph import read_graph
from foldserve.service.explain.network import Network
from foldserve.service.explain.preprocessing import Preprocessing
from foldserve.service.explain.reference import mean_columns

Floats = npt.NDArray[np.float64]
Method = Literal["affine", "integrated gradients"]

TOLERANCE = 1e-5
"""The largest allowed gap of an explanation: the difference between the output and the sum of the offset and the
contributions, divided by the largest of these numbers."""

# The numbers of quadrature points, which are tried in turn. A larger number of points is tried only for rows whose
# explanation still has a gap above _TARGET.
_POINTS = (8, 32, 128, 512)
_TARGET = TOLERANCE / 10
# The network is evaluated at no more than this number of points at a time, over all rows together.
_STEP = 2048


@dataclass(frozen=True)
class Explanations:
    """The explanations of some rows. contributions: float64 [rows, features]; the other arrays: [rows].

    chosen: the index of the output that is explained. output: the logit or the value from the forward pass.
    """

    chosen: npt.NDArray[np.intp]
    output: Floats
    offset: Floats
    contributions: Floats


class Explainer:
    """Explains the rows of one model. reference: the encoded columns of the reference, float64 [columns]."""

    def __init__(self, model: bytes, manifest: Manifest) -> None:
        """model: the bytes of `model.onnx`.

        Raises `NotExplainable` if the graph has an unknown node. Also raises `NotExplainable` if this module's
        arithmetic does not reproduce the golden rows.
        """
        graph = read_graph(model)
        self._preprocessing = Preprocessing(graph, len(manifest.features))
        self._network = Network(graph)
        self._decision = Decision.of(manifest) if manifest.labels else None
        # _order sorts the encoded columns by feature. _starts has the position of the first column of each feature,
        # after this sort.
        source = self._preprocessing.source
        self._order = np.argsort(source, kind="stable")
        self._features, self._starts = np.unique(source[self._order], return_index=True)
        self._in_order = bool((self._order == np.arange(len(source))).all())
        self._one_each = self._in_order and len(self._features) == len(source) == len(manifest.features)
        self._width = len(manifest.features)
        self._check(manifest)
        self.reference = mean_columns(self._preprocessing, manifest.features)
        self._at_reference = self._network.outputs(self._network.forward(self.reference[None]))[0]

    @property
    def method(self) -> Method:
        """How the contributions are computed."""
        return "affine" if self._network.is_piecewise_linear else "integrated gradients"

    def explain(self, rows: Rows, wanted: npt.NDArray[np.intp] | None = None) -> Explanations:
        """Explain the rows, float32 [rows, features].

        wanted: for each row, the index of the output to explain. -1 means the predicted output. If `wanted` is None,
        the predicted output of each row is explained.
        """
        columns = self._preprocessing.encode(rows)
        values = self._network.forward(columns)
        outputs = self._network.outputs(values)
        chosen = self._chosen(outputs, wanted)
        output = outputs[np.arange(len(rows)), chosen]
        from_reference = columns - self.reference
        if self._network.is_piecewise_linear:
            slopes, share = self._network.backward(values, chosen)
            offset = share + slopes @ self.reference
            parts = slopes * from_reference
        else:
            offset = self._at_reference[chosen]
            parts = self._integrate(from_reference, chosen, output - offset)
        return Explanations(chosen, output, offset, self._by_feature(parts))

    def _chosen(self, outputs: Floats, wanted: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
        if wanted is not None and (wanted >= 0).all():
            return wanted
        predicted = np.zeros(len(outputs), np.intp)
        if self._decision is not None:
            powers = np.exp(outputs - outputs.max(1, keepdims=True))
            predicted = self._decision.classes(powers / powers.sum(1, keepdims=True))
        return predicted if wanted is None else np.where(wanted >= 0, wanted, predicted)

    def _integrate(self, from_reference: Floats, chosen: npt.NDArray[np.intp], gap: Floats) -> Floats:
        """Return the integrated gradients, float64 [rows, columns].

        gap: for each row, the output minus the offset. The integrated gradients of a row should add up to its gap.
        """
        parts = np.zeros_like(from_reference)
        left = np.arange(len(chosen))
        for points in _POINTS:
            for start in range(0, len(left), max(1, _STEP // points)):
                some = left[start : start + max(1, _STEP // points)]
                parts[some] = from_reference[some] * self._mean_slopes(from_reference[some], chosen[some], points)
            largest = np.maximum(np.abs(parts[left]).max(1), np.abs(gap[left]))
            left = left[np.abs(parts[left].sum(1) - gap[left]) > _TARGET * largest]
            if not len(left):
                break
        return parts

    def _mean_slopes(self, from_reference: Floats, chosen: npt.NDArray[np.intp], points: int) -> Floats:
        """Return the mean of the slopes along the line from the reference to each row, float64 [rows, columns]."""
        nodes, weights = np.polynomial.legendre.leggauss(points)
        line = (nodes + 1) / 2
        columns = self.reference + from_reference[:, None, :] * line[:, None]
        values = self._network.forward(columns.reshape(-1, columns.shape[2]))
        slopes, _ = self._network.backward(values, np.repeat(chosen, points))
        mean: Floats = np.einsum("rpc,p->rc", slopes.reshape(columns.shape), weights / 2)
        return mean

    def _by_feature(self, parts: Floats) -> Floats:
        if self._one_each:
            return parts
        ordered = parts if self._in_order else parts[:, self._order]
        contributions = np.zeros((len(parts), self._width))
        contributions[:, self._features] = np.add.reduceat(ordered, self._starts, axis=1)
        return contributions

    def _check(self, manifest: Manifest) -> None:
        """Raise `NotExplainable` unless this module's arithmetic reproduces the golden rows."""
        golden = np.array(manifest.golden.inputs, np.float64).astype(np.float32)
        outputs = self._network.outputs(self._network.forward(self._preprocessing.encode(golden)))
        if self._decision is not None:
            powers = np.exp(outputs - outputs.max(1, keepdims=True))
            outputs = powers / powers.sum(1, keepdims=True)
        parity = manifest.certificate.tolerance.measure(np.array(manifest.golden.outputs), outputs)
        if not parity.holds:
            raise NotExplainable("the model can't be explained: NumPy does not reproduce its golden rows")
