"""Who is compared: each takes a float32 batch in ordinary host memory and gives float32 probabilities there.

A contender knows its network, device and precision, and nothing about clocks or what is right.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnxruntime as ort
import torch

from foldserve.service.bundle import Bundle
from rig.gpu.networks import Network, Precision, Rows, half
from rig.gpu.ours import open_runtime

Device = Literal["cpu", "cuda"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_WARM_UPS = 3  # before a capture, so that handles, workspaces and kernels are there
_SEVERAL_THREADS = 2**20  # bytes from which torch's copy, by several threads, is faster than NumPy's
_SILENT = 4  # ONNX Runtime's log severity "fatal"


class ContenderError(Exception):
    """Why somebody has no figures, in one line."""


@dataclass(frozen=True)
class Setting:
    """What is the same for all contenders of one comparison."""

    device: Device
    network: Network
    whole: Bundle
    precision: Precision
    buckets: tuple[int, ...]


class Contender(ABC):
    """One way to run the network. `prepare` and `release` stand around the runs of a batch size, `close` at the end."""

    name: ClassVar[str]
    title: ClassVar[str]
    batches: ClassVar[tuple[int, ...]] = ()  # the only ones that it is measured with; () = all
    compiles: ClassVar[bool] = False  # `prepare` may take long

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Open it. What it can't do it raises."""

    @abstractmethod
    def run(self, rows: Rows) -> Rows:
        """Map float32 [batch, features] to float32 [batch, outputs]."""

    def prepare(self, batch: int) -> None:  # noqa: B027 - most have nothing to do
        """Make ready what depends on the size of a batch."""

    def poison(self, batch: int) -> None:
        """Overwrite what a run of this size has left behind: by default with a run of rows of NaN."""
        self.run(np.full((batch, self.setting.network.widths[0]), np.nan, np.float32))

    def on_device(self) -> Callable[[], Any] | None:
        """Give a call that only queues the computation, its input being on the device; None where there is none."""
        return None

    def release(self) -> None:  # noqa: B027
        """Let go of what `prepare` made."""

    def close(self) -> None:  # noqa: B027
        """Let go of everything."""


class _Ours(Contender):
    def open(self) -> None:
        setting = self.setting
        self._runtime = open_runtime(setting.whole, setting.device, setting.precision, self._buckets())

    @abstractmethod
    def _buckets(self) -> tuple[int, ...]: ...

    def run(self, rows: Rows) -> Rows:
        outputs: Rows = self._runtime.run(rows)
        return outputs

    def close(self) -> None:
        self._runtime.close()


class OursGraphs(_Ours):
    """This runtime, its buckets captured as CUDA graphs."""

    name, title = "graphs", "foldserve"

    def _buckets(self) -> tuple[int, ...]:
        return self.setting.buckets


class OursPlain(_Ours):
    """This runtime without CUDA graphs."""

    name, title = "plain", "foldserve, no graphs"

    def _buckets(self) -> tuple[int, ...]:
        return ()


class _Session(Contender):
    def open(self) -> None:
        setting = self.setting
        content = self._content()
        if setting.precision in ("fp16", "bf16"):
            content = half(content, setting.precision)
        self._session = session(content, setting.device, tf32=setting.precision == "tf32")
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    @abstractmethod
    def _content(self) -> bytes: ...

    def run(self, rows: Rows) -> Rows:
        outputs: Rows = self._session.run([self._output], {self._input: rows})[0]
        return outputs

    def close(self) -> None:
        del self._session


class OrtFolded(_Session):
    """`session.run` of the folded model, as most people would call it."""

    name, title = "ort", "ONNX Runtime, session.run"

    def _content(self) -> bytes:
        return self.setting.network.folded_onnx


class OrtUnfolded(_Session):
    """`session.run` of the model before folding: batch normalisation needs cuDNN on CUDA."""

    name, title = "unfolded", "ONNX Runtime, unfolded"

    def _content(self) -> bytes:
        if self.setting.precision in ("fp16", "bf16"):
            raise ContenderError("it is compared in float32 alone")
        return self.setting.network.unfolded_onnx


def session(content: bytes, device: Device, *, tf32: bool = False, **options: str) -> ort.InferenceSession:
    """Open a session on exactly `device`; options: more of the CUDA provider's. Raises what ONNX Runtime does."""
    ort.set_default_logger_severity(_SILENT)
    chosen = ort.SessionOptions()
    chosen.log_severity_level = _SILENT
    chosen.intra_op_num_threads = 1
    if device == "cpu":
        return ort.InferenceSession(content, chosen, providers=["CPUExecutionProvider"])
    chosen.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    cuda = ("CUDAExecutionProvider", {"use_tf32": "1" if tf32 else "0", **options})
    opened = ort.InferenceSession(content, chosen, providers=[cuda], enable_fallback=False)
    if opened.get_providers()[0] != "CUDAExecutionProvider":
        raise ContenderError(f"the session came back on {opened.get_providers()[0]}")
    return opened


