"""The runtime on a real GPU stays within the tolerance, needs no cuDNN, and gives the same outputs without graphs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from foldserve.service import bundle
from foldserve.service.errors import DeviceError
from foldserve.service.runtime import load as runtime
from foldserve.service.runtime.cuda import CudaRunner
from foldserve.service.runtime.load import Runtime
from foldserve.service.runtime.precision import widen
from foldserve.service.runtime.session import Options, Precision
from foldserve.service.runtime.shortcuts import NO_SHORTCUTS
from tests.service.mixed import mixed_bundle
from tests.service.support import foldserve, oracle, serving

GENERATOR = np.random.default_rng(0)


def rows(count: int) -> np.ndarray:
    return GENERATOR.integers(0, 17, (count, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def graphs(digits: bundle.Bundle) -> Iterator[Runtime]:
    loaded, _ = runtime.load(digits, Options("cuda"))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def plain(digits: bundle.Bundle) -> Iterator[Runtime]:
    loaded, _ = runtime.load(digits, Options("cuda", buckets=()))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63, 64, 65, 1024, 1025, 5000])
def test_every_batch_is_within_the_certificate_s_tolerance_of_the_cpu(
    count: int, digits: bundle.Bundle, graphs: Runtime
) -> None:
    batch = rows(count)
    allowed = digits.manifest.certificate.tolerance
    for _ in range(3):
        assert allowed.measure(oracle(digits.model)(batch).astype(np.float64), graphs.run(batch)).holds


def test_the_shortcuts_work_and_change_the_outputs_by_less_than_the_tolerance(
    digits: bundle.Bundle, graphs: Runtime
) -> None:
    assert graphs.why == "requested"  # if the shortcuts were off, `why` would give the reason
    without = CudaRunner(digits.model, Options("cuda"), shortcuts=NO_SHORTCUTS)
    allowed = digits.manifest.certificate.tolerance
    for count in (1, 3, 64, 1024):
        batch = rows(count)
        assert allowed.measure(without.run(batch).astype(np.float64), graphs.run(batch)).holds
    without.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_large_batch_in_pieces_is_within_the_tolerance_again_and_again(
    precision: Precision, digits: bundle.Bundle
) -> None:
    """A missing wait would mix the rows of two pieces."""
    loaded, _ = runtime.load(digits, Options("cuda", precision=precision, max_batch=200_000))
    assert "no shortcuts" not in loaded.why
    allowed = widen(digits.manifest.certificate.tolerance, precision)
    for _ in range(5):
        batch = rows(170_001)
        assert allowed.measure(oracle(digits.model)(batch).astype(np.float64), loaded.run(batch)).holds
    loaded.close()


@pytest.mark.parametrize("size", [1, 4, 16, 64, 256, 1024])
def test_outputs_have_the_same_bits_with_and_without_graphs(size: int, graphs: Runtime, plain: Runtime) -> None:
    for _ in range(5):
        batch = rows(size)
        assert graphs.run(batch).tobytes() == plain.run(batch).tobytes()


def test_every_thread_gets_the_same_bits_while_another_model_opens(digits: bundle.Bundle, graphs: Runtime) -> None:
    """A capture in CUDA's global mode would fail here, because the runs allocate memory."""
    batches = [rows(count) for count in (1, 3, 64, 1025, 3000)]
    expected = [graphs.run(batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        opened = pool.submit(runtime.load, digits, Options("cuda"))
        while not opened.done():
            assert [outputs.tobytes() for outputs in pool.map(graphs.run, batches)] == expected
    other, parity = opened.result()
    assert parity.holds
    other.close()


def test_rows_of_an_earlier_batch_do_not_change_the_outputs(graphs: Runtime) -> None:
    batch = rows(5)
    before = graphs.run(batch)
    graphs.run(np.full((16, 64), np.nan, np.float32))
    assert graphs.run(batch).tobytes() == before.tobytes()


def test_categories_and_missing_values_run_on_cuda_alone() -> None:
    loaded, parity = runtime.load(mixed_bundle(), Options("cuda"))
    assert parity.holds
    loaded.close()


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_narrow_precisions_are_within_their_tolerance(precision: Precision, digits: bundle.Bundle) -> None:
    loaded, parity = runtime.load(digits, Options("cuda", precision=precision))
    assert parity.holds
    batch = rows(300)
    allowed = widen(digits.manifest.certificate.tolerance, precision)
    assert allowed.measure(oracle(digits.model)(batch).astype(np.float64), loaded.run(batch)).holds
    loaded.close()


def test_a_memory_limit_that_is_too_small_is_refused(digits: bundle.Bundle) -> None:
    with pytest.raises(DeviceError, match="CUDA is available, but can't run this model"):
        runtime.load(digits, Options("cuda", gpu_memory=2**10, buckets=()))


def test_a_session_loads_no_cudnn(digits: bundle.Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from foldserve.service import bundle\n"
        "from foldserve.service.runtime.load import load\n"
        "from foldserve.service.runtime.session import Options\n"
        "loaded, _ = load(bundle.read(Path(sys.argv[1])), Options('cuda'))\n"
        "print('cudnn' in Path('/proc/self/maps').read_text(), 'cublas' in Path('/proc/self/maps').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, digits.path], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["False", "True"]


def test_the_service_answers_on_cuda(models: Path, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "--device", "cuda", "--default-model", "digits") as served:
        version = httpx.get(f"{served.url}/v1/models/digits").json()["versions"][0]
        assert version["provider"] == "CUDAExecutionProvider"
        batch = rows(3)
        answer = httpx.post(f"{served.url}/predict", json={"instances": batch.tolist()}).json()
        expected = oracle(bundle.read(models / "digits" / "1").model)(batch)
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-5)


def test_the_doctor_finds_nothing_wrong() -> None:
    assert foldserve("doctor", "--device", "cuda").returncode == 0
