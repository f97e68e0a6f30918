"""Requests and answers of `:explain`.

    {"instances": [...]}, as for a prediction
    -> {"model": ..., "version": ..., "method": ..., "explanations": [
        {"class": label, "logit": ..., "offset": ..., "contributions": {"feature": ..., ...}}, ...]}

The answer of a regression has "value" instead of "class" and "logit". The contributions and the offset add up to the
logit or the value. This module does not compute the contributions, but it checks the sum of the numbers in each answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from urllib.parse import unquote_plus

import numpy as np
import orjson

from foldserve.service.arrays import Outputs
from foldserve.service.bundle import Decision, Manifest
from foldserve.service.errors import IncompleteExplanation, InvalidInput
from foldserve.service.explain.explainer import TOLERANCE, Method
from foldserve.service.explain.runner import PREDICTED, join, split
from foldserve.service.protocols.friendly import FriendlyCodec
from foldserve.service.protocols.reply import JSON, Headers, Reply
from foldserve.service.protocols.request import DecodedRequest

# The largest number of contributions in one answer.
MAX_CONTRIBUTIONS = 1_000_000
# If an answer has more contributions than this number, a thread of a pool encodes the answer.
_MANY_CONTRIBUTIONS = 10_000


class ExplanationCodec:
    """Decodes the explanation requests of one model, and encodes its answers.

    rows: reads the rows of a request. method: a function that returns how the contributions are computed.
    """

    def __init__(self, manifest: Manifest, rows: FriendlyCodec, method: Callable[[], Method | None]) -> None:
        self._rows = rows
        self._method = method
        self._head = {"model": manifest.name, "version": manifest.version}
        self._labels = [orjson.dumps(label) for label in manifest.labels]
        self._classes = {name: place for place, name in enumerate(Decision.of(manifest).names)}
        self._width = len(manifest.features)
        names = [feature.name for feature in manifest.features]
        self._template = _row_template(names, has_classes=bool(manifest.labels))
        self._max_rows = max(1, MAX_CONTRIBUTIONS // self._width)
        self._wanted = PREDICTED

    def decode(self, headers: Headers, body: bytes | bytearray, *, fast_only: bool = False) -> DecodedRequest:
        """Decode one request. Raises `InvalidInput` and `UnsupportedMedia`; with `fast_only` also `SlowBody`."""
        request = self._rows.decode(headers, body, fast_only=fast_only)
        if len(request.rows) > self._max_rows:
            raise InvalidInput(f"the request has {len(request.rows)} rows; at most {self._max_rows} can be explained")
        request.encodes_slowly = len(request.rows) * self._width > _MANY_CONTRIBUTIONS
        request.counts = None  # the metrics don't count unusual values in explanation requests
        request.rows = join(request.rows, self._wanted)
        request.encode = self._encode
        return request

    def for_query(self, query: bytes, /) -> ExplanationCodec:
        """Return the codec for requests whose URL has this query. Raises `InvalidInput` for a wrong query."""
        name, _, value = query.partition(b"=")
        if name != b"class" or b"&" in value:
            raise InvalidInput("the URL has an unknown query parameter; the only known one is class, once")
        if not self._classes:
            raise InvalidInput("the query parameter class needs a model with classes")
        try:
            wanted = self._classes[unquote_plus(value.decode("ascii"), errors="strict")]
        except (KeyError, UnicodeDecodeError):
            raise InvalidInput("the query parameter class is not the name of a class of this model") from None
        codec = copy.copy(self)
        codec._wanted = wanted
        return codec

    def _encode(self, outputs: Outputs) -> Reply:
        """Write an answer. Raises `IncompleteExplanation` if the contributions of a row do not add up to its output."""
        found = split(outputs)
        parts = np.column_stack([found.output, found.offset, found.contributions])
        with np.errstate(invalid="ignore"):  # if a number is too large for float32, it is infinite, and the gap is NaN
            gap = np.abs(found.offset + found.contributions.sum(1) - found.output)
        complete = gap <= TOLERANCE * np.abs(parts).max(1)
        if not complete.all():
            raise IncompleteExplanation(f"the contributions of row {complete.argmin()} do not add up to the output")
        # orjson writes the numbers of all rows, and a template puts the numbers of each row between the names. The
        # template is several times as fast as making a Python object for each row.
        numbers = orjson.dumps(np.ascontiguousarray(outputs[:, 1:]), option=orjson.OPT_SERIALIZE_NUMPY)
        template = self._template
        rows = [template % (*row.split(b","),) for row in numbers[2:-2].split(b"],[")]
        if self._labels:
            rows = [
                b'{"class":%b,%b' % (self._labels[i], row) for i, row in zip(found.chosen.tolist(), rows, strict=True)
            ]
        head = orjson.dumps({**self._head, "method": self._method()})[:-1]
        return Reply(200, (JSON,), b'%b,"explanations":[%b]}' % (head, b",".join(rows)))


def _row_template(names: Sequence[str], *, has_classes: bool) -> bytes:
    """Return a bytes template for the JSON of one row, with a %b in place of each number.

    If the model has classes, the template does not contain the beginning `{"class":...,`.
    """
    start = b'"logit":%b' if has_classes else b'{"value":%b'
    contributions = b",".join([orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in names])
    return start + b',"offset":%b,"contributions":{' + contributions + b"}}"
