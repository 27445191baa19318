"""Make the eight-bit graphs of a bundle: calibrate, choose the plan, write the graphs."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ... import backends
from ...backends import SessionOptions
from ...core.bundle import Bundle, Recipe
from ...core.files import temporary_folder
from ...core.manifest import EightBitRecord, EightBitTrial, PrecisionPlan, digest
from ...core.verdict import Budget
from ...parity.task_loss import Labelled
from ..frame_graph import export_frame_graph
from ..graph import finish
from .bench import REFERENCE_BACKEND, Distance, GraphBench, TaskLoss, runners
from .calibration import clips, measure_ranges
from .insertion import FORMATS, insert
from .layers import Layer, eight_bit, layers_of
from .search import Search

VERSION = 1  # part of the key of the eight-bit graphs: raising it makes them again
SEARCHED = 4  # images that trials are judged on


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    plan: PrecisionPlan
    """In int8 or fp8; the search may add to `wide`."""
    images: Sequence[np.ndarray]
    """The calibration images as the network's input, float32 (3, h, w)."""
    budget: Budget
    search: bool
    opset: int
    labelled: Labelled | None = None
    """Decides on the plans of the search; None leaves that to the distances."""


def choose_plan(
    bundle: Bundle, request: Request, base: Callable[[Path], Path], graph_key: Callable[[str, PrecisionPlan], str],
    say: Callable[[str], None],
) -> tuple[EightBitRecord, Quantized | None]:
    """Calibrate and search, or take the record of an earlier run with the same images, model and options.

    Args:
        bundle: Has the FP32 model graph.
        request: What is asked for.
        base: Writes the model graph in FP16 to a path and returns it; used if `request.plan.rest` is fp16.
        graph_key: The key of a graph, from its kind and plan, with the bundle's own record.
        say: Receives progress lines.

    Returns:
        The record, and what makes its graphs; None if the bundle has them.
    """
    key = _key(bundle, request)
    earlier = bundle.previous.eight_bits.get(request.plan.precision) if bundle.previous else None
    if earlier is not None and earlier.key == key:
        graphs = [artifact for artifact in bundle.find("onnx", precision=earlier.plan.precision)
                  if artifact.key == graph_key(artifact.graph, earlier.plan) and bundle.intact(artifact)]
        if len(graphs) == 2:
            return earlier, None
    (fp32,) = bundle.find("onnx", graph="model", precision="fp32")
    contract = bundle.contract
    path, size = bundle.path(fp32), contract.input_size
    fp32_model = onnx.load(path)
    layers, total = layers_of(fp32_model, size)
    ranges = {} if request.plan.weights_only else _ranges(path, layers, request, say)
    with temporary_folder(bundle.folder / "eight-bits") as folder:
        model, own = fp32_model, layers
        if request.plan.rest == "fp16":
            model = onnx.load(base(folder / "model.fp16.onnx"))
            own, _ = layers_of(model, size)
        by_module = {layer.module: ranges.get(layer.activation, 0.0) for layer in layers}
        quantized = Quantized(model, own, {layer.activation: by_module[layer.module] for layer in own})
        names = runners(request.plan.precision)
        plan, trials, searched_on = request.plan, [], ""
        if request.search and names and request.images:
            images = _spread(request.images, SEARCHED)
            with backends.get(REFERENCE_BACKEND).open(bundle, fp32, SessionOptions()) as session:
                evidence = Distance(session, images, contract.heads, request.budget)
                task = TaskLoss(session, request.labelled, contract, request.budget) if request.labelled else None
            bench = GraphBench(folder / "trial", bundle, model, own, quantized.clips, evidence, plan.precision, task)
            search = Search(bench, own, total, plan, say)
            plan, _ = search.run()
            trials, searched_on = search.trials, (task or evidence).description
    return _record(key, plan, own, total, request, trials, searched_on), quantized


@dataclass(frozen=True)
class Quantized:
    """What an eight-bit graph is made from."""

    base: onnx.ModelProto
    layers: Sequence[Layer]
    clips: dict[str, float]

    def write(
        self, bundle: Bundle, plan: PrecisionPlan, key: Callable[[str], str], opset: int
    ) -> Iterator[tuple[str, int]]:
        """Add the model and the frame graph of a plan to the bundle; yields the name and the size of each file."""
        metadata = {"plan": json.dumps(plan.to_json())}

        def model(path: Path) -> dict[str, Any]:
            nodes = {layer.node for layer in eight_bit(self.layers, plan.wide)}
            graph = insert(self.base, nodes, self.clips, plan)
            del graph.metadata_props[:]
            finish(graph, path, "model", bundle.contract, metadata)
            return {"opset": opset, "plan": plan.to_json()}

        def frame(path: Path) -> dict[str, Any]:
            (network,) = bundle.find("onnx", graph="model", precision=plan.precision)
            export_frame_graph(bundle.contract, bundle.folder / network.file, path, metadata)
            return {"opset": opset, "plan": plan.to_json()}

        for name, make in (("model", model), ("frame", frame)):
            file = f"{name}.{plan.precision}.onnx"
            artifact, _ = bundle.produce(Recipe(file, "onnx", key(name), make, name, plan.precision))
            yield file, artifact.bytes


def _ranges(
    graph: Path, layers: Sequence[Layer], request: Request, say: Callable[[str], None]
) -> dict[str, float]:
    """The clip of each activation."""
    count = len(request.images)
    say(f"calibrating on {count} images")

    def progress(number: int) -> None:
        if number % 16 == 0 or number == count:
            say(f"calibrated on {number} of {count}")

    form = FORMATS[request.plan.precision]
    return clips(measure_ranges(graph, layers, request.images, progress), int(form.largest),
                 largest=request.plan.precision == "fp8")


def _record(
    key: str, plan: PrecisionPlan, layers: Sequence[Layer], total: int, request: Request, trials: list[EightBitTrial],
    searched_on: str,
) -> EightBitRecord:
    share = 0.0 if plan.weights_only else sum(layer.flops for layer in eight_bit(layers, plan.wide)) / total
    return EightBitRecord(key=key, plan=plan, share=round(share, 4), searched_on=searched_on, trials=tuple(trials),
                          calibration=0 if plan.weights_only else len(request.images))


def _key(bundle: Bundle, request: Request) -> str:
    images = hashlib.sha256()
    for image in request.images:
        images.update(repr(image.shape).encode() + image.tobytes())
    (fp32,) = bundle.find("onnx", graph="model", precision="fp32")
    names = runners(request.plan.precision)
    versions = [importlib.import_module(backends.get(name).package).__version__ for name in names]
    searched = [request.budget["int8"], names, versions] if request.search else None
    if request.search and (labelled := request.labelled):
        for i in range(len(labelled)):
            frame = labelled.frame(i)
            flat = np.ones(frame.shape[:2], np.float32)
            # The scores of constant maps stand for the ground truth.
            maps = {"depth": flat, "normals": np.stack([0 * flat, 0 * flat, flat], 2), "alpha": flat}
            scores = labelled.score(i, maps)
            images.update(frame.tobytes() + repr(sorted(scores.items())).encode())
        searched = [*searched, request.budget["task"], labelled.name]
    return digest([fp32.sha256, request.plan.to_json(), images.hexdigest(), searched, request.opset, VERSION])


def _spread(images: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    return [images[i] for i in np.unique(np.linspace(0, len(images) - 1, count).astype(int))]
