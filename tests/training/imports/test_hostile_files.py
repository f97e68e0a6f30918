"""The import of a harmful file prints one line and exits with 1.

The import needs little memory, and writes nothing.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import skops.io
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from foldserve.training.cli import main

KERAS = Path(__file__).parent / "keras_files" / "article_3.keras"
GROWTH = 256 * 2**10  # KiB


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return one small file of each format, by its suffix."""
    folder = tmp_path_factory.mktemp("originals")
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(2, 2),)), folder / "net.pt2")
    torch.save(module.state_dict(), folder / "net.pt")
    rows = np.random.default_rng(0).normal(size=(20, 2))
    skops.io.dump(
        make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, np.arange(20) % 2), folder / "net.skops"
    )
    found = {path.suffix: path.read_bytes() for path in folder.iterdir()}
    found[".safetensors"] = safetensors.torch.save(module.state_dict())
    found[".keras"] = KERAS.read_bytes()
    found[".txt"] = str(module).encode()
    return found


def rezip(content: bytes, change: Callable[[dict[str, bytes]], object], *, mode: int = 0) -> bytes:
    """Return a copy of an archive with changed entries. mode: the type of file that every entry claims to be."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(entry, data)
    return written.getvalue()


def largest(entries: dict[str, bytes]) -> str:
    return max(entries, key=lambda name: len(entries[name]))


def grow(content: bytes) -> bytes:
    return rezip(content, lambda entries: entries.update({largest(entries): b"\0" * 2**27}))


def leave(content: bytes) -> bytes:
    return rezip(content, lambda entries: entries.update({"../../../tmp/evil": b"x"}))


def link(content: bytes) -> bytes:
    return rezip(content, dict.copy, mode=0o120777)


def add_many(content: bytes) -> bytes:
    return rezip(content, lambda entries: entries.update({f"x/{i}": b"" for i in range(10_001)}))


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def with_header(content: bytes, header: object) -> bytes:
    """Return a safetensors file with a replaced header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + struct.unpack("<Q", content[:8])[0] :]


def lie_about_shape(content: bytes) -> bytes:
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    header["0.weight"]["shape"] = [2**40, 2**20]
    return with_header(content, header)


def overlap(content: bytes) -> bytes:
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    header["0.bias"]["data_offsets"] = header["0.weight"]["data_offsets"]
    return with_header(content, header)


def lie_about_header(content: bytes) -> bytes:
    return struct.pack("<Q", 2**60) + content[8:]


def ask_for_memory(content: bytes) -> bytes:
    """Replace the archive's pickle by a pickle that allocates an array of 2^44 bytes."""
    payload = b"\x80\x02cbuiltins\nbytearray\n" + pickle.dumps((2**44,), 2)[2:-1] + b"R."
    return rezip(content, lambda entries: entries.update({next(name for name in entries if "pkl" in name): payload}))


def run_code(content: bytes) -> bytes:
    payload = b"\x80\x02cos\nsystem\n(X\x05\x00\x00\x00falseetR."
    return rezip(content, lambda entries: entries.update({next(name for name in entries if "pkl" in name): payload}))


def lie_about_array(content: bytes) -> bytes:
    """Write the header of a NumPy array that claims to have 2^40 numbers."""

    def change(entries: dict[str, bytes]) -> None:
        name = next(name for name in entries if name.endswith(".npy"))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
        entries[name] = header.getvalue() + b"\0" * 64

    return rezip(content, change)


ARCHIVES = (".skops", ".pt2", ".keras", ".pt")
ATTACKS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    *((suffix, grow, "grows more than 100-fold when it is unpacked") for suffix in ARCHIVES),
    *((suffix, leave, "an entry of the archive has a path that leaves the archive") for suffix in ARCHIVES),
    *((suffix, link, "an entry of the archive is a symbolic link") for suffix in ARCHIVES),
    *((suffix, add_many, "entries; a model has at most") for suffix in ARCHIVES),
    *((suffix, cut, "is damaged|can't read") for suffix in (*ARCHIVES, ".safetensors")),
    *((suffix, lambda _: b"", "is damaged|can't read|is not a") for suffix in (*ARCHIVES, ".safetensors")),
    (".safetensors", lie_about_shape, "is damaged"),
    (".safetensors", overlap, "is damaged"),
    (".safetensors", lie_about_header, "is damaged"),
    (".pt", ask_for_memory, "has objects of the class bytearray"),
    (".pt", run_code, "has objects, and loading them would run their code"),
    (".skops", lie_about_array, "can't read"),
]


@pytest.mark.parametrize(("suffix", "attack", "message"), ATTACKS, ids=[f"{s}-{a.__name__}" for s, a, _ in ATTACKS])
def test_a_hostile_file_gets_one_line_and_little_memory(
    originals: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    attack: Callable[[bytes], bytes],
    message: str,
) -> None:
    path, models, layers = tmp_path / f"net{suffix}", tmp_path / "models", tmp_path / "net.txt"
    path.write_bytes(attack(originals[suffix]))
    layers.write_bytes(originals[".txt"])
    flags = ["--layers", str(layers)] if suffix in (".pt", ".safetensors") else []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["import", str(path), "--name", "x", "--models", str(models), "--ranges", "0:1", *flags]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert any(part in lines[0] for part in message.split("|"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    assert not (models / "x").exists()


@pytest.mark.parametrize("suffix", [".skops", ".pt2", ".pt", ".safetensors"])
def test_changed_bytes_never_give_a_traceback(
    originals: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    random = np.random.default_rng(0)
    path, layers = tmp_path / f"net{suffix}", tmp_path / "net.txt"
    layers.write_bytes(originals[".txt"])
    flags = ["--layers", str(layers)] if suffix in (".pt", ".safetensors") else []
    for trial in range(25):
        content = bytearray(originals[suffix])
        for place in random.integers(0, len(content), 4):
            content[place] ^= 1 << int(random.integers(8))
        path.write_bytes(content[: len(content) if trial % 2 else int(random.integers(len(content)))])
        # The import fails even if only unused bytes are damaged, because the command gives neither ranges nor a table.
        assert main(["import", str(path), "--name", "x", "--models", str(tmp_path / "models"), *flags]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
