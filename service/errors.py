"""Everything the service refuses. Knows no HTTP: `app.py` maps each error to a status.

FoldserveError
├── SettingsError        settings.py, tuned.py: a flag, variable or file with a value that can't be used
├── BundleError          bundle.py, proof.py: not whole, or not the model that its manifest certifies
├── DeviceError          session.py, stream.py: the device asked for does not answer
├── StartError           cli.py, repository.py: nothing to serve, no port to serve it on
├── NotReady             health.py: no service answers at its address, or one that is not ready
└── RequestError         one request, refused or failed; the text is fixed and never echoes the input
    ├── InvalidHttp      wire.py: not HTTP, or not as this server speaks it
    ├── UrlTooLong       wire.py: the URL passes its cap
    ├── HeadTooLarge     wire.py: the headers pass their cap
    ├── TooSlow          wire.py: the request was not whole in time
    ├── TooLarge         wire.py, app.py, content.py: the body passes its cap
    ├── UnsupportedMedia content.py, codecs/: the body is of another media type, or compressed in another way
    ├── InvalidInput     content.py, codecs/: the body is not rows of this model
    ├── UnknownModel     repository.py: no such name or version
    ├── ModelNotReady    repository.py: known, and not to be served
    ├── Overloaded       has the seconds after which to try again
    │   ├── QueueFull    batcher.py: too many rows wait already
    │   ├── Draining     batcher.py: the server is stopping
    │   └── DeviceOutOfMemory  cuda_runner.py: there was no room for a run; the session is new
    ├── DeadlinePassed   batcher.py: the caller's time was over before the model could run
    └── RuntimeFailure   runtime.py, batcher.py: the model did not run
        ├── NonFiniteOutput  batcher.py: it gave a value that is not finite
        └── DeviceLost   cuda_runner.py: the device has failed; the server stops
"""

from __future__ import annotations

from pathlib import Path


class FoldserveError(Exception):
    """A reason that a person or a client can act on, in one line."""


class SettingsError(FoldserveError):
    """A setting has a value that can't be used."""


class BundleError(FoldserveError):
    """A bundle is not whole, or not the model that its manifest certifies.

    `reason` may be shown to a client; the text also names the folder, which is nobody's business but the operator's.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason


class DeviceError(FoldserveError):
    """The device that was asked for does not answer."""


class StartError(FoldserveError):
    """The service can't start."""


class NotReady(FoldserveError):  # noqa: N818
    """The service that was asked does not answer, or is not ready."""


class RequestError(FoldserveError):
    """One request is refused or failed."""


class InvalidHttp(RequestError):  # noqa: N818 (the tree reads as what happened, as httpx's does)
    """The bytes are not HTTP, or not as this server speaks it."""


class UrlTooLong(RequestError):  # noqa: N818
    """The URL passes its cap."""


class HeadTooLarge(RequestError):  # noqa: N818
    """The headers pass their cap."""


class TooSlow(RequestError):  # noqa: N818
    """The request was not whole in time."""


class TooLarge(RequestError):  # noqa: N818
    """The body passes its cap."""


class UnsupportedMedia(RequestError):  # noqa: N818
    """The body is of a media type, or compressed in a way, that is not read here."""


class InvalidInput(RequestError):  # noqa: N818
    """The body is not a list of rows of this model."""


class UnknownModel(RequestError):  # noqa: N818
    """There is no such model or version."""


class ModelNotReady(RequestError):  # noqa: N818
    """The model is known, and none of the versions asked for may be served."""


class Overloaded(RequestError):  # noqa: N818
    """There is no room now; there may be in `retry_after` seconds."""

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, int]]:
        return type(self), (str(self), self.retry_after)  # for `copy`: an exception's own knows the text alone


class QueueFull(Overloaded):
    """Too many rows wait for this model already."""


class Draining(Overloaded):
    """The server is stopping."""


class DeviceOutOfMemory(Overloaded):
    """The device had no room for this run."""


class DeadlinePassed(RequestError):  # noqa: N818
    """The caller's time was over before the model could run."""


class RuntimeFailure(RequestError):  # noqa: N818
    """The model did not run."""


class NonFiniteOutput(RuntimeFailure):
    """The model gave a value that is not finite."""


class DeviceLost(RuntimeFailure):
    """The device has failed, and takes no more work from this process."""
