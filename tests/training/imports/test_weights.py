"""Tests imports of a file with PyTorch weights, together with a text file that lists the layers as PyTorch prints them.

If the two files do not match, the command prints an error in one line.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import foldserve
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.front_ends import read_model
from foldserve.training.imports.imported import Options


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, eps=1e-3), nn.LeakyReLU(0.2))
    return nn.Sequential(first, nn.Dropout(0.5), nn.Linear(6, 3)).eval()


MADE = network()
STATE = {key: tensor.clone() for key, tensor in MADE.state_dict().items()}


def files(folder: Path, weights: Any, text: str = str(MADE), name: str = "net.safetensors") -> tuple[Path, Path]:
    layers = folder / "net.txt"
    layers.write_text(text)
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(weights, folder / name)
    else:
        torch.save(weights, folder / name)
    return folder / name, layers


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("net.safetensors", STATE),
        ("net.pt", STATE),
        ("net.ckpt", {"epoch": 3, "state_dict": {f"net.{key}": value for key, value in STATE.items()}}),
        ("net.bin", {key: value for key, value in STATE.items() if "num_batches" not in key}),
    ],
)
def test_weights_and_printed_layers_become_a_bundle_of_the_module(tmp_path: Path, name: str, weights: Any) -> None:
    path, layers = files(tmp_path, weights, name=name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", foldserve.TableWarning)
        made = foldserve.import_model(
            path, name="net", models=tmp_path, labels=["a", "b", "c"], ranges=(-3, 3), layers=layers
        )
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = MADE(torch.from_numpy(rows)).softmax(1).numpy()
    np.testing.assert_allclose(foldserve.load(made.path).predict_proba(rows), expected, rtol=1e-4, atol=1e-5)
    assert made.manifest.source is not None
    assert (made.manifest.source.framework, made.manifest.source.file) == ("PyTorch", name)
    assert made.manifest.certificate.reference.startswith("PyTorch 2.")


def test_weights_that_the_layers_do_not_use_are_named(tmp_path: Path) -> None:
    path, layers = files(tmp_path, {**{f"net.{key}": value for key, value in STATE.items()}, "loss.w": torch.ones(1)})
    notes = read_model(path, Options(labels=("a", "b", "c"), layers=layers)).notes
    assert notes[0] == "weights that the layers do not use: loss.w"


def without(key: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in STATE.items() if name != key}


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = network()


EXPANDED = {**STATE, "2.weight": torch.ones(1).expand(3, 6)}
TEXT = str(MADE)
MISFITS: list[tuple[str, Any, str, str]] = [
    ("net.safetensors", without("2.bias"), TEXT, "has no weight '2.bias' of the layers; it has 0.0.bias"),
    ("net.safetensors", {**STATE, "3.weight": torch.ones(2)}, TEXT, "layers that the text does not have: 3.weight"),
    ("net.safetensors", {**STATE, "2.bias": torch.ones(4)}, TEXT, "has the shape [4]; the layers need [3]"),
    ("net.safetensors", {**STATE, "2.bias": torch.ones(3).int()}, TEXT, "is not of a floating-point type"),
    ("net.safetensors", {**STATE, **{f"b.{k}": v.clone() for k, v in STATE.items()}}, TEXT, "has the layers 2 times"),
    ("net.safetensors", STATE, str(Custom()), "line 1 of the layers is a Custom, and its forward is not in the text"),
    ("net.safetensors", STATE, TEXT.replace("LeakyReLU", "Tanhshrink"), "Tanhshrink is not supported; supported are"),
    ("net.safetensors", STATE, TEXT.replace("p=0.5", "p=exit()"), "has arguments that Dropout does not take"),
    ("net.safetensors", STATE, TEXT.replace("out_features=3", "out_features=10**9"), "has arguments that Linear"),
    (
        "net.safetensors",
        STATE,
        TEXT.replace("out_features=3", "out_features=1000000000"),
        "the layers need [1000000000",
    ),
    ("net.safetensors", STATE, TEXT.replace("(1): D", "(0): D"), "has the name of another layer: 0"),
    ("net.safetensors", STATE, TEXT[:-1], "the text of the layers ends before its last bracket"),
    ("net.safetensors", STATE, TEXT + "\nhello", "is not a layer that PyTorch prints"),
    ("net.safetensors", STATE, "Linear(4, 3)", "write print(model) of an nn.Sequential"),
    ("net.safetensors", STATE, "Sequential(\n" * 3000, "the text of the layers has 3000 lines"),
    ("net.pt", MADE, TEXT, "has objects, and loading them would run their code: save only the weights"),
    ("net.pt", torch.ones(3), TEXT, "has no weights by name"),
    ("net.pt", EXPANDED, TEXT, "the tensor '2.weight' claims to have more numbers than the file holds"),
    ("net.pt", {**STATE, "2.weight": torch.ones(3, 6).to_sparse()}, TEXT, "is sparse or quantised"),
]


@pytest.mark.parametrize(("name", "weights", "text", "message"), MISFITS, ids=[case[-1][:40] for case in MISFITS])
def test_weights_that_do_not_fit_get_one_line(tmp_path: Path, name: str, weights: Any, text: str, message: str) -> None:
    path, layers = files(tmp_path, weights, text, name)
    with pytest.raises(ModelImportError) as error:
        read_model(path, Options(layers=layers))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_without_layers_are_refused_with_the_remedy(tmp_path: Path) -> None:
    path, layers = files(tmp_path, STATE)
    with pytest.raises(ModelImportError, match=r"has weights and no layers: write print\(model\) .* with --layers"):
        read_model(path, Options())
    with pytest.raises(ModelImportError, match=r"--layers is only for weights \(\.safetensors, \.pt"):
        read_model(tmp_path / "net.onnx", Options(layers=layers))
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelImportError, match=r"not a file of torch\.save since PyTorch 1\.6: save only the weights"):
        read_model(tmp_path / "old.pt", Options(layers=layers))


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.jit.trace(MADE, torch.zeros(1, 4)).save(tmp_path / "net.pt")
    with pytest.raises(ModelImportError, match=r"is TorchScript, which has code: save it with torch\.export\.save"):
        read_model(tmp_path / "net.pt", Options())
