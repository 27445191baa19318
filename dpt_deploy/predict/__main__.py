"""python -m dpt_deploy.predict BUNDLE IMAGE_FOLDER_VIDEO_OR_CAMERA: panels, raw maps, videos."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from .. import cli
from ..core.contract import Graph
from ..core.errors import BadInput, ContractError
from ..core.files import cannot_write, replacing
from ..runtime import Backend, Precision, Prediction, load
from ..runtime.image import list_images, read_image

with cli.needing("cli"):
    import OpenEXR
    import tyro
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

from ..report.panel import panel, write_png
from .video import Look, Reader, is_video, predict_video

PROG = "python -m dpt_deploy.predict"
PANEL = ".panel.png"


@dataclass(frozen=True)
class PredictConfig:
    """Depth, normals and alpha of an image, of every image in a folder, of a video, or of what a camera sees.

    Writes for each image a panel picture, the raw maps (.npz: depth [m], normals, alpha, all float32 at
    the image's size), and depth [m] as OpenEXR. A video or a camera gives one MP4 without sound; Ctrl-C
    ends it early, and it plays all the same.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Folder that python -m dpt_deploy.export wrote."""
    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """An image, a folder of images, a video, or a camera's number such as 0."""
    out: Path = Path("predictions")
    """Folder for the results."""
    backend: Backend | None = None
    """What runs it; the best that can run here when not given."""
    graph: Graph = "frame"
    """frame resizes inside the graph, model outside of it; the maps are the same."""
    precision: Precision | None = None
    """The backend's preference when not given."""
    threads: int | None = None
    """CPU threads per operator."""
    look: Look = "panel"
    """What a video shows: panel, or matte, the foreground over green."""
    frames: int | None = None
    """At most this many frames of a video or camera."""


def main(config: PredictConfig) -> int:
    """Exit status 0 if at least one image was predicted; those that could not be are named."""
    console = Console(highlight=False, soft_wrap=True)
    if is_video(config.images):
        return _video(config, console)
    paths = [path for path in list_images(config.images) if not path.name.endswith(PANEL) or path == config.images]
    if not paths:
        raise BadInput(f"{config.images}: expected images, found only panels that this command wrote.")
    if len(paths) == 1:
        read_image(paths[0])  # a bad one should be told before an engine is loaded
    table = Table("image", "size", "files", title=f"Written to {config.out}", title_justify="left")
    skipped: list[str] = []
    with load(config.bundle, config.backend, config.graph, config.precision, config.threads) as runtime:
        console.print(runtime.reason, markup=False)
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=len(paths))
            for path, stem in zip(paths, _stems(paths), strict=True):
                progress.update(task, description=path.name)
                try:
                    image = read_image(path)
                    prediction = runtime(image)
                except (BadInput, ContractError) as error:  # cannot be decoded; a size outside the engine's profile
                    if len(paths) == 1:
                        raise
                    skipped.append(str(error) if str(path) in str(error) else f"{path}: {error}")
                else:
                    files = write_results(config.out, stem, image, prediction, path.name)
                    table.add_row(path.name, f"{image.shape[1]} x {image.shape[0]}",
                                  "\n".join(file.name for file in files))
                progress.advance(task)
    if table.row_count:
        console.print(table, soft_wrap=False)
    for line in skipped:
        console.print(f"skipped  {line}", markup=False)
    if not table.row_count:
        raise BadInput(f"{config.images}: none of its {len(paths)} images could be predicted.")
    return 0


def _video(config: PredictConfig, console: Console) -> int:
    """Exit status 0 for a whole video, 130 for one that was interrupted."""
    if config.frames is not None and config.frames < 1:
        raise BadInput(f"--frames: expected a number from 1, received {config.frames}.")
    with Reader(config.images) as reader, \
            load(config.bundle, config.backend, config.graph, config.precision, config.threads) as runtime:
        console.print(runtime.reason, markup=False)
        path = config.out / f"{reader.name}.{config.look}.mp4"
        total = min((number for number in (reader.length, config.frames) if number), default=None)
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.description}"))
        started = time.perf_counter()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=total)

            def progress(done: int) -> None:
                speed = done / (time.perf_counter() - started)
                bar.update(task, completed=done, description=f"{speed:.2f} frames/s")

            done, interrupted = predict_video(runtime, reader, path, config.look, config.frames, progress)
    if not done:
        raise KeyboardInterrupt("interrupted before the first frame was done; nothing was written")
    console.print(f"{'interrupted: ' if interrupted else ''}{done} frames written to {path}", markup=False)
    return 130 if interrupted else 0


def write_results(out: Path, stem: str, image: np.ndarray, prediction: Prediction, name: str = "") -> list[Path]:
    """Write panel, maps and depth of one image into `out`, each file atomically; returns the paths in that order."""
    files = [out / f"{stem}{PANEL}", out / f"{stem}.npz"]
    write_png(files[0], panel(image, prediction, name))
    with replacing(files[1]) as temporary:
        np.savez(temporary, **prediction.maps)
    if prediction.depth is not None:
        files.append(out / f"{stem}.depth.exr")
        write_depth(files[2], prediction.depth)
    return files


def write_depth(path: Path, depth: np.ndarray) -> None:
    """Depth float32 (H, W) [m] as OpenEXR, one channel Z, atomically."""
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    # OpenEXR writes non-contiguous arrays wrongly, and without an error.
    channels = {"Z": np.ascontiguousarray(depth, np.float32)}
    with replacing(path) as temporary, OpenEXR.File(header, channels) as file:
        try:
            file.write(str(temporary))
        except RuntimeError as error:  # OpenEXR's word for a full disk, among others
            raise cannot_write(path, error) from error


def _stems(paths: list[Path]) -> list[str]:
    """Names for the results: the image's, with its suffix where two images differ in that alone."""
    count = Counter(path.stem for path in paths)
    return [path.stem if count[path.stem] == 1 else path.name for path in paths]


COMMAND = cli.Command(PredictConfig, main, PROG, renamed={"--frames": "--max-frames"})

if __name__ == "__main__":
    COMMAND.run()
