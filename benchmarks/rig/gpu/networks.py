"""Makes random batch-norm networks, folded and unfolded.

A network exists as ONNX files, as a bundle, and as a float64 reference in NumPy. The running statistics of the batch
norms come from standard normal rows. Nothing is trained, because speed does not depend on the values of the weights.
The module does not depend on devices or clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from foldserve.service import bundle
from foldserve.service.runtime.session import Precision
from foldserve.training.certify.certificate import certify, golden, reference
from foldserve.training.fold.export import INPUT, OPSET, OUTPUT, to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture

Rows = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]

# The tolerances of probabilities: |out - ref| <= absolute + relative * |ref|. fp32: the tolerance of a certificate.
# Each layer adds a relative error of 2^-11 (TF32, fp16) or 2^-8 (bf16), because a product keeps only 10 bits of each
# factor in TF32 and fp16, and 7 bits in bf16. The error of a probability is at most a quarter of the error of a logit.
TOLERANCES: dict[Precision, bundle.Tolerance] = {
    "fp32": bundle.Tolerance(absolute=1e-5, relative=1e-4),
    "tf32": bundle.Tolerance(absolute=5e-3, relative=1e-2),
    "fp16": bundle.Tolerance(absolute=5e-3, relative=1e-2),
    "bf16": bundle.Tolerance(absolute=4e-2, relative=8e-2),
}
_CALIBRATION_ROWS = 4096
_CERTIFICATE_ROWS = 256
# The number of rows that are computed together. The float64 activations of all rows would need gigabytes.
_ORACLE_ROWS = 8192
# The weights of the last layer are scaled by this factor. Without this factor, all probabilities could be equal, or all
# 0 or 1.
_LOGITS = 4.0


@dataclass(frozen=True)
class Network:
    """One network in eval mode, with its ONNX files.

    widths: the number of features, the width of each hidden Dense layer, and the number of outputs. oracle: maps
    float32 [rows, features] to float64 [rows, outputs].
    """

    name: str
    widths: tuple[int, ...]
    unfolded: nn.Sequential
    folded: nn.Sequential
    folded_onnx: bytes
    unfolded_onnx: bytes
    oracle: Callable[[Rows], Exact]

    @property
    def title(self) -> str:
        """The widths of the layers as text, such as 64-64-10."""
        return "-".join(map(str, self.widths))

    def flops(self, rows: int) -> int:
        """Return the number of floating-point operations of a batch.

        A row needs one multiplication and one addition for each weight.
        """
        return 2 * rows * sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))


def make(name: str, widths: tuple[int, ...], seed: int) -> Network:
    """Make a random network. The batch norms have the statistics of standard normal rows."""
    features, *hidden, outputs = widths
    torch.manual_seed(seed)
    network = build_mlp(features, outputs, Architecture(hidden=tuple(hidden), dropout=0.0))
    with torch.no_grad():
        norms = [layer for layer in network if isinstance(layer, nn.BatchNorm1d)]
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
        network.train()(torch.randn(_CALIBRATION_ROWS, features))
        last = network[-1]
        if not isinstance(last, nn.Linear):
            raise TypeError("the last layer is not a Dense")
        last.weight.mul_(_LOGITS)
    folded = fold(network.eval()).network
    content, unfolded = (
        to_onnx(chain, features, outputs, "classification", unfolded=chain is network) for chain in (folded, network)
    )
    return Network(name, widths, network, folded, content, unfolded, _oracle(network))


def _oracle(network: nn.Sequential) -> Callable[[Rows], Exact]:
    """Return a function that computes the unfolded network with NumPy in float64.

    The function maps float32 [rows, features] to probabilities [rows, outputs].
    """
    steps: list[Callable[[Exact], Exact]] = []

    def exact(tensor: torch.Tensor | None) -> Exact:
        return np.zeros(1) if tensor is None else tensor.detach().double().numpy()

    for layer in network:
        if isinstance(layer, nn.Linear):
            w, b = exact(layer.weight), exact(layer.bias)
            steps.append(partial(_dense, w, b))
        elif isinstance(layer, nn.BatchNorm1d):
            mean, var, gamma, beta = map(exact, (layer.running_mean, layer.running_var, layer.weight, layer.bias))
            root = np.sqrt(var + layer.eps)
            steps.append(partial(_norm, mean, root, gamma, beta))
        else:
            steps.append(partial(np.maximum, 0.0))

    def probabilities(rows: Rows) -> Exact:
        found = []
        for start in range(0, len(rows), _ORACLE_ROWS):
            x = rows[start : start + _ORACLE_ROWS].astype(np.float64)
            for step in steps:
                x = step(x)
            powers = np.exp(x - x.max(1, keepdims=True))
            found.append(powers / powers.sum(1, keepdims=True))
        return np.concatenate(found)

    return probabilities


def _dense(weight: Exact, bias: Exact, x: Exact) -> Exact:
    return x @ weight.T + bias


def _norm(mean: Exact, root: Exact, gamma: Exact, beta: Exact, x: Exact) -> Exact:
    return (x - mean) / root * gamma + beta


def half(content: bytes, precision: Literal["fp16", "bf16"]) -> bytes:
    """Convert a float32 ONNX file to `precision`. A Cast converts the input, and the Softmax stays float32."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    kind, dtype = {
        "fp16": (TensorProto.FLOAT16, torch.float16),
        "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
    }[precision]
    for tensor in graph.initializer:
        values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).to(dtype)
        raw = values.view(torch.int16).numpy().tobytes()  # NumPy has no bfloat16
        tensor.CopyFrom(helper.make_tensor(tensor.name, kind, list(values.shape), raw, raw=True))
    first, softmax = graph.node[0], graph.node[-1]
    name = graph.input[0].name
    first.input[0] = f"{name}.{precision}"
    logits = softmax.input[0]
    softmax.input[0] = f"{logits}.float32"
    casts = (
        helper.make_node("Cast", [name], [f"{name}.{precision}"], to=kind),
        helper.make_node("Cast", [logits], [f"{logits}.float32"], to=TensorProto.FLOAT),
    )
    graph.node.insert(0, casts[0])
    graph.node.insert(len(graph.node) - 1, casts[1])
    onnx.checker.check_model(model, full_check=True)
    changed: bytes = model.SerializeToString(deterministic=True)
    return changed


