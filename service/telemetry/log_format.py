"""The two formats of the log: `console` for people, and `json` for programs.

This module decides which characters may occur in a log line.

In the JSON format, each line is one JSON object that contains the time in UTC, in the format of RFC 3339. No line
contains a control character or a character outside ASCII, so a client can't add a line to the log.
"""

from __future__ import annotations

import json
import logging
import re
import time
from functools import lru_cache
from typing import Any, Literal

from foldserve.service.telemetry.record import current_record

LogFormat = Literal["console", "json"]

_CONSOLE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The console format allows line breaks in a traceback, and in the message of an error that the operator has caused.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\"\\]|[^\x00-\x7f]")
_MAX_URL = 1024


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Return the formatter for the log of the process."""
    return _JsonFormatter() if log_format == "json" else _ConsoleFormatter(_CONSOLE)


def safe_url(url: bytes) -> str:
    """Return at most 1,024 characters of a URL. Characters that could end or confuse a line of the log are escaped."""
    text = url[:_MAX_URL].decode("latin-1")
    if not text.isascii() or not text.isprintable() or '"' in text or "\\" in text:
        text = _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text + "..." if len(url) > _MAX_URL else text


def utc(seconds: float) -> str:
    """Return a Unix time in the format of RFC 3339, with milliseconds."""
    milliseconds = int(seconds * 1e3)
    return f"{_utc_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(2)  # many lines have the same time in seconds, so the texts of two seconds are cached
def _utc_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        request = current_record.get()
        if request is None:
            return text
        first, line_break, rest = text.partition("\n")
        return f"{first} id={request.request_id.decode()}{line_break}{rest}"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current_record.get()
        if request is not None:
            fields["request_id"] = request.request_id.decode()
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)
