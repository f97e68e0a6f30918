"""Fixtures: the server that all clients use, and the outputs that ONNX Runtime alone computes for the same rows.

`make test-clients` runs these tests in the environment of the clients, which has no foldserve. SERVER_PYTHON is a
Python that has foldserve. In other environments the clients are missing, so the tests are skipped with a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

ROOT = Path(__file__).parents[2]

# Requests to this machine must not go through a proxy.
os.environ["NO_PROXY"] = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    url: str
    models: Path
    key: str = ""
    grpc_port: int = 0

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def expected(self, rows: np.ndarray, model: str = "digits", version: int = 1) -> np.ndarray:
        """The outputs of ONNX Runtime for the same file, without foldserve."""
        session = _session(self.models / model / str(version) / "model.onnx")
        return session.run(None, {"input": np.asarray(rows, np.float32)})[0]

    def assert_right(
        self, outputs: np.ndarray | None, rows: np.ndarray, model: str = "digits", version: int = 1
    ) -> None:
        """Check that the outputs are float32 and equal ONNX Runtime's.

        Only the last bits of a number may differ, because these bits depend on the other rows of the batch.
        """
        assert outputs is not None
        assert outputs.dtype == np.float32
        np.testing.assert_allclose(outputs, self.expected(rows, model, version), rtol=1e-5, atol=1e-7)


@lru_cache
def _session(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[list[str]]:
    """Start the server of served.py, and yield the words that it prints."""
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "tests.clients.served", str(folder), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        words = process.stdout.readline().split()
        assert words, "the server did not start"
        yield words
        process.stdin.close()
        assert process.wait(60) == 0
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with started(folder) as (url, port):
        yield Server(url, folder / "models", grpc_port=int(port))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server whose clients need an API key."""
    with started(tmp_path, "--keys") as (url, key):
        yield Server(url, tmp_path / "models", key)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    """Rows for digits: whole numbers from 0 to 16, which every datatype represents exactly."""
    return np.random.default_rng(seed).integers(0, 17, (count, 64)).astype(np.float32)
