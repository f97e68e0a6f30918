"""The calendar of moments in PyTorch and in ONNX Runtime is compared with Python's calendar."""

import math
from datetime import date, datetime, timedelta

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import torch
from torch import nn

from foldserve.service.bundle import Reading
from foldserve.training.fold.export import to_onnx
from foldserve.training.network.calendar import CYCLES, NUMBERS, Calendar
from foldserve.training.table.schema import Column


def column(step, origin):
    return Column("when", "time", reading=Reading(step=step, origin=origin))


def expected(moments):
    """Compute the parts of each moment with Python's calendar: float64 [moments, parts]."""
    parts = np.array([[m.year, m.month, m.weekday(), m.hour] for m in moments], float)
    angles = parts[:, 1:] * 2 * math.pi / [12, 7, 24]
    waves = np.stack([np.sin(angles), np.cos(angles)], 2).reshape(len(parts), 6)
    return np.hstack([parts, waves])


def run(calendar, x):
    """Run the calendar in float64, in float32, and in ONNX Runtime."""
    network = nn.Sequential()
    network.add_module("calendar", calendar)
    model = to_onnx(network, x.shape[1], calendar.columns, "regression")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    yield calendar(torch.from_numpy(x.astype(np.float64))).numpy()
    yield calendar(torch.from_numpy(x)).numpy()
    yield session.run(None, {"input": x})[0]


@pytest.mark.parametrize("origin", [date(1970, 1, 1), date(1, 1, 1), date(2024, 1, 1)])
def test_every_day_of_four_hundred_years_has_the_parts_of_python_s_calendar(origin):
    days = np.arange(146_097 if origin.year == 1 else 30_000, dtype=np.float32)
    moments = [datetime.combine(origin, datetime.min.time()) + timedelta(days=int(day)) for day in days]
    wanted = expected(moments)
    for parts in run(Calendar([column("day", origin)]), days[:, None]):
        np.testing.assert_array_equal(parts[:, 0], days)
        np.testing.assert_array_equal(parts[:, 1:5], wanted[:, :4])
        np.testing.assert_allclose(parts[:, 5:], wanted[:, 4:], atol=1e-6)


def test_the_parts_are_those_of_pandas():
    hours = np.random.default_rng(1).integers(-1_500_000, 2_000_000, 5000).astype(np.float32)
    when = pd.Timestamp("1970-01-01") + pd.to_timedelta(hours.astype(np.int64), "h")
    wanted = np.stack([when.year, when.month, when.day_of_week, when.hour], axis=1).astype(float)
    for parts in run(Calendar([column("hour", date(1970, 1, 1))]), hours[:, None]):
        np.testing.assert_array_equal(parts[:, 1:5], wanted)


def test_hours_before_and_after_the_origin_and_far_from_it_are_exact():
    origin = date(1970, 1, 1)
    hours = np.array([-(2**24), -25, -24, -1, 0, 1, 23, 24, 474_000, 2**24 - 1, 2**24], np.float32)[1:]
    hours = np.concatenate([hours, np.random.default_rng(0).integers(-1_000_000, 1_000_000, 5000).astype(np.float32)])
    moments = [datetime(1970, 1, 1) + timedelta(hours=int(hour)) for hour in hours]
    for parts in run(Calendar([column("hour", origin)]), hours[:, None]):
        np.testing.assert_array_equal(parts[:, 1:5], expected(moments)[:, :4])
        np.testing.assert_allclose(parts[:, 5:], expected(moments)[:, 4:], atol=2e-6)


def test_other_columns_stay_and_a_missing_moment_has_missing_parts():
    columns = [Column("n", "numeric"), column("day", date(2024, 1, 1)), column("hour", date(2000, 1, 1))]
    x = np.array([[1.5, 31, 25], [2.5, np.nan, 0]], np.float32)
    calendar = Calendar(columns)
    assert calendar.columns == 3 + 2 * (len(NUMBERS) + len(CYCLES))
    for parts in run(calendar, x):
        np.testing.assert_array_equal(parts[:, :3], x)
        np.testing.assert_array_equal(parts[0, 3:11], [2024, 2000, 2, 1, 3, 6, 0, 1])
        np.testing.assert_array_equal(np.isnan(parts[1, 3:]), [True, False] * 10)
