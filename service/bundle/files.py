"""Bundles on disk: a read checks everything, and a write leaves a whole bundle or nothing.

It knows the manifest and the hash of the model; it does not know the contents of the model.
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
    """Read the bundle in the folder `path`; the model's bytes are those whose hash was checked.

    Raises `BundleError` for a missing file, a manifest of another schema, and a size or hash that is not the
    manifest's.
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
    """Raise `BundleError` with `reason` unless `path` is a folder."""
    try:
        if not path.is_dir():
            raise BundleError(reason, path)
    except OSError as error:  # is_dir raises where a parent folder denies access
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
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise BundleError(f"{MANIFEST_FILE} is not a valid manifest: {field}: {first['msg']}", path) from error


def versions(model: Path) -> list[int]:
    """List the versions in the folder of one model, in ascending order; other names than plain integers are ignored."""
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
    """Write the next version of `name` under `models`, and read it back.

    manifest_for: gives the manifest for a version; called again with another one if another process takes it first.
    report_for: gives the HTML report for that manifest.
    Raises `BundleError` when `models` is not a folder or can't be written to, when `name` is not a valid name, and
    when the manifest describes another model. Nothing is left behind then.
    """
    if not NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not a valid name for a model")
    require_folder(models)
    folder = models / name
    try:
        # In the same file system, so that a rename moves it. The dot hides it from every reader.
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=models))
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


def _publish(
    partial: Path,
    folder: Path,
    manifest_for: Callable[[int], Manifest],
    report_for: Callable[[Manifest], str] | None,
) -> Bundle:
    """Complete `partial` as the next version in `folder`, check it, and rename it."""
    while True:
        # A file with the name of a version counts too.
        taken = _version_numbers(entry.name for entry in folder.iterdir()) if folder.exists() else []
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
