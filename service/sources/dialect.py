"""Finds the encoding and the separator of a delimited text file from its first bytes. The module does not parse the
rows of the file.
"""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass, field

from foldserve.service.errors import SourceError
from foldserve.service.sources.source import ReadOptions, one_line

_SEPARATORS = (",", ";", "\t", "|")
SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WRITTEN = {"\\t": "\t", "tab": "\t"}
# The number of rows at the start of the file that are used to find the separator.
_ROWS = 20


@dataclass(frozen=True)
class Dialect:
    """The encoding and the separator of a text file. notes: choices that the user should know, one sentence each."""

    encoding: str
    delimiter: str
    notes: tuple[str, ...] = field(default=())


def find_dialect(name: str, head: bytes, usual: str, options: ReadOptions) -> tuple[Dialect, str]:
    """Find the dialect of a file that begins with the bytes `head`.

    Return the dialect, and the decoded first bytes of the file.

    usual: the usual separator of files with this suffix. Raises `SourceError` if the text can't be decoded.
    """
    encoding, text, notes = _decode(name, head, options.encoding)
    if options.sep is not None:
        return Dialect(encoding, _WRITTEN.get(options.sep, options.sep), notes), text
    delimiter = _find_separator(text, usual)
    if delimiter != usual:
        notes = (*notes, f"the cells of {name} are separated by {SEPARATOR_NAMES[delimiter]}")
    return Dialect(encoding, delimiter, notes), text


def _decode(name: str, head: bytes, given: str | None) -> tuple[str, str, tuple[str, ...]]:
    if given is not None:
        return given, _decode_as(name, head, given), ()
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", _decode_as(name, head, "utf-16"), (f"{name} was read as UTF-16",)
    if b"\0" in head:
        raise SourceError(
            f"{name} contains zero bytes: it is not UTF-8 text; if it is UTF-16, use --encoding utf-16-le or utf-16-be"
        )
    try:
        return "utf-8", codecs.getincrementaldecoder("utf-8-sig")().decode(head), ()
    except UnicodeDecodeError as error:
        line = head[: error.start].count(b"\n") + 1
        for encoding in ("cp1252", "latin-1"):  # cp1252 leaves five byte values undefined, but latin-1 defines all
            try:
                text = head.decode(encoding)
            except UnicodeDecodeError:
                continue
            note = (
                f"{name} is not UTF-8 (line {line} has the byte 0x{head[error.start]:02x}) and was read as {encoding}, "
                "as in Western Europe; use --encoding if that is wrong"
            )
            return encoding, text, (note,)
        raise


def _decode_as(name: str, head: bytes, encoding: str) -> str:
    try:
        "".encode(encoding)
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except LookupError:
        raise SourceError(f"--encoding: Python knows no text encoding {encoding!r}") from None
    except UnicodeError as error:
        raise SourceError(f"{name} is not {encoding} text: {one_line(error)}") from None


def _find_separator(text: str, usual: str) -> str:
    """Return the separator that splits all of the first rows into the same number of cells. A separator is accepted
    only if it splits each row into at least two cells.
    """
    whole = text.rpartition("\n")[0] or text
    widths = {separator: _widths(whole, separator) for separator in (usual, *_SEPARATORS)}
    agreeing = [each for each, found in widths.items() if len(set(found)) == 1 and found[0] > 1]
    if usual in agreeing or (not agreeing and widths[usual][:1] > [1]):
        return usual
    if agreeing:
        return max(agreeing, key=lambda each: widths[each][0])
    return max(widths, key=lambda each: widths[each][:1] or [0])


def _widths(text: str, separator: str) -> list[int]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found: list[int] = []
    try:
        for row in rows:
            if row:
                found.append(len(row))
            if len(found) == _ROWS:
                break
    except csv.Error:
        return found[:1]
    return found
