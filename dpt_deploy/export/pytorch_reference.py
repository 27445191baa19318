"""The parity reference: outputs of PyTorch FP32, with pre- and post-processing in PyTorch.

Frame graphs and runtimes have code of their own for these steps, so an error in one of them does not cancel out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core.bundle import SKIPPED_IMAGES, Bundle
from ..core.contract import Contract
from ..core.errors import BadCheckpoint, BadInput
from ..core.image_files import MAX_PIXELS, find_images, read_image
from ..model import MultiTaskDPT
from ..model.frame import FrameModel
from ..parity import Case, Reference
from ..parity import images as built_in

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
    for name, adversarial, pixels in inputs:
        progress(name)
        image = preprocess(pixels, contract)
        with torch.no_grad():
            outputs = model(image[None])
        model_outputs = {key: value[0].numpy() for key, value in outputs.items()}
        maps = {"model": model_outputs, "frame": postprocess(outputs, pixels.shape[:2], contract)}
        if broken := [key for graph in maps.values() for key, value in graph.items() if not np.isfinite(value).all()]:
            raise BadCheckpoint(f"{name}: expected finite maps from PyTorch in FP32 to compare with, received NaN or "
                                f"Inf in {broken[0]}. The model overflows on this input; choose another checkpoint.")
        cases.append(Case(name, adversarial, pixels, image.numpy(), maps))
    return Reference(tuple(cases), contract.heads)


@dataclass(frozen=True)
class ParityInputs:
    """The images that a bundle is judged on."""

    inputs: list[ParityInput]
    skipped: tuple[str, ...] = ()
    """Images of the folder that could not be read: one line each, starting with the file's name."""
    left_out: str = ""
    """A line about files of the folder that are no images; "" if there are none."""

    def lines(self) -> list[str]:
        """What to tell the user."""
        return [f"skipped  {line}" for line in self.skipped] + ([f"note     {self.left_out}"] if self.left_out else [])

    def record(self, bundle: Bundle) -> None:
        """Note the skipped images in the manifest's options, which report and model card show."""
        options = {key: value for key, value in bundle.manifest.options.items() if key != SKIPPED_IMAGES}
        bundle.update(options=options | ({SKIPPED_IMAGES: list(self.skipped)} if self.skipped else {}))


def parity_inputs(images: Path | None, max_images: int, max_pixels: int = MAX_PIXELS) -> ParityInputs:
    """The images to judge a bundle on.

    Args:
        images: An image or a folder, to which adversarial inputs are added; None for the built-in scenes. Images of a
            folder that cannot be read are skipped.
        max_images: Use at most this many images of a folder, evenly spaced.
        max_pixels: Images with more pixels cannot be read.

    Raises:
        BadInput: The one image, or every image of the folder, cannot be read, a folder has no images, or `max_images`
            is below 1.
    """
    if max_images < 1:
        raise BadInput(f"--max-images: expected a number from 1, received {max_images}.")
    if images is None:
        return ParityInputs(built_in.built_in())
    found = find_images(images)
    paths = found.images
    if len(paths) > max_images:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, max_images).astype(int)]
    inputs, skipped = [], []
    for path in paths:
        try:
            inputs.append((path.name, False, read_image(path, max_pixels)))
        except BadInput as error:
            if path == images:
                raise
            skipped.append(str(error).replace(str(path), path.name))  # no paths of this machine in a bundle
    if not inputs:
        raise BadInput(f"{images}: none of the {len(paths)} images tried can be read. The first: {skipped[0]}")
    return ParityInputs(inputs + built_in.adversarial(), tuple(skipped), found.left_out_line())


def quick_inputs(inputs: list[ParityInput]) -> list[ParityInput]:
    """Three of `inputs`: the first and the last image, and noise, which fills the range of every layer."""
    images = [one for one in inputs if not one[1]]
    return [images[0], *images[1:][-1:], *[one for one in inputs if one[0] == "noise"]]


def hash_inputs(inputs: list[ParityInput]) -> str:
    """SHA-256 of parity inputs."""
    digest = hashlib.sha256()
    for name, _, pixels in inputs:
        digest.update(name.encode() + repr(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


def preprocess(image: np.ndarray, contract: Contract) -> torch.Tensor:
    """uint8 (H, W, 3) RGB -> float32 (3, h, w), the input of the model graph."""
    return FrameModel(nn.Identity(), contract).before(torch.from_numpy(np.array(image))[None])[0]


def postprocess(outputs: dict[str, torch.Tensor], size: tuple[int, int], contract: Contract) -> dict[str, np.ndarray]:
    """Outputs of the model graph for one image -> maps of the frame's `size` (H, W)."""
    maps = FrameModel(nn.Identity(), contract).after(outputs, size)
    return {name: value[0].numpy() for name, value in maps.items()}
