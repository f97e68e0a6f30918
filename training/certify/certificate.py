"""The certificate: measures whether the exported model computes the same function as the trained network.

The reference is the *unfolded* network, which PyTorch evaluates in float64. The folded network in float32 is compared
with the unfolded network. In ONNX Runtime, the exported model is compared with the unfolded network on every available
device. The measured ONNX file has the same bytes as the file in the bundle. The module does not write a bundle.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import nn

from foldserve.service.bundle import (
    BundleError,
    Certificate,
    Feature,
    Golden,
    Measurement,
    Task,
    Tolerance,
    draw_column,
)
from foldserve.service.runtime.session import CUDA, Options, cuda_options, open_cpu, open_cuda
from foldserve.training.errors import ParityError
from foldserve.training.fold.export import INPUT

Rows = npt.NDArray[np.float32]
Outputs = npt.NDArray[np.floating]
Predict = Callable[[Rows], Outputs]

RowKind = Literal["held-out", "random"]

RANDOM_ROWS = 4096
SMALL_BATCH_ROWS = 256
GOLDEN_ROWS = 16
_MISSING_SHARE = 1 / 8  # the share of drawn values that are NaN, for a feature with missing values


def reference(network: nn.Module, task: Task) -> Predict:
    """Return a function that evaluates the unfolded network: float32 [rows, features] -> float64 [rows, outputs]."""
    return _torch(copy.deepcopy(network).double().eval(), task, torch.float64)


def certify(
    network: nn.Module,
    folded: nn.Sequential,
    model: bytes,
    task: Task,
    tolerance: Tolerance,
    *,
    held_out: Rows,
    drawn: Rows,
) -> Certificate:
    """Compare the folded network and its ONNX export with the unfolded `network`, which is in eval mode.

    held_out: rows outside the training set, float32 [rows, features]. drawn: random rows, float32 [rows, features].
    Each runtime runs each of the two sets in batches of 1 row, in batches of 2 rows, and as one batch. Raises
    `ParityError` if an output is outside the tolerance. Also raises `ParityError` if the predicted class changes
    although the two largest outputs differ by more than the tolerance.
    """
    sets: dict[RowKind, Rows] = {"held-out": held_out, "random": drawn}
    candidates = {"torch float32": _torch(folded, task, torch.float32)}
    exact = reference(network, task)
    expected = {kind: exact(rows) for kind, rows in sets.items()}
    return compare(expected, "torch float64, unfolded", candidates, model, tolerance, sets)


def compare(
    expected: Mapping[RowKind, Outputs],
    name: str,
    candidates: dict[str, Predict],
    model: bytes,
    tolerance: Tolerance,
    sets: dict[RowKind, Rows],
    *,
    widened: float = 1.0,
) -> Certificate:
    """Compare `candidates` and the exported model in ONNX Runtime with the outputs of the reference.

    expected: the outputs of the reference for each set of rows. name: the text that describes the reference in the
    manifest. candidates: maps the name of each runtime to a function that predicts from rows, float32 [rows, features].
    Each candidate runs each set of rows in batches of 1 row, in batches of 2 rows, and as one batch. widened:
    `tolerance` divided by the usual tolerance. Raises `ParityError` in the same cases as `certify`.
    """
    measurements: list[Measurement] = []
    for runtime, predict in {**candidates, **_onnx_runtimes(model)}.items():
        for kind, rows in sets.items():
            measurements += _measure(runtime, predict, tolerance, kind, rows, expected[kind])
    return Certificate(reference=name, tolerance=tolerance, measurements=tuple(measurements), widened=widened)


def draw(features: Sequence[Feature], train: Rows, rows: int, seed: int) -> Rows:
    """Draw random rows that are similar to the training rows, as float32 [rows, features].

    train: float32 [training rows, features]. If all values of a column in `train` are whole numbers, the drawn values
    are whole numbers too. If a feature may have missing values, one in eight of its drawn values is NaN.
    """
    generator = np.random.default_rng(seed)
    drawn = np.empty((rows, len(features)), np.float32)
    for i, feature in enumerate(features):
        known = train[:, i][~np.isnan(train[:, i])]
        drawn[:, i] = draw_column(feature, rows, generator, integers=bool((known == np.rint(known)).all()))
        if feature.missing:
            drawn[generator.random(rows) < _MISSING_SHARE, i] = np.nan
    return drawn


def golden(exact: Predict, drawn: Rows) -> Golden:
    """Return the first drawn rows together with the outputs of the reference `exact` for these rows."""
    rows = drawn[:GOLDEN_ROWS]
    inputs = tuple(tuple(None if value != value else value for value in row) for row in rows.astype(float).tolist())
    return Golden(inputs=inputs, outputs=exact(rows).tolist())


def _measure(
    runtime: str,
    predict: Predict,
    tolerance: Tolerance,
    kind: RowKind,
    rows: Rows,
    expected: Outputs,
) -> Iterator[Measurement]:
    for batch in (1, 2, len(rows)):
        # Matrix libraries use different kernels for small batches of 1 or 2 rows and for large batches. A few hundred
        # rows are enough to show a difference between the kernels.
        few = rows if batch == len(rows) else rows[:SMALL_BATCH_ROWS]
        try:
            outputs = np.concatenate([predict(few[i : i + batch]) for i in range(0, len(few), batch)])
            parity = tolerance.measure(expected[: len(few)], outputs)
        except BundleError as error:
            raise ParityError(f"{runtime}, {kind} rows: {error}") from error
        if not parity.holds:
            raise ParityError(
                f"{runtime} differs from the unfolded network on {kind} rows in batches of {batch}: by "
                f"{parity.max_absolute:.3g} at most, {parity.worst:.3g} times the tolerance"
                + ("" if parity.argmax_agreement in (None, 1.0) else f", same argmax: {parity.argmax_agreement:.2%}")
            )
        yield Measurement(runtime=runtime, rows=kind, batch=batch, parity=parity)


def _torch(network: nn.Module, task: Task, dtype: torch.dtype) -> Predict:
    @torch.no_grad()
    def predict(rows: Rows) -> Outputs:
        outputs = network(torch.from_numpy(rows).to(dtype))
        result: Outputs = (outputs.softmax(1) if task == "classification" else outputs).numpy()
        return result

    return predict


def onnx_runtime_cpu(model: bytes) -> Predict:
    """Open `model` in ONNX Runtime on the CPU, as a server does.

    Raises `BundleError` if ONNX Runtime refuses the model.
    """
    return partial(_run, open_cpu(model))


def _onnx_runtimes(model: bytes) -> dict[str, Predict]:
    """Return the exported model in ONNX Runtime on the CPU, and also on CUDA if CUDA works here."""
    runtimes = {"onnxruntime CPU": onnx_runtime_cpu(model)}
    if CUDA in ort.get_available_providers():
        # The list of available providers may include providers that can't be loaded. If CUDA can't be loaded, the
        # certificate does not cover CUDA. Each server checks the exported model again on the device that it uses.
        with contextlib.suppress(Exception):
            runtimes["onnxruntime CUDA"] = partial(_run, open_cuda(model, cuda_options(Options(buckets=()))))
    return runtimes


def _run(session: ort.InferenceSession, rows: Rows) -> Outputs:
    outputs: Outputs = session.run(None, {INPUT: rows})[0]
    return outputs
