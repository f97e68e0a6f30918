"""docs/bad-inputs.md has a row for each kind of bad input, and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "bad-inputs.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.*) \|$", PAGE, re.M)


def test_the_rows_are_numbered_from_1_to_100() -> None:
    assert [int(number) for number, *_ in ROWS] == list(range(1, 101))


def test_every_row_has_a_test_or_is_open() -> None:
    assert not [number for number, _, result, tests in ROWS if not tests.strip() and "open: " not in result]


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`([\w/]+)::(test_\w+)`", PAGE))
    assert len(named) == len(set(re.findall(r"`([^`]+::[^`]+)`", PAGE)))
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not (path := TESTS / f"{file}.py").exists()
        or not re.search(rf"^(async )?def {name}\(", path.read_text(encoding="utf-8"), re.M)
    ]
    assert not missing
