"""Compares the outputs of a runtime with the outputs of the reference, within a tolerance.

This module does not depend on files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from foldserve.service.errors import BundleError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.floating[Any]]


class FrozenModel(BaseModel):
    """The base class of the manifest's parts. Parts are immutable, and have only known fields and finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parity(FrozenModel):
    """The difference between the outputs of one runtime and the outputs of the reference, over `rows` rows.

    max_absolute: the largest difference, |out - ref|.
    max_relative: the largest value of |out - ref| / |ref|. `max_relative` ignores an output if its relative tolerance,
    `relative * |ref|`, is smaller than the absolute tolerance, `absolute`.
    worst: the largest share of the tolerance that an output uses: |out - ref| / (absolute + relative * |ref|). If
    `worst` is above 1, the check fails.
    argmax_rows: the number of rows whose two largest reference outputs differ by more than the tolerance.
    argmax_agreement: among the rows that `argmax_rows` counts, the share in which both outputs have the same argmax.
    argmax_rows and argmax_agreement are None for regression.
    """

    rows: int
    max_absolute: float
    max_relative: float
    worst: float
    argmax_rows: int | None
    argmax_agreement: float | None

    @property
    def holds(self) -> bool:
        """Whether every output is within the tolerance, and both outputs have the same argmax in each row that
        `argmax_rows` counts.
        """
        return self.worst <= 1 and self.argmax_agreement in (None, 1.0)


class Tolerance(FrozenModel):
    """The limit |out - ref| <= absolute + relative * |ref|, for every output of every row."""

    absolute: float = Field(gt=0)
    relative: float = Field(gt=0)

    def measure(self, reference: Array, output: Array) -> Parity:
        """Compare `output` with `reference`. Both arrays have the shape [rows, outputs].

        Raises `BundleError` when the shapes differ or a value is not finite.
        """
        if output.shape != reference.shape:
            raise BundleError(f"the model gives outputs of shape {output.shape}, expected {reference.shape}")
        size = abs(reference)
        difference = abs(output - reference)
        if not math.isfinite(difference.sum()):
            raise BundleError("the model gives an output that is not finite")
        allowed = self.absolute + self.relative * size
        relative_rules = size * self.relative >= self.absolute
        argmax_rows = agreement = None
        if reference.shape[1] > 1:
            best = reference.argmax(1)
            ordered = reference.copy()
            ordered.sort(1)
            clear = ordered[:, -1] - ordered[:, -2] > self.absolute + self.relative * abs(ordered[:, -1])
            argmax_rows = int(clear.sum())
            agreement = float((output.argmax(1) == best)[clear].mean()) if argmax_rows else 1.0
        return Parity(
            rows=len(reference),
            max_absolute=float(difference.max(initial=0.0)),
            max_relative=float((difference[relative_rules] / size[relative_rules]).max(initial=0.0)),
            worst=float((difference / allowed).max(initial=0.0)),
            argmax_rows=argmax_rows,
            argmax_agreement=agreement,
        )
