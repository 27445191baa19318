"""The step of an export that adds eight-bit graphs to a bundle that has the FP32 graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx

from ...core.bundle import Bundle
from ...core.errors import BadInput
from ...core.manifest import Assumption, EightBitRecord, PrecisionPlan
from ...core.plan import covers
from ...model import MultiTaskDPT
from ...parity import load_budget
from ...parity.task_loss import Labelled
from ..calibration_images import calibration_images
from ..config import CALIBRATION, ExportConfig
from ..graph import export_graph
from ..precision import typed
from ..pytorch_reference import preprocess
from .layers import ends, layers_of
from .produce import Request, choose_plan


def export_eight_bits(
    bundle: Bundle, model: MultiTaskDPT, plan: PrecisionPlan, config: ExportConfig,
    key: Callable[[Bundle, str, PrecisionPlan, int], str],
    say: Callable[[str], None], labelled: Labelled | None = None,
) -> None:
    """Calibrate, choose what stays wide, and export the eight-bit graphs.

    Args:
        bundle: Has the FP32 graphs; the new ones are added, and the choice is recorded in its manifest.
        model: The model, float32, in eval mode.
        plan: What the options ask for.
        config: The options of the export.
        key: The key of a graph, from the bundle, the graph's kind, its plan and opset.
        say: Receives progress lines.
        labelled: Images with ground truth for the search.
    """
    images, skipped = [], []
    contract = bundle.contract
    if config.calibrate is not None:
        images, skipped = calibration_images(
            config.calibrate, config.calibration_images, config.max_pixels,
            lambda frame: preprocess(frame, contract).numpy())  # photographs would take gigabytes
    for line in skipped:
        say(f"skipped  {line}")
    (fp32,) = bundle.find("onnx", graph="model", precision="fp32")
    layers, _ = layers_of(onnx.load(bundle.path(fp32)), contract.input_size)
    if config.wide_modules is None and not plan.weights_only:
        plan = dataclasses.replace(plan, wide=ends(layers))
    for name in plan.wide:
        if not any(covers([name], layer.module) for layer in layers):
            raise BadInput(f"--wide-modules {name}: expected modules with layers that can be quantized, such as "
                           f"{layers[1].module}, decoder.fusion.0 or heads. Attention's products of activations and "
                           "resizing are never quantized.")

    def base(path: Path) -> Path:
        half = PrecisionPlan("fp16", plan.fp32)
        export_graph(typed(model, half), contract, path, config.opset, {})
        return path

    budget, _ = load_budget(config.budget)
    request = Request(plan, images, budget, config.search, config.opset, labelled)
    record, quantized = choose_plan(
        bundle, request, base, lambda graph, chosen: key(bundle, graph, chosen, config.opset), say)
    bundle.update(eight_bits=bundle.manifest.eight_bits | {plan.precision: record},
                  assumed=(*bundle.manifest.assumed, *_assumed(record, plan)))
    if quantized is None:
        say(f"reused   model and frame graph in {plan.precision} (same model, images and options)")
        return
    written = quantized.write(
        bundle, record.plan, lambda graph: key(bundle, graph, record.plan, config.opset), config.opset)
    for file, size in written:
        say(f"exported {file} ({size / 1e6:.0f} MB)")


def _assumed(record: EightBitRecord, requested: PrecisionPlan) -> list[Assumption]:
    """What the eight-bit graphs rest on: that the calibration images stand for those of the user."""
    assumed = []
    if any(name not in requested.wide for name in record.plan.wide):
        assumed.append(Assumption(fact="wide_modules", value=list(record.plan.wide), option="--wide-modules",
                                  reason=f"{requested.precision}: found by a search, by the {record.searched_on}"))
    if not record.plan.weights_only and record.calibration < CALIBRATION[0]:
        assumed.append(Assumption(fact="calibration", value=f"{record.calibration} images", option="--calibrate",
                                  reason=f"{requested.precision}: {CALIBRATION[0]} or more are expected"))
    return assumed
