"""The access log, which has one line for each request. The access log writes many lines at once.

While the server is busy, the log leaves out some successful requests. The next line contains the number of requests
that were left out. Every request that fails gets a line in the log.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

import orjson

from foldserve.service.telemetry.log_format import LogFormat, safe_url, utc
from foldserve.service.telemetry.rate import RateLimit
from foldserve.service.telemetry.record import Record

_WRITE_SECONDS = 0.05
_LOGGER = "foldserve.access"


class AccessLog:
    """Writes the lines of one process to standard error. An `AccessLog` is a sink of records.

    limit: limits the number of lines per second for requests with a status below 400.
    """

    keeps_errors = True

    def __init__(self, log_format: LogFormat, rate: int) -> None:
        self.limit = RateLimit(rate, rate)
        self._format = _json if log_format == "json" else _console
        # For each line that is not written yet: the time, the record and the number of skipped requests.
        self._waiting: list[tuple[float, Record | None, int]] = []
        self._skipped = 0
        atexit.register(self.close)  # when the process ends, writes the lines that still wait

    def add(self, record: Record) -> None:
        """Add a line. `_write` formats the line later, because formatting many lines at once takes less time."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(_WRITE_SECONDS, self._write)
        skipped, self._skipped = self._skipped, 0
        self._waiting.append((time.time(), record, skipped))

    def skip(self, count: int) -> None:
        """Count requests that the log leaves out, so that the next line can contain their number."""
        self._skipped += count

    def report(self) -> None:
        """Write a line with the number of skipped requests, unless another line has already reported it."""
        skipped, self._skipped = self._skipped, 0
        if skipped:
            self._waiting.append((time.time(), None, skipped))
        self._write()

    def close(self) -> None:
        """Write all lines that wait."""
        self.report()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        lines = [self._format(now, _fields(record) if record else {}, skipped) for now, record, skipped in waiting]
        if lines:
            with suppress(OSError, ValueError):  # the disk may be full, or the stream may be closed at exit
                sys.stderr.write("".join(lines))
                sys.stderr.flush()


def _fields(record: Record) -> dict[str, Any]:
    """Return the fields of a log line. Fields that do not apply to the request are left out.

    Times are in milliseconds.
    """
    ended = record.ended or record.began
    fields: dict[str, Any] = {
        "request_id": record.request_id.decode(),
        "trace_id": f"{record.trace_id:032x}",
        "span_id": f"{record.span_id:016x}",
        "client": record.client,
        "method": record.method.decode(),
        "url": safe_url(record.url),
        "status": record.status,
        "ms": _ms(record.began, ended),
    }
    if record.reason:
        fields["reason"] = record.reason
    if record.model:
        fields |= {"model": record.model, "version": record.version, "protocol": record.protocol}
        if record.body_id:
            fields["id"] = record.body_id
        if record.rows is not None:
            fields["rows"] = record.rows
        decoding = record.decoding
        if decoding is not None:
            fields |= {"wait_ms": _ms(record.began, decoding), "parse_ms": _ms(decoding, record.decoded or ended)}
        if record.decoded is not None:
            fields["queue_ms"] = _ms(record.decoded, record.ran_from or ended)
        if record.ran_from is not None and record.ran_to is not None:
            fields |= {"run_ms": _ms(record.ran_from, record.ran_to), "encode_ms": _ms(record.ran_to, ended)}
        if record.batch is not None:
            fields["batch_rows"] = record.batch.rows
    return fields


def _ms(start: float, end: float) -> float:
    return round((end - start) * 1e3, 3)


def _json(now: float, fields: dict[str, Any], skipped: int) -> str:
    message = f"{fields['method']} {fields['url']} {fields['status']}" if fields else "skipped requests"
    head = {"time": utc(now), "level": "INFO", "logger": _LOGGER, "message": message}
    return orjson.dumps({**head, **fields, "skipped": skipped}).decode() + "\n"


def _console(now: float, fields: dict[str, Any], skipped: int) -> str:
    stamp = f"{_local_second(int(now))},{int(now % 1 * 1000):03d}"
    end = f" skipped={skipped}\n" if skipped else "\n"
    if not fields:
        return f"{stamp} INFO {_LOGGER}: skipped requests{end}"
    named = dict(fields)
    client, method, url, status = (named.pop(name) for name in ("client", "method", "url", "status"))
    pairs = " ".join(f"{name}={value}" for name, value in named.items())
    return f'{stamp} INFO {_LOGGER}: {client} - "{method} {url}" {status} {pairs}{end}'


@lru_cache(2)  # many lines have the same time in seconds, so the texts of two seconds are cached
def _local_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
