"""Measures the effect of each part of the preset `best`. Each variant is `best` without one part: `python
benchmarks/ablation.py --data DIR`.

Each run is a whole `foldserve-train fit` on the training file of a table. The command splits the training file by the
seed. This benchmark never reads the test files, so decisions that use its figures do not depend on test rows. A run has
one core and one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from rig.accuracy import Fit, Table, find_tables, fit_foldserve
from rig.arguments import count
from rig.environments import ROOT
from rig.processes import RunError
from rig.report import NONE, Row, machine, markdown, write_section

PACKAGES = ("foldserve", "torch", "onnxruntime")
DOCUMENT = ROOT / "docs" / "training.md"
MARKERS = "<!-- ablation -->", "<!-- /ablation -->"

# The learning rate of `best` is too high for a network without batch norm. At the learning rate of `best`, the
# comparison would not show the effect of batch norm alone.
VARIANTS = {
    "best": ("--preset", "best"),
    "without bins": ("--preset", "best", "--bins", "0"),
    "without the ensemble": ("--preset", "best", "--members", "1"),
    "without batch norm": ("--preset", "best", "--no-batch-norm", "--learning-rate", "1e-3"),
    "without label smoothing": ("--preset", "best", "--label-smoothing", "0"),
    "without the temperature": ("--preset", "best", "--no-calibrate"),
    "without dropout": ("--preset", "best", "--dropout", "0"),
    "fast": ("--preset", "fast"),
}

Fits = dict[tuple[str, int], dict[str, Fit]]  # the outer key is a table and a seed; the inner key is a variant


def main() -> None:
    """Measure and print the table. With --write, also write the table to docs/training.md."""
    chosen = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # this process leaves the first core to the measured programs
    tables = find_tables(chosen.data, chosen.tables)
    fits, failed = _measure(tables, chosen.seeds, cores[0])
    failures = "\n".join(f"- {where}: {why}; left out of every row" for where, why in failed.items())
    heading = machine([f"{name} {version(name)}" for name in PACKAGES])
    text = "\n\n".join(filter(None, (heading, report(fits), failures)))
    print(text)
    if chosen.write:
        write_section(text, DOCUMENT, MARKERS)


def _measure(tables: Sequence[Table], seeds: int, core: int) -> tuple[Fits, dict[str, str]]:
    """Fit the variants one after the other.

    If a variant fails, its table and seed are left out for all variants, so that the means are comparable.
    """
    fits: Fits = {}
    failed: dict[str, str] = {}
    for seed in range(seeds):
        for table in tables:
            found = {}
            try:
                for name, flags in VARIANTS.items():
                    print(f"seed {seed}: {table.name}, {name}", file=sys.stderr)
                    found[name] = fit_foldserve(table, flags, seed, core)
            except RunError as error:
                failed[f"{table.name}, seed {seed}, {name}"] = str(error).replace(f"{table.train.parent}/", "")
                continue
            fits[table.name, seed] = found
    return fits, failed


def report(fits: Fits) -> str:
    """Write a row for each variant. Each row has the means over all tables and seeds, and the number of runs in which
    the metric is worse than that of `best`.
    """
    rows: list[Row] = [("", "accuracy", "log loss", "higher than best's", "R2", "lower than best's", "s per fit")]
    for name in VARIANTS:
        seconds = fmean([found[name].seconds for found in fits.values()]) if fits else None
        rows.append(
            (
                name,
                _mean(fits, name, "accuracy"),
                _mean(fits, name, "log_loss"),
                _worse(fits, name, "log_loss", 1),
                _mean(fits, name, "r2"),
                _worse(fits, name, "r2", -1),
                NONE if seconds is None else f"{seconds:.1f}",
            )
        )
    names = dict.fromkeys(table for table, _ in fits)
    runs = f"{len(fits)} run" + ("" if len(fits) == 1 else "s")
    tables = ", ".join(names) or "none"
    return f"{markdown(rows)}\n\nEach figure is the mean of {runs} of a variant, on these tables: {tables}."


def _values(fits: Fits, name: str, metric: str) -> list[float]:
    return [found[name].metrics[metric] for found in fits.values() if metric in found[name].metrics]


def _mean(fits: Fits, name: str, metric: str) -> str:
    values = _values(fits, name, metric)
    return f"{fmean(values):.4f}" if values else NONE


def _worse(fits: Fits, name: str, metric: str, sign: int) -> str:
    pairs = list(zip(_values(fits, name, metric), _values(fits, "best", metric), strict=True))
    return (
        f"{sum(sign * one > sign * best for one, best in pairs)} of {len(pairs)}" if pairs and name != "best" else NONE
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", required=True, metavar="DIR", help="folder of NAME.train.csv; repeatable"
    )
    parser.add_argument("--tables", type=lambda text: text.split(","), help="some of the tables; default: all")
    parser.add_argument("--seeds", type=count, default=3, help="seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
