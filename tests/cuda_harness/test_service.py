"""The commands and the server run on ONNX Runtime's own CUDA provider, with stand-ins for CUDA's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service import bundle
from tests.cuda_harness.conftest import SHIPPED
from tests.service.support import PATIENCE, environment, foldserve, oracle, serving


def test_a_server_answers_with_the_outputs_of_the_cpu(
    stand_in: Mapping[str, str], digits: bundle.Bundle, tmp_path: Path
) -> None:
    violations = tmp_path / "violations"
    env = dict(stand_in) | {"HARNESS_VIOLATIONS": str(violations)}
    with serving(SHIPPED, tmp_path / "log", "--device", "cuda", env=env) as served:
        version = httpx.get(f"{served.url}/v1/models/digits").json()["versions"][0]
        assert version["provider"] == "CUDAExecutionProvider"
        for count in (1, 3, 2000):
            rows = np.random.default_rng(count).integers(0, 17, (count, 64)).astype(np.float32)
            answer = httpx.post(f"{served.url}/predict", json={"instances": rows.tolist()}).json()
            np.testing.assert_allclose(answer["probabilities"], oracle(digits.model)(rows), rtol=1e-4, atol=1e-5)
    assert not violations.exists()


def test_a_lost_device_ends_the_server_with_status_1(stand_in: Mapping[str, str], tmp_path: Path) -> None:
    lose = tmp_path / "lose"
    env = dict(stand_in) | {"HARNESS_LOSE": str(lose)}
    with serving(SHIPPED, tmp_path / "log", "--device", "cuda", env=env) as served:
        lose.touch()
        answer = httpx.post(f"{served.url}/predict", json={"instances": [[0.0] * 64]})
        assert (answer.status_code, answer.json()) == (500, {"error": "the device was lost"})
        assert served.process.wait(PATIENCE) == 1
        assert served.log.read_text(encoding="utf-8").splitlines()[-1] == "foldserve: error: the device was lost"


def test_verify_runs_the_golden_rows_on_cuda(stand_in: Mapping[str, str]) -> None:
    done = foldserve("verify", "--device", "cuda", SHIPPED / "digits" / "1", env=stand_in)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(line.startswith("ok") and "cuda" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize("question", ["opening", "graphs"])
def test_the_questions_for_a_gpu_run(question: str, stand_in: Mapping[str, str]) -> None:
    """This test only checks that the program runs. On the stand-ins, the figures of the program have no meaning."""
    root = SHIPPED.parent
    env = dict(stand_in) | {"PYTHONPATH": f"{stand_in['PYTHONPATH']}:{root / 'benchmarks'}"}
    program = [sys.executable, "-m", "rig.gpu.questions", question]
    done = subprocess.run(program, cwd=root, env=environment(env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GPU: Stand-in")


@pytest.mark.parametrize(
    ("capability", "status"), [("75", "ok"), ("90", "ok"), ("121", "ok"), ("100", "wrong"), ("110", "wrong")]
)
def test_the_doctor_knows_the_gpus_for_which_onnx_runtime_has_code(
    capability: str, status: str, stand_in: Mapping[str, str]
) -> None:
    env = dict(stand_in) | {"HARNESS_CAPABILITY": capability}
    done = foldserve("doctor", "--json", "--device", "cuda", env=env)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["gpu"]["status"] == status
    assert checks["cuda provider"]["status"] == "ok"  # the stand-in accepts code for every GPU
    if status == "wrong":
        assert done.returncode == 1
        assert "has no code for it" in checks["gpu"]["found"]
        assert checks["gpu"]["remedy"] == "serve with --device cpu"
