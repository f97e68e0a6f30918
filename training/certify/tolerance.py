"""The tolerance of a certificate: the largest allowed difference of a model's outputs from the reference."""

from __future__ import annotations

from foldserve.service.bundle import Tolerance

_ABSOLUTE, _RELATIVE = 1e-5, 1e-4
# The smallest relative tolerance is 16 units in the last place of a float32, because rounding alone causes smaller
# differences.
_LEAST_RELATIVE = 2.0**-20
# `allowed_widening` multiplies `rounding` by `_ROUNDING`, and returns at most `_MOST_WIDENED`.
_ROUNDING, _MOST_WIDENED = 2.0, 10.0


def output_tolerance(mean: float, std: float) -> Tolerance:
    """Return the tolerance for outputs whose target has the given mean and standard deviation.

    For probabilities (mean 0, standard deviation 1), the tolerance is 1e-5 + 1e-4 |reference|. For a regression, the
    formula 1e-5 + 1e-4 |reference| applies to the standardised target: in the units of the target, the term 1e-5 is
    multiplied by the standard deviation. The term 1e-4 |reference| is limited: if the reference equals the mean, this
    term allows a difference of at most 1e-4 standard deviations. Without this limit, the tolerance for a target whose
    mean is 10,000 standard deviations from zero would be a whole standard deviation, and any model would pass.
    """
    relative = _RELATIVE * std / abs(mean) if mean else _RELATIVE
    return Tolerance(absolute=_ABSOLUTE * std, relative=min(max(relative, _LEAST_RELATIVE), _RELATIVE))


def allowed_widening(rounding: float) -> float:
    """Return the factor by which an imported model may widen the usual tolerance.

    rounding: the difference between the unfolded model in float32 and its float64 reference, as a share of the usual
    tolerance. The folded model may differ from the reference by twice `rounding`, because two float32 models have
    different rounding errors of about the same size. The factor is from 1 to 10.
    """
    return min(max(1.0, _ROUNDING * rounding), _MOST_WIDENED)


def widen(tolerance: Tolerance, factor: float) -> Tolerance:
    """Return a tolerance that is `factor` times as wide."""
    return Tolerance(absolute=tolerance.absolute * factor, relative=tolerance.relative * factor)
