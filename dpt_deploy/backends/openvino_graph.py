"""A rewrite of a graph in memory, before OpenVINO compiles it, which does not change what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np

MIN_IN_FEATURES = 3072  # larger linear layers are faster in the convolution kernel (docs/speed.md)


def prefer_convolution_kernel(graph: Any, min_in_features: int = MIN_IN_FEATURES) -> int:
    """Make OpenVINO compute linear layers of at least `min_in_features` inputs with its convolution kernel.

    OpenVINO uses that kernel only to fuse a following activation, so this inserts a PReLU of slope one, which is
    the identity even for infinities and NaN. Modifies the graph in place and returns the number of layers found.
    A quantized layer is left alone: its weight is not a constant, but one that is dequantized.
    """
    from openvino import opset13

    found = 0
    for add in [node for node in graph.get_ordered_ops() if node.get_type_name() == "Add"]:
        terms = {value.get_node().get_type_name(): value.get_node() for value in add.input_values()}
        if set(terms) != {"MatMul", "Constant"}:
            continue
        product = terms["MatMul"]
        in_features = product.get_input_partial_shape(0)[-1]
        if product.input_value(1).get_node().get_type_name() != "Constant" or product.get_attributes()["transpose_a"]:
            continue
        if in_features.is_static and in_features.get_length() >= min_in_features:
            readers = list(add.output(0).get_target_inputs())
            slope = opset13.constant(np.ones(1, np.float32), add.get_output_element_type(0))
            identity = opset13.prelu(add.output(0), slope)
            for reader in readers:
                reader.replace_source_output(identity.output(0))
            found += 1
    return found
