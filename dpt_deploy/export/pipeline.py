"""The export: from a checkpoint to a bundle with reference, graphs, engines and verdict."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..build import build_engines
from ..cli.commands import training_module
from ..core import manifest
from ..core.bundle import Bundle, Recipe
from ..core.contract import Contract
from ..core.errors import BadInput, BuildError
from ..core.files import locked
from ..core.manifest import EIGHT_BITS, Artifact, Assumption, Manifest, PrecisionPlan, PrecisionRecord
from ..core.replacement import check_free
from ..core.task import FEWEST
from ..core.verdict import ParityReport, Stage
from ..core.version import __version__
from ..model import Checkpoint, MultiTaskDPT, load_model, read_checkpoint
from ..parity import judge, load_budget
from ..parity.judge import WorstMaps
from ..parity.reference import FILE, Reference
from ..parity.task_loss import Labelled, Part
from ..report import write_report
from ..report.model_card import reset_model_card
from .compat import check_compat, compat_stages
from .config import ExportConfig, check_options
from .frame_graph import export_frame_graph
from .network import Network
from .precision import check_plan
from .pytorch_reference import ParityInput, ParityInputs, hash_inputs, make_reference, parity_inputs, quick_inputs
from .pytorch_stages import judge_weights
from .quantization import export_eight_bits
from .search import JUDGE_VERSION, judge_half, search_plan

FP32 = PrecisionPlan("fp32", ())


def export_checkpoint(
    config: ExportConfig, say: Callable[[str], None] = print, command: str = ""
) -> tuple[Bundle, ParityReport]:
    """Export a checkpoint and judge the bundle. Files of an earlier run that are up to date are reused.

    Args:
        config: The options of the command.
        say: Receives progress lines.
        command: The shell line to record in the manifest and the report.

    Returns:
        The bundle and its parity report.

    Raises:
        DptError: The input is not valid, a package is missing, or a graph or engine cannot be built.
    """
    check_options(config)
    inputs = parity_inputs(config.images, config.max_images, config.max_pixels)
    for line in inputs.lines():
        say(line)
    if config.parity == "quick":
        inputs = dataclasses.replace(inputs, inputs=quick_inputs(inputs.inputs))
    checkpoint = read_checkpoint(
        config.checkpoint, backbone=config.backbone, backbone_kwargs=config.backbone_kwargs,
        weights=config.weights_entry,
        normalisation_is_known=config.mean is not None and config.std is not None,
    )
    for note in checkpoint.notes:
        say(f"note     {note}")
    model = _load(checkpoint, config)
    contract = _contract(checkpoint, model, config)
    if config.compat:
        check_compat(contract)
    plan = _requested_plan(model, config)
    labelled = _labelled(checkpoint, contract, config, say)
    folder = config.out or Path("engines") / checkpoint.path.stem
    check_free(folder)
    with locked(folder, create=True):
        return _export(folder, checkpoint, model, contract, inputs, plan, config, say, command, labelled)


def _export(
    folder: Path, checkpoint: Checkpoint, model: MultiTaskDPT, contract: Contract, inputs: ParityInputs,
    plan: PrecisionPlan, config: ExportConfig, say: Callable[[str], None], command: str,
    labelled: tuple[Labelled, Labelled] | None,
) -> tuple[Bundle, ParityReport]:
    bundle = Bundle.create(folder, _manifest(folder, checkpoint, model, contract, config, command), reset_model_card)
    inputs.record(bundle)
    _keep_earlier(bundle, config)
    try:
        if bundle.previous is None:
            bundle.save()  # after an interrupt, it tells whose the files are
        report, failure = _fill(bundle, model, contract, inputs.inputs, plan, config, say, command, labelled)
    except Exception:
        # After an interrupt, the next run reuses the files. After an error, a new bundle would look like a whole one.
        if bundle.previous is None:
            bundle.discard()
        raise
    if failure is not None:
        raise BuildError(f"{failure} The graphs in {folder} are complete and judged: {report.verdict}.") from failure
    return bundle, report


def _fill(
    bundle: Bundle, model: MultiTaskDPT, contract: Contract, inputs: list[ParityInput], plan: PrecisionPlan,
    config: ExportConfig, say: Callable[[str], None], command: str, labelled: tuple[Labelled, Labelled] | None,
) -> tuple[ParityReport, BuildError | None]:
    """Make all files of the bundle, judge them and write the report. Also returns why engines could not be built."""
    worst = WorstMaps()
    searched, judged = labelled or (None, None)
    reference = _make_reference(bundle, model, contract, inputs, say)
    if config.precision in EIGHT_BITS:
        record = _earlier_half(bundle)
    else:
        record = _choose_plan(bundle, model, reference, plan, config, say, worst)
    found = _found_plan(record, plan, reference)
    bundle.update(precision=record, assumed=(*bundle.manifest.assumed, *found))
    half_plan = FP32 if config.precision in EIGHT_BITS else record.plan
    _export_graphs(bundle, Network(model, contract, config.opset), half_plan, say)
    if config.precision in EIGHT_BITS:
        export_eight_bits(bundle, model, plan, config, _graph_key, say, searched)
    _remove_outdated_graphs(bundle, {"fp32", half_plan.precision, config.precision}, say)
    stages = _judge_with_torch(bundle, model, record)
    stages += compat_stages(bundle, model, reference, config, say, worst)
    failure = None
    try:
        build_engines(bundle, config.engines, say)
    except BuildError as error:
        say(f"failed   {error}")
        failure = error
    judgement = judge(bundle, config.budget, stages, lambda name: say(f"judging  {name}"), worst, judged)
    write_report(bundle, judgement.report, judgement.exhibits, command)
    return judgement.report, failure


def _load(checkpoint: Checkpoint, config: ExportConfig) -> MultiTaskDPT:
    model = load_model(checkpoint)
    if config.depth_scale is not None:
        if checkpoint.contract and config.depth_scale != model.config.depth_scale:
            raise BadInput(
                f"--depth-scale: expected {model.config.depth_scale:g}, the value in {checkpoint.path.name}, received "
                f"{config.depth_scale:g}. Omit the option: another value makes all depths wrong."
            )
        model.set_depth_scale(config.depth_scale)
    if config.heads:
        model.select_heads(config.heads)
    trained_size = checkpoint.contract.input_size if checkpoint.contract else model.input_size
    model.set_input_size(config.input_size or trained_size)
    return model


def _contract(checkpoint: Checkpoint, model: MultiTaskDPT, config: ExportConfig) -> Contract:
    """The contract of the export; mean, std and resize rule come from the checkpoint if it has a description."""
    trained = checkpoint.contract or model.contract()
    for name in ("mean", "std"):
        stated = getattr(config, name)
        if checkpoint.contract and stated is not None and stated != getattr(trained, name):
            raise BadInput(f"--{name}: {checkpoint.path.name} says {getattr(trained, name)}, received {stated}. Omit "
                           "the option: other values make all maps wrong.")
    return Contract(model.input_size, config.mean or trained.mean, config.std or trained.std,
                    config.resize or trained.resize, model.config.heads)


def _manifest(
    folder: Path, checkpoint: Checkpoint, model: MultiTaskDPT, contract: Contract, config: ExportConfig, command: str
) -> Manifest:
    packages = ("torch", "timm", "onnx", "onnxscript", "numpy", "opencv-python")
    # Options as plain JSON values, with file names instead of paths of this machine.
    options = {key: value.name if isinstance(value, Path) else value for key, value in vars(config).items()}
    options["engines"] = dataclasses.asdict(config.engines)
    return Manifest(
        name=folder.name, command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        checkpoint=manifest.Checkpoint(file=checkpoint.path.name, sha256=checkpoint.sha256),
        model=manifest.ModelRecord.model_validate(model.config.to_json()),
        contract=contract.to_json(), assumed=_assumed(checkpoint, config), training=checkpoint.training,
        options=json.loads(json.dumps(options)),
        versions={"dpt-deploy": __version__} | {name: importlib.metadata.version(name) for name in packages},
    )


def _assumed(checkpoint: Checkpoint, config: ExportConfig) -> tuple[Assumption, ...]:
    """The checkpoint's assumptions without the facts that an option states."""
    return tuple(one for one in checkpoint.assumed if getattr(config, one.fact, None) is None)


