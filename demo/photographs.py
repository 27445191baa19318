"""What checkpoints see of photographs of people, as one picture.

There is no ground truth for photographs. Alpha is compared with the matte of another network, MediaPipe's selfie
segmentation, which is wrong in places; demo/model/README.md says where its file comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import existing_file
from dpt_deploy.model import load_model, read_checkpoint
from dpt_deploy.model.frame import FrameModel
from dpt_deploy.report.colours import colour_depth, colour_normals, cut_out, depth_range
from dpt_deploy.report.panel import Tile, arrange
from dpt_deploy.runtime import Prediction

SIDE, PAGE_WIDTH = 300, 1500  # of a picture's tiles, and of the page [pixels]

Predictor = Callable[[np.ndarray], Prediction]
"""From uint8 (H, W, 3) RGB to maps of the same size."""


def photographs() -> dict[str, np.ndarray]:
    """uint8 (H, W, 3) by name. The astronaut and Grace Hopper are in the public domain, the cameraman is CC0."""
    import skimage.data
    from matplotlib.cbook import get_sample_data

    hopper = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return {"astronaut": np.ascontiguousarray(skimage.data.astronaut()),
            "Grace Hopper": np.ascontiguousarray(hopper[..., ::-1]),
            "cameraman": np.repeat(skimage.data.camera()[..., None], 3, axis=2)}


def predictor(path: Path) -> Predictor:
    """The checkpoint at `path`, in PyTorch FP32. Raises `DptError` if it cannot be read."""
    checkpoint = read_checkpoint(path)
    model = load_model(checkpoint).eval()
    frame = FrameModel(model, checkpoint.contract or model.contract())

    @torch.no_grad()
    def predict(image: np.ndarray) -> Prediction:
        maps = frame(torch.from_numpy(image)[None])
        return Prediction(*(maps[name][0].numpy() for name in ("depth", "normals", "alpha")))

    return predict


class Teacher:
    """MediaPipe's selfie segmentation, run by OpenCV."""

    def __init__(self, path: Path) -> None:
        path = existing_file(path, "MediaPipe's selfie_segmentation.tflite")
        try:
            self.net = cv2.dnn.readNetFromTFLite(str(path))
        except cv2.error as error:
            raise BadInput(f"{path}: expected MediaPipe's selfie_segmentation.tflite, received a file that OpenCV "
                           "cannot read as TFLite. Download it again.") from error

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The matte of uint8 (H, W, 3), float32 (H, W) in [0, 1]."""
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self.net.setInput(cv2.dnn.blobFromImage(small))
        return cv2.resize(self.net.forward().reshape(256, 256), image.shape[1::-1])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two mattes at 0.5."""
    a, b = a > 0.5, b > 0.5
    return float((a & b).sum() / max((a | b).sum(), 1))


def tiles(image: np.ndarray, prediction: Prediction, name: str, caption: str) -> list[Tile]:
    """Depth, normals and image of one checkpoint where alpha says foreground, at most SIDE pixels high and wide."""
    scale = SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    limits = depth_range(prediction.depth, prediction.alpha)
    pictures = (colour_depth(prediction.depth, limits), colour_normals(prediction.normals), image)
    alpha = cv2.resize(prediction.alpha, size, interpolation=cv2.INTER_AREA)
    small = [cut_out(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), alpha) for picture in pictures]
    return [Tile(f"{name}: depth", small[0]), Tile("normals", small[1]), Tile("foreground", small[2], caption)]


def compare(
    predictors: dict[str, Predictor], teacher: Teacher | None
) -> tuple[np.ndarray, dict[str, dict[str, float]]]:
    """Run predictors, by their names in the picture, on the photographs.

    Returns:
        The picture, uint8 (H, W, 3) RGB: a row per photograph, with depth, normals and foreground of each predictor.
        The IoU of alpha with the teacher's matte, by predictor and photograph; empty without a teacher.
    """
    rows, scores = [], {name: {} for name in predictors} if teacher else {}
    for title, image in photographs().items():
        scale = SIDE / max(image.shape[:2])
        row = [Tile(title, cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))]
        matte = teacher(image) if teacher else None
        for name, predict in predictors.items():
            prediction, caption = predict(image), ""
            if matte is not None:
                scores[name][title] = iou(prediction.alpha, matte)
                caption = f"IoU with the teacher's {scores[name][title]:.2f}"
            row += tiles(image, prediction, name, caption)
        rows.append(arrange(row, len(row)))
    page = np.vstack(rows)
    scale = min(1, PAGE_WIDTH / page.shape[1])
    return cv2.resize(page, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scores
