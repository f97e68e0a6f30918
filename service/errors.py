"""Every error that the service raises on purpose. This module does not depend on HTTP: `protocols/reply.py` gives each
error an HTTP status.

Each line names the modules that raise the error, and a test compares these names with the code.

FoldserveError               the command prints it as one line and exits with 1
├── SettingsError            settings.py, access/keys.py, live/, commands/, http/: a flag, variable or file is invalid
├── BundleError              bundle/, runtime/: a bundle is not whole or not certified
├── DeviceError              machine/, runtime/, commands/tune/, http/: a device is not available or lost
├── SourceError              sources/, commands/score/: a file can't be read as a table
├── TableError               tables/, commands/score/: a table does not fit the model
├── ScoreError               cli.py, commands/score/: the output of a run can't be written, or the run can't be resumed
├── StartError               live/, engine/, compose.py, prediction_log/, http/, rpc/, telemetry/: no models to serve,
│                            no port, no usable certificate, no folder for the prediction log, or a missing library
├── NotReady                 commands/health.py, commands/http_client.py: no service answers, or it is not ready
├── CommandRefused           commands/models.py: a server has refused the command of an operator
└── RequestError             one request is refused or failed; the text is fixed and never repeats the input
    ├── InvalidHttp          http/head.py, http/body.py: the bytes are not HTTP, or this server does not support them
    ├── UrlTooLong           http/head.py: the URL is longer than its limit
    ├── HeadTooLarge         http/head.py, http/body.py: the headers are larger than their limit
    ├── MissingKey           access/guard.py: the request has no API key, or an API key that is not valid
    ├── MissingScope         access/guard.py, http/routes/, rpc/: the API key lacks the scope
    ├── UnknownHost          access/hosts.py: the name in the Host header is not a name of this server
    ├── ForbiddenOrigin      access/hosts.py: a web page of another site sent the request
    ├── TooSlow              http/connection.py: the client did not send the whole request in time
    ├── TooLarge             http/body.py, http/routes/common.py, protocols/content.py: the body is too large
    ├── UnsupportedMedia     protocols/: the media type or the content encoding of the body is not supported
    ├── InvalidInput         protocols/, explain/, quality/, engine/, http/routes/, rpc/: the request is not valid
    ├── UnknownModel         engine/repository.py, live/, http/routes/, rpc/: the name or version does not exist
    ├── ModelNotReady        engine/, explain/, http/routes/oip.py: the model does not serve, or its files have changed
    ├── ModelBusy            live/coordinator.py: another request is changing the model
    ├── LoadRefused          live/: a version may not serve, so an operator's command was not executed
    ├── Overloaded           there is no room now; the error says when the client should try again
    │   ├── QueueFull        engine/batcher.py, engine/exchange.py, engine/pool.py: too many rows or requests wait
    │   ├── RateExceeded     access/guard.py: the API key has reached its rate
    │   ├── MemoryFull       protocols/body.py: the bodies of other requests fill the memory
    │   ├── Draining         engine/batcher.py: the server is stopping
    │   └── DeviceOutOfMemory  runtime/cuda.py: the device had no room for a run; the next run gets a new session
    ├── DeadlinePassed       engine/: the deadline passed before the model could run, or a worker did not answer in time
    ├── NotExplainable       explain/: the graph of the model can't be explained
    ├── IncompleteExplanation  explain/codec.py: the contributions of a row do not add up to its output
    ├── NonFiniteOutput      engine/entry.py: an output is not finite, because the row has numbers that are too large
    └── RuntimeFailure       engine/batcher.py, engine/entry.py, commands/: the model did not run
        └── DeviceLost       runtime/cuda.py: the device has failed; the server stops
"""

from __future__ import annotations

import re
from pathlib import Path


class FoldserveError(Exception):
    """An error with a message of one line that a user or a client can act on."""


class SettingsError(FoldserveError):
    """A setting has a value that can't be used."""


class BundleError(FoldserveError):
    """A bundle is incomplete or damaged, or its manifest certifies another model.

    The text in `reason` may be sent to a client. The message also names the folder, which only the operator may see.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason


class DeviceError(FoldserveError):
    """The requested device is not available, or is lost."""


class SourceError(FoldserveError):
    """A file can't be read as a table."""


