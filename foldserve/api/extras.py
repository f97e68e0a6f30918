"""Checks that an optional library is installed. The error names the extra that installs the library."""

from __future__ import annotations

from importlib.util import find_spec

from foldserve.api.errors import MissingExtra


def require(*libraries: str, extra: str) -> None:
    """Raise `MissingExtra` for the first of `libraries` that is not installed. extra: the extra of this package that
    installs the libraries.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise MissingExtra(f"{library} is not installed: pip install 'foldserve[{extra}]'")
