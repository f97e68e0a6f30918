"""Reads and writes bundles on disk. Every read checks the bundle, and every write leaves either a complete bundle or
nothing.

This module checks the manifest, the seal and the hash of the model, and does not depend on the contents of the model.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from foldserve.service.bundle import seal
from foldserve.service.bundle.atomic import replace_file, sync_folder, write_synced
from foldserve.service.bundle.manifest import NAME, SCHEMA_VERSION, UNSEALED_SCHEMA, Manifest
from foldserve.service.errors import BundleError

log = logging.getLogger("foldserve")

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"

# Upper limits of the files that are read, in bytes. In memory, a parsed manifest is about ten times larger than its
# file. An ONNX file without external data is one protobuf message, which has at most 2 GiB.
MAX_MANIFEST = 64 * 2**20
MAX_MODEL = 2**31 - 1

_PARTIAL = ".partial-"  # no reader opens a folder whose name begins with a dot
_ABANDONED = 24 * 3600  # a day in seconds; a write takes only a few seconds


@dataclass(frozen=True, repr=False)
class Bundle:
    """A manifest and the bytes that it certifies.

    digest: the digest of the manifest, from the seal; None for a bundle of schema 1, which has no seal.
    """

    path: Path
    manifest: Manifest
    model: bytes
    digest: str | None = None

    def __repr__(self) -> str:
        """Return one line, without the bytes of the model, so that a notebook can show a bundle."""
        scores = ", ".join(f"{name} {value:.4g}" for name, value in self.manifest.metrics.get("test", {}).items())
        return f"<Bundle {self.path}: {self.manifest.task}{f', test {scores}' if scores else ''}>"

    @property
    def warning(self) -> str | None:
        """A warning for a bundle without a seal; None for a sealed bundle."""
        if self.digest is not None:
            return None
        return (
            f"the manifest has no seal (schema {self.manifest.schema_version}), so a changed label, feature or "
            f"tolerance would not be found; check and seal it with: foldserve reseal {self.path}"
        )


def read(path: Path) -> Bundle:
    """Read the bundle in the folder `path`. The hash is checked on exactly the model bytes that are returned.

    Raises `BundleError` in these cases: a file is missing, too large or not regular; the manifest has another schema or
    differs from its seal; the size or the hash of the model differs from the manifest.
    """
    require_folder(path, "no such bundle")
    manifest, digest = _read_manifest(path)
    with _open_regular(path / MODEL_FILE, MAX_MODEL) as (stream, size):
        if size != manifest.model.size:
            raise BundleError(f"{MODEL_FILE} has {size} bytes, the manifest says {manifest.model.size}", path)
        model = stream.read(size)
    if hashlib.sha256(model).hexdigest() != manifest.model.sha256:
        raise BundleError(f"{MODEL_FILE} is not the certified one: its sha256 is not the manifest's", path)
    return Bundle(path, manifest, model, digest)


def find_bundle(path: Path) -> Bundle:
    """Read the bundle in the folder `path`, or the newest version in the folder of a model. Raises `BundleError`."""
    require_folder(path, "no such bundle")
    try:
        numbers = [] if (path / MANIFEST_FILE).exists() else versions(path)
    except OSError as error:
        raise BundleError(f"can't be read: {error.strerror}", path) from error
    return read(path / str(numbers[-1]) if numbers else path)


def require_place(bundle: Bundle) -> None:
    """Raise `BundleError` unless the bundle is in a folder <name>/<version> that has the manifest's name and
    version.
    """
    manifest, path = bundle.manifest, Path(os.path.abspath(bundle.path))  # noqa: PTH100 (keeps links, unlike resolve)
    if (manifest.name, str(manifest.version)) != (path.parent.name, path.name):
        raise BundleError(
            f"the manifest is of {manifest.name}/{manifest.version}, the folder is {path.parent.name}/{path.name}; "
            "`foldserve copy` gives a bundle another name",
            bundle.path,
        )


def read_report(path: Path) -> str | None:
    """Read the HTML report of the bundle in the folder `path`; None if it has none.

    Raises `BundleError` if the file can't be read as text.
    """
    if not (path / REPORT_FILE).exists():
        return None
    with _open_regular(path / REPORT_FILE, MAX_MODEL) as (stream, size):
        content = stream.read(size)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{REPORT_FILE} is not UTF-8", path) from error


def require_folder(path: Path, reason: str = "no such folder; make it first") -> None:
    """Raise `BundleError` with `reason` unless `path` is a folder."""
    try:
        if not path.is_dir():
            raise BundleError(reason, path)
    except OSError as error:  # `is_dir` raises an error if a parent folder can't be entered
        raise BundleError(f"can't be read: {error.strerror}", path) from error


def require_writable(path: Path) -> None:
    """Raise `BundleError` unless this process can write to the folder `path`, or can make this folder."""
    try:
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise BundleError("not a folder", existing)
    except OSError as error:
        raise BundleError(f"can't be read: {error.strerror}", path) from error
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BundleError("can't write there: Permission denied", existing)


@contextmanager
def _open_regular(file: Path, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file of at most `most` bytes. Yield the file and its size. A link to a regular file is allowed."""
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{file.name} is not a regular file", file.parent)
            if status.st_size > most:
                raise BundleError(f"{file.name} has {status.st_size} bytes; the limit is {most}", file.parent)
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream, status.st_size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BundleError(f"can't read {file.name}: {error.strerror}", file.parent) from error


