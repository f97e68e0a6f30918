"""Exact batch-norm statistics over all training rows, after the last step. It does not know the loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def recompute_statistics(network: nn.Sequential, x: Tensor, chunk: int = 8192) -> None:
    """Set every BN's running statistics to those of `x` [rows, features] under the final weights, in place.

    This is PreciseBN (Wu and Johnson, 2021, arXiv:2105.07576): the moving average of the training contains statistics
    of earlier weights. Dropout is off, as in every later use of the network (Li and others, 2019, arXiv:1801.05134).
    The BNs are set one after the other, so that each BN is measured on the inputs that it will get in eval mode. Two
    passes and float64 sums give the exact variance instead of a mean of batch variances. chunk: the number of rows at a
    time.
    """
    network.eval()
    chunks = list(torch.split(x, chunk))
    last = max((i for i, module in enumerate(network, start=1) if isinstance(module, nn.BatchNorm1d)), default=0)
    for module in list(network)[:last]:
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None and module.running_var is not None:
            mean = sum((c.double().sum(0) for c in chunks), torch.zeros((), device=x.device)) / len(x)
            var = sum(((c.double() - mean).square().sum(0) for c in chunks), torch.zeros((), device=x.device)) / len(x)
            module.running_mean.copy_(mean)
            module.running_var.copy_(var)
        chunks = [module(c) for c in chunks]