def write_bundle(network: Network, models: Path) -> bundle.Bundle:
    """Write a network as the next version of a model in `models`, with a certificate. Raises the exceptions of
    `certify`.
    """
    features, outputs = network.widths[0], network.widths[-1]
    random_rows = np.random.default_rng(0).standard_normal((2 * _CERTIFICATE_ROWS, features), np.float32)
    rows, others = random_rows[:_CERTIFICATE_ROWS], random_rows[_CERTIFICATE_ROWS:]
    certificate = certify(
        network.unfolded,
        network.folded,
        network.folded_onnx,
        "classification",
        TOLERANCES["fp32"],
        held_out=rows,
        drawn=others,
    )
    histogram = bundle.Histogram(edges=(-1.0, 1.0), counts=(1,))

    def manifest(version: int) -> bundle.Manifest:
        return bundle.Manifest(
            schema_version=bundle.SCHEMA_VERSION,
            name=network.name,
            version=version,
            created=datetime.now(UTC).replace(microsecond=0),
            task="classification",
            model=bundle.ModelFile(
                size=len(network.folded_onnx), sha256=sha256(network.folded_onnx).hexdigest(), opset=OPSET
            ),
            input=bundle.Tensor(name=INPUT, shape=(-1, features)),
            output=bundle.Tensor(name=OUTPUT["classification"], shape=(-1, outputs)),
            features=tuple(
                bundle.Feature(name=f"x{i}", range=(-1.0, 1.0), histogram=histogram) for i in range(features)
            ),
            labels=tuple(range(outputs)),
            certificate=certificate,
            golden=golden(reference(network.unfolded, "classification"), others),
            folded=(),
            metrics={},
            provenance=bundle.Provenance(
                source="random, for a benchmark",
                data_sha256="0" * 64,
                rows={},
                seed=0,
                threads=1,
                cpu="any",
                hyperparameters={},
                versions={},
            ),
        )

    return bundle.write(models, network.name, network.folded_onnx, manifest)


def distance(outputs: Rows, expected: Exact) -> float:
    """Return ||outputs - expected|| / ||expected||."""
    return float(np.linalg.norm(outputs - expected)) / float(np.linalg.norm(expected))
