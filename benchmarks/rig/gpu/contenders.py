"""The list of contenders, in the order of the tables."""

from __future__ import annotations

from rig.gpu.contender import Contender
from rig.gpu.onnx_contenders import OrtFolded, OrtUnfolded, OursGraphs, OursPlain
from rig.gpu.torch_contenders import CompiledGraphs, CompiledTuned, Eager, Graphed, GraphedAround

CONTENDERS: tuple[type[Contender], ...] = (
    OursGraphs,
    OursPlain,
    OrtFolded,
    OrtUnfolded,
    Eager,
    CompiledGraphs,
    CompiledTuned,
    Graphed,
    GraphedAround,
)
GRAPHED = (Graphed.name, GraphedAround.name)
