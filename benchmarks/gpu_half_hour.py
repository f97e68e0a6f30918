"""Runs the checks for the first half hour on a GPU: `python benchmarks/gpu_half_hour.py correctness|speed|service --out
DIR`.

The program is called three times: for correctness, for speed and for the service. Each call takes at most 10 minutes,
and needs no network. Each step runs in its own process, so a crash or a hang affects only one step. The outputs are
saved in DIR as soon as a step ends. The exit status is 1 if there is no GPU or if a step fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from foldserve.service.errors import DeviceError
from foldserve.service.machine import nvidia
from foldserve.service.runtime.session import CUDA, require_provider

ROOT = Path(__file__).parents[1]
SECONDS = 590  # for one call
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf", "--tb=short")
SERVICE = ("-m", "foldserve.service")


def steps(call: str, out: Path) -> list[tuple[str, int, tuple[str, ...]]]:
    """List the steps of a call. A step has a name, a limit in seconds, and arguments for Python. The most important
    step comes first.
    """
    question = ("-m", "rig.gpu.questions")
    benchmark = ("benchmarks/gpu.py", "--out")
    tuned = ("models/digits/1", "--device", "cuda", "--seconds", "30", "-o", str(out / "tuned.toml"))
    fit = ("-m", "foldserve.training", "fit", "digits", "--preset", "best", "--models", str(out / "models"))
    return {
        "correctness": [
            ("doctor", 90, (*SERVICE, "doctor", "--device", "cuda")),
            ("verify", 60, (*SERVICE, "verify", "--device", "cuda", "models/digits/1")),
            ("tests", 200, (*PYTEST, "tests/gpu/test_runtime.py")),
            *[(name, 90, (*question, name)) for name in ("golden", "graphs", "lost", "closing", "memory", "opening")],
        ],
        "speed": [
            ("latency", 60, (*question, "latency")),
            ("large", 90, (*question, "large")),
            ("benchmark", 400, (*benchmark, str(out / "speed"), "--part", "runtime", "--minutes", "6")),
            ("workspace", 60, (*question, "workspace")),
        ],
        "service": [
            ("benchmark", 170, (*benchmark, str(out / "service"), "--part", "service", "--minutes", "2.5")),
            ("tune", 70, (*SERVICE, "tune", *tuned)),
            ("training tests", 200, (*PYTEST, "tests/gpu/test_training.py", "--durations=5")),
            *[(f"best on {device}", 80, (*fit, "--device", device, "--name", device)) for device in ("cuda", "cpu")],
        ],
    }[call]


def main() -> None:
    """Run the steps of the chosen call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("call", choices=("correctness", "speed", "service"))
    parser.add_argument("--out", type=Path, default=Path("gpu"), metavar="DIR", help="default: %(default)s")
    chosen = parser.parse_args()
    try:
        require_provider(CUDA)
        gpu = nvidia.gpus()[0]
    except DeviceError as error:
        raise SystemExit(f"gpu_half_hour.py needs a GPU, its driver and onnxruntime-gpu: {error}") from error
    print(f"{gpu.name}, compute capability {'.'.join(map(str, gpu.capability))}")
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + SECONDS, []
    for name, seconds, arguments in steps(chosen.call, out):
        left = end - time.monotonic()
        status = (
            _run(name, min(seconds, left), arguments, out / f"{name.replace(' ', '-')}.txt") if left > 15 else "no time"
        )
        print(f"=== {name}: {status}", flush=True)
        if status != "exit status 0":
            failed.append(name)
    if failed:
        raise SystemExit(f"failed or not run: {', '.join(failed)}; the outputs are in {chosen.out}")


def _run(name: str, seconds: float, arguments: tuple[str, ...], log: Path) -> str:
    """Run a step, print the end of its output, and return how it ended."""
    print(f"\n=== {name}", flush=True)
    began = time.monotonic()
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    with log.open("w", encoding="utf-8") as output:
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
            status = f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        output.write(f"\n{time.monotonic() - began:.1f} s\n")
    print("\n".join(log.read_text(encoding="utf-8").splitlines()[-40:]))
    return status


if __name__ == "__main__":
    main()
