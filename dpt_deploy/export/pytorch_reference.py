"""What PyTorch FP32 makes of the parity inputs, with pre- and post-processing of its own.

Written with `torch.nn.functional` and not with `FrameModel`: a wrong mean there must not cancel out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..core.contract import Contract
from ..core.errors import BadInput
from ..model import MultiTaskDPT
from ..parity import Case, Reference
from ..parity import images as built_in
from ..runtime.image import list_images, read_image


def make_reference(
    model: MultiTaskDPT, contract: Contract, inputs: list[tuple[str, bool, np.ndarray]],
    progress: Callable[[str], None] = lambda name: None,
) -> Reference:
    """Run `model` (eval, float32, CPU) on `inputs`: (name, adversarial, uint8 RGB frame)."""
    cases = []
    for name, adversarial, frame in inputs:
        progress(name)
        image = preprocess(frame, contract)
        with torch.no_grad():
            outputs = model(image[None])
        cases.append(Case(
            name, adversarial, frame, image.numpy(),
            {
                "model": {key: value[0].numpy() for key, value in outputs.items()},
                "frame": postprocess(outputs, frame.shape[:2], contract),
            },
        ))
    return Reference(tuple(cases))


def parity_inputs(images: Path | None, most: int) -> list[tuple[str, bool, np.ndarray]]:
    """(name, adversarial, uint8 RGB frame) of a file or a folder, at most `most` evenly spaced, and adversarial ones.

    The built-in scenes where `images` is None. Raises `BadInput` where there is no image, or for `most` below 1.
    """
    if most < 1:
        raise BadInput(f"--max-images: expected a number from 1, received {most}.")
    if images is None:
        return built_in.built_in()
    paths = list_images(images)
    if len(paths) > most:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, most).astype(int)]
    return [(path.name, False, read_image(path)) for path in paths] + built_in.adversarial()


def digest_of(inputs: list[tuple[str, bool, np.ndarray]]) -> str:
    """SHA-256 of parity inputs."""
    digest = hashlib.sha256()
    for name, _, frame in inputs:
        digest.update(name.encode() + repr(frame.shape).encode() + frame.tobytes())
    return digest.hexdigest()


def preprocess(frame: np.ndarray, contract: Contract) -> torch.Tensor:
    """uint8 (H, W, 3) RGB -> float32 (3, h, w), as the contract says."""
    box, (h, w) = contract.content_box(frame.shape[:2]), contract.input_size
    x = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, (box.height, box.width), mode="bilinear", antialias=True, align_corners=False)
    x = F.pad(x, (box.left, w - box.left - box.width, box.top, h - box.top - box.height), mode="replicate")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    return ((x - mean) / std)[0]


def postprocess(
    outputs: dict[str, torch.Tensor], size: tuple[int, int], contract: Contract
) -> dict[str, np.ndarray]:
    """The model graph's outputs for one image -> maps at the frame's `size`, as the contract says."""
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
