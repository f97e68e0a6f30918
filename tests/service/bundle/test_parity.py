"""Each figure of `Parity` equals the value that its definition gives. Parity holds if and only if all values are within
the tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from foldserve.service.bundle import BundleError, Tolerance

# Both numbers are powers of two, so that float64 represents the boundary of the tolerance exactly.
TOLERANCE = Tolerance(absolute=0.25, relative=0.125)


def measured_by_hand(reference: np.ndarray, output: np.ndarray, tolerance: Tolerance) -> dict[str, float]:
    """Compute the fields of `Parity` one number at a time."""
    absolute, relative, worst, clear, same = [0.0], [0.0], [0.0], 0, 0
    for expected, found in zip(reference.tolist(), output.tolist(), strict=True):
        for want, have in zip(expected, found, strict=True):
            off = abs(have - want)
            absolute.append(off)
            worst.append(off / (tolerance.absolute + tolerance.relative * abs(want)))
            if tolerance.relative * abs(want) >= tolerance.absolute:
                relative.append(off / abs(want))
        second, first = sorted(expected)[-2:] if len(expected) > 1 else (0.0, 0.0)
        if first - second > tolerance.absolute + tolerance.relative * abs(first):
            clear += 1
            same += max(range(len(found)), key=found.__getitem__) == expected.index(first)
    return {
        "rows": len(reference),
        "max_absolute": max(absolute),
        "max_relative": max(relative),
        "worst": max(worst),
        "argmax_rows": clear,
        "argmax_agreement": same / clear if clear else 1.0,
    }


@given(
    st.tuples(st.integers(1, 6), st.integers(2, 4)).flatmap(
        lambda shape: st.tuples(
            arrays.arrays(np.float64, shape, elements=st.floats(-8, 8)),
            arrays.arrays(np.float32, shape, elements=st.floats(-8, 8, width=32)),
        )
    )
)
def test_a_measurement_follows_its_definitions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, output = pair
    assert TOLERANCE.measure(reference, output).model_dump() == pytest.approx(
        measured_by_hand(reference, output, TOLERANCE), rel=1e-12, abs=1e-300
    )


def test_a_difference_of_exactly_the_tolerance_holds_and_the_next_number_does_not() -> None:
    reference = np.array([[2.0], [-2.0], [0.0]])
    allowed = np.array([[0.5], [0.5], [0.25]])
    on = TOLERANCE.measure(reference, reference + allowed)
    assert on.worst == 1
    assert on.holds
    past = TOLERANCE.measure(reference, np.nextafter(reference + allowed, np.inf))
    assert past.worst > 1
    assert not past.holds


def test_the_argmax_counts_only_where_the_reference_is_clear() -> None:
    reference = np.array([[0.9, 0.1], [0.5, 0.5001], [0.1, 0.9]])
    swapped_where_unclear = np.array([[0.9, 0.1], [0.5001, 0.5], [0.1, 0.9]])
    parity = TOLERANCE.measure(reference, swapped_where_unclear)
    assert (parity.argmax_rows, parity.argmax_agreement) == (2, 1.0)
    assert parity.holds
    swapped_where_clear = np.array([[0.1, 0.9], [0.5, 0.5001], [0.1, 0.9]])
    parity = TOLERANCE.measure(reference, swapped_where_clear)
    assert (parity.argmax_rows, parity.argmax_agreement) == (2, 0.5)
    assert not parity.holds


def test_another_argmax_fails_even_where_every_value_is_within_the_tolerance() -> None:
    # The two outputs of the row move towards each other. Each value moves by less than the tolerance, so the gap
    # between the values changes by almost twice the tolerance.
    parity = TOLERANCE.measure(np.array([[1.0, 0.5]]), np.array([[0.7, 0.8]]))
    assert parity.worst <= 1
    assert parity.argmax_agreement == 0
    assert not parity.holds


def test_without_a_clear_row_the_argmax_agrees() -> None:
    parity = TOLERANCE.measure(np.array([[0.5, 0.5]]), np.array([[0.4, 0.6]]))
    assert (parity.argmax_rows, parity.argmax_agreement) == (0, 1.0)
    assert parity.holds


def test_one_output_has_no_argmax() -> None:
    parity = TOLERANCE.measure(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))
    assert (parity.argmax_rows, parity.argmax_agreement) == (None, None)
    assert parity.holds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(BundleError, match="not finite"):
        TOLERANCE.measure(np.zeros((2, 2)), np.array([[0, 0], [0, value]], np.float32))


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 2), (2, 1), (2,), (4,), (1, 2, 2)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="expected \\(2, 2\\)"):
        TOLERANCE.measure(np.zeros((2, 2)), np.zeros(shape, np.float32))


@pytest.mark.parametrize("values", [{"absolute": 0}, {"relative": 0}, {"absolute": -1}, {"relative": math.nan}])
def test_a_tolerance_is_above_zero(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Tolerance(**{"absolute": 1.0, "relative": 1.0} | values)
