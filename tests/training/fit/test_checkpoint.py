"""A run that resumes from a checkpoint continues the interrupted run exactly. A file that does not fit the run is
refused.
"""

import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from foldserve.service import bundle
from foldserve.training.errors import CheckpointError
from foldserve.training.fit.checkpoint import Checkpoint, Checkpoints, State
from foldserve.training.fit.loop import Examples, fit
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture, Recipe

RUN = {"seed": "0", "epochs": "8"}

FIT = textwrap.dedent("""
    import hashlib, sys
    from pathlib import Path
    import torch
    from foldserve.training.fit.checkpoint import Checkpoint
    from foldserve.training.fit.loop import Examples, fit
    from foldserve.training.network.mlp import build_mlp
    from foldserve.training.plan import Architecture, Recipe

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    network = build_mlp(8, 2, Architecture(hidden=(16,), dropout=0.3))
    fitted = fit(
        network, Examples(x[:300], y[:300]), Examples(x[300:], y[300:]), Recipe(epochs=40, patience=40), seed=1,
        on_epoch=lambda epoch: print(epoch.number, epoch.loss, epoch.validation_loss, flush=True),
        checkpoint=Checkpoint(Path(sys.argv[1]), {}, seconds_between=0) if len(sys.argv) > 1 else None,
    )
    state = b"".join(tensor.numpy().tobytes() for tensor in fitted.network.state_dict().values())
    print("done", len(fitted.history), fitted.best_epoch, hashlib.sha256(state).hexdigest())
""")


def state(value=1.0, size=10):
    return State({"weights": torch.full((size,), value), "step": torch.tensor(3)}, {"best_epoch": 2})


def fitted(path, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 4, generator=generator), torch.randint(2, (100,), generator=generator)
    torch.manual_seed(0)
    rows = Examples(x, y)
    recipe = Recipe(**{"epochs": 3} | kwargs)
    return fit(build_mlp(4, 2, Architecture(hidden=(8,))), rows, rows, recipe, seed=0, checkpoint=Checkpoint(path, RUN))


@pytest.mark.slow
def test_a_fit_that_is_killed_and_resumed_ends_in_the_same_bytes(tmp_path):
    command = [sys.executable, "-c", FIT]
    undisturbed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    path = tmp_path / "member.safetensors"
    reported = []
    for epochs in (3, 12):
        with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, text=True) as process:
            reported += [process.stdout.readline().strip() for _ in range(epochs)]
            process.send_signal(signal.SIGKILL)
            rest = process.communicate()[0].splitlines()
        assert process.returncode == -signal.SIGKILL
        # The checkpoint of an epoch is written before the line of this epoch is printed. The process may print more
        # lines before the signal arrives.
        reported += rest
    resumed = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert resumed[-1] == undisturbed[-1]
    lines = set(reported) | set(resumed)
    assert lines <= set(undisturbed) | {""}
    assert 0 < len(resumed) < len(undisturbed) - 10


def test_a_finished_fit_is_not_trained_again(tmp_path):
    path = tmp_path / "member.safetensors"
    first = fitted(path)
    written = path.stat().st_ino, path.stat().st_mtime_ns
    again = fitted(path)
    assert again.history == first.history
    for name, tensor in first.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == written


