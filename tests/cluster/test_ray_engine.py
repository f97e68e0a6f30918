"""`foldserve score --engine ray` on a cluster of two nodes writes the same bytes as a local run.

Ray is large, so `make test-ray` runs these tests in a separate environment. Without Ray, the tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.service.support import environment

pytest.importorskip("ray", reason="Ray is not installed here: make test-ray")

# A cluster takes long to start its workers. This time limit turns a hang into a failure.
PATIENCE = 300
DIGITS = Path(__file__).parents[2] / "models" / "digits"


def score(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command. Warnings are not errors, because Ray warns about its own code."""
    command = [sys.executable, "-m", "foldserve.service", "score", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(env), timeout=PATIENCE, check=False)


def table(rows: int, seed: int) -> pa.Table:
    names = [f"pixel_{place // 8}_{place % 8}" for place in range(64)]
    x = np.random.default_rng(seed).integers(0, 17, (rows, 64)).astype(np.float32)
    x[99::1000, 5] = np.nan  # the server refuses these rows
    return pa.table({"id": pa.array(range(rows)), **dict(zip(names, x.T.copy(), strict=True))})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    for number in range(4):
        part = table(10_000, number)
        if kind == "parquet":
            pa.parquet.write_table(part, folder / f"{number}.parquet", row_group_size=3_000)
        else:
            pa.csv.write_csv(part, folder / f"{number}.csv")
    return folder


@pytest.fixture(scope="module", params=["parquet", "csv"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_cluster_gives_the_bytes_of_one_machine(address: str, source: Path, tmp_path: Path) -> None:
    flags = ("--columns", "id", "--probabilities")
    local = score(DIGITS, source, "-o", tmp_path / "local.parquet", *flags)
    assert local.returncode == 3, local.stderr
    output = ("-o", tmp_path / "ray.parquet", *flags, "--engine", "ray")
    done = score(DIGITS, source, *output, env={"RAY_ADDRESS": address})
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    assert (tmp_path / "ray.refused.csv").read_bytes() == (tmp_path / "local.refused.csv").read_bytes()
    assert pa.parquet.read_metadata(tmp_path / "ray.parquet").num_rows == 40_000 - 40
