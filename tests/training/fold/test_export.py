"""Tests the ONNX graph: its nodes, its interface, its bytes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from foldserve.training.errors import ExportError
from foldserve.training.fold.export import IR_VERSION, OPSET, to_onnx
from foldserve.training.fold.fold import fold
from foldserve.training.network.layers import ACTIVATIONS, Affine
from foldserve.training.network.mlp import build_mlp
from foldserve.training.plan import Architecture


def folded(features=64, outputs=10, **architecture):
    torch.manual_seed(0)
    return fold(build_mlp(features, outputs, Architecture(**architecture)).eval()).network


def operators(model):
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def run(model, rows):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": rows})[0]


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_reference_model_has_only_gemm_relu_and_softmax(placement):
    model = to_onnx(folded(placement=placement), 64, 10, "classification")
    assert operators(model) == ["Gemm", "Relu", "Gemm", "Relu", "Gemm", "Softmax"]


def test_the_interface_follows_the_contract_with_a_dynamic_batch():
    for task, name in (("classification", "probabilities"), ("regression", "value")):
        session = ort.InferenceSession(to_onnx(folded(), 64, 10, task), providers=["CPUExecutionProvider"])
        (source,), (out,) = session.get_inputs(), session.get_outputs()
        assert (source.name, source.type, source.shape) == ("input", "tensor(float)", ["batch", 64])
        assert (out.name, out.type, out.shape) == (name, "tensor(float)", ["batch", 10])


def test_opset_and_ir_are_fixed_and_the_file_has_no_trace_of_the_machine():
    proto = onnx.load_model_from_string(to_onnx(folded(), 64, 10, "classification"))
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSET)]
    assert proto.ir_version == IR_VERSION
    assert not proto.metadata_props  # test_description.py tests the entry that the pipeline adds
    assert not proto.graph.metadata_props
    for node in proto.graph.node:
        assert not node.metadata_props
        assert not node.doc_string
    for tensor in proto.graph.initializer:
        assert not tensor.external_data
        assert not tensor.metadata_props


def test_the_bytes_depend_only_on_the_network():
    assert to_onnx(folded(), 64, 10, "classification") == to_onnx(folded(), 64, 10, "classification")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_every_activation_matches_torch_at_every_batch_size(activation, rows):
    network = folded(features=5, outputs=3, hidden=(8, 8), activation=activation)
    x = np.random.default_rng(0).normal(0, 3, (rows, 5)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(run(to_onnx(network, 5, 3, "classification"), x), expected, rtol=1e-5, atol=1e-6)


def test_a_kept_scale_and_shift_and_a_subtracted_offset_have_nodes():
    chain = nn.Sequential(
        Affine(torch.tensor([1.0, 2.0]), torch.tensor([-1e5, 0.0])), nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3)
    ).eval()
    network = fold(chain).network
    model = to_onnx(network, 2, 3, "regression")
    assert operators(model) == ["Sub", "Gemm", "Relu", "Mul", "Add"]
    x = np.array([[1e5, 0.5], [1e5 + 2, -1.0]], dtype=np.float32)
    with torch.no_grad():
        expected = chain.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_unfolded_graph_is_the_network(placement, task):
    torch.manual_seed(0)
    network = build_mlp(3, 3, Architecture(hidden=(4, 5), placement=placement, dropout=0)).eval()
    for layer in network:
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.1, 3)
    model = to_onnx(network, 3, 3, task, unfolded=True)
    assert operators(model).count("BatchNormalization") == 2
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network.double()(torch.from_numpy(x).double())
    expected = expected.softmax(1) if task == "classification" else expected
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def test_a_layer_without_an_onnx_form_is_refused_by_name():
    chain = nn.Sequential()
    chain.add_module("odd", nn.Softshrink())
    with pytest.raises(ExportError, match="'odd' has no ONNX form: Softshrink"):
        to_onnx(chain, 2, 2, "regression")


def test_an_unfolded_norm_is_refused():
    with pytest.raises(ExportError, match="BatchNorm1d"):
        to_onnx(build_mlp(4, 2, Architecture()).eval(), 4, 2, "classification")


def test_a_graph_that_does_not_fit_together_is_refused():
    with pytest.raises(ExportError, match="not valid ONNX"):
        to_onnx(nn.Sequential(nn.Linear(3, 2)), 4, 2, "regression")
