# SPDX-License-Identifier: Apache-2.0
"""The graph of an int8 file, which tells what the nodes of a profile belong to."""

import pytest

import seams

onnx = pytest.importorskip("onnx")


def test_what_rounds_belongs_to_what_it_rounds() -> None:
    """A Conv with int8 weights, rounded on both sides, then a Relu in float."""
    helper = onnx.helper

    def node(kind: str, inputs: list[str], output: str, module: str = "") -> object:
        made = helper.make_node(kind, inputs, [output], name=f"node_{output}")
        if module:
            made.metadata_props.add(
                key="pkg.torch.onnx.name_scopes", value=f"['', 'model', 'model.{module}', '{output}']"
            )
        return made

    scales = ["scale", "zero"]
    nodes = [
        node("QuantizeLinear", ["x", *scales], "x_q"),
        node("DequantizeLinear", ["x_q", *scales], "x_dq"),
        node("DequantizeLinear", ["weight", *scales], "weight_dq"),
        node("Conv", ["x_dq", "weight_dq"], "conv2d", "conv.0"),
        node("QuantizeLinear", ["conv2d", *scales], "conv_q"),
        node("DequantizeLinear", ["conv_q", *scales], "conv_dq"),
        node("Relu", ["conv_dq"], "relu", "act"),
        node("MatMul", ["relu", "conv_dq"], "scores", "attn"),
    ]
    stored = [
        helper.make_tensor("weight", onnx.TensorProto.INT8, [1], [1]),
        helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor("zero", onnx.TensorProto.INT8, [], [0]),
    ]
    graph = seams.onnx_graph_of(helper.make_model(helper.make_graph(nodes, "net", [], [], stored)))
    assert [graph[name].module for name in ("x_q", "conv2d", "conv_q", "conv_dq", "relu")] == [
        "",
        "conv.0",
        "conv.0",
        "conv.0",
        "act",
    ]
    assert graph["conv2d"].inputs == ("x_dq",)
    assert graph["conv2d"].has_weight
    # A product of two values has none.
    assert graph["scores"].is_product
    assert not graph["scores"].has_weight
    assert seams.sources_of(graph, "scores") == ("conv.0",)
    assert seams.nearest_product(graph, "conv_q") == "conv2d"
