"""Compares `foldserve score` with bare calls of ONNX Runtime: `python benchmarks/scoring.py`.

The input is a folder of Parquet files with float32 columns. The command reads the files, checks every value, runs the
model and writes the predictions as Parquet. The bare program runs the same model on the same rows in a session with the
same number of threads. The rows are already in memory, and the program drops the outputs. Each round measures the
command and the bare program, one after the other. The time of the command is the time of its whole process, from start
to end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet
from rig.arguments import count

from foldserve.service import bundle
from foldserve.service.machine import cgroup, processor
from foldserve.training.cli import main as train

ROWS_OF_FILE = 500_000
BATCH = 8_192


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=count, default=8, help="Parquet files of 500,000 rows (default: 8)")
    parser.add_argument("--rounds", type=count, default=5, help="measurements of each program (default: 5)")
    return parser.parse_args()


def write_input(folder: Path, files: int, model: bundle.Bundle) -> np.ndarray:
    """Write the files, which all have the same rows, and return the rows of one file."""
    generator = np.random.default_rng(0)
    columns = [generator.uniform(*(f.range or (0, 1)), ROWS_OF_FILE).astype("f4") for f in model.manifest.features]
    table = pa.table(dict(zip((f.name for f in model.manifest.features), columns, strict=True)))
    for number in range(files):
        pa.parquet.write_table(table, folder / f"{number:03}.parquet")
    return np.array(columns).T.copy()


def bare(model: bundle.Bundle, rows: np.ndarray, files: int) -> float:
    """Return the rows per second of `session.run` alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = cgroup.threads()
    session = ort.InferenceSession(model.model, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": rows[:BATCH]})
    started = time.perf_counter()
    for _ in range(files):
        for start in range(0, len(rows), BATCH):
            session.run(None, {"input": rows[start : start + BATCH]})
    return files * len(rows) / (time.perf_counter() - started)


def command(model: bundle.Bundle, folder: Path, files: int, output: Path, *flags: str) -> float:
    """Return the rows per second of the whole command."""
    line = [sys.executable, "-m", "foldserve.service", "score", model.path, folder, "-o", output, "--force", *flags]
    started = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return files * ROWS_OF_FILE / (time.perf_counter() - started)


def main() -> None:
    """Print a table in Markdown: medians over the rounds, and the median of the ratios within each round."""
    asked = arguments()
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch, "models")
        wide = ["fit", "digits", "--hidden", "256,256", "--epochs", "3", "--name", "wide", "--models", str(models)]
        if train(wide):
            sys.exit(1)
        print(
            f"\n{asked.files * ROWS_OF_FILE:,} rows of 64 float32, {processor.model_name()}, {cgroup.threads()} threads"
        )
        print("| model | `session.run` | `score` | ratio | `score --probabilities` | ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        folder = Path(scratch, "input")
        folder.mkdir()
        for path in (root / "models" / "digits" / "1", models / "wide" / "1"):
            model = bundle.read(path)
            rows = write_input(folder, asked.files, model)
            rounds = []
            for _ in range(asked.rounds):
                alone = bare(model, rows, asked.files)
                short = command(model, folder, asked.files, Path(scratch, "short.parquet"))
                long = command(model, folder, asked.files, Path(scratch, "long.parquet"), "--probabilities")
                rounds.append((alone, short, short / alone, long, long / alone))
            alone, short, first, long, second = map(statistics.median, zip(*rounds, strict=True))
            name = f"{model.manifest.name}, {len(model.model) / 1024:,.0f} KiB"
            print(f"| {name} | {alone:,.0f} | {short:,.0f} | {first:.0%} | {long:,.0f} | {second:.0%} |", flush=True)


if __name__ == "__main__":
    main()
