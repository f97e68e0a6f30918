"""Tests requirements/audit.py: the pins that the script checks, and its verdict on the reports of pip-audit."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SPECIFICATION = importlib.util.spec_from_file_location("audit", ROOT / "requirements" / "audit.py")
audit = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(audit)


def package(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [], **fields}


UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.0)"}
VULNERABLE = package("orjson", vulns=[{"id": "CVE-2026-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}])


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([package("numpy"), package("orjson")], 0, "2 packages have no advisory"),
        ([package("numpy"), VULNERABLE], 1, "orjson 1.0: CVE-2026-1, fixed in: 1.1"),
        ([UNKNOWN, VULNERABLE], 1, "orjson 1.0: CVE-2026-1, fixed in: 1.1"),
        ([UNKNOWN, package("numpy")], 0, "1 packages have no advisory"),
        ([UNKNOWN], 0, f"skipped: nothing could be audited; for example: {UNKNOWN['skip_reason']}"),
    ],
)
def test_an_advisory_fails_the_audit_and_an_unknown_package_is_named(
    packages: list[dict[str, Any]], status: int, line: str
) -> None:
    found, lines = audit.judge({"dependencies": packages, "fixes": []})
    assert (found, lines[-1]) == (status, line)
    if len(packages) > 1 and UNKNOWN in packages:
        assert lines[0] == f"not audited: {UNKNOWN['skip_reason']}"


def test_an_unreachable_service_skips_the_audit_with_the_reason() -> None:
    log = "Traceback (most recent call last):\nrequests.exceptions.ConnectionError: failed to resolve"
    reason = "the advisory service does not answer: requests.exceptions.ConnectionError"
    assert audit.explain(1, log) == (0, f"skipped: {reason}")


def test_any_other_failure_of_pip_audit_fails_the_audit() -> None:
    status, line = audit.explain(2, "usage: pip-audit")
    assert status == 2
    assert "usage: pip-audit" in line


def test_it_asks_about_every_pin_of_the_constraints_and_of_the_images() -> None:
    asked = audit.pins(ROOT)
    for file in (ROOT / "constraints.txt", *ROOT.glob("requirements/*.txt")):
        for name, version in re.findall(r"^([\w.-]+)==([^\s;+]+)", file.read_text(), re.M):
            assert f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}" in asked
    assert not [pin for pin in asked if "+" in pin]
