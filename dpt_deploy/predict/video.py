"""Predict the frames of a video or a camera, and write a video of panels or of the foreground over green."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.files import cannot_write
from ..report.panel import panel
from ..runtime import Prediction, Runtime

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
"""File name suffixes of videos."""
DEFAULT_FPS = 30.0  # if the source does not report a frame rate
BACKDROP = (0, 177, 64)  # a common chroma key green
Look = Literal["panel", "matte"]


def is_video(source: Path) -> bool:
    """Whether `source` names a video file, or a camera by its number."""
    return source.suffix.lower() in SUFFIXES or camera_index(source) is not None


def camera_index(source: Path) -> int | None:
    """`source` as the number of a camera; None if it is not a number, or a file of that name exists."""
    text = str(source)
    return int(text) if text.isdecimal() and not source.exists() else None


class Reader:
    """Iterate over the frames of a video or camera, uint8 (H, W, 3) RGB. A context manager."""

    def __init__(self, source: Path) -> None:
        """Open `source`, a video file or the number of a camera. Raises `BadInput` if no frame can be read."""
        camera = camera_index(source)
        if camera is None and not source.is_file():
            raise BadInput(f"expected a video or the number of a camera, but there is no file {source}.")
        with _quiet():
            self._capture = cv2.VideoCapture(str(source) if camera is None else camera)
            opened, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not opened:
            self._capture.release()
            if camera is not None:
                raise BadInput(f"camera {camera}: no frame received. Check that it is connected and not in use.")
            raise BadInput(f"{source}: expected a video that OpenCV can decode. Convert it to MP4 with H.264.")
        self._first: np.ndarray | None = first
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if camera is None else 0
        self.length = frames if frames > 0 else None
        """Number of frames in the file's metadata; None if unknown."""
        self.name = source.stem if camera is None else f"camera{camera}"

    def __iter__(self) -> Iterator[np.ndarray]:
        frame, self._first = self._first, None
        while frame is not None:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            read, frame = self._capture.read()
            frame = frame if read else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._capture.release()


class Writer:
    """Write an MP4 of uint8 (H, W, 3) RGB frames of one size. A context manager; the file is playable afterwards."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame. Odd sizes are padded by one row or column, because MPEG-4 needs even sizes."""
        h, w = frame.shape[:2]
        if h % 2 or w % 2:
            frame = cv2.copyMakeBorder(frame, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._open(frame.shape[1::-1])
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def _open(self, size: tuple[int, int]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()  # OpenCV does not report why a file cannot be written
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with _quiet():
            writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, size)
        if not writer.isOpened():
            raise BadInput(f"{self.path}: this build of OpenCV cannot encode MPEG-4. Install the opencv-python wheel.")
        self._writer = writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.release()


def predict_video(
    runtime: Runtime, reader: Reader, path: Path, look: Look = "panel", max_frames: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, bool]:
    """Write a video of the predictions for each frame of a reader.

    Frames are decoded in one thread, predicted in a second and encoded in the caller's. Ctrl-C and SIGTERM end the
    video after the current frame and leave a playable file.

    Args:
        runtime: Makes the predictions.
        reader: The source.
        path: The MP4 file to write.
        look: panel, or matte, the foreground over green.
        max_frames: Stop after this many frames; None for no limit.
        progress: Called with the number of frames that are done.

    Returns:
        The number of frames written, and whether it was interrupted.
    """
    pending: collections.deque[np.ndarray] = collections.deque()

    def frames() -> Iterator[np.ndarray]:
        for i, frame in enumerate(reader):
            if i == max_frames:
                return
            pending.append(frame)
            yield frame

    done, interrupted = 0, False
    with Writer(path, reader.fps) as writer, _signals_as_interrupt(), \
            contextlib.closing(runtime.stream(frames())) as predictions:
        try:
            for prediction in predictions:
                frame = pending.popleft()
                writer.write(panel(frame, prediction) if look == "panel" else matte(frame, prediction))
                done += 1
                progress(done)
        except KeyboardInterrupt:
            interrupted = True
    return done, interrupted


def matte(frame: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The foreground over green, uint8 (H, W, 3) RGB. Raises `BadInput` if the prediction has no alpha."""
    if prediction.alpha is None:
        raise BadInput("--look matte: expected a bundle with the head alpha, received one without. Use --look panel.")
    alpha = np.clip(np.nan_to_num(prediction.alpha), 0, 1)[..., None]
    return (frame * alpha + np.float32(BACKDROP) * (1 - alpha) + 0.5).astype(np.uint8)


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on SIGTERM, which service managers send, so that the file is playable.

    Sets the handler of SIGINT too, because shells start background commands with SIGINT ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages of OpenCV and FFmpeg; errors are raised as exceptions."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
