"""Changes a model so that its runs on CUDA take less time.

The changed model computes the same function as the original model. This module opens no sessions. The three shortcuts
follow from the documentation of CUDA and ONNX Runtime, and from the source code of ONNX Runtime. The shortcuts were
never measured on a GPU, so `load` checks the golden rows with all shortcuts on, and turns all of them off if the check
fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from foldserve.service.runtime.session import Options

# The kernels of these operators write each output once, and never read the output. A Gemm may read its output to add to
# it, so the output of a Gemm must be in the memory of the device.
_WRITE_ONLY = {"Softmax", "Sigmoid"}
# The biases are moved into the weights only if the model has at most this number of bytes. In a larger model, the
# additional column costs more time than the kernel that adds a bias. For example, cuBLAS needs one more tile for 1,025
# columns than for 1,024.
_SMALL = 2**20
_PIECE = 2**23  # bytes of a piece: large enough to keep a GPU busy, small enough to hide the first copy
# The number of columns is rounded up to a multiple of this number, so that each row of float32 begins at a multiple of
# 16 bytes.
_ALIGNED = 4


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts of a runner.

    ones: the number of columns that are added after the features: one column of ones, and then columns of zeros.
    host_outputs: whether the last kernel writes the outputs to page-locked memory, so that no copy is needed. piece:
    the number of rows of a piece; 0 if batches are not cut into pieces. A batch with more than `piece` rows runs in
    pieces. Each piece is copied to the device while the device computes the previous piece.
    """

    ones: int = 0
    host_outputs: bool = False
    piece: int = 0


NO_SHORTCUTS = Shortcuts()


def prepare(graph: onnx.ModelProto, options: Options) -> tuple[onnx.ModelProto, Shortcuts]:
    """Choose the shortcuts for a graph.

    Return the prepared graph and its shortcuts; the prepared graph may be `graph` itself.
    """
    last = next(node for node in graph.graph.node if graph.graph.output[0].name in node.output)
    width, ones = _width(graph.graph.input[0]), 0
    piece = max(1, _PIECE // (4 * width))
    # In half precision, a sum above 65,504 becomes infinite, and the product of infinity and an added zero is not a
    # number.
    if options.precision in ("fp32", "tf32") and graph.ByteSize() <= _SMALL:
        copied = onnx.ModelProto()
        copied.CopyFrom(graph)
        if _Biases(copied.graph).move():
            ones = _width(copied.graph.input[0]) - width
            graph = copied
    return graph, Shortcuts(ones, last.op_type in _WRITE_ONLY, piece if piece < options.max_batch else 0)


def _width(tensor: onnx.ValueInfoProto) -> int:
    return int(tensor.type.tensor_type.shape.dim[1].dim_value)


class _Biases:
    """Moves the biases of a graph into its weights: x·W + b is [x, 1]·[W; b].

    ONNX Runtime runs a Gemm with a bias as two kernels. The first kernel writes the bias into each row of the output,
    and the second kernel adds the matrix product. Each Gemm needs a column of ones in its input, so the Gemm before it
    computes one more output. A Relu between two Gemms keeps the column of ones, because a Relu does not change the
    value 1.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._wider: dict[str, int] = {}  # maps the name of a tensor to the number of columns added to the tensor

    def move(self) -> bool:
        """Change the graph. Return whether a bias was moved."""
        entrance = self._graph.input[0]
        if (following := self._only_user(entrance.name)) and self._is_dense(following):
            self._wider[entrance.name] = _added(_width(entrance))
            entrance.type.tensor_type.shape.dim[1].dim_value += self._wider[entrance.name]
        for node in self._graph.node:
            if self._is_dense(node):
                self._widen(node)
            elif node.op_type == "Relu" and node.input[0] in self._wider:
                self._wider[node.output[0]] = self._wider[node.input[0]]
        del self._graph.value_info[:]  # the shapes in `value_info` are optional, and some are now wrong
        return bool(self._wider)

    def _widen(self, node: onnx.NodeProto) -> None:
        """Widen the weights of a Gemm for the columns that were added to its input.

        If another Gemm follows, also widen the output by the columns that the next Gemm needs.
        """
        weights, bias = (numpy_helper.to_array(self._constants[name]) for name in node.input[1:3])
        taken, given = self._wider.get(node.input[0], 0), 0
        if self._gemm_follows(node.output[0]):
            given = self._wider[node.output[0]] = _added(len(bias))
        wide = np.pad(weights, ((0, given), (0, taken)))
        longer = np.pad(bias, (0, given))
        if given:
            longer[len(bias)] = 1
        if taken:
            wide[:, weights.shape[1]] = longer
            self._graph.initializer.remove(self._constants[node.input[2]])
            del node.input[2]
        else:
            self._constants[node.input[2]].CopyFrom(numpy_helper.from_array(longer, node.input[2]))
        self._constants[node.input[1]].CopyFrom(numpy_helper.from_array(wide, node.input[1]))

    def _gemm_follows(self, name: str) -> bool:
        following = self._only_user(name)
        if following is None or following.op_type != "Relu":
            return False
        second = self._only_user(following.output[0])
        return second is not None and self._is_dense(second)

    def _is_dense(self, node: onnx.NodeProto) -> bool:
        """Return whether the node is a Gemm of the form x·Wᵀ + b, with constants that no other node uses."""
        return (
            node.op_type == "Gemm"
            and [(a.name, a.i) for a in node.attribute] == [("transB", 1)]
            and len(node.input) == 3
            and all(name in self._constants and self._only_user(name) is node for name in node.input[1:])
            and len(self._constants[node.input[2]].dims) == 1
        )

    def _only_user(self, name: str) -> onnx.NodeProto | None:
        users = list(self._users(name))
        return users[0] if len(users) == 1 else None

    def _users(self, name: str) -> Iterator[onnx.NodeProto | None]:
        yield from (node for node in self._graph.node for used in node.input if used == name)
        yield from (None for output in self._graph.output if output.name == name)


def _added(columns: int) -> int:
    """Return the number of columns to add, which is at least one."""
    return _ALIGNED - columns % _ALIGNED
