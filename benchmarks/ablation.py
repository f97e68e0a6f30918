"""What each part of the preset `best` gives, by leaving it out: `python benchmarks/ablation.py --data DIR`.

Whole runs of `foldserve-train fit` on the training files of tables, which it splits itself, by seed: the test files are
never read, so what is decided by these figures is not decided on them. Each run has one core and one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from rig.accuracy import Fit, Table, find_tables
from rig.environments import ROOT
from rig.processes import RunError, run
from rig.report import NONE, Row, keep, machine, markdown

PACKAGES = ("foldserve", "torch", "onnxruntime")
DOCUMENT = ROOT / "docs" / "training.md"
MARKERS = "<!-- ablation -->", "<!-- /ablation -->"

# Without BN the rate of best is too high, and would decide the comparison.
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

Fits = dict[tuple[str, int], dict[str, Fit]]  # by table and seed, one a variant


def main() -> None:
    """Measure, print, and with --write keep it."""
    chosen = _arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # this process itself stays out of the way
    tables = find_tables(chosen.data, chosen.tables)
    fits, out = _measure(tables, chosen.seeds, cores[0])
    said = "\n".join(f"- {where}: {why}; left out of every row" for where, why in out.items())
    text = "\n\n".join(filter(None, (machine([f"{name} {version(name)}" for name in PACKAGES]), report(fits), said)))
    print(text)
    if chosen.write:
        keep(text, DOCUMENT, MARKERS)


def _measure(tables: Sequence[Table], seeds: int, core: int) -> tuple[Fits, dict[str, str]]:
    """Fit every variant, which take turns; a table and seed on which one fails is out, so that all means are of the
    same runs."""
    fits: Fits = {}
    out: dict[str, str] = {}
    for seed in range(seeds):
        for table in tables:
            found = {}
            try:
                for name, flags in VARIANTS.items():
                    print(f"seed {seed}: {table.name}, {name}", file=sys.stderr)
                    found[name] = _fit(table, flags, seed, core)
            except RunError as error:
                out[f"{table.name}, seed {seed}, {name}"] = str(error).replace(f"{table.train.parent}/", "")
                continue
            fits[table.name, seed] = found
    return fits, out


def _fit(table: Table, flags: Sequence[str], seed: int, core: int) -> Fit:
    """Give the processor time of the whole command, and its manifest's figures. Raises `RunError`."""
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, "-m", "foldserve.training", "fit", str(table.train), "--target", table.target]
        command += ["--name", table.name, "--models", models, "--seed", str(seed), *flags]
        ran = run(command, core)
        manifest = json.loads((Path(models) / table.name / "1" / "manifest.json").read_text(encoding="utf-8"))
        return Fit(ran.processor_s, {name: float(value) for name, value in manifest["metrics"]["test"].items()})


def report(fits: Fits) -> str:
    """One line a variant: means over tables and seeds; and in how many of these runs it has the worse figure."""
    rows: list[Row] = [("", "accuracy", "log loss", "higher than best's", "R2", "lower than best's", "s a fit")]
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
    return f"{markdown(rows)}\n\nMeans of {runs} of each, on {', '.join(names) or 'no table'}."


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


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("a whole number, at least 1")
    return int(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", required=True, metavar="DIR", help="has NAME.train.csv; repeatable"
    )
    parser.add_argument("--tables", type=lambda text: text.split(","), help="some of DIR's; default: all")
    parser.add_argument("--seeds", type=_count, default=3, help="fits of each, from seed 0 (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/training.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