def _make_reference(
    bundle: Bundle, model: MultiTaskDPT, contract: Contract, inputs: list[ParityInput], say: Callable[[str], None]
) -> Reference:
    def make(path: Path) -> None:
        make_reference(model, contract, inputs, lambda name: say(f"PyTorch  {name}")).save(path)

    artifact, reused = bundle.produce(Recipe(FILE, "reference", bundle.manifest.key(FILE, hash_inputs(inputs)), make))
    if reused:
        say(f"reused   {FILE} (same checkpoint and images)")
    return Reference.load(bundle.path(artifact), contract)


def _export_graphs(
    bundle: Bundle, network: Network, half_plan: PrecisionPlan, say: Callable[[str], None]
) -> None:
    """Export the graphs of `half_plan` and those in FP32."""
    opset = network.opset
    for plan in dict.fromkeys((half_plan, FP32)):
        for graph in ("model", "frame"):
            def make(path: Path, graph=graph, plan=plan) -> dict[str, Any]:
                if graph == "model":
                    network.export(plan, path, _metadata(plan))
                else:
                    (model,) = bundle.find("onnx", graph="model", precision=plan.precision)
                    export_frame_graph(bundle.contract, bundle.folder / model.file, path, _metadata(plan))
                return {"opset": opset, "plan": plan.to_json()}

            file, key = f"{graph}.{plan.precision}.onnx", _graph_key(bundle, graph, plan, opset)
            artifact, reused = bundle.produce(Recipe(file, "onnx", key, make, graph, plan.precision))
            say(f"reused   {file} (same checkpoint, plan and versions)" if reused else
                f"exported {file} ({artifact.bytes / 1e6:.0f} MB)")
    # The manifest lists the FP32 graphs first, whichever were ready first.
    bundle.update(artifacts=tuple(sorted(bundle.artifacts, key=lambda artifact: artifact.precision != "fp32")))


