"""Layers, units and what stays wide, read from the graph of a real export."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.plan import covers
from dpt_deploy.export.quantization.layers import Layer, eight_bit, ends, layers_of, units


@pytest.fixture(scope="module")
def layers(tiny_bundle: Path) -> tuple[list[Layer], int]:
    return layers_of(onnx.load(tiny_bundle / "model.fp32.onnx"), Bundle.open(tiny_bundle).contract.input_size)


def test_the_layers_are_the_products_with_a_weight_except_transposed_convolutions(layers) -> None:
    found, total = layers
    modules = [layer.module for layer in found]
    assert len(modules) == len(set(modules))
    assert "backbone.blocks.0.attn.qkv" in modules and "decoder.reassemble.0.out" in modules
    assert not any(name.endswith(("reassemble.0.resample", "reassemble.1.resample")) for name in modules)
    assert 0.9 * total < sum(layer.flops for layer in found) < total  # the rest is attention


def test_the_ends_are_the_first_layer_and_the_last_of_each_head(layers) -> None:
    assert ends(layers[0]) == ("backbone.patch_embed.proj", "heads.depth.conv3", "heads.normals.conv3",
                               "heads.alpha.conv3")


def test_every_layer_belongs_to_one_unit(layers) -> None:
    names = units(layers[0])
    assert names[:3] == ["backbone.patch_embed", "backbone.blocks.0.attn", "backbone.blocks.0.mlp"]
    assert names[-3:] == ["heads.depth", "heads.normals", "heads.alpha"]
    for layer in layers[0]:
        assert sum(covers([name], layer.module) for name in names) == 1


def test_a_name_covers_what_is_inside_it_and_not_what_begins_alike() -> None:
    assert covers(["decoder.fusion.1"], "decoder.fusion.1.out")
    assert covers(["decoder.fusion.1"], "decoder.fusion.1")
    assert not covers(["decoder.fusion.1"], "decoder.fusion.10.out")


def test_a_plan_quantizes_the_layers_that_it_does_not_name(layers) -> None:
    found = layers[0]
    assert eight_bit(found, []) == found
    assert all(layer.module.startswith("heads.") for layer in eight_bit(found, ["backbone", "decoder"]))
