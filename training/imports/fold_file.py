"""Folds an ONNX file into another ONNX file, without a bundle.

The input and the output of the model keep their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from foldserve.service.bundle import Folding, Parity, replace_file
from foldserve.service.runtime.session import open_cpu
from foldserve.training.certify.tolerance import allowed_widening, output_tolerance, widen
from foldserve.training.errors import ModelImportError, ParityError
from foldserve.training.imports.comparison import describe_rounding, widened_note
from foldserve.training.imports.folding import fold
from foldserve.training.imports.front_ends import FRONT_ENDS
from foldserve.training.imports.imported import Options
from foldserve.training.imports.onnx_file import read_file
from foldserve.training.imports.onnx_inputs import read_inputs
from foldserve.training.imports.onnx_model import translate
from foldserve.training.imports.onnx_reference import find_narrow, run_original, run_reference
from foldserve.training.imports.onnx_values import Constant, Raw, Stacked
from foldserve.training.imports.write import write_network

_ROWS = 1024

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FoldedFile:
    """A folded file.

    nodes: the number of nodes before folding, and the number after folding. parity: how much the outputs of the folded
    file differ from the reference on random rows.
    """

    report: tuple[Folding, ...]
    notes: tuple[str, ...]
    nodes: tuple[int, int]
    parity: Parity


def fold_file(source: Path, target: Path, options: Options) -> FoldedFile:
    """Fold the ONNX file `source`, and write the result to `target` if both files give the same outputs.

    The outputs are compared on the random rows of `_choose_rows`. The usual tolerance of a certificate applies, and
    `allowed_widening` may widen this tolerance. Raises `ModelImportError`, `FoldError`, `ExportError` or
    `ParityError`. If an error occurs, nothing is written.
    """
    if source.suffix.lower() != ".onnx" and source.suffix.lower() in FRONT_ENDS:
        raise ModelImportError(f"{source.name} is not an ONNX file: fold reads only ONNX; use import")
    model, _ = read_file(source)
    inputs = read_inputs(model, options)
    context = translate(model, inputs, options)
    value = context.values[inputs.output]
    if len(inputs.feeds) > 1 or any(column.is_text or column.categories for column in inputs.columns):
        raise ModelImportError(f"{source.name} has several inputs, or categories: use import")
    if isinstance(value, Constant | Raw | Stacked) or len(value.shape) != 1:
        raise ModelImportError(f"{source.name}: the output {inputs.output!r} is not a row of numbers")
    folded = fold(context.builder.network(value.name))
    feed, shape = inputs.feeds[0].name, inputs.feeds[0].shape
    content = write_network(folded.network, feed, inputs.output, shape=shape)
    reference = run_reference(model, inputs.output, lambda x: {feed: x.astype(np.float64)})
    rows, expected = _choose_rows(reference, shape)
    session = open_cpu(content)
    outputs = session.run(None, {feed: rows})[0]
    original = run_original(model, inputs.output, lambda x: {feed: x})(rows).reshape(len(rows), -1)
    parity, notes = _compare(expected, outputs, original, find_narrow(model, inputs.needed))
    try:
        replace_file(target, content)
    except OSError as error:
        raise ModelImportError(f"can't write {target}: {error.strerror}") from error
    sizes = len(model.graph.node), len(onnx.load_from_string(content).graph.node)
    return FoldedFile(folded.report, (*inputs.notes, *context.notes, *notes), sizes, parity)


def _choose_rows(reference: Callable[[Array], Array], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return `_ROWS` random rows for which the reference gives finite numbers, and the numbers.

    If the reference gives NaN or infinity for a row, as the logarithm of a number below 0 does, a row of positive
    numbers takes the place of this row. Raises `ModelImportError` if too few rows give finite numbers.
    """
    rows = np.random.default_rng(0).normal(size=(_ROWS, *shape)).astype(np.float32)
    expected = reference(rows).reshape(_ROWS, -1)
    bad = ~np.isfinite(expected).all(1)
    if bad.any():
        rows[bad] = abs(rows[bad])
        expected = reference(rows).reshape(_ROWS, -1)
    if not np.isfinite(expected).all():
        raise ModelImportError(
            "the original gives NaN or infinity for random rows of a standard normal distribution, also for positive "
            "ones: use import with --ranges"
        )
    return rows, expected


def _compare(expected: Array, folded: Array, original: Array, narrow: str) -> tuple[Parity, tuple[str, ...]]:
    """Compare the outputs of the folded file with the reference `expected`, and return the differences, and notes for
    the user.

    original: the outputs of the original file in float32. If `original` differs from the reference too,
    `allowed_widening` may widen the tolerance. narrow: as in `Imported`. If `narrow` is not "", the
    tolerance does not change. Raises `ParityError`.
    """
    usual = output_tolerance(float(expected.mean()), float(expected.std()) or 1.0)
    parity, own = usual.measure(expected, folded), usual.measure(expected, original)
    if parity.worst <= 1:
        if not narrow or own.worst <= 1:
            return parity, ()
        return parity, (f"the original is not within the tolerance: {describe_rounding(own.worst, narrow)}",)
    factor = 1.0 if narrow else allowed_widening(own.worst)
    if parity.worst > factor:
        why = f" ({narrow})" if narrow else ""
        raise ParityError(
            f"the folded model differs from the original in float64 by {parity.max_absolute:.3g}, "
            f"{parity.worst:.3g} times the tolerance; the original in float32 differs from it by "
            f"{own.max_absolute:.3g}, {own.worst:.3g} times the tolerance{why}; nothing is written"
        )
    return widen(usual, factor).measure(expected, folded), (widened_note(factor, own.worst),)
