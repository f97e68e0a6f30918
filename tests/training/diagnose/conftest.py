"""The samples that the tests of the diagnosis share."""

import pytest

from foldserve.training.diagnose import run
from foldserve.training.diagnose.sample import draw_sample
from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load
from tests.training.diagnose.support import OWN, TINY


@pytest.fixture(scope="session")
def digits():
    return draw_sample(load(DataOptions("digits")), 0)


@pytest.fixture(scope="session")
def tiny():
    return run.diagnose(load(OWN.data), TINY, OWN)
