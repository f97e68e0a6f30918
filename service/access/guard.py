"""Checks the API key of a request, the scope of the route, and the rate of the key.

This module does not use sockets.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from foldserve.service.access.keys import Keyring, Scope
from foldserve.service.errors import MissingKey, MissingScope, RateExceeded

# The indices of the three numbers in `Caller.counts`.
_ACCEPTED, _FORBIDDEN, _LIMITED = range(3)


class Guard:
    """Checks that the API key of a request has the scope that the route needs."""

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys

    def check(self, headers: Mapping[bytes, bytes], scope: Scope | None) -> None:
        """Raise `MissingKey`, `MissingScope` or `RateExceeded`.

        headers: the headers of the request, with names in lower case. scope: the scope of the route. `scope` is None if
        no route has the path of the request; in this case, any valid key is accepted.
        """
        if scope is Scope.OPEN:
            return
        key = _key(headers)
        caller = None if key is None else self._keys.find(key)
        if caller is None:
            raise MissingKey("this needs an API key, as Authorization: Bearer or X-API-Key", given=key is not None)
        if scope is not None and scope not in caller.scopes:
            caller.counts[_FORBIDDEN] += 1
            raise MissingScope(f"this API key lacks the scope {scope.value}", scope.value)
        if caller.bucket is not None and (wait := caller.bucket.take(time.monotonic())):
            caller.counts[_LIMITED] += 1
            raise RateExceeded("this API key has reached its rate", math.ceil(wait))
        caller.counts[_ACCEPTED] += 1

    def refresh(self) -> None:
        """Read the files with API keys again if a file has changed."""
        self._keys.refresh()

    def take_counts(self) -> Mapping[str, Sequence[int]]:
        """For each key name, return the numbers of accepted, forbidden and limited requests since the last call."""
        return self._keys.take_counts()


def _key(headers: Mapping[bytes, bytes]) -> bytes | None:
    key = headers.get(b"x-api-key")
    if key is None:
        value = headers.get(b"authorization", b"")
        if value[:7].lower() != b"bearer ":
            return None
        key = value[7:]
    return key.strip()
