"""Writes the answers of the friendly protocol: outputs as JSON, raw float32 or an Arrow stream.

This module decides the form of an answer, which the query of the URL can change. This module does not depend on
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from foldserve.service.arrays import Outputs
from foldserve.service.bundle import Decision, Manifest
from foldserve.service.protocols.query import AnswerOptions
from foldserve.service.protocols.reply import JSON, Reply

if TYPE_CHECKING:
    from foldserve.service.protocols.arrow import ArrowWriter

RAW_TYPE = b"application/octet-stream"
ARROW_TYPE = b"application/vnd.apache.arrow.stream"

_PLAIN = AnswerOptions()
_JSON_HEADERS = (JSON,)
_RAW_HEADERS = ((b"content-type", RAW_TYPE),)
_FLOAT = np.dtype("<f4")


class Answers:
    """Writes the answers of one model. The methods take the model's outputs as an array [rows, outputs]."""

    def __init__(self, manifest: Manifest) -> None:
        self._head = orjson.dumps({"model": manifest.name, "version": manifest.version})[:-1]
        self._decision = Decision.of(manifest)
        self._labels = [orjson.dumps(label) for label in manifest.labels]
        # For each class, the text of an answer with one row of this class, up to the place where the probabilities
        # begin.
        self._starts = [b'%b,"predictions":[%b],"probabilities":' % (self._head, label) for label in self._labels]

    @cached_property
    def _arrow_writer(self) -> ArrowWriter:
        # This import is not at the top of the module, because few clients ask for Arrow, and the library takes memory
        # and time.
        from foldserve.service.protocols.arrow import ArrowWriter

        return ArrowWriter(self._decision)

    @property
    def has_classes(self) -> bool:
        """Whether the task of the model is classification."""
        return bool(self._labels)

    @property
    def width(self) -> int:
        """The number of outputs for each row."""
        return len(self._labels) or 1

    def json(
        self, outputs: Outputs, options: AnswerOptions = _PLAIN, warnings: Sequence[dict[str, Any]] | None = None
    ) -> Reply:
        """Return a JSON answer.

        warnings: the entries of the member `warnings`; None if the client did not ask for warnings.
        """
        if options is _PLAIN and warnings is None and len(outputs) == 1 and self._labels:  # the usual answer
            (predicted,) = self._decision.classes(outputs).tolist()
            return Reply(200, _JSON_HEADERS, b"%b%b}" % (self._starts[predicted], _dumps(outputs)))
        if self._labels:
            # The JSON texts of the labels are already known, so orjson writes only the numbers.
            predictions = b",".join([self._labels[i] for i in self._decision.classes(outputs).tolist()])
            rest = b'"predictions":[%b],%b' % (predictions, self._probabilities(outputs, options))
        else:
            rest = b'"predictions":%b' % _dumps(np.ascontiguousarray(outputs[:, 0]))
        last = b"}" if warnings is None else b',"warnings":%b}' % orjson.dumps(warnings)
        return Reply(200, _JSON_HEADERS, b"%b,%b%b" % (self._head, rest, last))

    def raw(self, outputs: Outputs) -> Reply:
        """Return the float32 values, little-endian, one row after the other."""
        return Reply(200, _RAW_HEADERS, outputs.astype(_FLOAT, copy=False).tobytes())

    def arrow(self, outputs: Outputs) -> Reply:
        """Return an Arrow stream."""
        return Reply(200, ((b"content-type", ARROW_TYPE),), self._arrow_writer.write(outputs))

    def _probabilities(self, outputs: Outputs, options: AnswerOptions) -> bytes:
        """Return the member `probabilities` of the answer.

        Also return the member `classes` if the probabilities have no class names and are not in the order of the
        labels.
        """
        if options is _PLAIN:
            return b'"probabilities":%b' % orjson.dumps(outputs, option=orjson.OPT_SERIALIZE_NUMPY)
        names = self._decision.names
        if options.top is None:
            values = [dict(zip(names, row, strict=True)) for row in outputs] if options.named else outputs
            return b'"probabilities":%b' % _dumps(values)
        best = self._decision.best_classes(outputs, options.top)
        sorted_outputs = np.take_along_axis(outputs, best, axis=1)
        if options.named:
            rows = zip(best.tolist(), sorted_outputs, strict=True)
            named = [{names[i]: value for i, value in zip(row, values, strict=True)} for row, values in rows]
            return b'"probabilities":%b' % _dumps(named)
        classes = b"],[".join([b",".join([self._labels[i] for i in row]) for row in best.tolist()])
        return b'"classes":[[%b]],"probabilities":%b' % (classes, _dumps(sorted_outputs))


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
