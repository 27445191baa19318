"""The search keeps wide what costs most for its work, and finds a fault of a backend that nobody told it of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from dpt_deploy import backends
from dpt_deploy.backends import SessionOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.core.plan import covers
from dpt_deploy.export.quantization.bench import Distance, GraphBench, runners
from dpt_deploy.export.quantization.calibration import clips, measure_ranges
from dpt_deploy.export.quantization.layers import Layer, eight_bit, ends, layers_of, units
from dpt_deploy.export.quantization.search import HEADROOM, Outcome, Search
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.images import scene
from dpt_deploy.runtime.image import preprocess

INT8 = PrecisionPlan("int8", ())
LAYERS = [Layer(f"node{i}", module, f"x{i}", flops) for i, (module, flops) in enumerate([
    ("backbone.blocks.0.attn.qkv", 100), ("backbone.blocks.0.attn.proj", 100), ("backbone.blocks.0.mlp.fc1", 400),
    ("decoder.fusion.0.unit.conv1", 300), ("decoder.fusion.0.out", 10), ("heads.depth.conv1", 90),
])]


@dataclass
class SumOfCosts:
    """A bench whose loss is the sum of what the quantized modules cost, by backend."""

    costs: Mapping[str, Mapping[str, float]]
    runs: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    @property
    def backends(self) -> Sequence[str]:
        return tuple(self.costs)

    def cost(self, plan: PrecisionPlan, backend: str) -> Outcome:
        return self.run(plan, backend)

    def run(self, plan: PrecisionPlan, backend: str) -> Outcome:
        self.runs.append((plan.wide, backend))
        return Outcome(sum(self.costs[backend].get(layer.module, 0.0) for layer in eight_bit(LAYERS, plan.wide)))


def searched(
    costs: Mapping[str, Mapping[str, float]], plan: PrecisionPlan = INT8
) -> tuple[Search, PrecisionPlan, bool]:
    search = Search(SumOfCosts(costs), LAYERS, 1000, plan)
    return search, *search.run()


def test_nothing_stays_wide_if_everything_is_within_the_limits() -> None:
    search, plan, passed = searched({"a": {"heads.depth.conv1": 0.5}})
    assert passed and plan == INT8 and len(search.trials) == 1
    assert search.trials[0].share == 1.0 and search.trials[0].passed


def test_only_the_costly_module_stays_wide() -> None:
    search, plan, passed = searched({"a": {"decoder.fusion.0.unit.conv1": 2.0, "heads.depth.conv1": 0.1}})
    assert passed and plan.wide == ("decoder.fusion.0.unit.conv1",)
    assert search.share(plan) == pytest.approx(0.7)


def test_of_equal_costs_the_one_with_less_work_stays_wide() -> None:
    _, plan, _ = searched({"a": {"backbone.blocks.0.mlp.fc1": 0.6, "heads.depth.conv1": 0.6}})
    assert plan.wide == ("heads.depth.conv1",)


def test_a_plan_must_be_within_the_limits_of_every_backend() -> None:
    _, plan, passed = searched({"a": {"heads.depth.conv1": 9.0}, "b": {"backbone.blocks.0.mlp.fc1": 9.0}})
    assert passed and not eight_bit([LAYERS[2], LAYERS[5]], plan.wide)
    assert len(eight_bit(LAYERS, plan.wide)) == 4


def test_the_headroom_is_kept() -> None:
    assert searched({"a": {"heads.depth.conv1": (HEADROOM + 1) / 2}})[1] != INT8


def test_without_a_plan_within_the_limits_the_request_stays() -> None:
    _, plan, passed = searched({"a": {layer.module: math.inf for layer in LAYERS}})
    assert not passed and plan == INT8


def test_modules_that_were_asked_to_stay_wide_stay_wide() -> None:
    asked = PrecisionPlan("int8", (), wide=("heads",))
    _, plan, passed = searched({"a": {"decoder.fusion.0.unit.conv1": 2.0}}, asked)
    assert passed and plan.wide == ("heads", "decoder.fusion.0.unit.conv1")


def test_no_plan_is_tried_twice() -> None:
    search, *_ = searched({"a": {"decoder.fusion.0.unit.conv1": 2.0, "backbone.blocks.0.mlp.fc1": 0.7}})
    assert len(search.bench.runs) == len(set(search.bench.runs)) == len(search.trials)


@pytest.fixture(scope="module")
def bench(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """What makes a bench of the tiny model, with or without the bias that OpenVINO needs; and its layers."""
    bundle = Bundle.open(tiny_bundle)
    (fp32,) = bundle.find("onnx", graph="model", precision="fp32")
    model = onnx.load(tiny_bundle / fp32.file)
    layers, total = layers_of(model, bundle.contract.input_size)
    frames = np.stack([scene(160, 160, 100 + i) for i in range(6)])
    images = preprocess(frames, bundle.contract)
    ranges = clips(measure_ranges(tiny_bundle / fp32.file, layers, images), 127)
    with backends.get("onnxruntime-cpu").open(bundle, fp32, SessionOptions()) as session:
        evidence = Distance(session, images[:2], bundle.contract.heads, load_budget(None)[0])

    def make(**options: bool) -> GraphBench:
        folder = tmp_path_factory.mktemp("bench") / "trial"
        return GraphBench(folder, bundle, model, layers, ranges, evidence, "int8", **options)

    return make, layers, total


def test_a_graph_of_the_bench_is_judged_in_each_backend(bench) -> None:
    make, layers, _ = bench
    assert set(runners("int8")) == {"openvino", "onnxruntime-cpu"}
    assert runners("fp8") == ("onnxruntime-cpu",)
    wide = tuple(name for name in units(layers) if not name.startswith("backbone.blocks"))
    for name in runners("int8"):
        outcome = make().run(PrecisionPlan("int8", (), wide=wide), name)
        assert 0 < outcome.loss < 3 and set(outcome.heads) == {"depth", "normals", "alpha"}


def test_a_fault_of_openvino_is_found_and_the_convolutions_that_trigger_it_stay_wide(bench) -> None:
    """OpenVINO 2026.4 computes convolutions without a bias wrongly in eight bits; ONNX Runtime does not."""
    make, layers, total = bench
    planted = make(bias_everywhere=False)
    start = PrecisionPlan("int8", (), wide=(*ends(layers), "backbone", "heads"))
    if planted.run(start, "openvino").loss < 3 * planted.run(start, "onnxruntime-cpu").loss:
        pytest.skip("this version of OpenVINO computes convolutions without a bias correctly")
    search = Search(planted, layers, total, start)
    plan, passed = search.run()
    assert passed and not search.trials[0].passed and search.trials[0].backend == "openvino"
    refused = [trial.name.removeprefix("only ") for trial in search.trials
               if trial.name.startswith("only decoder.reassemble.") and not trial.passed]
    assert refused and not any(eight_bit([layer for layer in layers if layer.module.endswith(".out")
                                          and covers([name], layer.module)], plan.wide) for name in refused)
    assert search.share(plan) > 0.5 * search.share(start)


def test_with_the_bias_openvino_agrees_with_onnx_runtime(bench) -> None:
    make, layers, _ = bench
    plan = PrecisionPlan("int8", (), wide=tuple(
        layer.module for layer in layers if not layer.module.endswith(".out")), weight_bits=7)
    losses = [make().run(plan, name).loss for name in ("openvino", "onnxruntime-cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
