"""Models and tables for the tests of `foldserve score`."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from foldserve.service import bundle
from foldserve.training.cli import main

# The columns of the table `sales`. The text of a missing value is "?". The last column of the table is the target.
COLUMNS = ("id", "price", "share", "seen", "sold", "town", "y")


def sales(rows: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Draw the cells of a table: numbers in several notations, dates, booleans, categories and missing values."""
    draw = random.Random(seed)  # noqa: S311 (no secret)

    def row(number: int) -> tuple[str, ...]:
        price = "?" if draw.random() < 0.1 else f"${draw.randrange(100, 9_000_000) / 100:,.2f}"
        seen = f"2024-{draw.randint(1, 12):02}-{draw.randint(1, 28):02} {draw.randrange(24):02}:30"
        return (
            *(f"r{number}", price, f"{draw.randrange(1000) / 10}%", seen, draw.choice(["true", "False", "?"])),
            *(draw.choice(["a", " b", "Küche, groß", "?"]), draw.choice("pq")),
        )

    return [row(number) for number in range(rows)]


def write_csv(path: Path, rows: list[tuple[str, ...]], names: tuple[str, ...] = COLUMNS, **dialect: Any) -> Path:
    encoding = dialect.pop("encoding", "utf-8")
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, **dialect).writerows([names, *rows])
    return path


def train_sales(models: Path) -> Path:
    """Train a model on the table, and return the folder of its bundle."""
    models.mkdir()
    source = write_csv(models / "sales.csv", sales(200))
    arguments = ["fit", str(source), "--missing", "?", "--drop", "id", "--epochs", "2", "--models", str(models)]
    assert main(arguments) == 0
    return models / "sales" / "1"


def digits_table(rows: int) -> pa.Table:
    """Make a table for the shipped model of digits: an id, and float32 values that are drawn from the range of each
    feature.
    """
    features = bundle.read(DIGITS).manifest.features
    draw = random.Random(1)  # noqa: S311
    columns = {
        feature.name: pa.array([draw.uniform(*(feature.range or (0, 1))) for _ in range(rows)], pa.float32())
        for feature in features
    }
    return pa.table({"id": pa.array(range(rows)), **columns})


DIGITS = Path(__file__).parents[4] / "models" / "digits" / "1"
