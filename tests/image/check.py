"""Builds, runs and tests the images and docker-compose.yml with a Docker engine: `make image-check`.

The program prints a line for each check that passed. The first check that fails ends the program with status 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.image import compose, docker, images
from tests.image.support import ROOT, TAGS, CheckFailedError

CHECKS: Mapping[str, Callable[[Path], None]] = {
    "cpu": images.check_cpu,
    "gpu": images.check_gpu,
    "trainer": images.check_trainer,
    "compose": compose.check,
}


def build(which: str, arguments: Mapping[str, str]) -> None:
    """Build one of the images in the same way as the Makefile."""
    runtime = {} if which == "trainer" else {"RUNTIME": which}
    target = "trainer" if which == "trainer" else "service"
    docker.build(ROOT, TAGS[which], "--target", target, arguments={**arguments, **runtime})


def run(chosen: list[str], arguments: Mapping[str, str] | None) -> None:
    """Run the checks. arguments: the build arguments, or None to check the existing images without a build."""
    if arguments is not None:
        # docker-compose.yml needs the images of the server and of the trainer.
        needed = {*chosen, *(("cpu", "trainer") if "compose" in chosen else ())}
        for which in TAGS:
            if which in needed:
                build(which, arguments)
    for which in chosen:
        print(TAGS.get(which, "docker-compose.yml"), flush=True)
        # Only root may remove the files that a container wrote as its own user.
        with tempfile.TemporaryDirectory(prefix="foldserve-image-", ignore_cleanup_errors=True) as scratch:
            Path(scratch).chmod(0o755)
            CHECKS[which](Path(scratch))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--build-arg", metavar="K=V", action="append", default=[], help="a build argument of every image"
    )
    parser.add_argument("--only", choices=CHECKS, action="append", help="run this check; repeat it for several")
    parser.add_argument("--no-build", action="store_true", help="check the existing images")
    options = parser.parse_args()
    chosen = [which for which in CHECKS if not options.only or which in options.only]
    arguments = None if options.no_build else dict(argument.split("=", 1) for argument in options.build_arg)
    try:
        run(chosen, arguments)
    except CheckFailedError as failed:
        print(f"FAIL  {failed}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"FAIL  {' '.join(map(str, error.cmd))} ended with {error.returncode}: {error.stderr}", file=sys.stderr)
    except FileNotFoundError as error:
        print(f"image-check: error: {error.filename} is not installed", file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