def test_tensors_and_notes_are_restored_unchanged(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a.safetensors", RUN)
    assert checkpoint.load() is None
    checkpoint.save(state())
    back = checkpoint.load()
    assert torch.equal(back.tensors["weights"], torch.ones(10))
    assert back.tensors["step"].dtype == torch.int64
    assert back.notes == {"best_epoch": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_is_named(tmp_path):
    Checkpoint(tmp_path / "a.safetensors", RUN).save(state())
    with pytest.raises(CheckpointError, match="epochs is 8 there and 9 here"):
        Checkpoint(tmp_path / "a.safetensors", RUN | {"epochs": "9"}).load()
    with pytest.raises(CheckpointError, match="device is None there and cuda here"):
        Checkpoint(tmp_path / "a.safetensors", RUN | {"device": "cuda"}).load()


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 100, "half", "other tensors", "no numbers"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    fitted(path)
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "other tensors":
        Checkpoint(path, RUN).save(state())
    elif damage == "no numbers":
        kept = Checkpoint(path, RUN).load()
        Checkpoint(path, RUN).save(State(kept.tensors | {"order": torch.zeros(3)}, kept.notes))
    else:
        path.write_bytes(damage)
    with pytest.raises(CheckpointError, match="is damaged: remove it"):
        fitted(path)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    """A limit on the file size imitates a full disk. Like a full disk, the limit makes a write fail half way."""
    path = tmp_path / "a.safetensors"
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import torch
        from foldserve.training.fit.checkpoint import Checkpoint, State
        from foldserve.training.errors import CheckpointError
        checkpoint = Checkpoint(Path(sys.argv[1]), {})
        checkpoint.save(State({"weights": torch.ones(10)}, {}))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try: checkpoint.save(State({"weights": torch.zeros(10_000)}, {}))
        except CheckpointError as error: print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} can't be written: File too large\n"
    assert torch.equal(Checkpoint(path, {}).load().tensors["weights"], torch.ones(10))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_half_written_file_does_not_disturb_the_next_write(tmp_path):
    checkpoint = Checkpoints(tmp_path, RUN, resume=False).for_member(0)
    checkpoint.save(state(1.0))
    (tmp_path / "member1.partial").write_bytes(b"half")
    assert torch.equal(checkpoint.load().tensors["weights"], torch.ones(10))
    checkpoint.save(state(2.0))
    Checkpoints(tmp_path, RUN, resume=True).remove()
    assert not tmp_path.exists()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    others = {"llama.safetensors", "film.partial", "member.txt"}
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    checkpoints = Checkpoints(tmp_path, RUN, resume=False)
    checkpoints.for_member(0).save(state())
    checkpoints.remove()
    assert {path.name for path in tmp_path.iterdir()} == others


def test_an_unfinished_run_is_overwritten_only_on_request(tmp_path):
    Checkpoints(tmp_path, RUN, resume=False).for_member(0).save(state())
    with pytest.raises(CheckpointError, match="--resume, or remove it"):
        Checkpoints(tmp_path, RUN, resume=False)
    assert Checkpoints(tmp_path, RUN, resume=True).for_member(0).load() is not None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--resume",), "--resume needs --checkpoint"),
        (("--checkpoint", "no/where"), "no/where: No such file or directory"),
        (("--checkpoint", "garbage", "--resume"), "is damaged"),
        (("--checkpoint", "other", "--resume"), "belongs to another run: activation is None there and relu here"),
        (("--checkpoint", "other"), "holds the checkpoint of an unfinished run"),
    ],
)
def test_the_command_says_in_one_line_why_it_can_t_resume(tmp_path, arguments, reason):
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "member1.safetensors").write_bytes(b"garbage")
    Checkpoints(tmp_path / "other", {}, resume=False).for_member(0).save(state())
    command = [sys.executable, "-m", "foldserve.training", "fit", "iris", "--models", ".", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert reason in line


def test_a_finished_run_removes_its_checkpoint(tmp_path):
    command = [sys.executable, "-m", "foldserve.training", "fit", "iris", "--models", ".", "--epochs", "2"]
    command += ["--checkpoint", "state", "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["iris"]


KILLED = textwrap.dedent("""
    import os, signal, sys

    def kill_before(event, arguments):
        if event == "os.rename" and sys.argv[1] in str(arguments[:2]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_before)
    from foldserve.training.cli import main
    sys.exit(main(sys.argv[2:]))
""")


@pytest.mark.slow
def test_a_command_killed_in_a_member_and_in_its_export_ends_in_the_same_bytes(tmp_path):
    arguments = ["fit", "iris", "--models", ".", "--epochs", "6", "--members", "2"]
    command = [sys.executable, "-m", "foldserve.training", *arguments]
    subprocess.run([*command, "--name", "undisturbed"], capture_output=True, check=True, cwd=tmp_path)
    held = ["--name", "held", "--checkpoint", "state", "--resume"]
    for before, kept in (
        ("member2.safetensors", {"member1.safetensors", "member2.partial"}),
        (".partial-", {"member1.safetensors", "member2.safetensors"}),
    ):
        killed = [sys.executable, "-c", KILLED, before, *arguments, *held]
        done = subprocess.run(killed, capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert {path.name for path in (tmp_path / "state").iterdir()} == kept
        assert not list(tmp_path.glob("held/*"))
    subprocess.run([*command, *held], capture_output=True, check=True, cwd=tmp_path)
    undisturbed, resumed = (bundle.read(tmp_path / name / "1") for name in ("undisturbed", "held"))
    assert resumed.model == undisturbed.model
    assert resumed.manifest.golden == undisturbed.manifest.golden
    assert resumed.manifest.metrics == undisturbed.manifest.metrics
    assert not (tmp_path / "state").exists()
