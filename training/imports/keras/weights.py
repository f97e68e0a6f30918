"""Reads the arrays of a layer from HDF5, by the naming rules of Keras 3 and of Keras 2.

Keras 3 names the group of a layer after the class of the layer. If a model has several layers of one class, the names
get numbers: `dense`, `dense_1`. In Keras 3, the arrays of a layer have numbers as names. Keras 2 names a group after
its layer, and each array after its role, such as `kernel`. The module reads only arrays that are stored in the file
itself, and not in another file. The module does not depend on the arithmetic of the layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Protocol

import numpy as np

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import is_too_dense
from foldserve.training.imports.keras.archive import Archive
from foldserve.training.imports.layers import Array

if TYPE_CHECKING:
    import h5py

# A file of 1 GiB has at most 2^28 float32 numbers. As float64, 2^28 numbers take 2 GiB.
_MAX_NUMBERS = 2**28


@dataclass(frozen=True)
class Place:
    """Where a file stores the weights of a layer.

    groups: the path of the layer in a Keras 3 file. names: the names of the enclosing models, then the name of the
    layer.
    """

    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def inside(self, group: str, name: str) -> Place:
        """Return the place of a layer inside this model."""
        return Place((*self.groups, "layers", group), (*self.names, name))


class Store(Protocol):
    """Reads the weights of a layer from a file."""

    def read(self, place: Place, roles: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        """Return the arrays of a layer as float64.

        roles: the names of the arrays. shapes: the shapes that the arrays must have.

        Raises `ModelImportError` if the arrays of the layer in the file do not fit `roles` and `shapes`.
        """


@dataclass
class GroupNames:
    """Determines the name of the group for each layer of one model, in the order of the layers."""

    _counts: Counter[str] = field(default_factory=Counter)

    def next(self, kind: str) -> str:
        """Return the name of the group for the next layer of the class `kind` (keras/src/utils/naming.py)."""
        name = re.sub(r"\W+", "", kind)
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name] - 1}"


def open_store(archive: Archive) -> Store:
    """Return the reader for the weights of a file."""
    return _ByName(archive.weights) if archive.legacy else _ByClass(archive.weights)


@dataclass(frozen=True)
class _ByClass:
    """Reads the weights of a `.keras` file."""

    file: h5py.Group

    def read(self, place: Place, roles: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        group: h5py.Group | None = self.file
        for part in (*place.groups, "vars"):
            group = _child(group, part) if group is not None else None
        if group is None:
            raise ModelImportError(f"the file has no weights of the layer {place.names[-1]!r}")
        saved = group.attrs.get("name")
        if saved is not None and saved != place.names[-1]:
            raise ModelImportError(f"the weights of the layer {place.names[-1]!r} belong to another layer")
        if len(group) != len(roles):
            raise ModelImportError(
                f"the layer {place.names[-1]!r} has {len(group)} arrays of weights; its description needs {len(roles)}"
            )
        return [
            _read(_child(group, str(number)), place, role, shape)
            for number, (role, shape) in enumerate(zip(roles, shapes, strict=True))
        ]


@dataclass(frozen=True)
class _ByName:
    """Reads the weights of an `.h5` file.

    In an `.h5` file, all layers of a nested model share one group, in which each path contains the name of a layer.
    """

    file: h5py.Group

    def read(self, place: Place, roles: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        group = _child(self.file, place.names[0])
        if group is None or not hasattr(group, "keys"):
            raise ModelImportError(f"the file has no weights of the layer {place.names[-1]!r}")
        paths = group.attrs.get("weight_names", ())
        named = [path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path) for path in paths]
        found = []
        for role, shape in zip(roles, shapes, strict=True):
            fitting = [path for path in named if path.split("/")[-1].partition(":")[0] == role]
            if len(place.names) > 1:
                fitting = [path for path in fitting if place.names[-1] in path.split("/")[:-1]]
            if len(fitting) != 1:
                raise ModelImportError(
                    f"the file has {len(fitting)} arrays {role!r} of the layer {place.names[-1]!r}; it needs one"
                )
            dataset: h5py.Group | None = group
            for part in fitting[0].split("/"):
                dataset = _child(dataset, part) if dataset is not None else None
            found.append(_read(dataset, place, role, shape))
        return found


def _child(group: h5py.Group, name: str) -> h5py.Group | None:
    """Return a member of an HDF5 group, or None. A link to another place or to another file is refused."""
    if not hasattr(group, "keys") or not name or name not in group:
        return None
    if group.get(name, getlink=True).__class__.__name__ != "HardLink":
        raise ModelImportError("the file has a link to another place: the weights must be in the file")
    return group[name]


def _read(dataset: h5py.Dataset | None, place: Place, role: str, shape: tuple[int, ...]) -> Array:
    what = f"the array {role!r} of the layer {place.names[-1]!r}"
    if dataset is None or not hasattr(dataset, "dtype"):
        raise ModelImportError(f"the file has no numbers for {what}")
    if dataset.is_virtual or dataset.external:
        raise ModelImportError(f"{what} is in another file: the weights must be in the file")
    if dataset.shape != shape:
        raise ModelImportError(f"{what} has the shape {dataset.shape}; its description needs {shape}")
    if dataset.dtype.kind not in "fiu":
        raise ModelImportError(f"{what} has the type {dataset.dtype}, which is no number")
    size = prod(shape)
    if size > _MAX_NUMBERS or is_too_dense(size * dataset.dtype.itemsize, dataset.id.get_storage_size()):
        raise ModelImportError(f"{what} claims to have {size} numbers, more than the file holds")
    values: Array = np.asarray(dataset[()], np.float64)
    if not np.isfinite(values).all():
        raise ModelImportError(f"{what} has a value that is not finite")
    return values
