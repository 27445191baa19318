"""python -m demo.photographs MODEL ... --teacher FILE: what checkpoints see of photographs, as one picture.

There is no ground truth for photographs. Alpha is compared with the matte of another network, MediaPipe's selfie
segmentation, which is wrong in places; demo/model/README.md says where its file comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import tyro

from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import existing_file, write_json
from dpt_deploy.model import load_model, read_checkpoint
from dpt_deploy.model.frame import FrameModel
from dpt_deploy.report.colours import colour_depth, colour_normals, cut_out, depth_range
from dpt_deploy.report.panel import Tile, arrange
from dpt_deploy.report.writers import write_png
from dpt_deploy.runtime import Prediction

SIDE = 300  # of a picture's tiles [pixels]


@dataclass(frozen=True)
class PhotographsConfig:
    """Run checkpoints on the photographs of people that scikit-image and Matplotlib bring along."""

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Checkpoints, in the order of the picture: before, after."""
    out: Path = Path("runs/photographs")
    """Folder for photographs.png and photographs.json."""
    teacher: Path | None = None
    """MediaPipe's selfie_segmentation.tflite; with it, the IoU of alpha with its matte is reported."""

    def __post_init__(self) -> None:
        if not self.models:
            raise BadInput("models: expected the path of at least one checkpoint, received none.")


def photographs() -> dict[str, np.ndarray]:
    """uint8 (H, W, 3) by name. The astronaut and Grace Hopper are in the public domain, the cameraman is CC0."""
    import skimage.data
    from matplotlib.cbook import get_sample_data

    hopper = cv2.imread(str(get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return {"astronaut": np.ascontiguousarray(skimage.data.astronaut()),
            "Grace Hopper": np.ascontiguousarray(hopper[..., ::-1]),
            "cameraman": np.repeat(skimage.data.camera()[..., None], 3, axis=2)}


def predictor(path: Path):
    """A function from uint8 (H, W, 3) to a `Prediction` of the same size, of the checkpoint at `path`."""
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
        self.net = cv2.dnn.readNetFromTFLite(str(existing_file(path, "MediaPipe's selfie_segmentation.tflite")))

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
    """Depth, normals and cut-out of one checkpoint, at most SIDE pixels high and wide."""
    scale = SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    limits = depth_range(prediction.depth, prediction.alpha)
    pictures = [colour_depth(prediction.depth, limits), colour_normals(prediction.normals),
                cut_out(image, prediction.alpha)]
    small = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
    return [Tile(f"{name}: depth", small[0]), Tile("normals", small[1]), Tile("foreground", small[2], caption)]


def main(config: PhotographsConfig) -> None:
    teacher = Teacher(config.teacher) if config.teacher else None
    predictors = {path: predictor(path) for path in config.models}
    names = ("before", "after") if len(predictors) == 2 else tuple(path.parent.name for path in predictors)
    page, result = [], {str(path): {} for path in predictors}
    for title, image in photographs().items():
        scale = SIDE / max(image.shape[:2])
        row = [Tile(title, cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))]
        for name, (path, predict) in zip(names, predictors.items(), strict=True):
            prediction = predict(image)
            caption = ""
            if teacher:
                result[str(path)][title] = {"alpha_iou_with_teacher": iou(prediction.alpha, teacher(image))}
                caption = f"IoU with teacher's {result[str(path)][title]['alpha_iou_with_teacher']:.3f}"
            row += tiles(image, prediction, name, caption)
        page.append(arrange(row, len(row)))
    write_png(config.out / "photographs.png", np.vstack(page))
    if teacher:
        write_json(config.out / "photographs.json", result)
        for path, scores in result.items():
            print(path, *(f"{title} {score['alpha_iou_with_teacher']:.3f}" for title, score in scores.items()))
    print(f"picture {config.out / 'photographs.png'}")


COMMAND = cli.Command(PhotographsConfig, main, "python -m demo.photographs")

if __name__ == "__main__":
    COMMAND.run()
