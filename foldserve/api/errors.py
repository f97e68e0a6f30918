"""The errors and warnings that only the Python API raises.

MissingExtra                 extras.py: a library is not installed; the message names the extra that installs it
TableWarning                 fit.py: a note on the table, such as a dropped column; the command prints these notes

ClientError                  a request of a client has no answer; `status` is the HTTP status
├── RequestRefused           400, 413, 415, 422: the rows are not valid for the model
├── AccessDenied             401, 403: the API key is missing, not valid, or not for predictions
├── ModelNotFound            404: the server has no such model or version
├── ServerBusy               429, 503: the server has no room for the request, even after the retries
├── DeadlineExceeded         504: the deadline passed before the rows could run
├── ServerFailed             any other status
└── ServerUnreachable        no server answers at the address

The module also rewrites messages of the command line, so that the messages name Python arguments instead of flags.
"""

from __future__ import annotations

import re

from foldserve.service.errors import FoldserveError

_FLAG = re.compile(
    r"--([a-z]+(?:-[a-z]+)*)(?: (?!(?:or|and|to|if|is|too|needs|must|demand)\b)('[^']*'|[\w.,]+\b|[.,]))?"
)


class MissingExtra(FoldserveError, ImportError):  # noqa: N818
    """A library is not installed."""


class TableWarning(UserWarning):
    """A note on a table that is used for training."""


class ClientError(FoldserveError):
    """A request failed: the server gave no usable answer. status: the HTTP status; None if there was no response. text:
    the server's own text.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text if status is None else f"{status}: {text}")
        self.text = text
        self.status = status


class RequestRefused(ClientError, ValueError):  # noqa: N818 (a name says what happened, as in httpx)
    """The rows are not valid for the model."""


class AccessDenied(ClientError):  # noqa: N818
    """The API key is missing, is not valid, or does not allow predictions."""


class ModelNotFound(ClientError, LookupError):  # noqa: N818
    """The server has no such model or version."""


class ServerBusy(ClientError):  # noqa: N818
    """The server has no room for the request. retry_after: the seconds to wait before a retry; None if unknown."""

    def __init__(self, text: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(text, status)
        self.retry_after = retry_after


class DeadlineExceeded(ClientError, TimeoutError):  # noqa: N818
    """The deadline passed before the rows could run."""


class ServerFailed(ClientError):  # noqa: N818
    """The server failed, or its response does not have the form of a foldserve response."""


class ServerUnreachable(ClientError, ConnectionError):  # noqa: N818
    """No server answers at the address."""


def in_python(text: str) -> str:
    """Replace the flags in a message by Python arguments: `--drop id` becomes drop='id'."""

    def argument(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return name if found[2] is None else f"{name}={found[2].strip(chr(39))!r}"

    return _FLAG.sub(argument, text)