class TableError(FoldserveError, ValueError):
    """A table does not fit the model."""


class ScoreError(FoldserveError):
    """The output of a scoring run can't be written, or the run can't be resumed."""


class StartError(FoldserveError):
    """The service can't start."""


class NotReady(FoldserveError):  # noqa: N818
    """A service does not answer, or is not ready."""


class CommandRefused(FoldserveError):  # noqa: N818
    """A server has refused the command of an operator."""


class RequestError(FoldserveError):
    """One request is refused, or has failed."""

    @classmethod
    def reason(cls) -> str:
        """Return the name of the error in metrics and logs: queue_full for `QueueFull`."""
        return re.sub("(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class InvalidHttp(RequestError):  # noqa: N818 (a name says what happened, as in httpx)
    """The bytes are not HTTP, or this server does not support them."""


class UrlTooLong(RequestError):  # noqa: N818
    """The URL is longer than its limit."""


class HeadTooLarge(RequestError):  # noqa: N818
    """The headers are larger than their limit."""


class MissingKey(RequestError):  # noqa: N818
    """The request has no valid API key. given: whether the request has an API key."""

    def __init__(self, text: str, *, given: bool) -> None:
        super().__init__(text)
        self.challenge = 'Bearer realm="foldserve"' + (', error="invalid_token"' if given else "")


class MissingScope(RequestError):  # noqa: N818
    """The API key is valid, but lacks the scope that the request needs."""

    def __init__(self, text: str, scope: str) -> None:
        super().__init__(text)
        self.challenge = f'Bearer realm="foldserve", error="insufficient_scope", scope="{scope}"'


class UnknownHost(RequestError):  # noqa: N818
    """The name in the Host header is not a name of this server."""


class ForbiddenOrigin(RequestError):  # noqa: N818
    """A web page of another site sent the request."""


class TooSlow(RequestError):  # noqa: N818
    """The client did not send the whole request in time."""


class TooLarge(RequestError):  # noqa: N818
    """The body is larger than its limit."""


class UnsupportedMedia(RequestError):  # noqa: N818
    """The media type or the content encoding of the body is not supported."""


class InvalidInput(RequestError, ValueError):  # noqa: N818
    """The request is not valid for this model."""


class UnknownModel(RequestError):  # noqa: N818
    """The model or the version does not exist."""


class ModelNotReady(RequestError):  # noqa: N818
    """The model exists, but none of the requested versions serves."""


class ModelBusy(RequestError):  # noqa: N818
    """Another request is changing the model."""


class LoadRefused(RequestError):  # noqa: N818
    """The command of an operator was not executed, because it would need a version that is not allowed to serve."""


class Overloaded(RequestError):  # noqa: N818
    """The server has no room for the request now. The client should try again in `retry_after` seconds."""

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, int]]:
        # `copy` calls `__reduce__`. The method that this class inherits would omit `retry_after`.
        return type(self), (str(self), self.retry_after)


class QueueFull(Overloaded):
    """Too many rows, requests or large bodies are already waiting."""


class RateExceeded(Overloaded):
    """The API key has reached its rate limit."""


class MemoryFull(Overloaded):
    """The bodies of other requests fill the memory that the server sets aside for request bodies."""


class Draining(Overloaded):
    """The server is stopping."""


class DeviceOutOfMemory(Overloaded):
    """The device did not have enough free memory for the run."""


class DeadlinePassed(RequestError):  # noqa: N818
    """The deadline passed before the model could run."""


class RuntimeFailure(RequestError):  # noqa: N818
    """The model did not run."""


class NonFiniteOutput(RequestError):  # noqa: N818
    """An output of a row is not finite, because the numbers in the row are far outside the model's range."""


class NotExplainable(RequestError):  # noqa: N818
    """The graph of the model has a part that can't be explained."""


class IncompleteExplanation(RequestError):  # noqa: N818
    """The offset and the contributions of a row do not add up to its output: the difference exceeds the tolerance."""


class DeviceLost(RuntimeFailure):
    """The device has failed, and this process can't use it any more."""