def _remove_outdated_graphs(bundle: Bundle, made: set[str], say: Callable[[str], None]) -> None:
    """Remove the graphs that this version would make otherwise from the same checkpoint, plan and options.

    Of the precisions that this export has not `made`, remove also those of which a graph is missing or damaged.
    """
    graphs = bundle.find("onnx")
    outdated = {graph.file for graph in graphs if not _is_current(bundle, graph)}
    broken = {graph.precision for graph in graphs
              if graph.precision not in made and graph.file not in outdated and not bundle.intact(graph)}
    for graph in graphs:
        if graph.file in outdated:
            say(f"removed  {graph.file} (made with other versions or options)")
        elif graph.precision in broken:
            say(f"removed  {graph.file} (a graph in {graph.precision} is missing or damaged)")
        else:
            continue
        bundle.remove(graph)
    present = {artifact.precision for artifact in bundle.find("onnx")}
    bundle.update(
        assumed=tuple(one for one in bundle.manifest.assumed if _concerns(one) is None or _concerns(one) & present),
        eight_bits={key: record for key, record in bundle.manifest.eight_bits.items() if key in present})


def _concerns(assumption: Assumption) -> set[str] | None:
    """The precisions whose graphs an assumption is about; None for all."""
    if assumption.fact == "fp32_modules":
        return {"fp16", "bf16"}
    if assumption.fact in ("wide_modules", "calibration"):
        return {assumption.reason.partition(":")[0]}
    return None


def _is_current(bundle: Bundle, artifact: Artifact) -> bool:
    """Whether this version would make a graph in the same way from the bundle's checkpoint and the graph's own plan."""
    plan, opset = artifact.details.plan, artifact.details.opset
    return plan is not None and artifact.key == _graph_key(bundle, artifact.graph, plan, opset)


def _metadata(plan: PrecisionPlan) -> dict[str, str]:
    return {"plan": json.dumps(plan.to_json())}


def _graph_key(bundle: Bundle, graph: str, plan: PrecisionPlan, opset: int | None) -> str:
    record = bundle.manifest.eight_bits.get(plan.precision)
    calibrated = [record.key if record else None] if plan.precision in EIGHT_BITS else []
    return bundle.manifest.key(graph, plan.to_json(), opset, *calibrated)


def _choose_plan(
    bundle: Bundle, model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, config: ExportConfig,
    say: Callable[[str], None], worst: WorstMaps,
) -> PrecisionRecord:
    """The plan to export, with the verdict of PyTorch in half precision (None for FP32).

    A plan that is out of budget is replaced by the result of a search, unless the user named modules to keep in FP32.
    The manifest keeps the record, so that the same export does not search again.
    """
    if plan.precision == "fp32":
        return PrecisionRecord(plan=plan)
    budget, _ = load_budget(config.budget)
    reference_key = bundle.find("reference", file=FILE)[0].key
    limits = {precision: budget[precision] for precision in ("fp32", "fp16")}
    key = bundle.manifest.key(plan.to_json(), config.search, limits, reference_key, JUDGE_VERSION)
    title = f"PyTorch {plan.precision}"
    earlier = bundle.previous.precision if bundle.previous else None
    if earlier is not None and earlier.key == key and earlier.stage is not None:
        say(f"reused   {title} (same plan, images and budget)")
        return earlier.model_copy(update={"stage": dataclasses.replace(earlier.stage, earlier=True)})
    say(f"judging  {title}")
    stage, trials = judge_half(model, plan, reference, budget, title, worst=worst), []
    if not stage.passed and config.search and not config.fp32_modules:
        say(f"search   {title} is out of budget: {'; '.join(stage.reasons[:2])}")
        plan, stage, trials = search_plan(model, reference, plan, stage, budget, say, worst)
        if stage.passed:
            say(f"search   within budget with these in FP32: {', '.join(plan.fp32)}")
    return PrecisionRecord(key=key, plan=plan, trials=tuple(trials), stage=stage)


