"""What each contender reaches on tables with a fixed split, and in what time; and whether foldserve's presets keep up.

A table is `NAME.train.csv` and `NAME.test.csv`, with the target in the column `label` (classes) or `target` (numbers).
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
from rig.report import NONE, Row, markdown, verdict

PRESETS = {"fast": "foldserve, fast", "best": "foldserve, best"}
REFERENCES = {"hgb": "HistGradientBoosting", "mlp": "scikit-learn's MLP", "realmlp": "RealMLP-TD"}
TITLES = PRESETS | REFERENCES
ENVIRONMENT = "training"

FAST_SECONDS = 10.0  # of `fast`, on a table of at most FAST_ROWS training rows
FAST_ROWS = 10_000
BEST_SHARE = 1 / 3  # of RealMLP's time, for `best`


@dataclass(frozen=True)
class Table:
    """One table. rows: of the training file. target: the column."""

    name: str
    train: Path
    test: Path
    target: str
    rows: int

    @property
    def classifies(self) -> bool:
        """Tell classes from numbers."""
        return self.target == "label"


@dataclass(frozen=True)
class Fit:
    """One fit. seconds: of processor time. metrics: of the test rows."""

    seconds: float
    metrics: dict[str, float]


Fits = dict[tuple[str, str], list[Fit]]  # by table and contender, one a seed


def find_tables(folders: Iterable[Path], wanted: Sequence[str] | None) -> list[Table]:
    """Find what the folders hold, in the order of the names. Raises `SystemExit` for a table that none has."""
    found = {}
    for train in sorted(path for folder in folders for path in folder.resolve().glob("*.train.csv")):
        name = train.name.removesuffix(".train.csv")
        with train.open(newline="", encoding="utf-8") as lines:
            reader = csv.reader(lines)
            target = "label" if "label" in next(reader) else "target"
            found[name] = Table(name, train, train.with_name(f"{name}.test.csv"), target, sum(1 for _ in reader))
    if missing := set(wanted or ()) - set(found):
        raise SystemExit(f"no table {', '.join(sorted(missing))}; there are {', '.join(found)}")
    return [found[name] for name in wanted or found]


def measure(tables: Sequence[Table], names: Sequence[str], seeds: int, core: int) -> tuple[Fits, dict[str, str]]:
    """Fit every contender on every table, seed by seed. Give the fits, and why there are none of some."""
    fits: Fits = {}
    out: dict[str, str] = {}
    for seed in range(seeds):
        for table in tables:
            for name in names:
                where = f"{table.name}, {TITLES[name]}"
                if where in out:
                    continue
                print(f"seed {seed}: {where}", file=sys.stderr)
                try:
                    one = fit_preset(table, name, seed, core) if name in PRESETS else fit(table, name, seed, core)
                    fits.setdefault((table.name, name), []).append(one)
                except (RunError, StartError) as error:  # who fails with one seed has no figures of the others either
                    out[where] = str(error).replace(f"{table.train.parent}/", "")
                    fits.pop((table.name, name), None)
    return fits, out


def fit(table: Table, name: str, seed: int, core: int) -> Fit:
    """Fit another library's; its time is that of its fit alone. Raises `RunError`, `StartError`."""
    script, files = CONTENDERS / "fit_table.py", (str(table.train), str(table.test))
    ran = run([str(environment(ENVIRONMENT)), str(script), name, *files, table.target, str(seed)], core)
    found = json.loads(ran.last_line())
    return Fit(found.pop("seconds"), found)


def fit_preset(table: Table, preset: str, seed: int, core: int) -> Fit:
    """Run `foldserve-train fit`; its time is the whole command's, and its figures are its manifest's.

    Raises `RunError`.
    """
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, "-m", "foldserve.training", "fit", str(table.train), "--test", str(table.test)]
        command += ["--target", table.target, "--preset", preset, "--seed", str(seed)]
        ran = run([*command, "--models", models, "--name", table.name], core)
        manifest = json.loads((Path(models) / table.name / "1" / "manifest.json").read_text(encoding="utf-8"))
        return Fit(ran.processor_s, {name: float(value) for name, value in manifest["metrics"]["test"].items()})


