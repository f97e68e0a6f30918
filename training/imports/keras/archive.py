"""Opens a Keras file: a zip archive of Keras 3, or an HDF5 file of Keras 2. The file is not trusted.

Every size in the file is checked before memory is allocated. The module writes nothing to the disk. The module does not
depend on the layers of the model.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import MAX_FILE, check_entries, read_bytes

if TYPE_CHECKING:
    import h5py

_MAX_TEXT = 2**24
_MAX_ENTRIES = 1000
# Errors that a damaged file can cause: in Python's zip reader, in h5py, or through values of a wrong type.
_DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, OverflowError, zipfile.BadZipFile, zlib.error),
    *(LookupError, TypeError, AttributeError),
)
_SAVE_AGAIN = "save the whole model with model.save('model.keras')"


@dataclass(frozen=True)
class Archive:
    """An open Keras file.

    config: the description of the model. training: the settings that the model was compiled with; {} if there are none.

    version: the version of Keras. weights: the HDF5 group that contains the layers. legacy: whether groups are named
    after their layers, as in Keras 2. Keras 3 names a group after the class of the layer. sha256: the hash of the file.
    """

    config: dict[str, Any]
    training: dict[str, Any]
    version: str
    weights: h5py.Group
    legacy: bool
    sha256: str


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a Keras file.

    The content of the file decides its format. Raises `ModelImportError` with a one-line message.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise ModelImportError("Keras files need h5py: pip install 'foldserve[train]'") from None
    content = read_bytes(path)
    digest = sha256(content).hexdigest()
    try:
        if content[:2] == b"PK":
            config, version, content = _read_zip(content)
            with h5py.File(io.BytesIO(content), "r") as file:
                yield Archive(config, _dict(config.get("compile_config")), version, file, False, digest)
        elif content.startswith(b"\x89HDF\r\n"):
            with h5py.File(io.BytesIO(content), "r") as file:
                yield _open_hdf5(file, digest)
        else:
            raise ModelImportError(f"{path.name} is not a Keras file: it is neither a zip archive nor HDF5")
    except RecursionError:
        raise ModelImportError(f"{path.name}: its models are nested too deeply") from None
    except _DAMAGE as error:
        raise ModelImportError(f"{path.name} is damaged: {_first_line(error)}") from error


def _read_zip(content: bytes) -> tuple[dict[str, Any], str, bytes]:
    """Return the description of the model, the version of Keras, and the content of the weights file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        check_entries(entries, _MAX_ENTRIES)
        names = {entry.filename for entry in entries}
        if lacking := {"config.json", "metadata.json"} - names:
            raise ModelImportError(f"the archive has no {min(lacking)}: it was not saved by Keras")
        if "model.weights.h5" not in names:
            raise ModelImportError(f"the archive has no model.weights.h5: {_SAVE_AGAIN}, in one piece")
        config = _parse(_extract(archive, "config.json", _MAX_TEXT), "config.json")
        metadata = _parse(_extract(archive, "metadata.json", _MAX_TEXT), "metadata.json")
        version = str(metadata.get("keras_version", ""))[:32]
        return config, version, _extract(archive, "model.weights.h5", MAX_FILE)


def _extract(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return the bytes of an entry. Python reads at most as many bytes as the entry declares."""
    entry = archive.getinfo(name)
    if entry.file_size > limit:
        raise ModelImportError(f"{name} has more than {limit >> 20} MiB, the limit of an import")
    return archive.read(entry)


def _open_hdf5(file: h5py.File, digest: str) -> Archive:
    """Open a whole model that Keras 2 saved in an HDF5 file."""
    if "model_config" not in file.attrs or "model_weights" not in file:
        raise ModelImportError(f"the HDF5 file has weights alone, and no layers: {_SAVE_AGAIN}")
    config = _parse(file.attrs["model_config"], "model_config")
    training = _parse(file.attrs["training_config"], "training_config") if "training_config" in file.attrs else {}
    version = file.attrs.get("keras_version", "")
    version = version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)
    if file.get("model_weights", getlink=True).__class__.__name__ != "HardLink":
        raise ModelImportError("model_weights is a link to another place: the weights must be in the file")
    return Archive(config, training, version[:32], file["model_weights"], True, digest)


def _parse(text: bytes | str, name: str) -> dict[str, Any]:
    if len(text) > _MAX_TEXT:
        raise ModelImportError(f"{name} has more than {_MAX_TEXT >> 20} MiB, the limit of an import")
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ModelImportError(f"{name} is not JSON") from error
    if not isinstance(parsed, dict):
        raise ModelImportError(f"{name} is not a JSON object")
    return parsed


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    text = str(error).strip("'\"").partition("\n")[0]
    return text[:200] or type(error).__name__