def _keep_earlier(bundle: Bundle, config: ExportConfig) -> None:
    """Keep what the manifest says of graphs that this export does not make: in half precision, or in eight bits."""
    earlier = bundle.previous
    if earlier is None or earlier.origin != bundle.manifest.origin:
        return
    made = {config.precision} if config.precision in EIGHT_BITS else {"fp16", "bf16"}
    kept = [one for one in earlier.assumed if (concerned := _concerns(one)) is not None and not concerned & made]
    bundle.update(eight_bits=earlier.eight_bits, assumed=(*bundle.manifest.assumed, *kept))


def _found_plan(record: PrecisionRecord, requested: PrecisionPlan, reference: Reference) -> list[Assumption]:
    """The assumption behind a plan that the search found: that the parity inputs stand for the user's images."""
    if requested.precision in EIGHT_BITS:
        return []  # its half-precision graphs are of an earlier export
    found = [name for name in record.plan.fp32 if name not in requested.fp32]
    if not found:
        return []
    reason = f"found by a search on {len(reference.cases)} parity inputs"
    return [Assumption(fact="fp32_modules", value=found, reason=reason, option="--fp32-modules")]


def _labelled(
    checkpoint: Checkpoint, contract: Contract, config: ExportConfig, say: Callable[[str], None]
) -> tuple[Labelled, Labelled] | None:
    """The images of --data-root in two halves: for the search and for the verdict. None without the option."""
    if config.data_root is None:
        return None
    data = training_module("train.labelled").open_labelled(
        config.data_root, contract, checkpoint.training, count=config.data_images, normal_axes=config.normal_axes,
        max_pixels=config.max_pixels, say=say)
    if len(data) < 2 * FEWEST:
        raise BadInput(f"--data-root {config.data_root}: expected at least {2 * FEWEST} labelled samples, half for the "
                       f"search and half for the verdict, received {len(data)}. Add samples or raise --data-images, or "
                       "omit the option to judge by the distance to FP32.")
    return Part(data, range(0, len(data), 2)), Part(data, range(1, len(data), 2))


def _requested_plan(model: MultiTaskDPT, config: ExportConfig) -> PrecisionPlan:
    """The plan that the options ask for. Raises `BadInput` if it names a module that the model does not have."""
    if config.precision == "fp32":
        return FP32
    eight_bits = config.precision in EIGHT_BITS
    fp32 = (*PrecisionPlan.fp32, *config.fp32_modules) if not eight_bits or config.rest_type == "fp16" else ()
    check_plan(model, PrecisionPlan("fp16", fp32))
    if not eight_bits:
        return PrecisionPlan(config.precision, fp32)
    return PrecisionPlan(config.precision, fp32, config.rest_type, config.wide_modules or (), config.weights_only,
                         7 if config.seven_bit_weights else 8)


def _earlier_half(bundle: Bundle) -> PrecisionRecord:
    """The half-precision plan of an earlier export whose graphs are still in the bundle, or that of FP32."""
    earlier = bundle.previous.precision if bundle.previous else None
    graphs = bundle.find("onnx", precision=earlier.plan.precision) if earlier else []
    if not graphs or not all(_is_current(bundle, graph) and bundle.intact(graph) for graph in graphs):
        return PrecisionRecord(plan=FP32)
    if earlier.stage is None:
        return earlier
    return earlier.model_copy(update={"stage": dataclasses.replace(earlier.stage, earlier=True)})


def _judge_with_torch(bundle: Bundle, model: MultiTaskDPT, record: PrecisionRecord) -> list[Stage]:
    """The stages that need PyTorch: half-precision arithmetic, and the weights of each graph."""
    stages = judge_weights(bundle, model)
    if record.stage is not None:  # judged before the graph existed
        (graph,) = bundle.find("onnx", graph="model", precision=record.plan.precision)
        stage_id = dataclasses.replace(record.stage.id, file=graph.file)
        stages.append(dataclasses.replace(record.stage, id=stage_id, sha256=graph.sha256))
    return stages