@dataclass(frozen=True)
class Figures:
    """What is asked of the fits: medians over the seeds; None where one is not there."""

    tables: Sequence[Table]
    fits: Fits

    def of(self, table: Table, name: str, metric: str) -> float | None:
        """Give the median over the seeds."""
        fits = self.fits.get((table.name, name), [])
        return median(_values(fits, metric)) if fits else None

    def over(self, name: str, metric: str, combine: Callable[[list[float]], float] = fmean) -> float | None:
        """Combine the tables' medians; None unless each table has one."""
        found = [self.of(table, name, metric) for table in self.tables]
        return combine([x for x in found if x is not None]) if found and None not in found else None

    def best_of_references(self, metric: str, choose: Callable[[list[float]], float]) -> float | None:
        """Give what the best of the three reaches; None unless all three are there."""
        found = [self.over(name, metric) for name in REFERENCES]
        return choose([x for x in found if x is not None]) if None not in found else None


def _values(fits: Sequence[Fit], metric: str) -> list[float]:
    return [one.seconds if metric == "seconds" else one.metrics[metric] for one in fits]


def report(tables: Sequence[Table], names: Sequence[str], fits: Fits) -> str:
    """Foldserve against its targets, then everybody on every table."""
    classes = Figures([table for table in tables if table.classifies], fits)
    numbers = Figures([table for table in tables if not table.classifies], fits)
    rows: list[Row] = [("foldserve", "median of the seeds", "target", "")]
    rows += [*_best(classes), *_fast(classes)] if classes.tables else []
    if numbers.tables:
        best, mlp = numbers.best_of_references("r2", max), numbers.over("mlp", "r2")
        rows.append(verdict("best, mean R2: the best reference's", numbers.over("best", "r2"), "≥", best))
        rows.append(verdict("fast, mean R2: scikit-learn's MLP's", numbers.over("fast", "r2"), ">", mlp))
    small = [table for table in tables if table.rows <= FAST_ROWS]
    if small:
        slowest = Figures(small, fits).over("fast", "seconds", max)
        text = f"fast, s on its slowest table of up to {FAST_ROWS:,} rows"
        rows.append(verdict(text, slowest, "≤", FAST_SECONDS, "{:.1f}"))
    parts = [markdown(rows)]
    if classes.tables:
        parts.append("Accuracy, log loss, seconds:\n\n" + _everybody(classes, names, ("accuracy", "log_loss")))
    if numbers.tables:
        parts.append("RMSE, R2, seconds:\n\n" + _everybody(numbers, names, ("rmse", "r2")))
    return "\n\n".join(parts)


def _best(figures: Figures) -> list[Row]:
    accuracy, loss = figures.best_of_references("accuracy", max), figures.best_of_references("log_loss", min)
    theirs = figures.over("realmlp", "seconds", sum)
    bound = None if theirs is None else theirs * BEST_SHARE
    return [
        verdict("best, mean accuracy: the best reference's", figures.over("best", "accuracy"), "≥", accuracy),
        verdict("best, mean log loss: the best reference's", figures.over("best", "log_loss"), "<", loss),
        verdict("best, s in all: a third of RealMLP's", figures.over("best", "seconds", sum), "≤", bound, "{:.1f}"),
    ]


def _fast(figures: Figures) -> list[Row]:
    ours, theirs = ([figures.over(name, x) for x in ("accuracy", "log_loss")] for name in ("fast", "mlp"))
    return [
        verdict("fast, mean accuracy: scikit-learn's MLP's", ours[0], ">", theirs[0]),
        verdict("fast, mean log loss: scikit-learn's MLP's", ours[1], "<", theirs[1]),
    ]


def _everybody(figures: Figures, names: Sequence[str], metrics: tuple[str, str]) -> str:
    """One line a table; the last has the means of the metrics and the sum of the times."""
    every = (*metrics, "seconds")
    rows: list[Row] = [("", *(TITLES[name] for name in names))]
    rows += [
        (table.name, *(_cell([figures.of(table, x, m) for m in every]) for x in names)) for table in figures.tables
    ]
    if len(figures.tables) > 1:
        ends = [([figures.over(x, m) for m in metrics], figures.over(x, "seconds", sum)) for x in names]
        rows.append(("mean, s in all", *(_cell([*means, total]) for means, total in ends)))
    return markdown(rows)


def _cell(values: Sequence[float | None]) -> str:
    first, second, seconds = values
    if first is None or second is None or seconds is None:
        return NONE
    shown = f"{first:,.0f}" if first >= 10 else f"{first:.4f}"  # an RMSE in the target's units
    return f"{shown} / {second:.4f} / {seconds:.1f}"
