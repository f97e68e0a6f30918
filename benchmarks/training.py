"""Compares foldserve's training with other libraries for tables: `python benchmarks/training.py --data DIR`.

The benchmark has three parts. The first part of the benchmark compares metrics and time on tables with a fixed split.
The second part of the benchmark compares the rows per second of training loops. The third part of the benchmark
measures the memory of a training on a large table. Every program has one core and one thread. Other libraries are
installed on first use, in `.bench/`, at the versions of `benchmarks/contenders/training.txt`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from rig import accuracy, memory, speed
from rig.arguments import count
from rig.environments import StartError, pins
from rig.processes import RunError
from rig.report import machine, write_section

PACKAGES = ("foldserve", "torch", "scikit-learn", "numpy", "onnxruntime")
OTHER_PACKAGES = ("pytabkit", "skorch", "scikit-learn", "torch")


def main() -> None:
    """Measure and print the tables. With --write, also write the tables to benchmarks/README.md."""
    chosen = _arguments()
    measure: dict[str, Callable[[argparse.Namespace, int], str]] = {
        "accuracy": _accuracy,
        "speed": _speed,
        "memory": _memory,
    }
    cores = sorted(os.sched_getaffinity(0))
    parts = [machine(_versions())]
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # this process leaves the first core to the measured programs
    parts += [measure[part](chosen, cores[0]) for part in chosen.only]
    text = "\n\n".join(parts)
    print(text)
    if chosen.write:
        write_section(text)


def _accuracy(chosen: argparse.Namespace, core: int) -> str:
    tables = accuracy.find_tables(chosen.data, chosen.tables)
    fits, failed = accuracy.measure(tables, chosen.contenders, chosen.seeds, core)
    failures = "\n".join(f"- {where}: {why}" for where, why in failed.items())
    return "\n\n".join(filter(None, (accuracy.report(tables, chosen.contenders, fits), failures)))


def _speed(chosen: argparse.Namespace, core: int) -> str:
    try:
        return speed.report([(case, speed.measure(case, chosen.pairs, core)) for case in speed.CASES])
    except StartError as error:
        return f"Speed: not measured: {error}"


def _memory(chosen: argparse.Namespace, core: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return memory.report(memory.measure(Path(folder), chosen.rows, core), chosen.rows)
        except RunError as error:
            return f"Memory: not measured: {error}"


def _versions() -> list[str]:
    """List the versions of foldserve, its main dependencies, and the contenders."""
    others = [f"contender {pin}" for package in OTHER_PACKAGES for pin in pins(accuracy.ENVIRONMENT, package)]
    return [*(f"{package} {version(package)}" for package in PACKAGES), *others]


def _some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
        return chosen

    return parse


def _arguments() -> argparse.Namespace:
    parts, names = ("accuracy", "speed", "memory"), tuple(accuracy.TITLES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        metavar="DIR",
        help="folder of NAME.train.csv and NAME.test.csv; repeatable",
    )
    parser.add_argument("--only", type=_some_of(parts), default=parts, help=f"some of {','.join(parts)}; default: all")
    parser.add_argument("--tables", type=lambda text: text.split(","), help="some of the tables; default: all")
    parser.add_argument(
        "--contenders", type=_some_of(names), default=names, help=f"some of {','.join(names)}; default: all"
    )
    parser.add_argument("--seeds", type=count, default=1, help="seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--pairs", type=count, default=7, help="pairs of speed measurements (default: %(default)s)")
    parser.add_argument(
        "--rows", type=count, default=memory.ROWS, help="rows of the large table (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args()
    if "accuracy" in chosen.only and not chosen.data:
        parser.error("accuracy needs tables: give --data DIR, or --only speed,memory")
    return chosen


if __name__ == "__main__":
    main()
