"""python -m dpt_deploy.predict BUNDLE SOURCE: predict an image, a folder of images, a video or a camera."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .. import cli
from ..core.contract import Graph
from ..core.errors import BadInput, ContractError
from ..runtime import Precision, load
from ..runtime.image import list_images, read_image

with cli.needing("cli"):
    import tyro
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from ..cli.options import Count, Limit, Name
from ..report.prediction_files import PANEL_SUFFIX, write_prediction
from .video import Look, Reader, is_video, predict_video

PROG = "python -m dpt_deploy.predict"


@dataclass(frozen=True)
class PredictConfig:
    """Predict depth, normals and alpha for an image, the images of a folder, a video, or a camera.

    Writes for each image a panel (PNG), the maps (.npz: depth [m], normals and alpha, float32 at the image's size), and
    depth [m] as OpenEXR; for a video or a camera one MP4 file without sound, which is playable even after Ctrl-C.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle: the folder that the export command wrote."""
    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """An image, a folder of images, a video, or the number of a camera such as 0."""
    out: Path = Path("predictions")
    """Folder for the results."""
    backend: Name | None = None
    """Backend, such as tensorrt, openvino or onnxruntime-cpu. Default: the first one that can run here."""
    graph: Graph = "frame"
    """frame: resize inside the graph. model: resize outside of it. The maps are the same."""
    precision: Precision | None = None
    """Precision of the graph. Default: the one that the backend prefers."""
    threads: Count | None = None
    """CPU threads per operator."""
    look: Look = "panel"
    """Content of a video: panel, or matte, the foreground over green."""
    max_frames: Limit = None
    """Stop after this many frames of a video or a camera."""


def main(config: PredictConfig) -> int:
    """Exit status: 0 if all images were predicted, 1 if some were skipped, 130 if a video was interrupted."""
    console = Console(highlight=False, soft_wrap=True)
    if is_video(config.images):
        return _video(config, console)
    paths = [path for path in list_images(config.images)
             if path == config.images or not path.name.endswith(PANEL_SUFFIX)]
    if not paths:
        raise BadInput(f"{config.images}: expected images, received only panels that this command wrote.")
    if len(paths) == 1:
        read_image(paths[0])  # fail before an engine is loaded
    table = Table("image", "size", "files", title=f"Written to {config.out}", title_justify="left")
    skipped: list[str] = []
    with load(config.bundle, config.backend, config.graph, config.precision, config.threads) as runtime:
        console.print(runtime.reason, markup=False)
        with _progress(console) as progress:
            task = progress.add_task("", total=len(paths))
            for path, stem in zip(paths, _stems(paths), strict=True):
                progress.update(task, description=path.name)
                try:
                    image = read_image(path)
                    prediction = runtime(image)
                except (BadInput, ContractError) as error:
                    if len(paths) == 1:
                        raise
                    skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
                else:
                    files = write_prediction(config.out, stem, image, prediction, path.name)
                    table.add_row(path.name, f"{image.shape[1]} x {image.shape[0]}",
                                  "\n".join(file.name for file in files))
                progress.advance(task)
    if table.row_count:
        console.print(table, soft_wrap=False)
    for line in skipped:
        console.print(f"skipped  {line}", markup=False)
    if not table.row_count:
        raise BadInput(f"{config.images}: none of its {len(paths)} images could be predicted. The lines above say why.")
    return 1 if skipped else 0


def _video(config: PredictConfig, console: Console) -> int:
    with Reader(config.images) as reader, \
            load(config.bundle, config.backend, config.graph, config.precision, config.threads) as runtime:
        console.print(runtime.reason, markup=False)
        path = config.out / f"{reader.name}.{config.look}.mp4"
        total = min((number for number in (reader.length, config.max_frames) if number), default=None)
        start = time.perf_counter()
        with _progress(console) as progress:
            task = progress.add_task("", total=total)

            def update(done: int) -> None:
                speed = done / (time.perf_counter() - start)
                progress.update(task, completed=done, description=f"{speed:.2f} frames/s")

            done, interrupted = predict_video(runtime, reader, path, config.look, config.max_frames, update)
    if not done:
        raise KeyboardInterrupt("interrupted before the first frame; nothing was written")
    console.print(f"{'interrupted: ' if interrupted else ''}{done} frames written to {path}", markup=False)
    return 130 if interrupted else 0


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                    TextColumn("{task.description}", markup=False), console=console)


def _stems(paths: list[Path]) -> list[str]:
    """Names of the output files: those of the images, with the suffix only if it is needed to tell them apart."""
    count = Counter(path.stem for path in paths)
    return [path.stem if count[path.stem] == 1 else path.name for path in paths]


COMMAND = cli.Command(PredictConfig, main, PROG, renamed={"--frames": "--max-frames"})

if __name__ == "__main__":
    COMMAND.run()