def _read_manifest(path: Path) -> tuple[Manifest, str | None]:
    """Read the manifest of a bundle, and return it with its digest. Without a seal, the digest is None."""
    with _open_regular(path / MANIFEST_FILE, MAX_MANIFEST) as (stream, size):
        text = stream.read(size)
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON", path) from error
    digest = None
    if isinstance(content, dict):
        version = content.get("schema_version")
        if type(version) is int and SCHEMA_VERSION < version < 2**63:
            raise BundleError(
                f"made by a newer foldserve: manifest schema {version}, this one reads {SCHEMA_VERSION}", path
            )
        if type(version) is not int or version != UNSEALED_SCHEMA:
            digest = _unseal(content, path)
    try:
        return Manifest.model_validate(content), digest
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise BundleError(f"{MANIFEST_FILE} is not a valid manifest: {field}: {first['msg']}", path) from error


def _unseal(content: dict[str, Any], path: Path) -> str:
    """Remove the seal from a parsed manifest, check all other fields against the seal, and return the seal's digest."""
    if seal.FIELD not in content:
        raise BundleError(f"{MANIFEST_FILE} is not a valid manifest: {seal.FIELD}: Field required", path)
    if changed := seal.find_changes(content):
        reason = f"{MANIFEST_FILE} was changed after it was written: it differs from its seal in {changed}"
        raise BundleError(reason, path)
    return str(content.pop(seal.FIELD)["digest"])


def _encode(manifest: Manifest, *, only_set: bool = False) -> bytes:
    """Write a manifest as JSON of the current schema, with a seal. only_set: leave out fields that were never set."""
    current = manifest.model_copy(update={"schema_version": SCHEMA_VERSION})
    content = from_json(current.model_dump_json(exclude_unset=only_set))
    return to_json(content | {seal.FIELD: seal.compute(content)}, indent=2) + b"\n"


def reseal(bundle: Bundle) -> Bundle:
    """Rewrite the manifest of `bundle` in the current schema, with a seal, and read the bundle again.

    The caller must have checked the bundle. If the file can't be written, raises `BundleError` and keeps the old file.
    """
    try:
        file = bundle.path / MANIFEST_FILE
        replace_file(file, _encode(bundle.manifest, only_set=True), file.with_name(f"{_PARTIAL}{MANIFEST_FILE}"))
    except OSError as error:
        raise BundleError(f"can't write {MANIFEST_FILE}: {error.strerror}", bundle.path) from error
    return read(bundle.path)


def versions(model: Path) -> list[int]:
    """List the versions in the folder of one model, in ascending order. Names that are not integers are ignored."""
    return _version_numbers(entry.name for entry in model.iterdir() if entry.is_dir())


def _version_numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name))


def write(
    models: Path,
    name: str,
    model: bytes,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None = None,
) -> Bundle:
    """Write the next version of `name` under `models`, and read it back. The folder `models` is made if it is missing.

    manifest_for: returns the manifest for a version. If another process writes the same version first, `manifest_for`
    is called again with the next version. report_for: returns the HTML report for a manifest.
    Raises `BundleError` in these cases: `models` is not a folder, can't be made or can't be written to; `name` is not a
    valid name; the manifest describes another model. After an error, the function leaves no file behind. Also removes
    partial folders that are more than a day old, because their writers were killed.
    """
    if not NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not a valid name for a model")
    require_writable(models)
    try:
        models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"can't be made: {error.strerror}", models) from error
    _remove_abandoned(models)
    folder = models / name
    try:
        # The partial folder is on the same file system as the final folder, so that a rename can move it.
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=models))
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", models) from error
    try:
        partial.chmod(0o755)
        write_synced(partial / MODEL_FILE, model)
        return _publish(partial, folder, manifest_for, report_for)
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(models: Path) -> None:
    """Remove the partial folders that have not changed for a day."""
    with suppress(OSError):  # another writer may remove the same folder
        for partial in models.glob(f"{_PARTIAL}*"):
            status = partial.lstat()
            if stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > _ABANDONED:
                log.info("removing %s, which a writer that was killed has left", partial)
                shutil.rmtree(partial, ignore_errors=True)


def _publish(
    partial: Path,
    folder: Path,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None,
) -> Bundle:
    """Complete the folder `partial` as the next version in `folder`, check the bundle, and rename the folder."""
    while True:
        # A version number is also taken if a file has this name, because no folder can then get the name.
        taken = _version_numbers(entry.name for entry in folder.iterdir()) if folder.exists() else []
        version = max(taken, default=0) + 1
        manifest = manifest_for(version)
        if (manifest.name, manifest.version) != (folder.name, version):
            raise BundleError(f"the manifest is of {manifest.name}/{manifest.version}", folder / str(version))
        write_synced(partial / MANIFEST_FILE, _encode(manifest))
        if report_for:
            write_synced(partial / REPORT_FILE, report_for(manifest).encode())
        read(partial)
        sync_folder(partial)
        folder.mkdir(exist_ok=True)
        try:
            partial.rename(folder / str(version))
        except OSError:
            if not (folder / str(version)).exists():
                raise
            continue  # another process has created this version
        sync_folder(folder)
        sync_folder(folder.parent)
        return read(folder / str(version))
