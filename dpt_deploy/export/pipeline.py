"""Checkpoint -> reference, graphs, engines, verdict."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from .. import __version__
from ..build import EngineOptions, build_engines, choose_builder
from ..cli.options import Count, Heads, Names, Size
from ..core.bundle import Bundle
from ..core.contract import Contract, ResizeRule
from ..core.errors import BadInput
from ..model import Checkpoint, MultiTaskDPT, load_model, read_checkpoint
from ..parity import ParityReport, Stage, load_budget
from ..parity.judge import judge
from ..parity.reference import FILE, Reference
from .graph import export_graph
from .precision import Precision, PrecisionPlan, check_plan, typed, typed_frame
from .reference import make_reference, parity_inputs
from .rejudge import judge_weights
from .search import judge_half, search_plan


@dataclass(frozen=True)
class ExportConfig:
    """Turn a trained checkpoint into a bundle: ONNX graphs, engines, and a verdict on every one of them."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint file such as best_model.pth."""
    out: Path | None = None
    """Folder of the bundle. Default: engines/ and the checkpoint's name."""
    input_size: Size | None = None
    """Size of the network's input, such as 384 or 384x512. Default: the checkpoint's own."""
    precision: Precision = "fp16"
    """Precision of the graphs that are written beside the FP32 reference graphs; fp32 writes only those."""
    fp32_modules: Names = ()
    """Modules that stay in FP32, such as decoder.fusion.2; residual stands for the residual stream."""
    resize: ResizeRule | None = None
    """How a frame is fitted to the network's input. Default: the checkpoint's rule, or stretch."""
    heads: Heads | None = None
    """Heads to export, among depth, normals and alpha. Default: all that the checkpoint has."""
    depth_scale: float | None = None
    """The depth scale that the checkpoint was trained with, if it does not say so itself."""
    opset: Literal[23, 20] = 23
    """ONNX opset. 23 has the Attention operator; 20 is for older versions of TensorRT."""
    engines: EngineOptions = field(default_factory=EngineOptions)
    images: Path | None = None
    """Image or folder to judge parity on. Default: built-in scenes."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    budget: Path | None = None
    """JSON file with other parity budgets. The report names it."""
    search: bool = True
    """If half precision is out of budget, find the smallest part that must stay in FP32."""


def export(
    config: ExportConfig, say: Callable[[str], None] = print, command: str = ""
) -> tuple[Bundle, ParityReport]:
    """Export `config.checkpoint` and judge the result. Raises a `DptError` on bad input.

    Reuses every file of an earlier run whose hash says that it is still right.
    """
    load_budget(config.budget)  # a bad budget or a missing builder should fail now and not after the export
    choose_builder(config.engines)
    checkpoint = read_checkpoint(config.checkpoint)
    for note in checkpoint.notes:
        say(f"note     {note}")
    model = _load(checkpoint, config)
    contract = _contract(checkpoint, model, config)
    in_fp32 = (*PrecisionPlan.fp32, *config.fp32_modules) if config.precision != "fp32" else ()
    plan = PrecisionPlan(config.precision, in_fp32)
    check_plan(model, plan)
    bundle = _create_bundle(checkpoint, model, contract, config, command)
    reference = _make_reference(bundle, model, contract, config, say)
    plan, half = _choose_plan(bundle, model, reference, plan, config, say)
    _export_graphs(bundle, model, contract, plan, config.opset, say)
    stages = _judge_with_torch(bundle, model, plan, half)
    build_engines(bundle, config.engines, say)
    report = judge(bundle, config.budget, stages, lambda name: say(f"judging  {name}"), command)
    return bundle, report


def _load(checkpoint: Checkpoint, config: ExportConfig) -> MultiTaskDPT:
    model = load_model(checkpoint)
    if config.depth_scale is not None:
        if checkpoint.contract and config.depth_scale != model.config.depth_scale:
            raise BadInput(
                f"--depth-scale: {checkpoint.path.name} was trained with {model.config.depth_scale:g} as it says, and "
                f"received {config.depth_scale:g}: every depth would be wrong by their ratio. Leave the option out."
            )
        model.set_depth_scale(config.depth_scale)
    if config.heads:
        model.select_heads(config.heads)
    model.set_input_size(config.input_size or _own_size(checkpoint, model))
    return model


def _own_size(checkpoint: Checkpoint, model: MultiTaskDPT) -> tuple[int, int]:
    return checkpoint.contract.input_size if checkpoint.contract else model.input_size


def _contract(checkpoint: Checkpoint, model: MultiTaskDPT, config: ExportConfig) -> Contract:
    """The model's contract; mean, std and resize rule are those it was trained with, where the checkpoint says."""
    trained = checkpoint.contract or model.contract()
    return Contract(
        model.input_size, trained.mean, trained.std, config.resize or trained.resize, model.config.heads
    )


def _create_bundle(
    checkpoint: Checkpoint, model: MultiTaskDPT, contract: Contract, config: ExportConfig, command: str
) -> Bundle:
    folder = config.out or Path("engines") / checkpoint.path.stem
    packages = ("torch", "timm", "onnx", "onnxscript", "numpy", "opencv-python")
    header = {
        "name": folder.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "checkpoint": {"file": checkpoint.path.name, "sha256": checkpoint.sha256},
        "model": model.config.to_json(),
        "contract": contract.to_json(),
        "training": checkpoint.training,
        "options": _record(config),
        "versions": {"dpt-deploy": __version__} | {name: importlib.metadata.version(name) for name in packages},
    }
    return Bundle.create(folder, header)


