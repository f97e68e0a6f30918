"""The layers of this project's own: plain arithmetic on columns. It does not know how they are folded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """x * scale + shift, column by column: a standardisation before the network, or its inverse after it.

    scale, shift: float64 [columns]. Both are buffers: they are computed from the data, not learned.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.double())
        self.register_buffer("shift", shift.double())

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, columns] to the same shape and dtype."""
        return (x * self.scale + self.shift).to(x.dtype)


class Shift(nn.Module):
    """x - offset, column by column; offset: float32 [columns], subtracted exactly as ONNX Runtime subtracts it."""

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, columns] to the same shape."""
        return x - self.offset


class Mean(nn.Module):
    """The mean of the outputs of several networks for the same input: an ensemble's logits, or its value."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, features] to [batch, outputs]."""
        return torch.stack([member(x) for member in self.members]).mean(0)


class Blocks(nn.Module):
    """Dense layers side by side, each on its own columns: one Dense with a block-diagonal weight, without the zeros."""

    def __init__(self, members: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs of all members, in order] to [batch, outputs of all members, in order]."""
        parts = zip(self.members, x.chunk(len(self.members), 1), strict=True)
        return torch.cat([member(part) for member, part in parts], 1)
