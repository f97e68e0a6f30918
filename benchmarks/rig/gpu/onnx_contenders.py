"""The contenders that run an ONNX file: foldserve's runtime and plain ONNX Runtime."""

from __future__ import annotations

from abc import abstractmethod

import onnxruntime as ort

from rig.gpu.contender import Contender, ContenderError, Device
from rig.gpu.foldserve_runtime import open_runtime
from rig.gpu.networks import Rows, half

_SILENT = 4  # the severity "fatal" of ONNX Runtime's log


class _Ours(Contender):
    def open(self) -> None:
        setting = self.setting
        self._runtime = open_runtime(setting.bundle, setting.device, setting.precision, self._buckets())

    @abstractmethod
    def _buckets(self) -> tuple[int, ...]: ...

    def run(self, rows: Rows) -> Rows:
        outputs: Rows = self._runtime.run(rows)
        return outputs

    def close(self) -> None:
        self._runtime.close()


class OursGraphs(_Ours):
    """Runs foldserve's runtime with a CUDA graph for each bucket."""

    name, title = "graphs", "foldserve"

    def _buckets(self) -> tuple[int, ...]:
        return self.setting.buckets


class OursPlain(_Ours):
    """Runs foldserve's runtime without CUDA graphs."""

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
    """Calls `session.run` on the folded model, which is the usual way to use ONNX Runtime."""

    name, title = "ort", "ONNX Runtime, session.run"

    def _content(self) -> bytes:
        return self.setting.network.folded_onnx


class OrtUnfolded(_Session):
    """Calls `session.run` on the model before folding. On CUDA, the batch norms of the unfolded model need cuDNN."""

    name, title = "unfolded", "ONNX Runtime, unfolded"

    def _content(self) -> bytes:
        if self.setting.precision in ("fp16", "bf16"):
            raise ContenderError("it is compared in float32 only")
        return self.setting.network.unfolded_onnx


def session(content: bytes, device: Device, *, tf32: bool = False, **options: str) -> ort.InferenceSession:
    """Open a session on exactly `device`.

    options: the options of the CUDA provider. Raises the exceptions of ONNX Runtime.
    """
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
        raise ContenderError(f"the session runs on {opened.get_providers()[0]}")
    return opened
