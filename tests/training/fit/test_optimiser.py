"""AdamW on a flat tensor is compared with PyTorch's AdamW."""

import copy

import torch
from torch import nn

from foldserve.training.fit.optimiser import FlatAdamW


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def backward(network, step):
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
    network(x).square().mean().backward()


def test_steps_match_torch_adamw_with_decay_on_matrices_only():
    flat = chain()
    reference = copy.deepcopy(flat)
    optimiser = FlatAdamW(flat.parameters(), weight_decay=0.3)
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    vectors = [p for p in reference.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, lr=1.0, foreach=False)
    for step in range(20):
        rate = 0.01 / (1 + step)
        for group in oracle.param_groups:
            group["lr"] = rate
        backward(flat, step)
        optimiser.step(rate)
        oracle.zero_grad()
        backward(reference, step)
        oracle.step()
    for mine, theirs in zip(flat.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_frozen_parameter_does_not_change():
    network = chain()
    network[0].weight.requires_grad_(False)
    before = network[0].weight.clone()
    optimiser = FlatAdamW(network.parameters(), weight_decay=0.3)
    backward(network, 0)
    optimiser.step(0.1)
    assert torch.equal(network[0].weight, before)
    assert not torch.equal(network[3].weight, chain()[3].weight)
