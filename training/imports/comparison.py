"""Compares the folded model with the original, and chooses the tolerance of the certificate.

The reference is the original model in float64. If the original model can also run in float32 in its own runtime, the
module measures the rounding error of this run. The module does not depend on the formats of other frameworks, and
writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from foldserve.service import bundle
from foldserve.training.certify import certificate
from foldserve.training.certify.tolerance import allowed_widening, output_tolerance, widen
from foldserve.training.errors import DataError, ParityError
from foldserve.training.imports.folding import FoldedNetwork
from foldserve.training.imports.imported import Evaluate, Imported
from foldserve.training.imports.rows import Rows
from foldserve.training.imports.write import to_onnx
from foldserve.training.text import join_some

# The original model evaluates at most `_CHUNK` rows in one call, so that the call takes a limited amount of memory.
_CHUNK = 4096

Sets = dict[certificate.RowKind, certificate.Rows]
Outputs = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Runs:
    """Two outputs for each set of rows: those of the reference, and those of one variant of the model."""

    pairs: tuple[tuple[Outputs, Outputs], ...]

    @staticmethod
    def of(evaluate: certificate.Predict, sets: Sets, expected: dict[certificate.RowKind, Outputs]) -> _Runs:
        """Run one variant of the model on each set of rows."""
        return _Runs(tuple((expected[kind], _in_chunks(evaluate, rows)) for kind, rows in sets.items()))

    def worst(self, tolerance: bundle.Tolerance) -> float:
        """Return the largest difference between an output and the reference, as a share of the tolerance."""
        return max(tolerance.measure(*pair).worst for pair in self.pairs)

    def hold(self, tolerance: bundle.Tolerance) -> bool:
        """Whether the outputs and the predicted classes of all pairs agree within the tolerance."""
        return all(tolerance.measure(*pair).holds for pair in self.pairs)


@dataclass(frozen=True)
class Compared:
    """The certificate and the golden rows for the manifest, and notes for the user."""

    certificate: bundle.Certificate
    golden: bundle.Golden
    notes: tuple[str, ...]


def certify(imported: Imported, folded: FoldedNetwork, rows: Rows, model: bytes) -> Compared:
    """Compare the folded network and the exported model with the original, on the rows of the table and random rows.

    The comparison first uses the usual tolerance. If the folded model is outside the usual tolerance,
    `allowed_widening` may allow a wider tolerance. The tolerance becomes wider only if the unfolded model in float32
    also differs from the reference, by more than half of the usual tolerance. Raises `ParityError`.
    """
    exact = partial(_in_chunks, imported.evaluate)
    sets: Sets = {"random": rows.drawn}
    if len(rows.table.x):
        sets = {"held-out": rows.table.x, **sets}
    expected = {kind: exact(each) for kind, each in sets.items()}
    _require_finite(expected, sets, rows)
    usual = _usual_tolerance(imported, rows, expected["random"])
    for name, network in (
        ("the layers, as foldserve reads them,", imported.network),
        ("the folded layers", folded.network),
    ):
        _require_equal(name, _Runs.of(network.evaluate, sets, expected), imported, usual)
    originals = {name: partial(_in_chunks, evaluate) for name, evaluate in imported.float32.items()}
    runs = {name: _Runs.of(evaluate, sets, expected) for name, evaluate in originals.items()}
    rounding = _rounding(imported, runs, sets, expected, usual)
    if not imported.is_independent:
        for name, each in runs.items():
            _require_equal(name, each, imported, widen(usual, allowed_widening(rounding)))
    factors = sorted({1.0, allowed_widening(rounding)})
    for factor in factors:
        allowed = widen(usual, factor)
        kept = {name: originals[name] for name, each in runs.items() if each.hold(allowed)}
        candidates: dict[str, certificate.Predict] = {"numpy float64, folded": folded.network.evaluate, **kept}
        try:
            found = certificate.compare(expected, imported.reference, candidates, model, allowed, sets, widened=factor)
        except ParityError as error:
            if factor == factors[-1]:
                raise ParityError(f"{error}; {describe_rounding(rounding)}") from error
        else:
            break
    notes = [widened_note(factor, rounding)] if factor > 1 else []
    left_out = {name: each.worst(usual) for name, each in runs.items() if name not in kept}
    notes += [
        f"{name}, is not within the tolerance: {describe_rounding(worst, imported.narrow)}"
        for name, worst in left_out.items()
    ]
    return Compared(found, certificate.golden(exact, rows.drawn), tuple(notes))


def widened_note(factor: float, rounding: float) -> str:
    """Return the note that reports a wider tolerance.

    rounding: the rounding error of the unfolded model in float32, as a share of the usual tolerance.
    """
    return f"the tolerance is {factor:.2g} times the usual one: {describe_rounding(rounding)}"


def describe_rounding(rounding: float, narrow: str = "") -> str:
    """Return a text that says how much the original or the unfolded model rounds, as a share of the usual tolerance.

    narrow: as in `Imported`.
    """
    if narrow:
        return f"the file rounds more than float32 does ({narrow}), by {rounding:.2g} times the usual tolerance"
    return f"before folding, the model in float32 differs from float64 by {rounding:.2g} times the usual tolerance"


def _rounding(
    imported: Imported,
    runs: dict[str, _Runs],
    sets: Sets,
    expected: dict[certificate.RowKind, Outputs],
    usual: bundle.Tolerance,
) -> float:
    """Return the rounding error of the model in float32 before folding, as a share of the usual tolerance.

    If the reference does not depend on how foldserve reads the model, and the original computes in float32, return the
    error of the original in its own runtime. If the original rounds more than float32 does, or if the reference depends
    on how foldserve reads the model, return the error of the unfolded layers in ONNX
    Runtime, because the error of the original would also contain any mistake that foldserve made when it read the
    model.
    """
    if imported.is_independent and not imported.narrow:
        return max((each.worst(usual) for each in runs.values()), default=0.0)
    unfolded = certificate.onnx_runtime_cpu(to_onnx(imported.network, imported.task))
    return _Runs.of(unfolded, sets, expected).worst(usual)


def _in_chunks(evaluate: Evaluate, rows: npt.NDArray[np.float32]) -> Outputs:
    return np.concatenate([evaluate(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)])


def _require_finite(expected: dict[certificate.RowKind, Outputs], sets: Sets, rows: Rows) -> None:
    """Raise `DataError` if the original gives NaN or infinity for a row, because no other model can be compared."""
    found = {kind: np.flatnonzero(~np.isfinite(outputs).all(1)) for kind, outputs in expected.items()}
    kind = next((kind for kind, bad in found.items() if len(bad)), None)
    if kind is None:
        return
    bad, outputs, inputs = found[kind], expected[kind], sets[kind]
    first = int(bad[0])
    number = "infinity" if np.isinf(outputs[first]).any() else "NaN"
    named = zip(rows.features, inputs[first].tolist(), strict=True)
    values = join_some([f"{feature.name}={value:.3g}" for feature, value in named], 4)
    where = f"row {first + 1} of {rows.table.source}" if kind == "held-out" else "a random row"
    remedy = "give values that the model accepts with --ranges"
    if len(rows.table.x):
        remedy = "leave out such rows" if kind == "held-out" else "leave out --data, and give ranges with --ranges"
    raise DataError(
        f"the original gives {number} for {where} ({values}), and for {len(bad)} of {len(inputs)} rows: {remedy}"
    )


def _usual_tolerance(imported: Imported, rows: Rows, random: Outputs) -> bundle.Tolerance:
    """Return the usual tolerance for the outputs of the model.

    For a regression, the unit of the tolerance is the standard deviation of the target, or of the outputs if there is
    no target. random: the outputs of the reference for the random rows.
    """
    if imported.task == "classification":
        return output_tolerance(0.0, 1.0)
    values = rows.table.y if len(rows.table.y) else random
    return output_tolerance(float(values.mean()), float(values.std()) or 1.0)


def _require_equal(name: str, runs: _Runs, imported: Imported, tolerance: bundle.Tolerance) -> None:
    """Refuse a model if its outputs differ by more than folding or rounding can explain.

    The probable reason is that foldserve reads the model incorrectly.
    """
    if not runs.hold(tolerance):
        raise ParityError(
            f"{name}: the outputs differ from {imported.reference} by {runs.worst(tolerance):.3g} times the tolerance, "
            "so foldserve may read the model in a wrong way; please report this model"
        )
