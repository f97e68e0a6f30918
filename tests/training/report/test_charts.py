"""Ticks are round numbers within the axis, and marks stay within the chart."""

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foldserve.training.report.axis import category_axis, linear_axis, log_axis, powers_axis
from foldserve.training.report.charts import draw_predictions, draw_residuals, draw_roc
from foldserve.training.report.curves import trace_curve
from foldserve.training.report.svg import Chart

FINITE = st.floats(-1e12, 1e12)


def numbers(labels):
    return [float(label.replace(",", "")) for label in labels]


@given(st.lists(FINITE, min_size=1, max_size=20), st.booleans())
@example([983949704141.0, 981634966242.0], False)
def test_a_linear_axis_has_a_few_round_ticks_between_its_ends(values, integers):
    axis = linear_axis("x", [values], integers=integers)
    places = [place for place, _ in axis.ticks]
    assert axis.low < axis.high
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert len(places) <= 7
    margin = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - margin <= place <= axis.high + margin for place in places)
    assert len({label for _, label in axis.ticks}) == len(places)
    if integers:
        assert all(place == round(place) for place in places)


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=20))
def test_a_logarithmic_axis_has_at_least_two_ticks_and_room_for_every_value(values):
    axis = log_axis("x", [values])
    assert 2 <= len(axis.ticks) <= 8
    shares = axis.place(np.array(values))
    assert shares.min() >= -1e-9
    assert shares.max() <= 1 + 1e-9
    assert axis.place(np.array([axis.low, axis.high])) == pytest.approx([0, 1])


def test_a_logarithmic_axis_has_no_place_for_values_that_are_not_positive():
    axis = log_axis("x", [[0.0, 1.0, 100.0, np.nan]])
    assert [label for _, label in axis.ticks] == ["1", "10", "100"]
    assert np.isnan(axis.place(np.array([0.0, -1.0, np.nan]))).all()


def test_labels_follow_the_rule_for_numbers():
    assert [label for _, label in linear_axis("x", [], low=0, high=20_000).ticks] == [
        "0",
        "5,000",
        "10,000",
        "15,000",
        "20,000",
    ]
    assert [label for _, label in linear_axis("x", [], low=0, high=1).ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [label for _, label in log_axis("x", [[1e-7, 1e-4]]).ticks] == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴"]
    assert [label for _, label in powers_axis("x", [2, 8, 32]).ticks] == ["2", "8", "32"]
    assert [label for _, label in category_axis("x", ["a", "b"]).ticks] == ["a", "b"]


def test_axes_of_nothing_and_of_one_value_can_be_drawn():
    for axis in (linear_axis("x", []), linear_axis("x", [[5.0]]), log_axis("x", [[np.nan]]), powers_axis("x", [])):
        Chart(axis, axis).svg("empty")


def test_marks_stay_within_the_chart():
    axis = linear_axis("x", [], low=0, high=1)
    chart = Chart(axis, axis)
    values = np.array([-5.0, 0.5, np.nan, 7.0])
    chart.line(values, values, "first")
    chart.points(values, values, "second")
    chart.bars(values, values + 1, values, "ink")
    chart.band(values, values, values + 1, "pale")
    svg = chart.svg("all marks")
    assert "nan" not in svg
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    places = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg)
    assert len(places) > 10
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)


def test_texts_of_a_chart_are_escaped():
    axis = linear_axis("<b>", [], low=0, high=1)
    svg = Chart(axis, axis, "<i>").svg('"<u>')
    assert not re.search(r"<[biu]>", svg)


def test_prices_are_drawn_on_logarithmic_axes_and_errors_of_any_size_by_size():
    prices = np.geomspace(1, 1e6, 500)
    assert "10⁶" in draw_predictions(prices, prices * 1.1, "prices")
    assert "10⁶" not in draw_predictions(prices - 1, prices, "prices from 0 on")
    errors = np.random.default_rng(0).normal(size=500)
    assert "predicted minus true" in draw_residuals(errors, "normal errors")
    assert "predicted too low" in draw_residuals(errors**7, "errors with a long tail")


def test_a_curve_of_many_rows_has_few_points_and_marks_the_threshold():
    generator = np.random.default_rng(0)
    positive = generator.random(20_000) < 0.3
    curve = trace_curve(positive, generator.random(20_000) + positive)
    svg = draw_roc([("yes", curve)], curve.at(0.5), "ROC")
    assert len(svg) < 20_000
    assert "at the threshold" in svg
