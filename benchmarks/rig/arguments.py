"""Types of command-line arguments that several benchmarks share."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """Parse a whole number, at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("a whole number, at least 1")
    return int(text)
