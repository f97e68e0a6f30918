"""Compares the training loops of foldserve and of another library, in rows per second on one core. The two libraries
take turns. Both libraries train the same network on the same rows with the same batch size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rig.environments import CONTENDERS, ROOT, StartError, environment, pinned, variables
from rig.report import Row, markdown, median_and_range, target_row

ENVIRONMENT = "training"
EPOCHS = 4
TITLES = {"skorch": "skorch", "sklearn": "scikit-learn's MLPClassifier"}


@dataclass(frozen=True)
class Case:
    """One comparison. bound: the target for the ratio of foldserve's rate to the rate of the other library."""

    other: str
    widths: str
    batch: int
    norm: bool
    bound: float

    @property
    def text(self) -> str:
        """The network and the batch size, as text."""
        return f"{self.widths.replace(',', '-')}{', BN' if self.norm else ', no BN'}, batch {self.batch}"


CASES = (
    Case("skorch", "64,64", 128, norm=True, bound=5),
    Case("skorch", "256,256", 128, norm=True, bound=5),
    Case("sklearn", "256,256", 200, norm=False, bound=1.3),
)


@dataclass(frozen=True)
class Pair:
    """Both libraries are compared by their training rows per second of processor time.

    The second library is measured directly after the first.
    """

    ours: float
    theirs: float


def measure(case: Case, pairs: int, core: int) -> list[Pair]:
    """Measure pairs. The order of the libraries alternates from pair to pair. Raises `StartError`."""
    found = []
    with ExitStack() as stack:
        ours = stack.enter_context(_training("foldserve", case, core))
        theirs = stack.enter_context(_training(case.other, case, core))
        for number in range(pairs):
            print(f"pair {number + 1} of {pairs}: {case.text}, {TITLES[case.other]}", file=sys.stderr)
            order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            rates = {id(process): _rate(process) for process in order}
            found.append(Pair(rates[id(ours)], rates[id(theirs)]))
    return found


def report(cases: Sequence[tuple[Case, list[Pair]]]) -> str:
    """Write the table of targets, and the table of rates."""
    targets: list[Row] = [("foldserve", "median (lowest to highest)", "target", "")]
    rates: list[Row] = [("rows/s", "foldserve", "other library")]
    for case, pairs in cases:
        text = f"{case.text}: rows/s ÷ {TITLES[case.other]}"
        targets.append(target_row(text, [pair.ours / pair.theirs for pair in pairs], case.bound, at_least=True))
        ours, theirs = (
            median_and_range([pair.ours for pair in pairs]),
            median_and_range([pair.theirs for pair in pairs]),
        )
        rates.append((case.text, ours, f"{TITLES[case.other]}: {theirs}"))
    return f"{markdown(targets)}\n\n{markdown(rates)}"


@contextmanager
def _training(name: str, case: Case, core: int) -> Iterator[subprocess.Popen[str]]:
    python = sys.executable if name == "foldserve" else str(environment(ENVIRONMENT))
    command = [python, str(CONTENDERS / "train_digits.py"), name, case.widths, str(case.batch), str(EPOCHS)]
    command.append("norm" if case.norm else "plain")
    # Use the foldserve of this checkout.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        pinned(core, command),
        env=variables() | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _read_line(process)
            yield process
        finally:
            process.terminate()


def _rate(process: subprocess.Popen[str]) -> float:
    if not process.stdin:
        raise StartError("it has no standard input")
    process.stdin.write("train\n")
    process.stdin.flush()
    return float(_read_line(process))


def _read_line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise StartError("it ended during the training")
    return line
