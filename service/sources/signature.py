"""File signatures: checks that the first bytes of a file fit the suffix of its name."""

from __future__ import annotations

from foldserve.service.errors import SourceError

_EXPECTED = {".parquet": b"PAR1", ".npz": b"PK\x03\x04", ".xlsx": b"PK\x03\x04"}
# The first bytes of each binary format, and the suffix of files in this format. No text file begins with the first
# bytes of a binary format.
_SUFFIXES = {b"PAR1": ".parquet", b"PK\x03\x04": ".xlsx", b"ARROW1": ".arrow", b"\x1f\x8b": ".csv.gz", b"{": ".jsonl"}
_KNOWN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a single NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"ARROW1": "an Arrow file",
}


def check_signature(name: str, suffix: str, first: bytes) -> None:
    """Raise `SourceError` if the first bytes of the file `name` do not fit its suffix. first: these bytes."""
    if not first:
        raise SourceError(f"{name} is empty")
    expected = b"\x1f\x8b" if suffix.endswith(".gz") else _EXPECTED.get(suffix, b"")
    if expected and first.startswith(expected):
        return
    if suffix in (".arrow", ".feather", ".ipc"):
        if first.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
            return
        expected = b"ARROW1"
    found = next((kind for signature, kind in _KNOWN.items() if first.startswith(signature)), None)
    if found or expected:
        raise SourceError(f"{name} is not a {suffix} file" + (f" but {found}" if found else ""))


def guess_suffix(first: bytes) -> str:
    """Return the suffix of a file that begins with the bytes `first`. The suffix is .csv if no other format fits."""
    return next((suffix for signature, suffix in _SUFFIXES.items() if first.startswith(signature)), ".csv")
