"""The parity stages that need PyTorch, from a bundle and the checkpoint that it was exported from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..core.bundle import Bundle
from ..core.errors import BadInput
from ..model import MultiTaskDPT, load_model, read_checkpoint
from ..parity import Stage, load_budget
from ..parity.judge import load_reference
from ..parity.reference import FILE
from ..parity.weights import compare_weights
from .precision import fold_batch_norm
from .pytorch_reference import make_reference, parity_inputs
from .search import judge_half


def judge_with_checkpoint(
    bundle: Bundle, checkpoint: Path, images: Path | None = None, most: int = 8, budget_file: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Stage]:
    """The stages of `bundle` that need PyTorch, from the checkpoint that it was made from.

    Args:
        bundle: The bundle; with `images`, its reference is replaced and judges everything from then on.
        checkpoint: The file that the bundle was exported from.
        images: A file or a folder to make a new reference from; None keeps the bundle's own.
        most: At most this many images of a folder are used, evenly spaced.
        budget_file: JSON file with another budget; None for the project's own.
        say: Receives progress lines.

    Raises:
        BadInput: The checkpoint is not the one that the bundle was exported from, or an image is not readable.
        BadCheckpoint: The checkpoint cannot be read.
    """
    budget, _ = load_budget(budget_file)
    model = model_of(bundle, checkpoint)
    if images is not None:
        inputs = parity_inputs(images, most)
        reference = make_reference(model, bundle.contract, inputs, lambda name: say(f"PyTorch  {name}"))
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
            stages.append(judge_half(model, graph.details.plan, reference, budget, name, graph))
    return stages


def judge_weights(bundle: Bundle, model: MultiTaskDPT) -> list[Stage]:
    """Every weight of every graph of `bundle` against `model` (float32, eval mode), batch norms folded."""
    folded = fold_batch_norm(model).state_dict()
    expected = {name: value.numpy() for name, value in folded.items() if value.is_floating_point()}
    return [compare_weights(bundle.path(a), a, expected) for a in bundle.find("onnx")]


def model_of(bundle: Bundle, path: Path) -> MultiTaskDPT:
    """The model that `bundle` was exported from, float32 in eval mode, as its manifest describes it."""
    checkpoint = read_checkpoint(path)
    source = bundle.manifest.checkpoint
    if checkpoint.sha256 != source.sha256:
        raise BadInput(
            f"--checkpoint: {bundle.folder} was exported from {source.file} with SHA-256 {source.sha256[:16]}..., "
            f"and {path} has {checkpoint.sha256[:16]}...: another checkpoint. Give the one it was exported from, or "
            f"export this one: python -m dpt_deploy.export {path}"
        )
    model = load_model(checkpoint)
    model.set_depth_scale(bundle.manifest.model.depth_scale)
    model.select_heads(bundle.contract.heads)
    model.set_input_size(bundle.contract.input_size)
    return model
