"""python -m dpt_deploy.predict BUNDLE SOURCE...: predict images by the million, videos, cameras and streams."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from .. import cli
from ..core.contract import Graph
from ..core.errors import BadInput
from ..core.image_files import MAX_PIXELS
from ..core.places import is_address, shown
from ..runtime import Precision, Runtime

with cli.needing("cli"):
    import tyro

    from ..cli.options import Choices, Count, Heads, Limit, Name, Seconds, Share, Verbose, Workers, resolve_workers
    from .images import FEW, Stop, Tally, predict_few, predict_many, print_tally, progress
from ..report.terminal import plain_console
from ..steady import Steady
from .alpha_video import SUFFIXES as ALPHA_SUFFIXES
from .alpha_video import AlphaFormat
from .decoding import read_picture
from .extras import Extras, ExtraWriter
from .formats import FORMATS, FormatName
from .job import Job, Picture
from .live import RECONNECT, LiveStreams
from .live_video import Recording, predict_live
from .reader import Reader, camera_index, is_live, video_file
from .sources import find_sources, output_stems
from .video import Look, predict_video

PROG = "python -m dpt_deploy.predict"


@dataclass(frozen=True)
class PredictConfig:
    """Predict depth, normals and alpha for images, folders, shards and buckets of images, videos and cameras.

    Writes for each image a panel (PNG), the maps (.npz: depth, normals and alpha, float32 at the image's size), and
    depth as OpenEXR; both files say what depth is: metres, unless the bundle is relative or the focal length is
    missing. Writes for a video, camera or stream one MP4 file without sound, which is playable even after Ctrl-C.

    A run over more than 100 images, and any run with --resume, --shard, --ray or a format in shards, is a large one: it
    writes compressed .npz files of float16 unless --format says otherwise, no panels, and a journal from which it goes
    on with --resume.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle: the folder that the export command wrote."""
    sources: Annotated[tuple[str, ...], tyro.conf.Positional,
                       tyro.conf.arg(metavar="SOURCE [SOURCE ...]", help_behavior_hint="(required)")]
    """Images, folders, globs, lists of files (list.txt or @list), tar shards, and addresses of any of these, such as
    s3://bucket/photos; videos, numbers of cameras such as 0, or addresses such as rtsp://camera/stream."""
    out: Path = Path("predictions")
    """Folder for the results."""
    recursive: bool = False
    """Also predict the images of subfolders."""
    video: bool = False
    """Take files for videos: animated GIF, WebP and PNG files, and TIFF files with several pages."""
    maps: Heads | None = None
    """Maps to store. Default: all that the bundle has."""
    format: FormatName | None = None
    """Format of the maps. full: float32 as .npz and depth as .exr. npz: compressed float16. exr: half. png16: depth in
    millimetres, normals in 16 and alpha in 8 bits. zarr, tar, tar-npz: shards. Default: full, npz for a large run."""
    forms: Choices = field(default_factory=dict)
    """How maps are stored, where not as the format does it, such as depth=uint16-mm,normals=octahedral."""
    resume: bool = False
    """Go on with the run whose results are in the output folder: skip what is done."""
    verify: bool = False
    """Go on as with --resume, and also compare the content of the files that are there with the journal."""
    shard: Share = (1, 1)
    """Predict part K of N of the images, for N processes that share the work. Goes on with what is there."""
    ray: bool = False
    """Predict with Ray Data: on all GPUs or cores of this machine, or on the cluster that RAY_ADDRESS names."""
    ray_address: Name | None = None
    """Address of a Ray cluster; implies --ray."""
    actors: Count | None = None
    """With --ray: processes that predict. Default: one for each GPU, or for each four cores."""
    backend: Name | None = None
    """Backend, such as tensorrt, openvino or onnxruntime-cpu. Default: the first one that can run here."""
    graph: Graph = "frame"
    """frame: resize inside the graph. model: resize outside of it. The maps are the same."""
    precision: Precision | None = None
    """Precision of the graph. Default: the one that the backend prefers, never int8 or fp8."""
    threads: Count | None = None
    """CPU threads per operator."""
    batch: Count = 8
    """Images of one size that run together, at most."""
    workers: Workers = "auto"
    """Threads that decode, and as many that encode."""
    shard_size: Count = 1000
    """Images in a shard of the output."""
    look: Picture | None = None
    """The picture or video: panel, matte (the foreground over green), or none. Default: panel, none for a large run."""
    alpha_video: AlphaFormat | None = None
    """Write each video as the foreground with transparency and with its sound: prores (ProRes 4444, .mov), vp9 (.webm),
    or png (a folder of frames and their times, without sound). prores and vp9 need the extra video."""
    steady: bool = False
    """Steady the maps of videos, cameras and streams, so that they flicker less. Adds no delay."""
    max_frames: Limit = None
    """Stop after this many frames of each video, camera or stream."""
    every_frame: bool = False
    """Predict every frame of a camera or stream, however late, one source after the other. Default: predict the newest
    frame of each, all sources together."""
    reconnect: Seconds = RECONNECT
    """Try to open a camera or stream again for this long when it breaks [s]; 0: it ends."""
    max_pixels: Count = MAX_PIXELS
    """Skip images with more pixels than this."""
    extras: Annotated[Extras, tyro.conf.arg(name="")] = field(default_factory=Extras)
    verbose: Verbose = False

    @property
    def large(self) -> bool:
        """Whether an option makes this a large run, however many images there are."""
        in_shards = self.format is not None and FORMATS[self.format].shards is not None
        return self.goes_on or self.with_ray or self.shard != (1, 1) or in_shards

    @property
    def goes_on(self) -> bool:
        """Whether earlier results in the output folder are part of the run."""
        return self.resume or self.verify

    @property
    def with_ray(self) -> bool:
        """Whether Ray predicts."""
        return self.ray or self.ray_address is not None or self.actors is not None

    @property
    def video_look(self) -> tuple[Look, str]:
        """What videos show, and how their names end. Raises `BadInput` for a look that no video has."""
        if self.alpha_video is not None:
            return "cutout", f".cutout{ALPHA_SUFFIXES[self.alpha_video]}"
        look = "panel" if self.look is None else self.look
        if look == "none":
            raise BadInput("--look none: expected panel or matte for a video, which has nothing else.")
        return look, f".{look}.mp4"

    def check_videos(self, count: int) -> None:
        """Raise `BadInput` unless options for videos meet one, and do not exclude each other."""
        asked = [name for name, given in (("--steady", self.steady), ("--alpha-video", self.alpha_video)) if given]
        if asked and not count:
            raise BadInput(f"{asked[0]}: expected a video, a camera or a stream, received images. Leave it out, or "
                           "pass --video for animated images.")
        if self.alpha_video is not None and self.look is not None:
            raise BadInput(f"--alpha-video {self.alpha_video}: expected no --look, received --look {self.look}. A "
                           "video is written once; run the command again for the other one.")

    def job(self, large: bool, extras: ExtraWriter) -> Job:
        """The options that each process needs."""
        return Job(self.bundle, self.out, self.backend, self.graph, self.precision, self.threads, self.maps,
                   self.format or ("npz" if large else "full"), tuple(sorted(self.forms.items())),
                   self.look or ("none" if large else "panel"), self.max_pixels, self.batch,
                   max(1, resolve_workers(self.workers)), self.shard_size, extras)


class Run:
    """One call of the command: what was written, and what was skipped."""

    def __init__(self, config: PredictConfig) -> None:
        self.config, self.console = config, plain_console(soft_wrap=True)
        # Other processes may have another working folder.
        names = list(map(absolute, config.sources)) if config.with_ray else config.sources
        self.sources = find_sources(names, config.video, config.recursive)
        items = None if config.large else self.sources.few(FEW)
        self.works = None if items is None else self.sources.few_works(items)
        self.large = self.works is None
        self.extras = ExtraWriter(config.extras)
        self.job = config.job(self.large, self.extras)
        self.single = not self.large and len(self.works) + len(self.sources.videos) == 1
        config.extras.check_sources(2 if self.large else len(self.works), len(self.sources.videos))
        config.check_videos(len(self.sources.videos))
        self.tally = Tally()
        self.skipped: list[str] = []
        self.written = self.status = 0
        if self.works is not None and not self.works and self.sources.listing is not None:
            self._check_any()

    def with_ray(self) -> None:
        """Predict the images with Ray, and print a short table of the files."""
        from .ray_run import predict_with_ray

        config = self.config
        if self.sources.videos:
            raise BadInput(f"--ray: expected images, received {shown(self.sources.videos[0])}. Predict it without "
                           "--ray.")
        with Stop() as stop:
            self.tally = predict_with_ray(self.job, self.sources, self.share, config.goes_on, config.verify,
                                          self.console, stop, config.ray_address, config.actors)
        self.status = 128 + stop.signal if stop.signal else 0
        self.finish_images()

    @property
    def share(self) -> tuple[int, int]:
        """The part of the images, from 0 on, and the number of parts."""
        return self.config.shard[0] - 1, self.config.shard[1]

    def images(self, runtime: Runtime) -> None:
        """Predict the images, and print a table of the files."""
        config = self.config
        with Stop() as stop:
            if self.works is not None:
                self.tally = predict_few(self.job, runtime, self.works, self.console, stop)
            else:
                self.tally = predict_many(self.job, runtime, self.sources, self.share, config.goes_on, config.verify,
                                          self.console, stop)
        self.status = 128 + stop.signal if stop.signal else 0
        self.finish_images()

    def finish_images(self) -> None:
        """Print the table; raise the error if there was one image only."""
        if self.single and self.tally.first is not None:
            raise self.tally.first
        print_tally(self.console, self.config.out, self.tally, self.large)
        self.written += self.tally.done + self.tally.before
        self.skipped += self.tally.lines
        if self.tally.failed + self.tally.notes > len(self.tally.lines):
            self.skipped.append(f"and {self.tally.failed + self.tally.notes - len(self.tally.lines)} more")

    def video(self, runtime: Runtime, reader: Reader, stem: str) -> None:
        """Predict a video, and print what was written."""
        config = self.config
        look, ending = config.video_look
        path = config.out / f"{stem}{ending}"
        total = min((number for number in (reader.length, config.max_frames) if number), default=None)
        start = time.perf_counter()
        with progress(self.console, total) as bar:
            task = bar.add_task("", total=total)

            def update(done: int) -> None:
                speed = done / (time.perf_counter() - start)
                bar.update(task, completed=done, description=f"{speed:.2f} frames/s")

            steady = Steady() if config.steady else None
            outcome = predict_video(runtime, reader, path, look, config.max_frames, update, steady)
        if outcome.interrupted and not outcome.frames:
            raise KeyboardInterrupt("interrupted before the first frame; nothing was written")
        notes = f" ({'; '.join(outcome.notes)})" if outcome.notes else ""
        self.console.print(f"{'interrupted: ' if outcome.interrupted else ''}{outcome.frames} frames written to "
                           f"{path}{notes}")
        self.written += 1
        self.status = 128 + outcome.interrupted if outcome.interrupted else 0
        if damage := reader.damage():
            self.skipped.append(f"{shown(reader.source)}: {damage}")

    def live(self, runtime: Runtime, readers: list[tuple[Reader, str]], stopped: Callable[[], bool]) -> None:
        """Predict cameras and streams together, and print what was written."""
        look, ending = self.config.video_look
        streams = LiveStreams([reader for reader, _ in readers], self.config.reconnect, self.console.print, stopped)
        records = [Recording(stream, partial(self._live_file, stem, ending), reader.fps, look, self.config.steady)
                   for stream, (reader, stem) in zip(streams.streams, readers, strict=True)]
        start = time.perf_counter()
        with progress(self.console, None) as bar:
            task = bar.add_task("", total=None)

            def update() -> None:
                speed = sum(record.frames for record in records) / (time.perf_counter() - start)
                dropped = sum(stream.dropped for stream in streams.streams)
                bar.update(task, description=f"{len(records)} live: {speed:.2f} frames/s, {dropped} dropped")

            predict_live(runtime, streams, records, self.config.max_frames, update)
        for record in records:
            self.console.print(record.summary())
            self.written += bool(record.files)
            if problem := record.failed or record.stream.lost:
                self.skipped.append(str(problem))

    def _live_file(self, stem: str, ending: str, number: int) -> Path:
        part = f".part{number}" if number > 1 else ""
        return self.config.out / f"{stem}{part}{ending}"

    def skip_video(self, source: str, error: BadInput) -> None:
        """Note what cannot be read; raises the error if nothing else is to be predicted."""
        if self.single:
            raise error
        name = shown(source)
        self.skipped.append(str(error) if name in str(error) else f"{name}: {error}")

    def finish(self) -> int:
        """Print what was skipped, and return the exit status."""
        for line in [self.sources.left_out_line(), *self.extras.lines()]:
            if not line:
                continue
            self.console.print(line)
        if self.sources.results:
            self.console.print(f"left out {self.sources.results} pictures that this command wrote")
        self.skipped += self.sources.problems
        for line in self.skipped:
            self.console.print(f"skipped  {line}")
        if self.status:
            return self.status
        if not self.written:
            self._check_any()
            total = self.tally.failed + len(self.sources.videos)
            raise BadInput(f"none of {total} images and videos could be predicted. The lines above say why.")
        return 1 if self.skipped or self.extras.empty else 0

    def _check_any(self) -> None:
        """Raise `BadInput` if there is nothing to predict."""
        if self.sources.videos or self.tally.failed or self.config.shard != (1, 1):
            return
        if self.sources.problems:
            raise BadInput(self.sources.problems[0])
        names = self.sources.names
        if self.sources.results:
            raise BadInput(f"{names}: expected images, received only pictures that this command wrote.")
        raise BadInput(f"{names}: expected images, found none; {self.sources.left_out_line() or 'nothing is there'}. "
                       "Check the path.")


def absolute(name: str) -> str:
    """A source as its whole path; addresses and numbers of cameras stay."""
    mark, name = ("@", name[1:]) if name.startswith("@") else ("", name)
    return mark + (name if is_address(name) or camera_index(name) is not None else os.path.abspath(name))


def main(config: PredictConfig) -> int:
    """Exit status: 0 if everything was predicted, 1 if something was skipped, 130 if it was interrupted."""
    if config.every_frame and config.reconnect != RECONNECT:
        raise BadInput("--reconnect: with --every-frame a source is read once, to its end. Omit one of the two.")
    run = Run(config)
    sources = run.sources
    if config.with_ray:
        run.with_ray()
        return run.finish()
    if run.single and run.works:
        read_picture(run.works[0].item, run.works[0].page, config.max_pixels)  # fail before an engine is loaded
    first = Reader(sources.videos[0]) if run.single and sources.videos else None
    with run.job.load() as runtime:
        run.job.stored(runtime.bundle)  # options that do not fit the bundle end the run before it begins
        run.console.print(runtime.reason if config.verbose else runtime.summary)
        if sources.listing is not None:
            run.images(runtime)
        predict_videos(run, runtime, first)
    return run.finish()


def predict_videos(run: Run, runtime: Runtime, first: Reader | None) -> None:
    """Predict the video files one after the other, then the cameras and streams together.

    Args:
        run: The call of the command.
        runtime: Makes the predictions.
        first: A reader of the only video, if there is only one.
    """
    videos = run.sources.videos
    stems = output_stems([(video_file(source), Path(), "") for source in videos])
    live: list[tuple[Reader, str]] = []
    with Stop() as stop, contextlib.ExitStack() as opened:
        for source, stem in sorted(zip(videos, stems, strict=True), key=lambda video: is_live(video[0])):
            if run.status or stop.signal:
                break
            try:
                reader = first or Reader(source)
            except BadInput as error:
                run.skip_video(source, error)
                continue
            # A film behind an address has a length.
            if is_live(source) and reader.length is None and not run.config.every_frame:
                live.append((opened.enter_context(reader), stem))
                continue
            with reader:
                run.video(runtime, reader, stem)
        if live and not run.status:
            opened.pop_all()  # their threads close them; a capture must not be closed while it reads
            run.live(runtime, live, lambda: bool(stop.signal))
        if stop.signal:
            run.status = 128 + stop.signal


COMMAND = cli.Command(PredictConfig, main, PROG, renamed={"--frames": "--max-frames"})

if __name__ == "__main__":
    COMMAND.run()
