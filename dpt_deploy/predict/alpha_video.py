"""Videos with transparency: ProRes 4444 in MOV, VP9 in WebM, or a folder of PNG files.

Each frame is shown at its own time, and the sound of the source goes along: as it is where the container takes it, else
as Opus. Written under a temporary name, read back, and renamed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from ..core.errors import BadInput, first_line, missing_package
from ..core.files import cannot_write, temporary_folder
from ..report.writers import write_png

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer, OutputContainer

AlphaFormat = Literal["prores", "vp9", "png"]
SUFFIXES: dict[AlphaFormat, str] = {"prores": ".mov", "vp9": ".webm", "png": ""}
TICKS = 90_000  # per second
BT709 = 1  # of the code points of ITU-T H.273, for matrix, primaries and transfer
CODECS: dict[str, tuple[str, str, dict[str, str]]] = {
    # Name, pixel format, options.
    ".mov": ("prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}),
    ".webm": ("libvpx-vp9", "yuva420p", {"crf": "20", "b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4",
                                        "auto-alt-ref": "0"}),
}
SOUND = {".mov": ("aac", "mp3", "ac3", "alac", "pcm_s16le", "pcm_s24le", "opus"), ".webm": ("opus", "vorbis")}
"""Codecs that are copied into each container."""
TIMES = "times.txt"
_OURS = re.compile(r"\d{6,}\.png|times\.txt")


class AlphaWriter:
    """Write uint8 (H, W, 4) RGBA frames, with straight alpha. A context manager; what is there at its end is whole."""

    def __init__(self, path: Path, fps: float, source: str | None = None) -> None:
        """Prepare to write.

        Args:
            path: A .mov file (ProRes 4444), a .webm file (VP9), or any other name for a folder of PNG files and their
                times [ms] in times.txt.
            fps: Frames per second where `write` gets no times.
            source: The video whose sound goes along; None for none. A folder of PNG files has none.

        Raises:
            BadInput: The folder holds other files.
            MissingPackage: PyAV is not installed.
        """
        self.path, self.fps = path, fps
        self.times: list[float] = []
        self.resized = 0
        self.varies = False
        self.sound = ""
        """What became of the source's sound; "" if it has none."""
        self._source = source if self._coded else None
        if self._coded:
            _pyav()
        elif path.is_dir() and (other := next((one for one in path.iterdir() if not _OURS.fullmatch(one.name)), None)):
            raise BadInput(f"{path}: expected a new folder, or one of frames that this command wrote, but it holds "
                           f"{other.name}. Choose another output folder with --out.")
        self._folder: Path | None = None
        self._stack = contextlib.ExitStack()
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._sound: _Sound | None = None
        self._size = (0, 0)

    @property
    def _coded(self) -> bool:
        return self.path.suffix in CODECS

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame; one of another size than the first is resized. Arguments and errors are those of `Writer`."""
        import cv2

        if self._folder is None:
            self._size = frame.shape[:2]
            self._open()
        if frame.shape[:2] != self._size:
            frame = cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA)
            self.resized += 1
        moment = (self.times[-1] + 1000 / self.fps if self.times else 0.0) if time is None else time
        if self._video is None:
            write_png(self._folder / "frames" / f"{len(self.times):06d}.png", frame)
        else:
            self._encode(frame, moment - (self.times[0] if self.times else moment))
        self.times.append(moment)

    def _open(self) -> None:
        try:
            self._folder = self._stack.enter_context(temporary_folder(self.path))
            if not self._coded:
                (self._folder / "frames").mkdir()
                return
            av = _pyav()
            codec, pixels, options = CODECS[self.path.suffix]
            self._container = av.open(str(self._folder / self.path.name), "w")
            self._video = self._container.add_stream(codec, rate=Fraction(self.fps).limit_denominator(1001))
            self._video.height, self._video.width = self._size
            self._video.pix_fmt, self._video.options = pixels, options
            context = self._video.codec_context
            context.time_base = self._video.time_base = Fraction(1, TICKS)
            context.colorspace = context.color_primaries = context.color_trc = BT709
            self._sound = _Sound(self._source, self._container, self.path.suffix) if self._source else None
        except (OSError, ValueError) as error:
            self._discard()
            raise cannot_write(self.path, error) from error

    def _encode(self, frame: np.ndarray, since: float) -> None:
        picture = _pyav().VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba")
        picture = picture.reformat(format=self._video.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts, picture.time_base = round(since * TICKS / 1000), Fraction(1, TICKS)
        try:
            self._container.mux(self._video.encode(picture))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Finish the file or folder and put it in its place. Raises `BadInput`, and leaves nothing, if it cannot."""
        if self._folder is None:
            return
        steps = np.diff(self.times)
        self.varies = bool((abs(steps - 1000 / self.fps) > 250 / self.fps).any())
        try:
            if self._video is None:
                lines = ["# timestamp format v2", *(f"{time - self.times[0]:.3f}" for time in self.times)]
                (self._folder / "frames" / TIMES).write_text("\n".join(lines) + "\n", encoding="ascii")
                if self.path.is_dir():
                    shutil.rmtree(self.path)
                (self._folder / "frames").rename(self.path)
            else:
                self._finish()
                (self._folder / self.path.name).replace(self.path)
        except (OSError, ValueError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._discard()

    def _finish(self) -> None:
        self._container.mux(self._video.encode(None))
        if self._sound is not None:
            last = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 1000 / self.fps
            self.sound = self._sound.copy((self.times[-1] - self.times[0] + last) / 1000, self.times[0] / 1000)
        self._container.close()
        self._container = None
        with _pyav().open(str(self._folder / self.path.name)) as written:
            stream = written.streams.video[0]
            count, size = sum(packet.size > 0 for packet in written.demux(stream)), (stream.height, stream.width)
        if (count, size) != (len(self.times), self._size):
            raise ValueError(f"of {len(self.times)} frames written, {count} can be read back")

    def _discard(self) -> None:
        if self._container is not None:
            with contextlib.suppress(OSError, ValueError):
                self._container.close()
        self._container = None
        self._folder = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self._discard()


class _Sound:
    """The sound of a source, and where it goes in the new file. Broken sound is left out, and said."""

    def __init__(self, source: str, target: OutputContainer, suffix: str) -> None:
        self._input: InputContainer | None = None
        self._reason = ""
        self._target = target
        av = _pyav()
        try:
            self._input = av.open(source)
            self._from: AudioStream | None = next(iter(self._input.streams.audio), None)
        except OSError as error:
            self._from, self._reason = None, first_line(error)
        if self._from is None:
            return
        self._copied = self._from.codec_context.name in SOUND[suffix]
        if self._copied:
            self._to: Any = target.add_stream_from_template(self._from)
        else:
            self._to = target.add_stream("libopus", rate=48_000)

    def copy(self, seconds: float, start: float) -> str:
        """Copy what sounds from `start` on for so long [s], and return what was done."""
        if self._from is None:
            return f"sound left out: {self._reason}" if self._reason else ""
        try:
            with self._input:
                begin = self._first_time() + start
                packets = self._moved(begin, seconds) if self._copied else self._encoded(begin, seconds)
                count = 0
                for packet in packets:
                    self._target.mux(packet)
                    count += 1
        except (OSError, ValueError) as error:
            return f"sound incomplete: {first_line(error)}"
        return ("sound copied" if self._copied else "sound encoded as Opus") if count else ""

    def _first_time(self) -> float:
        """When the first frame of the source is shown [s]."""
        video = next(iter(self._input.streams.video), None)
        if video is None or video.start_time is None:
            return 0.0
        return float(video.start_time * video.time_base)

    def _moved(self, begin: float, seconds: float) -> Iterator[Any]:
        for packet in self._input.demux(self._from):
            if packet.pts is None:
                continue
            time = float(packet.pts * packet.time_base) - begin
            if 0 <= time < seconds:
                packet.pts = packet.dts = round(time / packet.time_base)
                packet.stream = self._to
                yield packet

    def _encoded(self, begin: float, seconds: float) -> Iterator[Any]:
        resampler = _pyav().AudioResampler(format="s16", layout="stereo", rate=48_000)
        for frame in self._input.decode(self._from):
            if frame.time is None or not 0 <= frame.time - begin < seconds:
                continue
            frame.pts = round((frame.time - begin) / frame.time_base)
            for part in resampler.resample(frame):
                yield from self._to.encode(part)
        yield from self._to.encode(None)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise missing_package("av", "video", "write a video with transparency") from error
    return av
