"""Dropout that draws only one random byte per unit.

PyTorch's dropout draws one 32-bit random number per unit and turns this number into a Bernoulli variable. PyTorch's
dropout takes about 10 ns per unit on one core, and would take a third of the time of a training step in a small
network. This module draws one 64-bit random number for eight units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Sets each element to 0 with probability k/256, and multiplies the other elements by 256/(256-k).

    k is the integer round(256 p), limited to the range from 1 to 255.

    The expected value of each element does not change. The probability p is rounded to a multiple of 1/256, so 0.1
    becomes 26/256 = 0.1016. With p = 0, no element is set to 0. The random numbers come from the default generator of
    the input's device.
    """

    _rows: slice | None = None
    _batch_size: int = 0

    def share_mask(self, rows: slice, batch_size: int) -> None:
        """Let the layer draw masks for all `batch_size` rows of a batch, but use only the masks for `rows`. rows: the
        rows that this process computes.
        """
        self._rows, self._batch_size = rows, batch_size

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor with the shape and dtype of `x` [batch, columns]."""
        if not self.training or not self.p:
            return x
        dropped = min(max(round(256 * self.p), 1), 255)
        shape = x.shape if self._rows is None else (self._batch_size, *x.shape[1:])
        units = torch.Size(shape).numel()
        words = torch.empty((units + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[:units].view(shape) >= dropped
        if self._rows is not None:
            kept = kept[self._rows]
        return x * (kept * (256 / (256 - dropped))).to(x.dtype)
