"""The tolerance of a certificate: the largest allowed distance of a model's outputs from the reference."""

from __future__ import annotations

from foldserve.service.bundle import Tolerance

_ABSOLUTE, _RELATIVE = 1e-5, 1e-4
# This is 16 units in the last place of a float32. A smaller relative difference is only rounding.
_LEAST_RELATIVE = 2.0**-20
# The rules of `allowed_widening`.
_ROUNDING, _MOST_WIDENED = 2.0, 10.0


def output_tolerance(mean: float, std: float) -> Tolerance:
    """Return the tolerance for outputs whose target has this mean and standard deviation.

    For probabilities (mean 0, standard deviation 1), the tolerance is 1e-5 + 1e-4 |reference|. For a regression, the
    same formula applies to the standardised target. In the units of the target, the absolute part is therefore
    multiplied by the standard deviation. For a reference at the mean, the relative part is at most 1e-4 standard
    deviations. If the relative part allowed 1e-4 of the mean, any model would pass for a target whose mean is 10,000
    standard deviations from zero.
    """
    relative = _RELATIVE * std / abs(mean) if mean else _RELATIVE
    return Tolerance(absolute=_ABSOLUTE * std, relative=min(max(relative, _LEAST_RELATIVE), _RELATIVE))


def allowed_widening(rounding: float) -> float:
    """Return the factor by which the tolerance of an imported model may grow.

    rounding: the share of the usual tolerance by which the model in float32, before folding, differs from its float64
    reference. The rounding errors of two float32 models are different, but have about the same size. So the folded
    model may differ from the reference by twice this share. The factor is from 1 to 10.
    """
    return min(max(1.0, _ROUNDING * rounding), _MOST_WIDENED)


def widen(tolerance: Tolerance, factor: float) -> Tolerance:
    """Return a tolerance that is `factor` times as wide."""
    return Tolerance(absolute=tolerance.absolute * factor, relative=tolerance.relative * factor)
