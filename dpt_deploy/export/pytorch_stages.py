"""The parity stages that need PyTorch and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import BadInput
from ..core.image_files import MAX_PIXELS
from ..model import MultiTaskDPT, load_model, read_checkpoint
from ..parity import Stage, load_budget
from ..parity.judge import WorstMaps, load_reference
from ..parity.reference import FILE
from ..parity.weights import compare_weights
from .precision import folded
from .pytorch_reference import make_reference, parity_inputs
from .search import judge_half


def judge_with_checkpoint(
    bundle: Bundle, checkpoint: Path, images: Path | None = None, max_images: int = 8, budget_file: Path | None = None,
    say: Callable[[str], None] = lambda line: None, worst: WorstMaps | None = None, max_pixels: int = MAX_PIXELS,
) -> list[Stage]:
    """Judge the stages of a bundle that need PyTorch: half-precision arithmetic, and the weights of each graph.

    Args:
        bundle: The bundle. With `images`, its reference is replaced.
        checkpoint: The file that the bundle was exported from.
        images: An image or a folder to make a new reference from; None keeps the reference of the bundle.
            Those of a folder that cannot be read are skipped, and noted in the manifest.
        max_images: Use at most this many images of a folder, evenly spaced.
        budget_file: JSON file with parity budgets; None for the default ones.
        say: Receives progress lines.
        worst: Receives the exhibits of these stages.
        max_pixels: Images with more pixels cannot be read.

    Raises:
        BadInput: The checkpoint is not the one that the bundle was exported from, or no image can be read.
        BadCheckpoint: The checkpoint cannot be read.
    """
    budget, _ = load_budget(budget_file)
    model = load_exported_model(bundle, checkpoint)
    if images is not None:
        inputs = parity_inputs(images, max_images, max_pixels)
        for line in inputs.lines():
            say(line)
        inputs.record(bundle)
        reference = make_reference(model, bundle.contract, inputs.inputs, lambda name: say(f"PyTorch  {name}"))
        reference.save(bundle.folder / FILE)
        bundle.add(FILE, "reference")
    else:
        reference, _ = load_reference(bundle)
    say("judging  weights")
    stages = judge_weights(bundle, model)
    for graph in bundle.find("onnx", graph="model"):
        if graph.precision != "fp32":
            name = f"PyTorch {graph.precision}"
            say(f"judging  {name}")
            stages.append(judge_half(model, graph.details.plan, reference, budget, name, graph, worst))
    return stages


def judge_weights(bundle: Bundle, model: MultiTaskDPT) -> list[Stage]:
    """Compare the weights of each graph of `bundle` with `model` (float32, eval mode), folded."""
    weights = folded(model).state_dict()
    expected = {name: value.numpy() for name, value in weights.items() if value.is_floating_point()}
    return [compare_weights(bundle.path(graph), graph, expected) for graph in bundle.find("onnx")]


def load_exported_model(bundle: Bundle, path: Path) -> MultiTaskDPT:
    """The model that `bundle` was exported from, float32, in eval mode, with the options of the export."""
    options = bundle.manifest.options
    checkpoint = read_checkpoint(
        path, backbone=options.get("backbone"), backbone_kwargs=options.get("backbone_kwargs"),
        weights=options.get("weights_entry"), normalisation_is_known=bool(options.get("mean") and options.get("std")),
    )
    source = bundle.manifest.checkpoint
    if checkpoint.sha256 != source.sha256:
        raise BadInput(
            f"--checkpoint: expected {source.file} with SHA-256 {source.sha256[:16]}..., which {bundle.folder} was "
            f"exported from, received another checkpoint: {path} with {checkpoint.sha256[:16]}... Use that file, or "
            f"export this one: python -m dpt_deploy.export {path}"
        )
    model = load_model(checkpoint)
    model.set_depth_scale(bundle.manifest.model.depth_scale)
    model.select_heads(bundle.contract.heads)
    model.set_input_size(bundle.contract.input_size)
    return model
