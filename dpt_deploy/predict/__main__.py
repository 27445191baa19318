"""python -m dpt_deploy.predict BUNDLE SOURCE...: predict images, folders of images, videos, cameras and streams."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from .. import cli
from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BadInput, ContractError
from ..core.image_files import MAX_PIXELS
from ..runtime import Precision, Runtime, load

with cli.needing("cli"):
    import tyro
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from ..cli.options import Count, Limit, Name, Verbose, size_text
from ..report.prediction_files import write_prediction
from ..report.terminal import plain_console
from .extras import Extras, ExtraWriter
from .reader import Reader, shown, video_file
from .sources import Image, find_sources, output_stems
from .video import Look, matte, predict_video

PROG = "python -m dpt_deploy.predict"


@dataclass(frozen=True)
class PredictConfig:
    """Predict depth, normals and alpha for images, the images of folders, videos, cameras and network streams.

    Writes for each image a panel (PNG), the maps (.npz: depth [m], normals and alpha, float32 at the image's size), and
    depth [m] as OpenEXR; for a video, camera or stream one MP4 file without sound, which is playable even after Ctrl-C.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle: the folder that the export command wrote."""
    sources: Annotated[tuple[str, ...], tyro.conf.Positional,
                       tyro.conf.arg(metavar="SOURCE [SOURCE ...]", help_behavior_hint="(required)")]
    """Images, folders of images, videos, numbers of cameras such as 0, or addresses such as rtsp://camera/stream."""
    out: Path = Path("predictions")
    """Folder for the results."""
    recursive: bool = False
    """Also predict the images of subfolders."""
    video: bool = False
    """Take files for videos: animated GIF, WebP and PNG files, and TIFF files with several pages."""
    backend: Name | None = None
    """Backend, such as tensorrt, openvino or onnxruntime-cpu. Default: the first one that can run here."""
    graph: Graph = "frame"
    """frame: resize inside the graph. model: resize outside of it. The maps are the same."""
    precision: Precision | None = None
    """Precision of the graph. Default: the one that the backend prefers, never int8 or fp8."""
    threads: Count | None = None
    """CPU threads per operator."""
    look: Look = "panel"
    """The picture or video: panel, or matte, the foreground over green."""
    max_frames: Limit = None
    """Stop after this many frames of each video, camera or stream."""
    max_pixels: Count = MAX_PIXELS
    """Skip images with more pixels than this."""
    extras: Annotated[Extras, tyro.conf.arg(name="")] = field(default_factory=Extras)
    verbose: Verbose = False


class Run:
    """One call of the command: what was written, and what was skipped."""

    def __init__(self, config: PredictConfig) -> None:
        self.config, self.console = config, plain_console(soft_wrap=True)
        self.sources = find_sources(config.sources, config.video, config.recursive)
        self.single = len(self.sources) == 1
        self.skipped = self.sources.skipped
        self.extras = ExtraWriter(config.extras)
        self.written = 0
        self.interrupted = False

    def images(self, runtime: Runtime, images: list[Image]) -> None:
        """Predict images, and print a table of the files."""
        table = Table("image", "size", "files")
        stems = output_stems([(one.path, one.folder, f".page{one.page}" if one.pages > 1 else "") for one in images])
        with _progress(self.console) as progress:
            task = progress.add_task("", total=len(images))
            for image, stem in zip(images, stems, strict=True):
                progress.update(task, description=image.label)
                try:
                    frame = image.read(self.config.max_pixels)
                    prediction = self.extras.metric(runtime(frame), image.path)
                    picture = matte(frame, prediction) if self.config.look == "matte" else None
                except (BadInput, ContractError) as error:
                    self.skip(str(image.path), error)
                else:
                    files = write_prediction(self.config.out / image.folder, stem, frame, prediction, image.label,
                                             picture)
                    files += self.extras.write(self.config.out / image.folder, stem, frame, prediction, image.path)
                    table.add_row(str(image.folder / image.label), size_text(frame.shape[:2]),
                                  "\n".join(file.name for file in files))
                    self.written += 1
                progress.advance(task)
        if table.row_count:
            self.console.print(f"Written to {self.config.out}", style="italic")  # a title of the table would be broken
            self.console.print(table, soft_wrap=False)

    def video(self, runtime: Runtime, reader: Reader, stem: str) -> None:
        """Predict a video, and print what was written."""
        config = self.config
        path = config.out / f"{stem}.{config.look}.mp4"
        total = min((number for number in (reader.length, config.max_frames) if number), default=None)
        start = time.perf_counter()
        with _progress(self.console) as progress:
            task = progress.add_task("", total=total)

            def update(done: int) -> None:
                speed = done / (time.perf_counter() - start)
                progress.update(task, completed=done, description=f"{speed:.2f} frames/s")

            outcome = predict_video(runtime, reader, path, config.look, config.max_frames, update)
        if outcome.interrupted and not outcome.frames:
            raise KeyboardInterrupt("interrupted before the first frame; nothing was written")
        notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
        self.console.print(f"{'interrupted: ' if outcome.interrupted else ''}{outcome.frames} frames written to "
                           f"{path}{notes}")
        self.written += 1
        self.interrupted = outcome.interrupted
        if damage := reader.damage():
            self.skipped.append(f"{shown(reader.source)}: {damage}")

    def skip(self, name: str, error: BadInput | ContractError) -> None:
        """Note what cannot be read; raises the error if nothing else is to be predicted."""
        if self.single:
            raise error
        self.skipped.append(str(error) if name in str(error) else f"{name}: {error}")

    def finish(self) -> int:
        """Print what was skipped, and return the exit status."""
        for line in [*self.sources.notes, *self.extras.lines()]:
            self.console.print(line)
        for line in self.skipped:
            self.console.print(f"skipped  {line}")
        if self.interrupted:
            return 130
        if not self.written:
            raise BadInput(f"none of {len(self.sources)} images and videos could be predicted. "
                           "The lines above say why.")
        return 1 if self.skipped or self.extras.empty else 0


def main(config: PredictConfig) -> int:
    """Exit status: 0 if everything was predicted, 1 if something was skipped, 130 if a video was interrupted."""
    run = Run(config)
    sources = run.sources
    if run.single and sources.images:
        sources.images[0].read(config.max_pixels)  # fail before an engine is loaded
    first = Reader(sources.videos[0]) if run.single and sources.videos else None
    config.extras.check(Bundle.open(config.bundle).contract.heads, len(sources.images), len(sources.videos))
    with load(config.bundle, config.backend, config.graph, config.precision, config.threads) as runtime:
        run.console.print(runtime.reason if config.verbose else runtime.summary)
        if sources.images:
            run.images(runtime, sources.images)
        names = [(video_file(source), Path(), "") for source in sources.videos]
        for source, stem in zip(sources.videos, output_stems(names), strict=True):
            try:
                reader = first or Reader(source)
            except BadInput as error:
                run.skip(shown(source), error)
                continue
            with reader:
                run.video(runtime, reader, stem)
            if run.interrupted:
                break
    return run.finish()


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                    TextColumn("{task.description}", markup=False), console=console)


COMMAND = cli.Command(PredictConfig, main, PROG, renamed={"--frames": "--max-frames"})

if __name__ == "__main__":
    COMMAND.run()
