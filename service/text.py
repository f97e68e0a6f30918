"""The spelling of texts and lists in messages. The module needs only the standard library."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Replace control characters, changes of the writing direction and lone surrogates, so that one line stays one
    line.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def join_some(names: Sequence[object], most: int) -> str:
    """List the first `most` names, and count the rest: `a, b and 7 more`."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")
