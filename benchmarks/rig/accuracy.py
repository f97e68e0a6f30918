"""Compares the presets of foldserve with other libraries, by their metrics and times on tables with a fixed split.

A table consists of the files `NAME.train.csv` and `NAME.test.csv`. The target of a table is the column `label`
(classes) or `target` (numbers).
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from rig.environments import CONTENDERS, StartError, environment
from rig.processes import RunError, run
from rig.report import NONE, Row, figure_row, markdown

PRESETS = {"fast": "foldserve, fast", "best": "foldserve, best"}
REFERENCES = {"hgb": "HistGradientBoosting", "mlp": "scikit-learn's MLP", "realmlp": "RealMLP-TD"}
TITLES = PRESETS | REFERENCES
ENVIRONMENT = "training"

FAST_SECONDS = 10.0  # target for the time of `fast` in seconds, if a table has at most FAST_ROWS training rows
FAST_ROWS = 10_000
BEST_SHARE = 1 / 3  # target for the time of `best`, as a share of RealMLP's time


@dataclass(frozen=True)
class Table:
    """One table. rows: the number of rows of the training file. target: the name of the target column."""

    name: str
    train: Path
    test: Path
    target: str
    rows: int

    @property
    def classifies(self) -> bool:
        """Whether the target is a class, not a number."""
        return self.target == "label"


@dataclass(frozen=True)
class Fit:
    """One fit. seconds: the processor time of the fit. metrics: the metrics on the test rows."""

    seconds: float
    metrics: dict[str, float]


Fits = dict[tuple[str, str], list[Fit]]  # each key is a table and a contender; each list has one fit per seed


def find_tables(folders: Iterable[Path], wanted: Sequence[str] | None) -> list[Table]:
    """Find the tables in the folders, sorted by name. Raises `SystemExit` if a wanted table is missing."""
    found = {}
    for train in sorted(path for folder in folders for path in folder.resolve().glob("*.train.csv")):
        name = train.name.removesuffix(".train.csv")
        with train.open(newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            target = "label" if "label" in next(reader) else "target"
            found[name] = Table(name, train, train.with_name(f"{name}.test.csv"), target, sum(1 for _ in reader))
    if missing := set(wanted or ()) - set(found):
        raise SystemExit(f"unknown table {', '.join(sorted(missing))}; choose from {', '.join(found)}")
    return [found[name] for name in wanted or found]


def measure(tables: Sequence[Table], names: Sequence[str], seeds: int, core: int) -> tuple[Fits, dict[str, str]]:
    """Fit every contender on every table, seed by seed. Return the fits, and the reasons for the failures."""
    fits: Fits = {}
    failed: dict[str, str] = {}
    for seed in range(seeds):
        for table in tables:
            for name in names:
                where = f"{table.name}, {TITLES[name]}"
                if where in failed:
                    continue
                print(f"seed {seed}: {where}", file=sys.stderr)
                try:
                    one = _fit(table, name, seed, core)
                    fits.setdefault((table.name, name), []).append(one)
                except (RunError, StartError) as error:  # a median over fewer seeds would not be comparable
                    failed[where] = str(error).replace(f"{table.train.parent}/", "")
                    fits.pop((table.name, name), None)
    return fits, failed


def _fit(table: Table, name: str, seed: int, core: int) -> Fit:
    if name in PRESETS:
        return fit_foldserve(table, ("--test", str(table.test), "--preset", name), seed, core)
    return fit_other(table, name, seed, core)


def fit_other(table: Table, name: str, seed: int, core: int) -> Fit:
    """Fit a model of another library, and measure only the fit. Raises `RunError`, `StartError`."""
    script, files = CONTENDERS / "fit_table.py", (str(table.train), str(table.test))
    done = run([str(environment(ENVIRONMENT)), str(script), name, *files, table.target, str(seed)], core)
    found = json.loads(done.last_line())
    return Fit(found.pop("seconds"), found)


def fit_foldserve(table: Table, flags: Sequence[str], seed: int, core: int) -> Fit:
    """Run `foldserve-train fit` on the training file, and measure the whole command.

    The metrics come from the manifest of the bundle.

    Raises `RunError`.
    """
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, "-m", "foldserve.training", "fit", str(table.train), "--target", table.target]
        command += ["--name", table.name, "--models", models, "--seed", str(seed), *flags]
        done = run(command, core)
        manifest = json.loads((Path(models) / table.name / "1" / "manifest.json").read_text(encoding="utf-8"))
        return Fit(done.processor_s, {name: float(value) for name, value in manifest["metrics"]["test"].items()})


@dataclass(frozen=True)
class Figures:
    """Figures of some tables, as medians over the seeds. A figure is None if a fit is missing."""

    tables: Sequence[Table]
    fits: Fits

    def of_table(self, table: Table, name: str, metric: str) -> float | None:
        """Return the median of a metric over the fits of one contender on one table."""
        fits = self.fits.get((table.name, name), [])
        return median(_values(fits, metric)) if fits else None

    def over_tables(self, name: str, metric: str, combine: Callable[[list[float]], float] = fmean) -> float | None:
        """Combine the medians of all tables. Return None if a table has no median."""
        found = [self.of_table(table, name, metric) for table in self.tables]
        return combine([x for x in found if x is not None]) if found and None not in found else None

    def best_of_references(self, metric: str, choose: Callable[[list[float]], float]) -> float | None:
        """Return the best figure of the three other libraries. Return None if a library has no figure."""
        found = [self.over_tables(name, metric) for name in REFERENCES]
        return choose([x for x in found if x is not None]) if None not in found else None


def _values(fits: Sequence[Fit], metric: str) -> list[float]:
    return [one.seconds if metric == "seconds" else one.metrics[metric] for one in fits]


def report(tables: Sequence[Table], names: Sequence[str], fits: Fits) -> str:
    """Write the table of targets, then every contender on every table."""
    classes = Figures([table for table in tables if table.classifies], fits)
    numbers = Figures([table for table in tables if not table.classifies], fits)
    rows: list[Row] = [("foldserve", "median of the seeds", "target", "")]
    rows += [*_best_rows(classes), *_fast_rows(classes)] if classes.tables else []
    if numbers.tables:
        best, mlp = numbers.best_of_references("r2", max), numbers.over_tables("mlp", "r2")
        rows.append(figure_row("best, mean R2: best other library", numbers.over_tables("best", "r2"), "≥", best))
        rows.append(figure_row("fast, mean R2: scikit-learn's MLP", numbers.over_tables("fast", "r2"), ">", mlp))
    small = [table for table in tables if table.rows <= FAST_ROWS]
    if small:
        slowest = Figures(small, fits).over_tables("fast", "seconds", max)
        text = f"fast, s on its slowest table of up to {FAST_ROWS:,} rows"
        rows.append(figure_row(text, slowest, "≤", FAST_SECONDS, "{:.1f}"))
    parts = [markdown(rows)]
    if classes.tables:
        parts.append("Accuracy, log loss, seconds:\n\n" + _every_contender(classes, names, ("accuracy", "log_loss")))
    if numbers.tables:
        parts.append("RMSE, R2, seconds:\n\n" + _every_contender(numbers, names, ("rmse", "r2")))
    return "\n\n".join(parts)


def _best_rows(figures: Figures) -> list[Row]:
    accuracy, loss = figures.best_of_references("accuracy", max), figures.best_of_references("log_loss", min)
    theirs = figures.over_tables("realmlp", "seconds", sum)
    bound = None if theirs is None else theirs * BEST_SHARE
    return [
        figure_row("best, mean accuracy: best other library", figures.over_tables("best", "accuracy"), "≥", accuracy),
        figure_row("best, mean log loss: best other library", figures.over_tables("best", "log_loss"), "<", loss),
        figure_row(
            "best, total s: a third of RealMLP's", figures.over_tables("best", "seconds", sum), "≤", bound, "{:.1f}"
        ),
    ]


def _fast_rows(figures: Figures) -> list[Row]:
    ours, theirs = ([figures.over_tables(name, x) for x in ("accuracy", "log_loss")] for name in ("fast", "mlp"))
    return [
        figure_row("fast, mean accuracy: scikit-learn's MLP", ours[0], ">", theirs[0]),
        figure_row("fast, mean log loss: scikit-learn's MLP", ours[1], "<", theirs[1]),
    ]


def _every_contender(figures: Figures, names: Sequence[str], metrics: tuple[str, str]) -> str:
    """Write a row for each table, then a row with the mean metrics and the total time."""
    every = (*metrics, "seconds")
    rows: list[Row] = [("", *(TITLES[name] for name in names))]
    rows += [
        (table.name, *(_cell([figures.of_table(table, x, m) for m in every]) for x in names))
        for table in figures.tables
    ]
    if len(figures.tables) > 1:
        ends = [([figures.over_tables(x, m) for m in metrics], figures.over_tables(x, "seconds", sum)) for x in names]
        rows.append(("mean, total s", *(_cell([*means, total]) for means, total in ends)))
    return markdown(rows)


def _cell(values: Sequence[float | None]) -> str:
    first, second, seconds = values
    if first is None or second is None or seconds is None:
        return NONE
    shown = f"{first:,.0f}" if first >= 10 else f"{first:.4f}"  # the RMSE has the units of the target
    return f"{shown} / {second:.4f} / {seconds:.1f}"
