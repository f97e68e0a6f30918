"""Reads a file that has only weights: `.safetensors`, or a checkpoint of `torch.save`.

A separate text file, the output of `print(model)`, describes the layers.

A checkpoint is loaded with `weights_only=True`, so no code of the file runs. The module does not depend on the
operators.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from foldserve.training.errors import ModelImportError
from foldserve.training.imports.archives import MAX_FILE, check_entries, read_bytes
from foldserve.training.imports.imported import Imported, Options
from foldserve.training.imports.pytorch.printed import build
from foldserve.training.imports.pytorch.reader import read_object
from foldserve.training.text import join_some

Tensors = dict[str, torch.Tensor]
_MAX_ENTRIES = 10_000
_MAX_NUMBERS = MAX_FILE // 4
# The keys under which training scripts and Lightning store the weights in a checkpoint.
_KEYS = ("state_dict", "model_state_dict", "model", "weights")
_NO_LAYERS = "write print(model) of the nn.Sequential into a text file, and name this file with --layers"
_TENSORS = "save only the weights: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"


def read(path: Path, options: Options) -> Imported:
    """Read the weights in a file, and the layers in the text file `options.layers`.

    Raises `ModelImportError` with a one-line message.
    """
    content = read_bytes(path)
    is_checkpoint = path.suffix.lower() != ".safetensors"
    tensors = _load_checkpoint(content, path.name) if is_checkpoint else _load_tensors(content, path.name)
    if options.layers is None:
        raise ModelImportError(f"{path.name} has weights and no layers: {_NO_LAYERS}")
    try:
        module = build(read_bytes(options.layers).decode())
    except UnicodeDecodeError as error:
        raise ModelImportError(f"{options.layers.name} is not text: {_NO_LAYERS}") from error
    notes = _assign(module, tensors, path.name)
    imported = read_object(module.eval(), options)
    return replace(
        imported,
        file=path.name,
        sha256=sha256(content).hexdigest(),
        framework_version="",
        notes=(*notes, *imported.notes),
    )


def _load_tensors(content: bytes, name: str) -> Tensors:
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelImportError(f"{name} is damaged: {reason}") from error


def _load_checkpoint(content: bytes, name: str) -> Tensors:
    if content[:2] != b"PK":
        raise ModelImportError(f"{name} is not a file of torch.save since PyTorch 1.6: {_TENSORS}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            check_entries(entries, _MAX_ENTRIES)
            pickles = [archive.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
        if any("/code/" in entry.filename for entry in entries):
            raise ModelImportError(f"{name} is TorchScript, which has code: save it with torch.export.save, as .pt2")
        if any(b"bytearray" in content for content in pickles):
            # With weights_only=True, PyTorch accepts bytearray(n) in a file, and allocates n bytes of memory for it. A
            # file of weights never needs a bytearray.
            raise ModelImportError(f"{name} has objects of the class bytearray: {_TENSORS}")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ModelImportError:
        raise
    except Exception as error:
        # PyTorch raises many kinds of errors for a damaged file. An UnpicklingError means that the file has an object
        # that is not a tensor.
        if type(error).__name__ == "UnpicklingError":
            raise ModelImportError(f"{name} has objects, and loading them would run their code: {_TENSORS}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelImportError(f"{name} is damaged: {reason}") from error
    parts = [loaded, *(loaded.get(key) for key in _KEYS)] if isinstance(loaded, Mapping) else []
    for part in parts:
        if isinstance(part, Mapping) and part and all(isinstance(each, torch.Tensor) for each in part.values()):
            return {str(key): _checked(str(key), tensor) for key, tensor in part.items()}
    raise ModelImportError(f"{name} has no weights by name, as model.state_dict() has: {_TENSORS}")


def _checked(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Refuse a tensor whose numbers take more bytes than the file stores for it."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ModelImportError(f"the tensor {key!r} is sparse or quantised, or it has no numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() or tensor.numel() > _MAX_NUMBERS:
        raise ModelImportError(f"the tensor {key!r} claims to have more numbers than the file holds")
    return tensor


def _assign(module: nn.Module, tensors: Tensors, name: str) -> tuple[str, ...]:
    """Assign the weights of the file to the layers of the module.

    The names in a file may have a common prefix, as in `net.0.weight`.
    """
    expected = module.state_dict()
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    if not needed:
        raise ModelImportError("the layers have no weights")
    starts = [key.removesuffix(needed[0]) for key in tensors if key == needed[0] or key.endswith("." + needed[0])]
    prefixes = [start for start in starts if all(start + key in tensors for key in needed)]
    if len(prefixes) != 1:
        lacking = next((key for key in needed if (starts[0] if starts else "") + key not in tensors), needed[0])
        problem = f"has the layers {len(prefixes)} times" if prefixes else f"has no weight {lacking!r} of the layers"
        raise ModelImportError(f"{name} {problem}; it has {join_some(sorted(tensors), 6)}")
    (prefix,) = prefixes
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    if unused := sorted(set(inside) - set(expected)):
        raise ModelImportError(f"{name} has weights of layers that the text does not have: {join_some(unused, 4)}")
    for key in needed:
        if inside[key].shape != expected[key].shape:
            shapes = f"{list(inside[key].shape)}; the layers need {list(expected[key].shape)}"
            raise ModelImportError(f"the tensor {key!r} of {name} has the shape {shapes}")
        if not inside[key].is_floating_point():
            raise ModelImportError(f"the tensor {key!r} of {name} is not of a floating-point type")
    counts: dict[str, Any] = {key: torch.zeros((), dtype=torch.int64) for key in expected if key not in needed}
    module.load_state_dict({key: inside[key].float() for key in needed} | counts, assign=True)
    others = sorted(set(tensors) - {prefix + key for key in inside})
    notes = [f"weights that the layers do not use: {join_some(others, 4)}"] if others else []
    return tuple(notes)
