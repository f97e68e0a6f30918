"""A decoded request. Every codec returns this type. The module knows no protocol and no batcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foldserve.service.arrays import Outputs, Rows
from foldserve.service.protocols.reply import Reply


class SlowBody(Exception):  # noqa: N818
    """Decoding this body takes long, so a thread should decode it."""


@dataclass(slots=True)
class DecodedRequest:
    """The rows of one request, the encoder of its answer, and its deadline.

    timeout: in seconds. unseen: the number of values that training has not seen, by feature.
    """

    rows: Rows
    encode: Callable[[Outputs], Reply]
    timeout: float | None = None
    unseen: Mapping[str, int] | None = None
