"""Writes names and lists for pages and terminals. The module needs only the standard library."""

from __future__ import annotations

import shlex

from foldserve.service.text import join_some, printable

__all__ = ["MAX_NAME", "flag_value", "format_name", "join_some", "printable"]

MAX_NAME = 60


def format_name(name: object) -> str:
    """Return the name of a column, class or category as printable text of at most `MAX_NAME` characters."""
    text = printable(str(name))
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def flag_value(text: str) -> str:
    """Quote `text` so that a flag that takes a list reads it as one value.

    The value is quoted as in a CSV file if it has commas, and then quoted for a shell.
    """
    return shlex.quote('"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text)
