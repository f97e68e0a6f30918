"""A decoded request. Every codec returns a `DecodedRequest`. This module does not depend on protocols or batchers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.metrics import Counts
from foldserve.service.protocols.reply import Reply


class SlowBody(Exception):  # noqa: N818
    """Raised if decoding a body would take so long that the caller should decode the body on a thread."""


@dataclass(slots=True)
class DecodedRequest:
    """The rows of one request, the encoder of its answer, and its deadline.

    timeout: the time until the deadline, in seconds. counts: the numbers of unusual values for the metrics; None if the
    request has no unusual values. encodes_slowly: whether encoding the answer takes so long that a thread should do it.
    identity: the id that the client has given to the request; None if the request has no id.
    """

    rows: Rows
    encode: Callable[[Outputs], Reply]
    timeout: float | None = None
    counts: Counts | None = None
    encodes_slowly: bool = False
    identity: str | None = None
