"""Lists the versions in a folder of models, with a stamp of each that changes when its files change.

It knows the names of files and their status. It does not read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foldserve.service import bundle
from foldserve.service.errors import StartError

_FILES = (bundle.MANIFEST_FILE, bundle.MODEL_FILE)


@dataclass(frozen=True)
class Found:
    """The folder of one model. versions: stamps by number. reason: why the folder can't be read; None if it can."""

    versions: Mapping[int, str]
    reason: str | None = None


def scan(folder: Path) -> dict[str, Found]:
    """List every model in `folder` by its name. Names that no model may have are left out.

    Raises `StartError` if the folder is missing or can't be read.
    """
    models = {}
    try:
        if not folder.is_dir():
            raise StartError(f"no models to serve: {folder} is not a directory")
        for entry in sorted(folder.iterdir()):
            if bundle.NAME.fullmatch(entry.name) and entry.is_dir():
                found = _scan_model(entry)
                if found.versions or found.reason:
                    models[entry.name] = found
    except OSError as error:
        raise StartError(f"can't read {error.filename}: {error.strerror}") from error
    return models


def _scan_model(folder: Path) -> Found:
    try:
        return Found({number: _stamp(folder / str(number)) for number in bundle.versions(folder)})
    except FileNotFoundError:  # the folder was removed a moment ago
        return Found({})
    except OSError as error:
        return Found({}, f"can't read {folder}: {error.strerror}")


def _stamp(folder: Path) -> str:
    """Return a text that changes with the files of a bundle.

    Kubernetes mounts each file as a link and changes the target of the link. So the stamp has the status of the target.
    """
    stamps = []
    for name in _FILES:
        try:
            status = (folder / name).stat()
        except OSError as error:
            stamps.append(type(error).__name__)
        else:
            stamps.append(f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}-{status.st_dev}")
    return "+".join(stamps)
