"""`foldserve key`: makes an API key, and the line that lets a server accept the key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foldserve.service.access.keys import Scope, create_key, read_keys
from foldserve.service.errors import SettingsError


def run(name: str, scopes: Sequence[str], rate: float | None, file: Path | None) -> None:
    """Print a new key, and the line that a file of keys needs for this key. With `file`, append the line to the file
    and print only the key.

    Raises `SettingsError` in these cases: the name or the rate is not valid; the file already has a key with this name,
    is not a file of keys, or can't be written.
    """
    key, line = create_key(name, [Scope(scope) for scope in dict.fromkeys(scopes)], rate)
    if file is None:
        print(f"key   {key}\nline  {line}")
        return
    try:
        existing = file.read_bytes() if file.exists() else b""
        if name in (other.name for other in (read_keys(file) if existing else ())):
            raise SettingsError(f"{file} has a key {name} already")
        with file.open("ab") as stream:
            stream.write(b"\n" * (existing[-1:] not in (b"", b"\n")) + line.encode() + b"\n")
    except OSError as error:
        raise SettingsError(f"can't write {file}: {error.strerror}") from error
    print(key)
