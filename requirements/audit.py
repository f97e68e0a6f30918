"""Asks PyPI for advisories about every pinned package: `make audit` runs it with pip-audit.

It fails for a package with an advisory. If the advisory service can't be reached, it prints the reason and ends with 0.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The errors of pip-audit without an advisory service: no network, a time-out, a proxy that refuses.
UNREACHABLE = re.compile(r"^(?:requests\.exceptions|urllib3\.exceptions|pip_audit\._service)\.[\w.]+", re.M)


def pins(root: Path) -> set[str]:
    """Every name==version of constraints.txt and the lists of requirements/, without a build such as +cpu."""
    texts = [file.read_text(encoding="utf-8") for file in (root / "constraints.txt", *root.glob("requirements/*.txt"))]
    found = re.findall(r"^([\w.-]+)==([\w.!]+)", "\n".join(texts), re.M)
    return {f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" for name, version in found}


def judge(report: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The exit status and the lines to print for a JSON report of pip-audit."""
    packages = report["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return 0, [f"skipped: nothing could be audited; for example: {skipped[0]['skip_reason']}"]
    lines = [f"not audited: {package['skip_reason']}" for package in skipped]
    advisories = [
        f"{package['name']} {package['version']}: {each['id']}, fixed in: {', '.join(each['fix_versions']) or 'none'}"
        for package in packages
        for each in package.get("vulns", ())
    ]
    if advisories:
        return 1, [*lines, *advisories]
    return 0, [*lines, f"{len(packages) - len(skipped)} packages have no advisory"]


def explain(status: int, log: str) -> tuple[int, str]:
    """The exit status and the line to print for a pip-audit that ended with `status` and without a report."""
    if reason := UNREACHABLE.search(log):
        return 0, f"skipped: the advisory service does not answer: {reason[0]}"
    return status or 1, f"pip-audit ended with {status} and no report:\n{log}"


def main() -> int:
    """Run pip-audit and print its findings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(sorted(pins(ROOT))), encoding="utf-8")
        flags = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10")
        command = [sys.executable, "-m", "pip_audit", *flags, "--requirement", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        status, lines = judge(json.loads(done.stdout))
    except json.JSONDecodeError:
        status, line = explain(done.returncode, done.stderr)
        lines = [line]
    print(*(f"pip-audit: {line}" for line in lines), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
