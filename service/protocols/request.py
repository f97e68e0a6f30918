"""A decoded request. Every codec returns this type. The module does not depend on protocols or batchers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.metrics import Counts
from foldserve.service.protocols.reply import Reply


class SlowBody(Exception):  # noqa: N818
    """Decoding this body takes long, so a thread should decode it."""


@dataclass(slots=True)
class DecodedRequest:
    """The rows of one request, the encoder of its answer, and its deadline.

    timeout: the time until the deadline, in seconds. counts: the values of the request that the metrics count; None if
    there are none. encodes_slowly: whether a thread should encode the answer, because encoding takes long. identity:
    the identifier that the client gives the request, in a protocol that has one.
    """

    rows: Rows
    encode: Callable[[Outputs], Reply]
    timeout: float | None = None
    counts: Counts | None = None
    encodes_slowly: bool = False
    identity: str | None = None
