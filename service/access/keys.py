"""Makes API keys, reads the files with the hashes of the keys, and finds the `Caller` of a key.

A key has 256 random bits, so nobody can guess the key from its SHA-256 hash. A slow hash function would add no
security, and would make the server slower. A `Keyring` searches for a key by its hash. The time to find a key depends
only on the hash of the key, and the hash reveals nothing about the key. Comparing two hashes always takes the same
time. A `Keyring` has a dictionary of the API keys that it has found before. Because Python hashes each key of a
dictionary with a random secret of the process, the time of a search in this dictionary reveals nothing about the API
keys.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foldserve.service.access.files import stamp
from foldserve.service.access.rate import Bucket, bucket_state
from foldserve.service.errors import SettingsError

log = logging.getLogger("foldserve")

_PREFIX = "fs_"  # programs that look for leaked secrets can search for this prefix
_SECRET_BYTES = 32
_MAX_KEYS = 10_000


class Scope(Enum):
    """A group of routes to which an API key can give access. The routes of `OPEN` need no key."""

    OPEN = "open"
    PREDICT = "predict"
    METRICS = "metrics"
    ADMIN = "admin"


class KeyLine(BaseModel):
    """One line of a file with API keys. rate: the limit in requests per second; None for no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = (Scope.PREDICT,)
    rate: Annotated[float | None, Field(gt=0)] = None


class Caller:
    """The settings and the counts of one key in a running server.

    counts: the numbers of requests that were accepted, that lacked the scope, and that exceeded the rate.
    `Keyring.take_counts` sets the counts to 0.
    """

    __slots__ = ("bucket", "counts", "digest", "name", "scopes")

    def __init__(self, line: KeyLine, bucket: Bucket | None, counts: list[int]) -> None:
        self.name = line.name
        self.digest = bytes.fromhex(line.sha256)
        self.scopes = frozenset(line.scopes)
        self.bucket = bucket
        self.counts = counts


def create_key(name: str, scopes: Sequence[Scope], rate: float | None) -> tuple[str, str]:
    """Make a key. Returns the key, and the line that describes the key in a file of API keys.

    Raises `SettingsError` if the name or rate is not valid.
    """
    key = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    fields = {
        "name": name,
        "sha256": sha256(key.encode()).hexdigest(),
        "scopes": [scope.value for scope in scopes],
        **({} if rate is None else {"rate": rate}),
    }
    try:
        KeyLine.model_validate(fields)
    except ValidationError as error:
        raise SettingsError(_first(error)) from None
    return key, json.dumps(fields)


class Keyring:
    """All API keys in the given files.

    folder: all workers share this folder, which contains the state of each rate limit; None if there is only one
    process.
    """

    def __init__(self, files: Sequence[Path], folder: Path | None) -> None:
        self._files = files
        self._folder = folder
        self._states: dict[str, list[float] | memoryview[float]] = {}
        self._callers: dict[bytes, Caller] = {}
        self._verified: dict[bytes, Caller] = {}  # the callers of the keys that `find` has already found
        self._counts: dict[str, list[int]] = {}
        self._seen = stamp(self._files)
        self._load()

    def find(self, key: bytes) -> Caller | None:
        """Return the caller that has this key."""
        caller = self._verified.get(key)
        if caller is None:
            digest = sha256(key).digest()
            caller = self._callers.get(digest)
            if caller is None or not hmac.compare_digest(caller.digest, digest):
                return None
            self._verified[key] = caller
        return caller

    def refresh(self) -> None:
        """Read the files again if a file has changed.

        If a file can't be read, the old keys stay valid, and the reason is logged.
        """
        seen = stamp(self._files)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._load()
        except SettingsError as error:
            log.error("the API keys stay as they were: %s", error)

    def take_counts(self) -> Mapping[str, Sequence[int]]:
        """For each key name, return the counts since the last call. `Caller` describes the counts."""
        taken = {name: tuple(counts) for name, counts in self._counts.items()}
        for counts in self._counts.values():
            counts[:] = (0, 0, 0)
        return taken

    def _load(self) -> None:
        lines = [line for file in self._files for line in read_keys(file)]
        for field in ("name", "sha256"):
            values = [getattr(line, field) for line in lines]
            if len(set(values)) < len(values):
                double = next(line.name for line, value in zip(lines, values, strict=True) if values.count(value) > 1)
                raise SettingsError(f"two API keys have the {field} of {double}")
        self._callers = {bytes.fromhex(line.sha256): self._caller(line) for line in lines}
        self._verified.clear()
        log.log(
            logging.INFO if lines else logging.WARNING,
            "%d API keys: %s",
            len(lines),
            ", ".join(line.name for line in lines) or "only the open routes answer",
        )

    def _caller(self, line: KeyLine) -> Caller:
        bucket = None
        if line.rate is not None:
            if line.sha256 not in self._states:
                file = None if self._folder is None else self._folder / f"{line.sha256}.rate"
                self._states[line.sha256] = bucket_state(file)
            bucket = Bucket(line.rate, self._states[line.sha256])
        return Caller(line, bucket, self._counts.setdefault(line.name, [0, 0, 0]))


def read_keys(file: Path) -> list[KeyLine]:
    """Read the keys in a file. Empty lines, and lines that begin with #, are ignored. Raises `SettingsError`."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"can't read the API keys in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"the API keys in {file} are not UTF-8") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                lines.append(KeyLine.model_validate_json(line))
            except ValidationError as error:
                raise SettingsError(f"{file}, line {number}, is not an API key: {_first(error)}") from None
    if len(lines) > _MAX_KEYS:
        raise SettingsError(f"{file} has more than {_MAX_KEYS} API keys")
    return lines


def _first(error: ValidationError) -> str:
    """Return a text that describes the first validation error.

    The text does not contain the wrong value, because the wrong value may be a secret key.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(map(str, first["loc"]))
    return f"{name}: {first['msg']}" if name else first["msg"]
