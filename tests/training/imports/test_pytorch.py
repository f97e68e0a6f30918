"""For PyTorch modules and `.pt2` files, the folded network gives the outputs of the module in float64."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import foldserve
from foldserve.training.errors import ModelImportError
from foldserve.training.imports.folding import fold
from foldserve.training.imports.front_ends import read_model, read_object
from foldserve.training.imports.imported import Options

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.PReLU, nn.Dropout, nn.Flatten, nn.Identity),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.ReLU(inplace=True),
]


class Branches(nn.Module):
    """A network that computes with constants, has a skip connection, and selects columns."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second, self.last = first, second, nn.Linear(2 * width, 3)
        self.register_buffer("mean", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.first((x - self.mean) / 2.5)
        right = self.second(2 * x + 1).clamp(-3, 3)
        joined = torch.cat([1 - left, left + 0.5 * right], 1)
        return torch.softmax(self.last(joined.view(x.size(0), -1))[:, :2], -1)


@st.composite
def chain(draw: st.DrawFn, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(draw(st.integers(1, 3))):
        layers.append(nn.Linear(width if i else 4, width, bias=draw(st.booleans())))
        norm = nn.BatchNorm1d(width, affine=draw(st.booleans()))
        torch.nn.init.uniform_(norm.running_mean, -1, 1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        activation = draw(st.sampled_from(ACTIVATIONS))()
        layers += [norm, activation] if draw(st.booleans()) else [activation, norm]
    return nn.Sequential(*layers)


@st.composite
def module(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 99)))
    width = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return Branches(draw(chain(width)), draw(chain(width)), width).eval()
    end = draw(
        st.sampled_from([nn.Sequential(nn.Linear(width, 1)), nn.Sequential(nn.Linear(width, 3), nn.LogSoftmax(1))])
    )
    return nn.Sequential(draw(chain(width)), end).eval()


@settings(max_examples=12)
@given(made=module(), source=st.sampled_from(["object", ".pt2", ".safetensors"]))
def test_a_module_and_its_files_give_its_outputs_in_float64(made: nn.Module, source: str) -> None:
    if source == ".pt2":
        with tempfile.TemporaryDirectory() as folder:
            imported = read_model(export(made, Path(folder) / "net.pt2"), Options())
    elif source == "object" or not isinstance(made, nn.Sequential):
        imported = read_object(made, Options())
    else:
        with tempfile.TemporaryDirectory() as folder:
            weights, layers = Path(folder) / "net.safetensors", Path(folder) / "net.txt"
            safetensors.torch.save_file(made.state_dict(), weights)
            layers.write_text(str(made))
            imported = read_model(weights, Options(layers=layers))
    assert imported.reference == f"PyTorch {torch.__version__.partition('+')[0]}, float64"
    rows = np.random.default_rng(0).normal(0, 2, (9, 4)).astype(np.float32)
    with torch.no_grad():
        expected = made.double()(torch.from_numpy(rows.astype(np.float64))).numpy()
    if isinstance(made, nn.Sequential) and imported.task == "classification":
        expected = np.exp(expected)
    for outputs in (
        imported.evaluate(rows),
        imported.network.evaluate(rows),
        fold(imported.network).network.evaluate(rows),
    ):
        np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(imported.evaluate(rows), expected, rtol=1e-12, atol=1e-12)
    (original,) = imported.float32.values()
    np.testing.assert_allclose(original(rows), expected, rtol=1e-2, atol=1e-3)


def export(made: nn.Module, path: Path) -> Path:
    program = torch.export.export(made, (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(program, path)
    return path


def saved(path: Path) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    export(made, path)
    return made


def test_a_file_and_its_module_become_bundles_that_predict_the_same(tmp_path: Path) -> None:
    made = saved(tmp_path / "net.pt2")
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = made(torch.from_numpy(rows)).softmax(1).numpy()
    for model in (tmp_path / "net.pt2", made):
        with pytest.warns(foldserve.TableWarning):
            bundle = foldserve.import_model(model, name="net", models=tmp_path, labels=["a", "b", "c"], ranges=(-3, 3))
        certificate = bundle.manifest.certificate
        name = f"PyTorch {torch.__version__.partition('+')[0]}"
        assert certificate.reference == f"{name}, float64"
        assert f"{name} float32, original" in {measured.runtime for measured in certificate.measurements}
        served = foldserve.load(bundle.path)
        np.testing.assert_allclose(served.predict_proba(rows), expected, rtol=1e-4, atol=1e-5)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sort(self.layer(x), 1)[0]


class Before(nn.Module):
    """A layer that reads the result of a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.function(x))


# For each argument: a function that has the argument, and the part of the refusal that names it.
UNKNOWN_ARGUMENTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "a rounded quotient": (
        lambda x: torch.div(x, 2.0, rounding_mode="floor"),
        "div 'div': its arguments are not supported (rounding_mode='floor' is unknown)",
    ),
    "a truncated quotient": (lambda x: torch.div(x, 2.0, rounding_mode="trunc"), "rounding_mode='trunc' is unknown"),
    "a softplus with a low threshold": (
        lambda x: nn.functional.softplus(x, threshold=3),
        "softplus 'softplus': its arguments are not supported (threshold is less than 20)",
    ),
    "a softmax in float16": (lambda x: torch.softmax(x, 1, dtype=torch.float16).float(), "softmax 'softmax': "),
    "another type of the same bits": (lambda x: x.view(torch.int32).mul(1.0), "view 'view': its arguments are"),
    "a cast to float16": (lambda x: x.half().float(), "aten.to 'to': this operator is not supported"),
    "a cast to integers": (lambda x: x.to(torch.int64).float(), "aten.to 'to': this operator is not supported"),
}


@pytest.mark.parametrize(("function", "message"), UNKNOWN_ARGUMENTS.values(), ids=UNKNOWN_ARGUMENTS)
def test_an_argument_that_changes_the_result_is_refused_by_name(
    function: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    with pytest.raises(ModelImportError) as error:
        read_object(Before(function).eval(), Options())
    assert message in str(error.value)


KNOWN_ARGUMENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "add with alpha": lambda x: torch.add(x, 1.0, alpha=3),
    "add of two values with alpha": lambda x: torch.add(x, x.tanh(), alpha=3),
    "sub with alpha": lambda x: torch.sub(x, x.tanh(), alpha=2),
    "rsub with alpha": lambda x: torch.rsub(x, 1.0, alpha=2),
    "gelu with tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "leaky_relu with a slope": lambda x: nn.functional.leaky_relu(x, 0.3),
    "clamp on one side": lambda x: x.clamp(max=0.5),
    "softmax in float32": lambda x: torch.softmax(x, 1, dtype=torch.float32),
}


@pytest.mark.parametrize("function", KNOWN_ARGUMENTS.values(), ids=KNOWN_ARGUMENTS)
def test_an_argument_that_is_understood_counts(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    rows = np.random.default_rng(0).normal(0, 2, (9, 4)).astype(np.float32)
    made = Before(function).eval()
    imported = read_object(made, Options())
    with torch.no_grad():
        expected = made(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(imported.network.evaluate(rows), expected, rtol=1e-4, atol=1e-5)


REFUSED = [
    (nn.Sequential(nn.Linear(4, 2)), "is in training mode: call model.eval() first"),
    (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(), "statistics of each batch"),
    (Unknown().eval(), "aten.sort 'getitem': this operator is not supported"),
    (nn.Sequential(nn.ReLU()).eval(), "does not say how many features it has"),
    (nn.Sequential(nn.Linear(4, 3)).eval(), "name the classes with --labels"),
]


@pytest.mark.parametrize(("made", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_a_module_that_is_not_understood_is_refused_with_the_remedy(made: nn.Module, message: str) -> None:
    with pytest.raises(ModelImportError) as error:
        read_object(made, Options())
    assert message in str(error.value).replace("\n", "!")


def change(path: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {each: archive.read(each) for each in archive.namelist()}
    (full,) = (each for each in entries if each.endswith(name))
    content = json.loads(entries[full])
    edit(content)
    entries[full] = json.dumps(content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in entries.items():
            archive.writestr(each, data)


LIES = [
    (lambda c: c["config"]["0.weight"].update(use_pickle=True), "'0.weight' is a pickle"),
    (
        lambda c: c["config"]["0.weight"]["tensor_meta"].update(sizes=[{"as_int": 10**9}] * 2),
        "more numbers than the file",
    ),
    (
        lambda c: c["config"]["0.weight"]["tensor_meta"].update(strides=[{"as_int": -4}, {"as_int": 1}]),
        "more numbers than",
    ),
    (lambda c: c["config"]["0.weight"].update(path_name="../../x"), "is damaged, or of another version"),
    (lambda c: c.pop("config"), "is damaged, or of another version"),
]


@pytest.mark.parametrize(("edit", "message"), LIES, ids=[f"{i}: {message[:25]}" for i, (_, message) in enumerate(LIES)])
def test_a_file_that_lies_gets_one_line(tmp_path: Path, edit: Callable[[Any], object], message: str) -> None:
    saved(tmp_path / "net.pt2")
    change(tmp_path / "net.pt2", "model_weights_config.json", edit)
    with pytest.raises(ModelImportError, match=message):
        read_model(tmp_path / "net.pt2", Options())