def _record(config: ExportConfig) -> dict[str, Any]:
    """The options as plain JSON values; file names without the folders of this machine."""
    fields = {key: value.name if isinstance(value, Path) else value for key, value in vars(config).items()}
    return json.loads(json.dumps(fields | {"engines": dataclasses.asdict(config.engines)}))


def _make_reference(
    bundle: Bundle, model: MultiTaskDPT, contract: Contract, config: ExportConfig, say: Callable[[str], None]
) -> Reference:
    inputs = parity_inputs(config.images, config.max_images)
    digest = hashlib.sha256()
    for name, _, frame in inputs:
        digest.update(name.encode() + repr(frame.shape).encode() + frame.tobytes())
    key = _key(bundle, {"inputs": digest.hexdigest()})
    if reused := bundle.reusable(FILE, key):
        say(f"reused   {FILE} (same checkpoint and images)")
        return Reference.load(bundle.path(reused))
    reference = make_reference(model, contract, inputs, lambda name: say(f"PyTorch  {name}"))
    reference.save(bundle.folder / FILE)
    bundle.add(FILE, "reference", key=key)
    return reference


def _export_graphs(
    bundle: Bundle, model: MultiTaskDPT, contract: Contract, plan: PrecisionPlan, opset: int,
    say: Callable[[str], None],
) -> None:
    """Write the FP32 graphs and, unless the plan is FP32, those of the plan."""
    wanted = []
    for this in (PrecisionPlan("fp32", ()), plan)[: 1 if plan.precision == "fp32" else 2]:
        inner = None
        for graph in ("model", "frame"):
            file = f"{graph}.{this.precision}.onnx"
            wanted.append(file)
            key = _key(bundle, {"graph": graph, "plan": this.to_json(), "opset": opset})
            if bundle.reusable(file, key):
                say(f"reused   {file} (same checkpoint, plan and versions)")
                continue
            inner = inner or typed(model, this)
            module = inner if graph == "model" else typed_frame(inner, contract, this)
            path = bundle.folder / file
            export_graph(module, graph, contract, path, opset, {"plan": json.dumps(this.to_json())})
            bundle.add(
                file, "onnx", graph=graph, precision=this.precision, key=key,
                details={"opset": opset, "plan": this.to_json()},
            )
            say(f"exported {file} ({path.stat().st_size / 1e6:.0f} MB)")
    for artifact in bundle.find("onnx"):
        if artifact.file not in wanted and artifact.key != _key(
            bundle, {"graph": artifact.graph, "plan": artifact.details["plan"], "opset": artifact.details["opset"]}
        ):
            bundle.remove(artifact)  # made from another checkpoint or contract


def _choose_plan(
    bundle: Bundle, model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, config: ExportConfig,
    say: Callable[[str], None],
) -> tuple[PrecisionPlan, Stage | None]:
    """The plan to export, and what PyTorch in half precision makes of it (None for FP32).

    A plan that is out of budget is replaced by the one that a search finds, unless it was given by hand.
    The choice is kept in the manifest, so that the same export does not search again.
    """
    if plan.precision == "fp32":
        bundle.header["precision"] = {"plan": plan.to_json()}
        return plan, None
    budget, _ = load_budget(config.budget)
    key = _key(bundle, {"asked": plan.to_json(), "search": config.search, "budget": budget,
                        "inputs": bundle.find("reference", file=FILE)[0].key})
    name = f"PyTorch {plan.precision}"
    if (record := bundle.previous.get("precision", {})).get("key") == key:
        bundle.header["precision"] = record
        say(f"reused   {name} (same plan, images and budget)")
        earlier = dataclasses.replace(Stage.from_json(record["stage"]), earlier=True)
        return PrecisionPlan.from_json(record["plan"]), earlier
    say(f"judging  {name}")
    stage, trials = judge_half(model, plan, reference, budget, name), []
    if not stage and config.search and not config.fp32_modules:
        say(f"search   {name} is out of budget: {'; '.join(stage.reasons[:2])}")
        plan, stage, trials = search_plan(model, reference, plan, stage, budget, say)
        if stage:
            say(f"search   found: in FP32 {', '.join(plan.fp32)}")
    bundle.header["precision"] = {
        "key": key, "plan": plan.to_json(), "trials": [trial.to_json() for trial in trials], "stage": stage.to_json(),
    }
    return plan, stage


def _judge_with_torch(bundle: Bundle, model: MultiTaskDPT, plan: PrecisionPlan, half: Stage | None) -> list[Stage]:
    """The stages that need PyTorch: half arithmetic, and every weight of every graph."""
    stages = judge_weights(bundle, model)
    if half is not None:  # stands for the graph that is made from the same plan
        (graph,) = bundle.find("onnx", graph="model", precision=plan.precision)
        stages.append(dataclasses.replace(half, artifact=graph.file, sha256=graph.sha256))
    return stages


def _key(bundle: Bundle, what: dict[str, Any]) -> str:
    """Hash of everything that a file depends on: checkpoint, contract, model, versions, and `what`."""
    header = bundle.header
    made_from = {
        "checkpoint": header["checkpoint"]["sha256"], "contract": header["contract"], "model": header["model"],
        "versions": header["versions"], **what,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
