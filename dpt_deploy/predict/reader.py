"""Frames and their times from a video file, an animation, a camera or a network stream."""

from __future__ import annotations

import array
import contextlib
import os
import re
import statistics
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.image_header import read_header
from ..core.places import shown
from .mp4 import is_trimmed

DEFAULT_FPS = 30.0  # if the source does not report a frame rate
TIMEOUT_MS = 10_000  # for network streams
RETRIES = 64  # failed reads in a row before a file counts as ended; the limit grows with the frames that are missing
MOST_RETRIES = 1000
HOLE = 3.5  # frame intervals; recorders that drop frames leave shorter holes
MP4 = "MP4 or MOV"
TEXT = re.compile(rb"[\t\n\f\r\x1b -~]*")


def camera_index(source: str) -> int | None:
    """`source` as the number of a camera; None if it is not a number, or a file of that name exists."""
    return int(source) if re.fullmatch(r"\d{1,9}", source) and not os.path.exists(source) else None


def is_stream(source: str) -> bool:
    """Whether `source` is the address of a network stream, such as rtsp://camera/stream."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def is_live(source: str) -> bool:
    """Whether `source` is a camera or the address of a network stream."""
    return camera_index(source) is not None or is_stream(source)


def video_file(source: str) -> Path:
    """A file name for what is made of a video, without a suffix for cameras; HOST/NAME for streams."""
    if (camera := camera_index(source)) is not None:
        return Path(f"camera{camera}")
    return _stream_file(source) if is_stream(source) else Path(source)


def is_video(path: Path) -> bool:
    """Whether OpenCV decodes frames of a file that is not an image. The suffix does not count."""
    with quiet():
        try:
            if _format(path) == MP4:
                return True  # or a damaged one, which `Reader` refuses
            if _format(path) or cv2.haveImageReader(str(path)) or _is_text(path):
                return False
        except (cv2.error, OSError):
            return False
        capture = _open(str(path))
        try:
            # FFmpeg decodes image formats too, as videos of one frame whose number it does not know.
            return capture.grab() and (capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0 or capture.grab())
        finally:
            capture.release()


def frame_count(path: Path) -> int:
    """Number of frames of an animated image (GIF, WebP, PNG, AVIF) or of pages (TIFF), 1 for files of other kinds."""
    if _format(path) not in ("GIF", "WebP", "PNG", "TIFF", "AVIF"):
        return 1
    with quiet():
        try:
            return max(1, cv2.imcount(str(path)))
        except cv2.error:
            return 1


class Reader:
    """Iterate over the frames of a source, uint8 (H, W, 3) RGB. A context manager."""

    def __init__(self, source: Path | str) -> None:
        """Open `source`, a video file, an animation, the number of a camera, or an address.

        Raises `BadInput` if no frame can be read.
        """
        self.source = str(source)
        self._camera, self._stream = camera_index(self.source), is_stream(self.source)
        is_file = self._camera is None and not self._stream
        path = Path(source)
        if is_file and not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            raise BadInput(f"expected a video or the number of a camera, but there is no file {source}.")
        self._capture: cv2.VideoCapture | None = None
        self._exact = False
        frames = None
        if is_file and frame_count(path) > 1 and _format(path) != "GIF":
            # Of the others, FFmpeg reads nothing, or the first frame alone.
            frames = self._animation(path)
        elif not is_file or not _is_text(path):
            frames = self._decode()
        if frames is None:
            raise BadInput(self._refusal())
        self._frames = frames
        self.times = array.array("d")
        """Time of each frame that was read [ms], from the first."""
        self.gaps: list[tuple[float, float]] = []
        """Times [ms] of the frames before and after each stretch that could not be decoded."""
        self.ended = False
        """Whether the end was reached."""

    def __iter__(self) -> Iterator[np.ndarray]:
        for frame, moment in self._frames:
            last = self.times[-1] if self.times else None
            # Streams may report no time, or one that jumps back.
            if last is not None and not last < moment < last + 86_400_000:
                moment = last + 1000 / self.fps
            self.times.append(moment if last is not None else max(0.0, moment) if moment < 86_400_000 else 0.0)
            yield frame
        self.ended = True

    @property
    def file(self) -> str | None:
        """The source if it is a file, and None for cameras and streams."""
        return self.source if self._camera is None and not self._stream else None

    def damage(self) -> str:
        """How many of how many frames were read, and where the others are missing; "" if none is."""
        interval = statistics.median(np.diff(self.times)) if len(self.times) > 1 else 1000 / self.fps
        gaps = list(self.gaps)
        count = len(self.times)
        if self.ended and self.length is not None and count < self.length:
            steps = np.diff(self.times)
            if count > 2 and np.mean(abs(steps - interval) < interval / 4) > 0.9:
                known = {start for start, _ in gaps}
                gaps += [(self.times[i], self.times[i + 1]) for i in np.flatnonzero(steps > HOLE * interval)
                         if self.times[i] not in known]
            rest = self.length * 1000 / self.fps - self.times[-1] - interval
            tolerance = 0.5 if self._exact else max(2.5, 0.02 * self.length)
            if rest > tolerance * interval:
                gaps.append((self.times[-1], self.times[-1] + interval + rest))
        if not gaps:
            return ""
        of = f"{'' if self._exact else 'about '}{self.length} " if self.length is not None and self.ended else ""
        count_text = f"{count} of {of}frames were read" if of else f"{count} frames were read"
        places = ", ".join(f"{start / 1000:.2f} to {end / 1000:.2f} s" for start, end in sorted(gaps)[:5])
        more = f" and {len(gaps) - 5} more" if len(gaps) > 5 else ""
        return f"{count_text}; damaged or missing: {places}{more}"

    def _decode(self) -> Iterator[tuple[np.ndarray, float]] | None:
        with quiet():
            self._capture = _open(self.source if self._camera is None else self._camera)
            opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened:
            self._capture.release()
            return None
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT) if self._camera is None else 0
        self.length = int(frames) if 0 < frames < 1e9 else None
        """Number of frames by the file's metadata; None if unknown."""
        if self._camera is None and not self._stream:
            with open(self.source, "rb") as file:
                head = file.read(12)
            self._exact = head[4:8] == b"ftyp" or head[:4] == b"RIFF"  # these count frames, others the duration
            if head[4:8] == b"ftyp" and is_trimmed(Path(self.source)):
                self.length = None
        return self._read_on(first)

    def _read_on(self, frame: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        began, count, failures = time.monotonic(), 0, 0
        moment = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        while True:
            if failures:
                self.gaps.append((self.times[-1], moment))
                failures = 0
            count += 1
            # A camera that is read too slowly drops frames, and OpenCV does not report their times.
            wall = (time.monotonic() - began) * 1000
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), moment if self._camera is None else wall
            read = False
            while not read:
                read, frame = self._capture.read()
                if not read:
                    failures += 1
                    if failures > self._retries(count):
                        return
            moment = self._capture.get(cv2.CAP_PROP_POS_MSEC)

    def _animation(self, path: Path) -> Iterator[tuple[np.ndarray, float]] | None:
        if not hasattr(cv2, "imreadanimation"):
            raise BadInput(f"{path}: OpenCV {cv2.__version__} cannot read animations. Install opencv-python>=4.11.")
        with quiet():
            try:
                read, animation = cv2.imreadanimation(str(path))
            except cv2.error:
                return None
        if not read or not len(animation.frames):
            return None
        durations = [float(duration) or 100.0 for duration in animation.durations]  # browsers show 0 as 100 ms
        self.fps, self.length = 1000 * len(durations) / sum(durations), len(durations)
        starts = np.concatenate([[0.0], np.cumsum(durations)[:-1]])
        return ((cv2.cvtColor(frame[..., :3], cv2.COLOR_BGR2RGB), start)
                for frame, start in zip(animation.frames, starts.tolist(), strict=True))

    def _retries(self, count: int) -> int:
        """How many failed reads in a row do not end the source: behind damage, OpenCV often reads on."""
        if self._camera is not None or self._stream or count == self.length:
            return 0
        return min(RETRIES + max(0, (self.length or 0) - count), MOST_RETRIES)

    def _refusal(self) -> str:
        if self._camera is not None:
            return f"camera {self._camera}: no frame received. Check that it is connected and not in use."
        if self._stream:
            return (f"{shown(self.source)}: no frame received within {TIMEOUT_MS // 1000} s. Check the address and the "
                    "network, and that it needs no other protocol.")
        return (f"{self.source}: expected a video that OpenCV can decode; it is damaged, unfinished or of another "
                "format. Convert it to MP4 with H.264.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._capture is not None:
            self._capture.release()


def _open(source: str | int) -> cv2.VideoCapture:
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
    # FFmpeg alone: OpenCV's reader of image sequences takes digits in a file name for a pattern.
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits if is_stream(source) else [])


def _format(path: Path) -> str | None:
    return read_header(path).format


def _is_text(path: Path) -> bool:
    """Whether a file begins with ASCII text, which FFmpeg would draw, or open as a list of other files."""
    with open(path, "rb") as file:
        return TEXT.fullmatch(file.read(4096)) is not None


def _stream_file(address: str) -> Path:
    parts = urllib.parse.urlsplit(address)
    name = Path(urllib.parse.unquote(parts.path)).stem
    host, name = (re.sub(r"[^\w.-]+", "_", part or "").lstrip(".") for part in (parts.hostname, name))
    return Path(host or "stream") / name if name else Path(host or "stream")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages of OpenCV and FFmpeg; errors are raised as exceptions."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
