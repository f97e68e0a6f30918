"""Compares foldserve with other model servers: `python benchmarks/serving.py [--write]`.

Only one contender runs at a time. The contender has one core, and wrk has another core. All contenders have the same
model and the same bodies, and their responses are checked before and after the load. Every round measures all
contenders. A ratio compares two figures of the same round, and the tables show the median of the rounds. Other servers
are installed on first use, in `.bench/`, at the versions of `benchmarks/contenders/*.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from rig import serving_report, wrk
from rig.bodies import write_bodies
from rig.cases import CONTENDERS, MODEL, NAMES
from rig.environments import ROOT, StartError, npm_pins, pins
from rig.processes import two_cores
from rig.report import machine, write_section
from rig.rounds import Bench, Round
from rig.wrk import LoadError

T = TypeVar("T")


def main() -> None:
    """Measure and print the tables. With --write, also write the tables to benchmarks/README.md."""
    chosen = _arguments()
    program = f"wrk {wrk.version().removeprefix('wrk ')}"
    cores = two_cores()
    os.chdir(ROOT)
    with ExitStack() as stack:
        folder = chosen.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        os.sched_setaffinity(0, cores[-1:])  # this process leaves the first core to the server
        bench = Bench(folder, chosen.seconds, cores[0], cores[-1], write_bodies(ROOT / MODEL, folder))
        rounds = _rounds(bench, chosen.contenders, chosen.repeats)
        pairs, soak_seconds = chosen.pairs, chosen.soak
        telemetry = _try("metrics and log", lambda: bench.telemetry(pairs)) if pairs else None
        soak = _try("soak", lambda: bench.soak(soak_seconds)) if soak_seconds else None
        if chosen.keep:
            (folder / "rounds.json").write_text(json.dumps([asdict(x) for x in rounds], indent=1))
    parts = [
        machine(_versions(program)),
        serving_report.targets(rounds, telemetry, soak),
        serving_report.contenders(rounds),
    ]
    failures = bench.load_errors | bench.excluded
    parts += ["\n".join(f"- {where}: {why}" for where, why in failures.items())] if failures else []
    text = "\n\n".join(parts)
    print(text)
    if chosen.write:
        write_section(text)


def _rounds(bench: Bench, names: Sequence[str], repeats: int) -> list[Round]:
    rounds = [Round() for _ in range(repeats)]
    for number, current in enumerate(rounds, 1):
        for name in names:
            print(f"round {number} of {repeats}: {name}", file=sys.stderr)
            bench.measure(name, current)
    for done in rounds:  # a wrong response in one round excludes the figures of all rounds
        done.figures = {key: one for key, one in done.figures.items() if key.rpartition("/")[0] not in bench.excluded}
    return rounds


def _try(name: str, measure: Callable[[], T]) -> T | str:
    print(name, file=sys.stderr)
    try:
        return measure()
    except (StartError, LoadError) as error:
        return str(error)


def _versions(program: str) -> list[str]:
    """List the versions of the load generator, of foldserve and its main dependencies, and of the contenders."""
    packages = ("foldserve", "onnxruntime", "numpy", "uvicorn", "uvloop", "httptools")
    return [program, *(f"{package} {version(package)}" for package in packages), *_contender_versions()]


def _contender_versions() -> list[str]:
    """List the pinned version of the package of each contender."""
    names = dict.fromkeys(contender.requirements for contender in CONTENDERS if contender.requirements)
    npm = [contender.modules for contender in CONTENDERS if contender.modules]
    return [f"contender {pin}" for name in names for pin in pins(name, name)] + [
        f"contender {package} {pin}" for name in npm for package, pin in npm_pins(name).items()
    ]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"unknown contender {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}"
        )
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", type=_names, default=NAMES, help=f"some of {','.join(NAMES)}; default: all")
    parser.add_argument("--seconds", type=float, default=5, help="length of each load (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--pairs", type=int, default=6, help="pairs of loads with metrics and log on and off (default: %(default)s)"
    )
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="also load 64 connections for SECONDS")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the bodies, the servers' logs and the figures of each round in DIR",
    )
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
