"""Tables for the tests, written as CSV files."""

import csv

import pytest

from foldserve.training.plan import DataOptions
from foldserve.training.table.load import load


@pytest.fixture
def write(tmp_path):
    """Return a function that writes columns of equal length as a CSV file.

    The last column of the table is the target.
    """

    def write_columns(columns, name="table.csv"):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
        return tmp_path / name

    return write_columns


@pytest.fixture
def load_columns(write):
    """Return a function that writes columns as a CSV file and loads it."""

    def load_written(columns, **options):
        return load(DataOptions(str(write(columns)), **options))

    return load_written
