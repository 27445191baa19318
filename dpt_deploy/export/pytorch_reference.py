"""The parity reference: outputs of PyTorch FP32, with independent pre- and post-processing.

It uses `torch.nn.functional` instead of `FrameModel`, so that an error in one of them does not cancel out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..core.contract import Contract
from ..core.errors import BadCheckpoint, BadInput
from ..model import MultiTaskDPT
from ..parity import Case, Reference
from ..parity import images as built_in
from ..runtime.image import list_images, read_image

ParityInput = tuple[str, bool, np.ndarray]
"""(name, adversarial, frame), the frame uint8 (H, W, 3) RGB."""


def make_reference(
    model: MultiTaskDPT, contract: Contract, inputs: list[ParityInput],
    progress: Callable[[str], None] = lambda name: None,
) -> Reference:
    """Run the model on the parity inputs.

    Args:
        model: The model, float32, in eval mode, on the CPU.
        contract: Its contract.
        inputs: The parity inputs.
        progress: Called with the name of each input.

    Raises:
        BadCheckpoint: A map has values that are not finite.
    """
    cases = []
    for name, adversarial, frame in inputs:
        progress(name)
        image = preprocess(frame, contract)
        with torch.no_grad():
            outputs = model(image[None])
        model_outputs = {key: value[0].numpy() for key, value in outputs.items()}
        maps = {"model": model_outputs, "frame": postprocess(outputs, frame.shape[:2], contract)}
        if broken := [key for graph in maps.values() for key, value in graph.items() if not np.isfinite(value).all()]:
            raise BadCheckpoint(f"{name}: expected finite maps from PyTorch in FP32 to compare with, received NaN or "
                                f"Inf in {broken[0]}. The model overflows on this input; choose another checkpoint.")
        cases.append(Case(name, adversarial, frame, image.numpy(), maps))
    return Reference(tuple(cases), contract.heads)


def parity_inputs(images: Path | None, max_images: int) -> list[tuple[str, bool, np.ndarray]]:
    """The parity inputs (name, adversarial, frame), frames uint8 (H, W, 3) RGB.

    Args:
        images: An image or a folder, to which adversarial inputs are added; None for the built-in scenes.
        max_images: Use at most this many images of a folder, evenly spaced.

    Raises:
        BadInput: An image cannot be read, a folder has no images, or `max_images` is below 1.
    """
    if max_images < 1:
        raise BadInput(f"--max-images: expected a number from 1, received {max_images}.")
    if images is None:
        return built_in.built_in()
    paths = list_images(images)
    if len(paths) > max_images:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, max_images).astype(int)]
    return [(path.name, False, read_image(path)) for path in paths] + built_in.adversarial()


def hash_inputs(inputs: list[tuple[str, bool, np.ndarray]]) -> str:
    """SHA-256 of parity inputs."""
    digest = hashlib.sha256()
    for name, _, frame in inputs:
        digest.update(name.encode() + repr(frame.shape).encode() + frame.tobytes())
    return digest.hexdigest()


def preprocess(frame: np.ndarray, contract: Contract) -> torch.Tensor:
    """uint8 (H, W, 3) RGB -> float32 (3, h, w), the input of the model graph."""
    box, (h, w) = contract.content_box(frame.shape[:2]), contract.input_size
    x = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, (box.height, box.width), mode="bilinear", antialias=True, align_corners=False)
    x = F.pad(x, (box.left, w - box.left - box.width, box.top, h - box.top - box.height), mode="replicate")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    return ((x - mean) / std)[0]


def postprocess(outputs: dict[str, torch.Tensor], size: tuple[int, int], contract: Contract) -> dict[str, np.ndarray]:
    """Outputs of the model graph for one image -> maps of the frame's `size` (H, W)."""
    box = contract.content_box(size)

    def resize(x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)[0]

    maps = {}
    if "depth" in outputs:
        maps["depth"] = resize(outputs["depth"])[0].numpy()
    if "normals" in outputs:
        maps["normals"] = F.normalize(resize(outputs["normals"]), dim=0).permute(1, 2, 0).contiguous().numpy()
    if "alpha_logits" in outputs:
        maps["alpha"] = resize(torch.sigmoid(outputs["alpha_logits"]))[0].numpy()
    return maps
