"""Several processes under torchrun give the same training as one process. Only one process prints an error."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from foldserve.service import bundle
from foldserve.training.errors import ExecutionError
from foldserve.training.fit.distributed import World, join_processes

FIT = textwrap.dedent("""
    import json, sys
    import numpy as np, torch
    from sklearn.datasets import make_classification
    from foldserve.training.fit.distributed import join_processes
    from foldserve.training.fit.loop import Examples, fit
    from foldserve.training.network.mlp import build_mlp
    from foldserve.training.plan import Architecture, Recipe

    out, placement, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
    x, y = make_classification(295, 8, n_informative=6, n_classes=3, random_state=0)
    x, y = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)
    torch.manual_seed(0)
    network = build_mlp(8, 3, Architecture(hidden=(16, 8), placement=placement, input_norm=True, dropout=0.3))
    torch.set_num_threads(1)
    with join_processes("cpu") as world:
        fitted = fit(
            network, Examples(x[:rows], y[:rows]), Examples(x[rows:], y[rows:]),
            Recipe(epochs=6, patience=3, batch_size=32, input_noise=0.2), seed=1, world=world,
            on_epoch=lambda epoch: print("epoch", epoch.number, flush=True),
        )
        # Outputs instead of weights: the next BN subtracts a shift of a bias, so only rounding determines it.
        outputs = fitted.network(x).tolist()
        losses = [[epoch.loss, epoch.validation_loss] for epoch in fitted.history]
        with open(f"{out}.{world.rank}", "w") as file:
            json.dump({"outputs": outputs, "losses": losses}, file)
""")


def torchrun(count, *arguments, cwd):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize(
    ("count", "placement", "rows", "relative"),
    [
        # The last batch has 5 rows in one process, and 6 rows in the other process. Rounding errors grow during the
        # training.
        pytest.param(2, "pre", 203, 1e-3, marks=pytest.mark.slow),
        # The last batch has 2 rows, fewer than the 3 processes. After dropout, both rows of a batch may be equal. A
        # training by three processes differs from a training by one process by more than rounding errors, because a BN
        # divides rounding errors by the square root of epsilon if two rows are equal.
        pytest.param(3, "post", 194, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_several_processes_train_the_same_network_as_one(tmp_path, count, placement, rows, relative):
    """The losses of each epoch and the outputs are the same for one process and for several, even with dropout and
    noise.
    """
    script = tmp_path / "script.py"
    script.write_text(FIT)
    alone = subprocess.run(
        [sys.executable, script, tmp_path / "alone", placement, str(rows)], capture_output=True, text=True, check=True
    )
    together = torchrun(count, script, tmp_path / "together", placement, rows, cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.stdout
    expected = json.loads((tmp_path / "alone.0").read_text())
    first, *others = [json.loads((tmp_path / f"together.{rank}").read_text()) for rank in range(count)]
    assert all(other == first for other in others)
    np.testing.assert_allclose(first["losses"], expected["losses"], rtol=relative)
    np.testing.assert_allclose(first["outputs"], expected["outputs"], rtol=20 * relative, atol=20 * relative)


def test_the_command_writes_and_prints_everything_once(tmp_path):
    done = torchrun(2, "-m", "foldserve.training", "fit", "iris", "--models", tmp_path, "--epochs", "2", cwd=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("certificate") == 1
    assert [path.name for path in (tmp_path / "iris").iterdir()] == ["1"]
    assert bundle.read(tmp_path / "iris" / "1").manifest.provenance.hyperparameters["epochs"] == 2


@pytest.mark.slow
def test_an_ensemble_of_several_processes_scores_like_an_ensemble_of_one_process(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(240, 3))
    names = np.where(x[:, 0] + x[:, 1] * x[:, 2] + generator.normal(0, 0.3, 240) > 0, "up", "down")
    rows = [f"{a:.4f},{b:.4f},{c:.4f},{name}" for (a, b, c), name in zip(x, names, strict=True)]
    (tmp_path / "moves.csv").write_text("\n".join(["a,b,c,move", *rows]))
    fit = ["-m", "foldserve.training", "fit", "moves.csv", "--models", ".", "--epochs", "6", "--members", "2"]
    alone = subprocess.run(
        [sys.executable, *fit, "--name", "alone"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert alone.returncode == 0, alone.stderr
    together = torchrun(2, *fit, "--name", "together", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    first, second = (bundle.read(tmp_path / name / "1").manifest for name in ("alone", "together"))
    assert bundle.versions(tmp_path / "together") == [1]
    starts = [[line.split(" ")[0] for line in done.stdout.splitlines()] for done in (alone, together)]
    assert starts[0] == starts[1]
    for part in ("validation", "test"):
        for metric, value in first.metrics[part].items():
            assert second.metrics[part][metric] == pytest.approx(value, abs=0.02), (part, metric)
    assert second.provenance.hyperparameters["best_epochs"] == first.provenance.hyperparameters["best_epochs"]


def test_a_refusal_is_printed_once(tmp_path):
    done = torchrun(2, "-m", "foldserve.training", "fit", "nothing", "--models", tmp_path, cwd=None)
    assert done.returncode != 0
    assert done.stderr.count("foldserve-train: error: ") == 1


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 2, 31, 64])
def test_the_shares_cover_the_rows_in_order(size, rows):
    shares = [list(range(rows))[World(rank=rank, size=size).share(rows)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_it_is_absent():
    with pytest.raises(ExecutionError, match="no CUDA device"), join_processes("cuda"):
        pass
