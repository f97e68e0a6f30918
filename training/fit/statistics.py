"""Computes exact batch-norm statistics over all training rows, after the last step.

The module does not depend on the training loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def recompute_statistics(network: nn.Sequential, x: Tensor, chunk: int = 8192) -> None:
    """Set the running statistics of every BN in place.

    The new values are the mean and the variance of each BN's input for all rows `x` [rows, features], computed with the
    final weights.

    The method is PreciseBN (Wu and Johnson, 2021, arXiv:2105.07576). The moving averages from the training are not
    accurate enough, because they also contain statistics that were measured with earlier weights. Dropout is off while
    the statistics are computed, because dropout is also off in every later use of the network (Li and others, 2019,
    arXiv:1801.05134). The function sets the statistics of one BN after the other, from the first to the last, so that
    each BN is measured on the inputs that it will get in eval mode. Two passes with float64 sums give the exact
    variance of all rows. The average of the variances of the batches would be inexact. chunk: the number of rows that a
    layer computes at a time.
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
