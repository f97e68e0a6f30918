"""Lists the versions in the folder of the models. Each version has a stamp, which changes when its files change.

This module reads the names and the status of the files, but not their contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from foldserve.service import bundle
from foldserve.service.errors import SettingsError, StartError
from foldserve.service.settings import Settings

_FILES = (bundle.MANIFEST_FILE, bundle.MODEL_FILE)


@dataclass(frozen=True)
class Found:
    """The folder of one model. versions: maps each version number to a stamp. reason: why the folder can't be read;
    None if it can.
    """

    versions: Mapping[int, str]
    reason: str | None = None


class Layout(Protocol):
    """The layout of the bundles of a server on the disk."""

    @property
    def folder(self) -> Path:
        """The folder to watch."""

    @property
    def name(self) -> str | None:
        """The name of the only model, whose bundles may have another name; None if the folder is for many models."""

    def scan(self) -> dict[str, Found]:
        """Return the versions of each model, by the name of the model. Raises `StartError` if the folder is missing or
        can't be read.
        """

    def path(self, name: str, version: int) -> Path:
        """Return the folder of a bundle."""


@dataclass(frozen=True)
class ManyModels:
    """A folder of many models. The path of each bundle is <folder>/<name>/<version>/."""

    folder: Path
    name: str | None = None

    def scan(self) -> dict[str, Found]:
        """Return the versions of each model, by the name of the model.

        Folders with a name that is not valid for a model are left out. Raises `StartError`.
        """
        models = {}
        with _readable(self.folder):
            for entry in sorted(self.folder.iterdir()):
                if bundle.NAME.fullmatch(entry.name) and entry.is_dir():
                    found = _scan_model(entry)
                    if found.versions or found.reason:
                        models[entry.name] = found
        return models

    def path(self, name: str, version: int) -> Path:
        """Return the folder of a bundle."""
        return self.folder / name / str(version)


@dataclass(frozen=True)
class OneModel:
    """The folder of one model.

    This folder either is itself a bundle, or contains one bundle for each version, as <folder>/<version>/.
    """

    folder: Path
    name: str

    def scan(self) -> dict[str, Found]:
        """Return the versions of the only model, by its name. Raises `StartError`."""
        with _readable(self.folder):
            if self._is_flat:
                stamp = _stamp(self.folder)
                return {self.name: Found({_flat_version(self.folder, stamp): stamp})}
            found = _scan_model(self.folder)
        return {self.name: found} if found.versions or found.reason else {}

    @property
    def _is_flat(self) -> bool:
        return any((self.folder / name).exists() for name in _FILES)

    def path(self, name: str, version: int) -> Path:  # noqa: ARG002 (there is only one name)
        """Return the folder of a bundle."""
        return self.folder if self._is_flat else self.folder / str(version)


def layout_of(settings: Settings) -> Layout:
    """Return the layout that the settings describe. Raises `SettingsError`."""
    if settings.model_dir is None:
        if settings.model_name is not None:
            raise SettingsError("--model-name needs --model-dir")
        return ManyModels(settings.models)
    name = settings.model_name
    if name is None or not bundle.NAME.fullmatch(name):
        raise SettingsError("--model-dir needs --model-name, a name of letters, digits, dots, - and _")
    return OneModel(settings.model_dir, name)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """If the folder is missing or can't be read, raise a `StartError` instead of the original error."""
    try:
        if not folder.is_dir():
            raise StartError(f"no models to serve: {folder} is not a directory")
        yield
    except OSError as error:
        raise StartError(f"can't read {error.filename}: {error.strerror}") from error


@lru_cache(1)
def _flat_version(folder: Path, stamp: str) -> int:  # noqa: ARG001 (the stamp changes with the file)
    """Return the version in the manifest of a flat bundle.

    Return 1 if the manifest is missing or has no valid version, for example because the copy is incomplete.
    """
    file = folder / bundle.MANIFEST_FILE
    try:
        version = json.loads(file.read_bytes())["version"] if file.is_file() else 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 1
    return version if type(version) is int and version > 0 else 1


def _scan_model(folder: Path) -> Found:
    try:
        return Found({number: _stamp(folder / str(number)) for number in bundle.versions(folder)})
    except FileNotFoundError:  # the folder was removed a moment ago
        return Found({})
    except OSError as error:
        return Found({}, f"can't read {folder}: {error.strerror}")


def _stamp(folder: Path) -> str:
    """Return a text that changes with the files of a bundle.

    Kubernetes mounts each file as a link and changes the target of the link, so the stamp is made from the status of
    the target.
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
