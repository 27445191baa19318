"""A video or a camera in, a video of panels or of the cut-out foreground out; decode, compute and encode overlap."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.files import cannot_write
from ..report.panel import panel
from ..runtime import Prediction, Runtime

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""File names that count as videos."""
CAMERA_FPS = 30.0  # for a camera that does not tell
BACKDROP = (0, 177, 64)  # the green that editors key out
Look = Literal["panel", "matte"]


def is_video(source: Path) -> bool:
    """Whether `source` names a video file, or a camera by its number."""
    return source.suffix.lower() in SUFFIXES or camera(source) is not None


def camera(source: Path) -> int | None:
    """The camera's number, if `source` is one and no file of that name is there."""
    text = str(source)
    return int(text) if text.isdecimal() and not source.exists() else None


class Reader:
    """Frames of a video or camera, uint8 (H, W, 3) RGB. A context manager."""

    def __init__(self, source: Path) -> None:
        """Raises `BadInput` for what cannot be opened or has no frame."""
        number = camera(source)
        if number is None and not source.is_file():
            raise BadInput(f"expected a video file or a camera's number, but there is no file {source}. Check the "
                           "path.")
        with _quiet():
            self._capture = cv2.VideoCapture(str(source) if number is None else number)
            opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened:
            self._capture.release()
            if number is not None:
                raise BadInput(f"camera {number}: no frame. Check that it is there and that nothing else uses it.")
            raise BadInput(f"{source}: expected a video that OpenCV can decode. Convert it to MP4 with H.264.")
        self._first: np.ndarray | None = first
        self.size: tuple[int, int] = first.shape[:2]
        """(H, W) [pixels]."""
        told = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = told if 0 < told < 1000 else CAMERA_FPS
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if number is None else 0
        self.length = frames if frames > 0 else None
        """Frames in total, as the file says; None where it does not."""
        self.name = source.stem if number is None else f"camera{number}"

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, self._first = self._first, None
        while frame is not None:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = self._capture.read()
            frame = frame if read else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()


class Writer:
    """An MP4 of uint8 (H, W, 3) RGB pictures of one size; it plays once the block ends, however that ends."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: np.ndarray) -> None:
        """Append a picture; odd sizes get one more row or column, because MPEG-4 has none."""
        h, w = picture.shape[:2]
        if h % 2 or w % 2:
            picture = cv2.copyMakeBorder(picture, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._open(picture.shape[1::-1])
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def _open(self, size: tuple[int, int]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()  # OpenCV does not say why a file cannot be written
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with _quiet():
            writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, size)
        if not writer.isOpened():
            raise BadInput(f"{self.path}: this OpenCV cannot encode MPEG-4. Install opencv-python from its wheels.")
        self._writer = writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()


def predict_video(
    runtime: Runtime, reader: Reader, path: Path, look: Look = "panel", most: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, bool]:
    """Write `path` from the reader's frames, at most `most` of them; (frames written, whether it was interrupted).

    Frames are decoded in one thread, computed in another and encoded in the caller's. Ctrl-C and
    SIGTERM end the video after the frame at hand, and leave a file that plays.
    """
    shown: collections.deque[np.ndarray] = collections.deque()

    def frames() -> Iterator[np.ndarray]:
        for i, frame in enumerate(reader):
            if i == most:
                return
            shown.append(frame)
            yield frame

    done, interrupted = 0, False
    with Writer(path, reader.fps) as writer, _terminated_as_interrupted(), \
            contextlib.closing(runtime.stream(frames())) as predictions:
        try:
            for prediction in predictions:
                frame = shown.popleft()
                writer.write(panel(frame, prediction) if look == "panel" else matte(frame, prediction))
                done += 1
                progress(done)
        except KeyboardInterrupt:
            interrupted = True
    return done, interrupted


def matte(frame: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The foreground over plain green, uint8 (H, W, 3) RGB, as editors take it. Raises `BadInput` without alpha."""
    if prediction.alpha is None:
        raise BadInput("--look matte: expected a bundle with the head alpha, and this one has none. Use --look panel.")
    alpha = np.clip(np.nan_to_num(prediction.alpha), 0, 1)[..., None]
    return (frame * alpha + np.float32(BACKDROP) * (1 - alpha) + 0.5).astype(np.uint8)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: a service manager's stop should leave a file that plays, too.

    Ctrl-C is asked for as well: a shell lets commands in the background ignore it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back OpenCV's and FFmpeg's complaints: the exception says it in one sentence."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
