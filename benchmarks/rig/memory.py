"""Measures a training on a large table: the peak memory, and the time until the first output."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from rig.processes import Run, run
from rig.report import figure_row, markdown

ROWS = 1_000_000
COLUMNS = 50
CLASSES = 3
PEAK_GIB = 6.0
FIRST_OUTPUT_S = 1.0
_CHUNK = 50_000


def write_table(path: Path, rows: int, columns: int = COLUMNS, seed: int = 0) -> None:
    """Write a CSV file with `columns` columns of numbers from 0.0000 to 9.9999, and a column `label`.

    The label is a letter, which stands for the largest of three weighted sums. All numbers have the same number of
    characters, so that NumPy can compute the bytes of many rows together.
    """
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((columns, CLASSES))
    with path.open("wb") as file:
        file.write((",".join([*(f"x{i}" for i in range(columns)), "label"]) + "\n").encode())
        for start in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - start)
            numbers = np.clip(50_000 + 15_000 * generator.standard_normal((count, columns)), 0, 99_999).astype(np.int64)
            line = np.empty((count, 7 * columns + 2), np.uint8)
            cells = line[:, : 7 * columns].reshape(count, columns, 7)
            cells[..., 1], cells[..., 6] = ord("."), ord(",")
            for place, power in zip((0, 2, 3, 4, 5), (10_000, 1_000, 100, 10, 1), strict=True):
                cells[..., place] = ord("0") + numbers // power % 10
            line[:, -2] = ord("a") + ((numbers - 50_000) @ weights).argmax(1)
            line[:, -1] = ord("\n")
            file.write(line.tobytes())


def measure(folder: Path, rows: int, core: int) -> Run:
    """Write the table and train on it. Raises `RunError` if the training fails."""
    table = folder / "million.csv"
    print(f"memory: {rows:,} rows of {COLUMNS} columns", file=sys.stderr)
    write_table(table, rows)
    command = [sys.executable, "-m", "foldserve.training", "fit", str(table), "--target", "label"]
    return run([*command, "--models", str(folder), "--name", "million"], core)


def report(done: Run, rows: int) -> str:
    """Write a table that compares the run with the targets."""
    title = f"`foldserve-train fit`, {rows:,} rows of {COLUMNS} columns"
    return markdown(
        [
            (title, "measured", "target", ""),
            figure_row("peak memory, GiB", done.peak_bytes / 2**30, "≤", PEAK_GIB, "{:.2f}"),
            figure_row("s until the first output", done.first_output_s, "≤", FIRST_OUTPUT_S, "{:.2f}"),
            figure_row("s in total", done.wall_s, "≤", None, "{:.0f}"),
        ]
    )
