"""foldserve's training beside what people train on a table with today: `python benchmarks/training.py --data DIR`.

Three parts: what each reaches on tables with a fixed split, and in what time; rows a second of the training loop; and
the memory that a large table takes. Whatever is measured has one core and one thread. What is not this project is
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
from rig.environments import StartError, pins
from rig.processes import RunError
from rig.report import keep, machine

PACKAGES = ("foldserve", "torch", "scikit-learn", "numpy", "onnxruntime")
RIVALS = ("pytabkit", "skorch", "scikit-learn", "torch")


def main() -> None:
    """Measure, print, and with --write keep it."""
    chosen = _arguments()
    measure: dict[str, Callable[[argparse.Namespace, int], str]] = {
        "accuracy": _accuracy,
        "speed": _speed,
        "memory": _memory,
    }
    cores = sorted(os.sched_getaffinity(0))
    parts = [machine(_versions())]
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])  # this process as well stays out of the way
    parts += [measure[part](chosen, cores[0]) for part in chosen.only]
    text = "\n\n".join(parts)
    print(text)
    if chosen.write:
        keep(text)


def _accuracy(chosen: argparse.Namespace, core: int) -> str:
    tables = accuracy.find_tables(chosen.data, chosen.tables)
    fits, out = accuracy.measure(tables, chosen.contenders, chosen.seeds, core)
    said = "\n".join(f"- {where}: {why}" for where, why in out.items())
    return "\n\n".join(filter(None, (accuracy.report(tables, chosen.contenders, fits), said)))


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
    """Name what was measured with."""
    rivals = [f"contender {pin}" for package in RIVALS for pin in pins(accuracy.ENVIRONMENT, package)]
    return [*(f"{package} {version(package)}" for package in PACKAGES), *rivals]


def _some_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
        return chosen

    return parse


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("a whole number, at least 1")
    return int(text)


def _arguments() -> argparse.Namespace:
    parts, names = ("accuracy", "speed", "memory"), tuple(accuracy.TITLES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", metavar="DIR", help="has NAME.train.csv and NAME.test.csv; repeatable"
    )
    parser.add_argument("--only", type=_some_of(parts), default=parts, help=f"some of {','.join(parts)}; default: all")
    parser.add_argument("--tables", type=lambda text: text.split(","), help="some of DIR's; default: all")
    parser.add_argument(
        "--contenders", type=_some_of(names), default=names, help=f"some of {','.join(names)}; default: all"
    )
    parser.add_argument("--seeds", type=_count, default=1, help="fits of each, from seed 0 (default: %(default)s)")
    parser.add_argument("--pairs", type=_count, default=7, help="pairs of a speed's ratio (default: %(default)s)")
    parser.add_argument("--rows", type=_count, default=memory.ROWS, help="of the large table (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    chosen = parser.parse_args()
    if "accuracy" in chosen.only and not chosen.data:
        parser.error("accuracy is measured on tables: --data DIR, or --only speed,memory")
    return chosen


if __name__ == "__main__":
    main()
