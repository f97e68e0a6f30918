"""Builds an `nn.Sequential` from its printed form, the text of `print(model)`. Code in the text is never run.

A PyTorch module of another class is refused, because its `forward` method is not in the text. The text contains no
weights, so this Python module reads no weights.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import OrderedDict

import torch
from torch import nn

from foldserve.training.errors import ModelImportError

MAX_LAYERS = 2000
_MAX_TEXT = 2**20
_LAYERS = (
    *("Linear", "BatchNorm1d", "Flatten", "Identity", "Dropout", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout"),
    *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish", "Sigmoid", "Hardsigmoid"),
    *("Tanh", "Hardtanh", "Hardswish", "Softplus", "Softmax", "LogSoftmax"),
)
_LINE = re.compile(r"(?:\((\w+)\): )?(\w+)\((.*)")
_EXPORT = "save the whole model with torch.export.save, or call foldserve.import_model(module)"


def build(text: str) -> nn.Sequential:
    """Return the PyTorch module that `text` describes, without memory for its weights.

    Raises `ModelImportError` with a one-line message.
    """
    if len(text) > _MAX_TEXT:
        raise ModelImportError(f"the text of the layers has more than {_MAX_TEXT >> 20} MiB")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 < len(lines) <= MAX_LAYERS:
        raise ModelImportError(f"the text of the layers has {len(lines)} lines: write print(model) of an nn.Sequential")
    found: list[nn.Sequential] = []
    # The modules whose closing bracket has not been read yet: the name and the layers of each module.
    waiting: list[tuple[str, OrderedDict[str, nn.Module]]] = []
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if line == ")" and waiting:
            name, layers = waiting.pop()
            made = nn.Sequential(layers)
            if waiting:
                waiting[-1][1][name] = made
            else:
                found.append(made)
        elif match is None or (not waiting and number > 1) or (match[1] is None) == bool(waiting):
            raise ModelImportError(f"line {number} of the layers is not a layer that PyTorch prints")
        elif match[3] == "":
            _require_sequential(match[2], number)
            waiting.append((match[1] or "", OrderedDict()))
        elif match[1] in waiting[-1][1]:
            raise ModelImportError(f"line {number} of the layers has the name of another layer: {match[1]}")
        else:
            waiting[-1][1][match[1]] = _layer(match[2], match[3], number)
    if not found:
        raise ModelImportError("the text of the layers ends before its last bracket")
    return found[0]


def _require_sequential(kind: str, number: int) -> None:
    if kind != "Sequential":
        raise ModelImportError(
            f"line {number} of the layers is a {kind}, and its forward is not in the text: write print(model.part) of "
            f"the Sequential inside it, or {_EXPORT}"
        )


def _layer(kind: str, rest: str, number: int) -> nn.Module:
    if kind == "Sequential" and rest == ")":
        return nn.Sequential()
    if kind not in _LAYERS:
        known = ", ".join(sorted(_LAYERS))
        raise ModelImportError(f"line {number} of the layers: {kind} is not supported; supported are {known}")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call):
            raise TypeError
        arguments = [ast.literal_eval(each) for each in call.args]
        named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about layers without columns; they are refused later
            made: nn.Module = getattr(nn, kind)(*arguments, **named)
    except (SyntaxError, ValueError, TypeError, RuntimeError, OverflowError, RecursionError, MemoryError) as error:
        raise ModelImportError(f"line {number} of the layers has arguments that {kind} does not take") from error
    return made
