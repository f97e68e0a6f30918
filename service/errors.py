"""Everything the service refuses. Knows no HTTP: `app.py` maps each error to a status.

FoldserveError
├── SettingsError        settings.py: a flag, variable or file with a value that can't be used
├── BundleError          bundle.py, runtime.py: not whole, or not the model that its manifest certifies
├── DeviceError          runtime.py: the device asked for does not answer
├── StartError           cli.py, repository.py: nothing to serve, no port to serve it on
└── RequestError         one request, refused or failed; the text is fixed and never echoes the input
    ├── InvalidInput     codecs/: the body is not rows of this model
    ├── TooLarge         app.py: the body passes its cap
    ├── UnsupportedMedia app.py: the body is of another media type
    ├── UnknownModel     repository.py: no such name or version
    ├── ModelNotReady    repository.py: known, and not to be served
    └── RuntimeFailure   runtime.py: the model did not run, or gave a value that is not finite
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


class RequestError(FoldserveError):
    """One request is refused or failed."""


class InvalidInput(RequestError):  # noqa: N818 (the tree reads as what happened, as httpx's does)
    """The body is not a list of rows of this model."""


class TooLarge(RequestError):  # noqa: N818
    """The body passes its cap."""


class UnsupportedMedia(RequestError):  # noqa: N818
    """The body is of a media type that is not read here."""


class UnknownModel(RequestError):  # noqa: N818
    """There is no such model or version."""


class ModelNotReady(RequestError):  # noqa: N818
    """The model is known, and none of the versions asked for may be served."""


class RuntimeFailure(RequestError):  # noqa: N818
    """The model did not run, or gave a value that is not finite."""
