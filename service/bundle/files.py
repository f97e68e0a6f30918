"""Bundles on disk: read with every check, written whole or not at all.

A bundle is written beside its place, synced and renamed. A reader gets the very bytes whose hash was checked.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from foldserve.service.bundle.atomic import sync_folder, write_synced
from foldserve.service.bundle.manifest import NAME, SCHEMA_VERSION, Manifest
from foldserve.service.errors import BundleError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Bundle:
    """A manifest and the bytes that it certifies."""

    path: Path
    manifest: Manifest
    model: bytes


def read(path: Path) -> Bundle:
    """Read the bundle in the folder `path`, checked against its manifest.

    Raises `BundleError`, with the reason: a missing file, a manifest of another schema, a size or hash that is not
    the manifest's.
    """
    require_folder(path, "no such bundle")
    manifest = _read_manifest(path)
    model = _read_bytes(path / MODEL_FILE)
    if len(model) != manifest.model.size:
        raise BundleError(f"{MODEL_FILE} has {len(model)} bytes, the manifest says {manifest.model.size}", path)
    if hashlib.sha256(model).hexdigest() != manifest.model.sha256:
        raise BundleError(f"{MODEL_FILE} is not the certified one: its sha256 is not the manifest's", path)
    return Bundle(path, manifest, model)


def require_folder(path: Path, reason: str = "no such folder; make it first") -> None:
    """Raise `BundleError`, for `reason`, unless `path` is a folder."""
    try:
        if not path.is_dir():
            raise BundleError(reason, path)
    except OSError as error:  # is_dir raises where a folder above is closed to us
        raise BundleError(f"can't be read: {error.strerror}", path) from error


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BundleError(f"can't read {file.name}: {error.strerror}", file.parent) from error


def _read_manifest(path: Path) -> Manifest:
    try:
        content = from_json(_read_bytes(path / MANIFEST_FILE), allow_inf_nan=False)
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON", path) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and SCHEMA_VERSION < version < 2**63:
        raise BundleError(
            f"made by a newer foldserve: manifest schema {version}, this one reads {SCHEMA_VERSION}", path
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BundleError(f"{MANIFEST_FILE} is no manifest: {where}: {first['msg']}", path) from error


def versions(model: Path) -> list[int]:
    """List the versions in the folder of one model, ascending. Anything but a plain integer is no version."""
    return _numbers(entry.name for entry in model.iterdir() if entry.is_dir())


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(name) for name in names if re.fullmatch("[1-9][0-9]{0,17}", name))


def write(
    models: Path,
    name: str,
    model: bytes,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None = None,
) -> Bundle:
    """Write the next version of `name` under `models`, and read it back.

    manifest_for: called with the version, which is settled last, since two trainers may write at once.
    report_for: called with that manifest, gives the HTML to keep beside it.
    Raises `BundleError` when `models` is not a folder or can't be written to, when `name` is no name, when the
    manifest is of another model; nothing is left behind then.
    """
    if not NAME.fullmatch(name):
        raise BundleError(f"{name!r} is no name of a model")
    require_folder(models)
    folder = models / name
    try:
        # Beside its place, so that the rename stays inside one file system. The dot hides it from every reader.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=models))
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", models) from error
    try:
        partial.chmod(0o755)
        write_synced(partial / MODEL_FILE, model)
        return _number(partial, folder, manifest_for, report_for)
    except OSError as error:
        raise BundleError(f"can't write there: {error.strerror}", folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _number(
    partial: Path,
    folder: Path,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None,
) -> Bundle:
    """Complete `partial` as the next version in `folder`, check it, and give it its place."""
    while True:
        # Whatever has the number as its name, a file too, keeps it.
        taken = _numbers(entry.name for entry in folder.iterdir()) if folder.exists() else []
        version = max(taken, default=0) + 1
        manifest = manifest_for(version)
        if (manifest.name, manifest.version) != (folder.name, version):
            raise BundleError(f"the manifest is of {manifest.name}/{manifest.version}", folder / str(version))
        write_synced(partial / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
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
            continue  # another trainer took this version
        sync_folder(folder)
        sync_folder(folder.parent)
        return read(folder / str(version))
