"""The tolerance of a certificate: how far a model's outputs may be from those of the reference."""

from __future__ import annotations

from foldserve.service.bundle import Tolerance

_ABSOLUTE, _RELATIVE = 1e-5, 1e-4
# 16 units in the last place of a float32: a smaller relative difference is rounding.
_LEAST_RELATIVE = 2.0**-20


def output_tolerance(mean: float, std: float) -> Tolerance:
    """Return the tolerance for outputs whose target has this mean and standard deviation.

    For outputs around 1 it is 1e-5 + 1e-4 |reference|: probabilities (mean 0, standard deviation 1), and the values of
    a regression in standard deviations of its target. In the target's own units, the absolute part is multiplied by
    the standard deviation. The relative part allows 1e-4 standard deviations at the mean: 1e-4 of a mean that is
    10,000 standard deviations from zero would accept any model.
    """
    relative = _RELATIVE * std / abs(mean) if mean else _RELATIVE
    return Tolerance(absolute=_ABSOLUTE * std, relative=min(max(relative, _LEAST_RELATIVE), _RELATIVE))
