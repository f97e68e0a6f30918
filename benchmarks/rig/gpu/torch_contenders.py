"""The contenders that run PyTorch: eager, compiled, and in CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from foldserve.service.runtime.session import Precision
from rig.gpu.contender import Contender
from rig.gpu.networks import Rows

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_WARM_UPS = 3  # the number of runs before a capture; these runs create handles, workspaces and kernels
_LARGE_COPY = 2**20  # for at least this number of bytes, torch's copy with several threads is faster than NumPy's copy


class _Torch(Contender):
    """Runs the folded network in PyTorch.

    PyTorch gets the folded network because it is faster than the unfolded network.
    """

    def open(self) -> None:
        dtype = DTYPES[self.setting.precision]
        self._device = torch.device(self.setting.device)
        network = copy.deepcopy(self.setting.network.folded).to(self._device, dtype)

        def compute(x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network(x.to(dtype))
            return logits.float().softmax(1)

        self._compute: Callable[[torch.Tensor], torch.Tensor] = compute


class Eager(_Torch):
    """Runs PyTorch in its default mode."""

    name, title = "eager", "PyTorch, eager"

    def run(self, rows: Rows) -> Rows:
        """Copy the rows to the device, compute, and copy the outputs back, in the usual way."""
        with torch.no_grad():
            outputs: Rows = self._compute(torch.from_numpy(rows).to(self._device)).cpu().numpy()
            return outputs


class _Staged(_Torch):
    """PyTorch with fixed tensors for one batch size: pinned tensors on the host, and one on the device."""

    def prepare(self, batch: int) -> None:
        features, outputs = self.setting.network.widths[0], self.setting.network.widths[-1]
        pin = self._device.type == "cuda"
        self._host_in = torch.empty(batch, features, pin_memory=pin)
        self._host_out = torch.empty(batch, outputs, pin_memory=pin)
        self._device_in = torch.zeros(batch, features, device=self._device)
        self._rows, self._outputs = self._host_in.numpy(), self._host_out.numpy()
        self._stream = torch.cuda.current_stream() if pin else None
        self._copy_and_compute()

    def _copy_and_compute(self) -> torch.Tensor:
        with torch.no_grad():
            self._device_in.copy_(self._host_in, non_blocking=True)
            outputs = self._compute(self._device_in)
            self._host_out.copy_(outputs, non_blocking=True)
            return outputs

    def run(self, rows: Rows) -> Rows:
        if rows.nbytes < _LARGE_COPY:
            self._rows[...] = rows
        else:
            self._host_in.copy_(torch.from_numpy(rows))
        self._launch()
        if self._stream is not None:
            self._stream.synchronize()
        return self._outputs.copy()

    def _launch(self) -> None:
        self._copy_and_compute()

    def poison(self, batch: int) -> None:
        super().poison(batch)
        for tensor in (self._host_in, self._host_out, self._device_in):
            tensor.fill_(torch.nan)


class _Compiled(_Staged):
    mode: ClassVar[str]
    compiles = True

    def open(self) -> None:
        super().open()
        self._plain = self._compute

    def prepare(self, batch: int) -> None:
        # The code is compiled for one batch size only, because Inductor uses no CUDA graph in code that handles all
        # sizes.
        self._compute = torch.compile(self._plain, mode=self.mode, dynamic=False, fullgraph=True)
        super().prepare(batch)
        for _ in range(_WARM_UPS):  # in its second run, the compiled code captures a CUDA graph
            self._copy_and_compute()

    def release(self) -> None:
        """Delete the compiled code."""
        torch.compiler.reset()  # torch limits the number of compiled sizes


class CompiledGraphs(_Compiled):
    """Runs PyTorch with Inductor's kernels and CUDA graphs."""

    name, title, mode = "compiled", "torch.compile, reduce-overhead", "reduce-overhead"
    batches = (1, 1024, 65536)


class CompiledTuned(_Compiled):
    """Runs PyTorch with Inductor's kernels and CUDA graphs.

    Inductor measures several kernels for each matrix product and takes the fastest.
    """

    name, title, mode = "autotuned", "torch.compile, max-autotune", "max-autotune"
    batches = (1, 65536)


class _Graph:
    """A function of fixed tensors, captured as a CUDA graph.

    result: the output tensor. replay: runs the graph, which writes the output tensor again.
    """

    def __init__(self, work: Callable[[], torch.Tensor], device: torch.device) -> None:
        if device.type == "cpu":  # only a dry run uses the CPU, which has no CUDA graphs
            self.result = work()
            self.replay: Callable[[], Any] = lambda: self.result.copy_(work())
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                work()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        # With the mode thread_local, calls from ONNX Runtime's threads do not break the capture.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self.result = work()
        self.replay = graph.replay


class Graphed(_Staged):
    """Runs PyTorch's kernels and both copies in one CUDA graph.

    Of the contenders that a user can write with little effort, this contender is the fastest.
    """

    name, title = "torch_graph", "PyTorch, CUDA graph"

    def prepare(self, batch: int) -> None:
        """Capture one graph that includes the copies, and one graph that has only the computation."""
        super().prepare(batch)
        with torch.no_grad():
            self._with_copies = _Graph(self._copy_and_compute, self._device)
            self._computation = _Graph(lambda: self._compute(self._device_in), self._device)

    def _launch(self) -> None:
        self._with_copies.replay()

    def poison(self, batch: int) -> None:
        """Overwrite the contender's buffers, and also the outputs of its graphs."""
        super().poison(batch)
        for graph in (self._with_copies, self._computation):
            graph.result.fill_(torch.nan)

    def on_device(self) -> Callable[[], Any]:
        """Return a function that replays the computation without the copies."""
        return self._computation.replay


class GraphedAround(Graphed):
    """Runs PyTorch's kernels in a CUDA graph. The copies are queued before and after the graph."""

    name, title = "torch_around", "PyTorch, CUDA graph, copies outside"

    def _launch(self) -> None:
        self._device_in.copy_(self._host_in, non_blocking=True)
        self._computation.replay()
        self._host_out.copy_(self._computation.result, non_blocking=True)
