"""Where a fit runs: its device, and the processes that share each batch when torchrun has started several.

It knows tensors and layers, no table and no loop. Every process has all rows and draws the same random numbers; of
each batch it computes its own share, and gradients, statistics and losses are those of the whole batch.
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
    """This process's place: its rank among `size`, and the device that it computes on."""

    device: torch.device = _CPU
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is this process that reports and writes."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Give this process's part of `rows` rows: the parts are disjoint, differ by one row at most, may be empty."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def total(self, x: Tensor) -> Tensor:
        """Sum `x` over the processes, in place; each gets the same bits. No gradient flows through it."""
        if self.size > 1:
            distributed.all_reduce(x)
        return x

    def spread(self, network: nn.Sequential) -> nn.Module:
        """Wrap `network` for training: its parameters and buffers stay its own, and stay equal in all processes.

        A BN's statistics become those of the whole batch, and a gradient the processes' mean.
        """
        if self.size == 1:
            return network
        layers = nn.Sequential(
            OrderedDict(network.named_children())
        )  # a shell: the conversion changes what it is given
        if self.device.type == "cuda":
            layers = nn.SyncBatchNorm.convert_sync_batchnorm(layers)  # type: ignore[no-untyped-call]
        else:
            layers = nn.Sequential(
                OrderedDict(
                    (name, BatchNormOfAll(module) if isinstance(module, nn.BatchNorm1d) else module)
                    for name, module in layers.named_children()
                )
            )
        return DistributedDataParallel(layers, gradient_as_bucket_view=True)


class BatchNormOfAll(nn.Module):
    """Batch norm with the statistics of all processes' rows: what `nn.SyncBatchNorm` is, for CPUs, which it refuses.

    It trains `norm`'s own parameters and buffers. A process may have no rows, all together have at least two.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows of this process, columns] to the same shape; float32."""
        norm, x = self.norm, x.float()
        sums = _sum_over_processes(torch.cat([x.sum(0), x.new_tensor([len(x)])]))
        rows = sums[-1].detach()
        mean = sums[:-1] / rows
        # In two passes, as the one-process kernel: a mean of squares loses digits where the mean is far from 0.
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
    """All processes' sum; its gradient is the sum of all processes' gradients, since each loss depends on each term."""

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
    """Join the processes that torchrun has started, on `device`; alone where it has started none.

    Raises `ExecutionError` where CUDA is asked for and absent. When one process fails the others are ended by torchrun;
    the first to fail raises its own error, one that fails after it raises `SystemExit`, so that a reason is said once.
    """
    local = int(os.environ["LOCAL_RANK"]) if distributed.is_torchelastic_launched() else 0
    chosen = _device(device, local)
    if not distributed.is_torchelastic_launched():
        yield World(chosen)
        return
    store, rank, size = next(rendezvous("env://"))
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(chosen, rank, size)
    except BaseException as error:
        with contextlib.suppress(RuntimeError):  # the store has ended with torchrun, whose own message says why
            if store.add("failed", 1) > 1:
                raise SystemExit(1) from error
        if "gloo" in str(error) or isinstance(error, distributed.DistError):
            raise ExecutionError("another process of this training has ended") from error
        raise
    finally:
        distributed.destroy_process_group()


def _device(device: Device, local: int) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return _CPU
    if not torch.cuda.is_available():
        raise ExecutionError("--device cuda: this PyTorch finds no CUDA device; --device cpu trains without")
    if local >= torch.cuda.device_count():
        raise ExecutionError(f"process {local + 1} has no GPU of its own: there are {torch.cuda.device_count()}")
    # cuBLAS adds up in a fixed order only with a workspace of fixed size, and reads this once, when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