class _Torch(Contender):
    """PyTorch runs the folded network, the faster one, so that folding decides nothing between it and the others."""

    def open(self) -> None:
        dtype = DTYPES[self.setting.precision]
        self._device = torch.device(self.setting.device)
        network = copy.deepcopy(self.setting.network.folded).to(self._device, dtype)

        def compute(x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = network(x.to(dtype))
            return logits.float().softmax(1)

        self._compute: Callable[[torch.Tensor], torch.Tensor] = compute


class Eager(_Torch):
    """PyTorch as it is."""

    name, title = "eager", "PyTorch, eager"

    def run(self, rows: Rows) -> Rows:
        """Copy, compute and copy as most people would write it."""
        with torch.no_grad():
            outputs: Rows = self._compute(torch.from_numpy(rows).to(self._device)).cpu().numpy()
            return outputs


class _Staged(_Torch):
    """A batch size with fixed tensors of its own: pinned ones on the host, and one on the device."""

    def prepare(self, batch: int) -> None:
        features, outputs = self.setting.network.widths[0], self.setting.network.widths[-1]
        pin = self._device.type == "cuda"
        self._host_in = torch.empty(batch, features, pin_memory=pin)
        self._host_out = torch.empty(batch, outputs, pin_memory=pin)
        self._device_in = torch.zeros(batch, features, device=self._device)
        self._rows, self._answers = self._host_in.numpy(), self._host_out.numpy()
        self._stream = torch.cuda.current_stream() if pin else None
        self._whole()

    def _whole(self) -> torch.Tensor:
        with torch.no_grad():
            self._device_in.copy_(self._host_in, non_blocking=True)
            outputs = self._compute(self._device_in)
            self._host_out.copy_(outputs, non_blocking=True)
            return outputs

    def run(self, rows: Rows) -> Rows:
        if rows.nbytes < _SEVERAL_THREADS:
            self._rows[...] = rows
        else:
            self._host_in.copy_(torch.from_numpy(rows))
        self._launch()
        if self._stream is not None:
            self._stream.synchronize()
        return self._answers.copy()

    def _launch(self) -> None:
        self._whole()

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
        # For this size alone: what is compiled for any size has no CUDA graph.
        self._compute = torch.compile(self._plain, mode=self.mode, dynamic=False, fullgraph=True)
        super().prepare(batch)
        for _ in range(_WARM_UPS):  # its CUDA graph is captured on the second run
            self._whole()

    def release(self) -> None:
        """Forget what was compiled."""
        torch.compiler.reset()  # or what was compiled for each size counts against a limit


class CompiledGraphs(_Compiled):
    """Inductor's kernels in its CUDA graphs."""

    name, title, mode = "compiled", "torch.compile, reduce-overhead", "reduce-overhead"
    batches = (1, 1024, 65536)


class CompiledTuned(_Compiled):
    """The same, matrix products chosen by trial."""

    name, title, mode = "autotuned", "torch.compile, max-autotune", "max-autotune"
    batches = (1, 65536)


class _Graph:
    """Work on fixed tensors, captured as a CUDA graph. `result` is what it writes, and `replay` writes it again."""

    def __init__(self, work: Callable[[], torch.Tensor], device: torch.device) -> None:
        if device.type == "cpu":  # which has no graphs: a dry run takes the same way without
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
        # thread_local: what ONNX Runtime's threads do meanwhile does not break the capture.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self.result = work()
        self.replay = graph.replay


class Graphed(_Staged):
    """PyTorch's kernels and both copies in one CUDA graph: the strongest contender that is easily written."""

    name, title = "torch_graph", "PyTorch, CUDA graph"

    def prepare(self, batch: int) -> None:
        """Capture the whole, and the computation alone."""
        super().prepare(batch)
        with torch.no_grad():
            self._all = _Graph(self._whole, self._device)
            self._computation = _Graph(lambda: self._compute(self._device_in), self._device)

    def _launch(self) -> None:
        self._all.replay()

    def poison(self, batch: int) -> None:
        """Overwrite what the graphs write, too."""
        super().poison(batch)
        for graph in (self._all, self._computation):
            graph.result.fill_(torch.nan)

    def on_device(self) -> Callable[[], Any]:
        """Replay the computation alone."""
        return self._computation.replay


class GraphedAround(Graphed):
    """The same with the copies queued before and after the graph."""

    name, title = "torch_around", "PyTorch, CUDA graph, copies outside"

    def _launch(self) -> None:
        self._device_in.copy_(self._host_in, non_blocking=True)
        self._computation.replay()
        self._host_out.copy_(self._computation.result, non_blocking=True)


CONTENDERS: tuple[type[Contender], ...] = (
    OursGraphs,
    OursPlain,
    OrtFolded,
    OrtUnfolded,
    Eager,
    CompiledGraphs,
    CompiledTuned,
    Graphed,
    GraphedAround,
)
GRAPHED = (Graphed.name, GraphedAround.name)
