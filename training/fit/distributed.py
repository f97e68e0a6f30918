"""The device of a fit, and the processes that share each batch.

torchrun can start several processes. Without torchrun, there is one process.

Every process has all rows and draws the same random numbers. Each process computes its share of each batch. The
processes combine their gradients, statistics and losses into those of the whole batch. The module does not depend on
tables or on the training loop.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from foldserve.training.errors import ExecutionError
from foldserve.training.plan import Device

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The rank of this process among `size` processes, and the device of this process."""

    device: torch.device = _CPU
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports progress and writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Divide `rows` rows among the processes, and return the slice for this process.

        The slices of the processes are disjoint, and their sizes differ by at most one row.
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def sum(self, x: Tensor) -> Tensor:
        """Sum `x` over the processes, in place. All processes get the same result, bit for bit. The sum is not part of
        the autograd graph.
        """
        if self.size > 1:
            distributed.all_reduce(x)
        return x


def wrap_ddp(network: nn.Sequential, world: World) -> nn.Module:
    """Wrap `network` so that all processes train it together. With one process, return `network` itself.

    The parameters and buffers of `network` are trained in place, and stay equal in all processes. Each BN uses the
    statistics of the rows of all processes. Each gradient is the mean of the gradients of all processes.
    """
    if world.size == 1:
        return network
    # `convert_sync_batchnorm` changes the network that it converts, so it is called with a new `Sequential` of the same
    # layers.
    layers = nn.Sequential(OrderedDict(network.named_children()))
    if world.device.type == "cuda":
        layers = nn.SyncBatchNorm.convert_sync_batchnorm(layers)  # type: ignore[no-untyped-call]
    else:
        layers = nn.Sequential(
            OrderedDict(
                (name, CpuSyncBatchNorm(module) if isinstance(module, nn.BatchNorm1d) else module)
                for name, module in layers.named_children()
            )
        )
    return DistributedDataParallel(layers, gradient_as_bucket_view=True)


class CpuSyncBatchNorm(nn.Module):
    """Batch norm with statistics over the rows of all processes. `nn.SyncBatchNorm` does the same, but does not work on
    CPUs.

    The layer uses and updates the parameters and the running statistics of `norm`. A process may have no rows, but all
    processes together have at least two rows.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, float32 [rows of this process, columns]. The result has the same shape as `x`."""
        norm, x = self.norm, x.float()
        sums = _sum_over_processes(torch.cat([x.sum(0), x.new_tensor([len(x)])]))
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        # The variance is computed in two passes, as in PyTorch's kernel for a single process. If the mean is far from
        # 0, the formula E[x^2] - E[x]^2 would lose digits.
        variance = _sum_over_processes((x - mean).square().sum(0)) / rows
        if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
            weight = 1 / (int(norm.num_batches_tracked) + 1) if norm.momentum is None else norm.momentum
            with torch.no_grad():
                norm.num_batches_tracked.add_(1)
                norm.running_mean.lerp_(mean, weight)
                norm.running_var.lerp_(variance * rows / (rows - 1), weight)
        y = (x - mean) * torch.rsqrt(variance + norm.eps)
        return y if norm.weight is None else y * norm.weight + norm.bias


class _SumOverProcesses(torch.autograd.Function):
    """Sums a tensor over all processes. The sum is part of the autograd graph.

    The loss of each process depends on the tensors of all processes, so the backward pass sums the gradients of all
    processes.
    """

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient


def _sum_over_processes(x: Tensor) -> Tensor:
    result: Tensor = _SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]  # torch 2.13 leaves it untyped
    return result


@contextlib.contextmanager
def join_processes(device: Device) -> Iterator[World]:
    """Join the group of processes that torchrun has started, and run on `device`.

    Without torchrun, there is only this process.

    Raises `ExecutionError` if CUDA is requested and missing. When one process fails, torchrun ends the others. The
    process that fails first raises its own error. The other processes raise `SystemExit`, so that the user sees only
    the first error.
    """
    local = int(os.environ["LOCAL_RANK"]) if distributed.is_torchelastic_launched() else 0
    chosen = _choose_device(device, local)
    if not distributed.is_torchelastic_launched():
        yield World(chosen)
        return
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(chosen, rank, size)
    except BaseException as error:
        # `store.add` raises RuntimeError if torchrun has already ended, but then torchrun itself prints the reason.
        with contextlib.suppress(RuntimeError):
            if store.add("failed", 1) > 1:
                raise SystemExit(1) from error
        if "gloo" in str(error) or isinstance(error, distributed.DistError):
            raise ExecutionError("another process of this training has ended") from error
        raise
    finally:
        distributed.destroy_process_group()


def _choose_device(device: Device, local: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return _CPU
    if not torch.cuda.is_available():
        raise ExecutionError("--device cuda: this PyTorch finds no CUDA device; --device cpu trains without one")
    if local >= torch.cuda.device_count():
        raise ExecutionError(f"process {local + 1} has no GPU of its own: the machine has {torch.cuda.device_count()}")
    # cuBLAS adds numbers in a fixed order only if its workspace has a fixed size. cuBLAS reads CUBLAS_WORKSPACE_CONFIG
    # once, when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
