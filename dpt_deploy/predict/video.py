"""Predict the frames of a video or a camera, and write a video of panels, or of the foreground."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np

from ..core.errors import BadInput
from ..core.files import cannot_write
from ..report.cutout import cutout
from ..report.panel import panel
from ..runtime import Prediction, Runtime
from ..steady import Steady
from .alpha_video import AlphaWriter
from .mp4 import rewrite
from .reader import Reader, quiet

LARGEST = 8190  # pixels; MPEG-4 Part 2 has 13 bits for a size
RESERVE = 4 << 20  # bytes of free space; what the encoder holds back, and the index
CHECK_EVERY = 16  # frames
BACKDROP = (0, 177, 64)  # a common chroma key green
Look = Literal["panel", "matte", "cutout"]


class Writer:
    """Write an MP4 of uint8 (H, W, 3) RGB frames. A context manager; the file is playable and checked afterwards."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self.times: list[float] = []
        self.resized = 0
        """Number of frames that had another size than the first one."""
        self.varies = False
        """Whether the frame rate varies; known at the end."""
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame; one of another size than the first is resized.

        Args:
            frame: uint8 (H, W, 3) RGB.
            time: When it is shown [ms], later than the frame before. None continues at the constant rate.

        Raises:
            BadInput: The file cannot be written.
        """
        if self._writer is None:
            self._open(frame.shape[:2])
        if self.times and len(self.times) % CHECK_EVERY == 0:
            self._check_space()
        if frame.shape[:2] != self._size:
            frame = cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA)
            self.resized += 1
        h, w = self._size
        if h % 2 or w % 2:  # OpenCV encodes even sizes only; `rewrite` cuts the rest off again
            frame = cv2.copyMakeBorder(frame, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.times.append((self.times[-1] + 1000 / self.fps if self.times else 0.0) if time is None else time)

    def _open(self, size: tuple[int, int]) -> None:
        if max(size) > LARGEST:
            raise BadInput(f"{self.path}: MPEG-4 allows at most {LARGEST} pixels a side, received {size[0]}x{size[1]}.")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._check_space()
            self.path.touch()  # OpenCV does not report why a file cannot be written
        except OSError as error:
            raise cannot_write(self.path, error) from error
        even = (size[1] + size[1] % 2, size[0] + size[0] % 2)
        self._size = size
        with quiet():
            writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), self.fps, even)
        if not writer.isOpened():
            self.path.unlink(missing_ok=True)
            raise BadInput(f"{self.path}: this build of OpenCV cannot encode MPEG-4. Install the opencv-python wheel.")
        self._writer = writer

    def _check_space(self) -> None:
        """Stop while there is still room for the index, without which nothing plays."""
        if shutil.disk_usage(self.path.parent).free < RESERVE:
            raise cannot_write(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def close(self) -> None:
        """Finish the file, and read it back. Raises `BadInput`, and removes the file, if it is not as written."""
        if self._writer is None:
            return
        with quiet():
            self._writer.release()
        self._writer = None
        durations = np.diff(self.times)
        interval = 1000 / self.fps
        self.varies = bool((abs(durations - interval) > interval / 4).any())
        shown = [*durations.tolist(), float(np.median(durations))] if self.varies else None
        odd = self._size[0] % 2 or self._size[1] % 2
        try:
            if shown or odd:
                rewrite(self.path, shown, self._size if odd else None)
            self._verify()
        except (OSError, ValueError) as error:
            failure = cannot_write(self.path, error)  # before the file is removed, because it looks at the free space
            self.path.unlink(missing_ok=True)
            raise failure from error

    def _verify(self) -> None:
        with quiet():
            capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
            count = 0
            while capture.grab():
                count += 1
            size = tuple(int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
            capture.release()
        if count != len(self.times):
            raise ValueError(f"of {len(self.times)} frames written, {count} can be read back")
        if size != self._size:
            raise ValueError(f"written as {self._size[0]}x{self._size[1]}, read back as {size[0]}x{size[1]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(BadInput):  # the first error is the cause
                self.close()


@dataclass(frozen=True)
class Outcome:
    """What became of a video."""

    frames: int
    """Number of frames written."""
    interrupted: int
    """The signal that ended it; 0 if none did."""
    notes: tuple[str, ...]
    """What is special about the file: varying frame rate, frames of another size."""


def predict_video(
    runtime: Runtime, reader: Reader, path: Path, look: Look = "panel", max_frames: int | None = None,
    progress: Callable[[int], None] = lambda done: None, steady: Steady | None = None,
) -> Outcome:
    """Write a video of the predictions for each frame of a reader.

    Frames are decoded in one thread, predicted in a second and encoded in the caller's. Ctrl-C and SIGTERM end the
    video after the current frame and leave a playable file. Each frame is shown at its own time: a varying frame rate
    is kept, and the frame before a damaged stretch stays until the next one.

    Args:
        runtime: Makes the predictions.
        reader: The source.
        path: The MP4 file to write; for a cutout the MOV or WebM file or the folder, as `AlphaWriter` takes it.
        look: panel, matte, the foreground over green, or cutout, the foreground with transparency.
        max_frames: Stop after this many frames; None for no limit.
        progress: Called with the number of frames that are done.
        steady: Steadies the predictions; None takes them as they are.

    Raises:
        BadInput: The file cannot be written, or is not complete when it is read back.
        MissingPackage: A cutout needs PyAV, and it is not installed.
    """
    pending: collections.deque[tuple[np.ndarray, float]] = collections.deque()

    def frames() -> Iterator[np.ndarray]:
        for i, frame in enumerate(reader, 1):
            pending.append((frame, reader.times[-1]))
            yield frame
            if i == max_frames:
                return

    done, interrupted = 0, 0
    output = open_writer(look, path, reader.fps, reader.file)
    with quiet(), Interrupts() as interrupts, output as writer:
        try:
            with contextlib.closing(runtime.stream(frames())) as predictions:
                for prediction in predictions:
                    frame, moment = pending.popleft()
                    if steady is not None:
                        prediction = steady(frame, prediction)
                    shown = PICTURES[look](frame, prediction)
                    with interrupts.deferred():
                        writer.write(shown, moment)
                    done += 1
                    progress(done)
        except KeyboardInterrupt:
            interrupted = interrupts.number
        with contextlib.suppress(KeyboardInterrupt), interrupts.deferred():  # a signal now changes nothing
            writer.close()
    notes = ["varying frame rate, kept"] if writer.varies and not reader.damage() else []
    if steady is not None:
        notes.append(f"steadied in {steady.shots} {'shot' if steady.shots == 1 else 'shots'}")
    if look == "cutout" and writer.sound:
        notes.append(writer.sound)
    if writer.resized:
        notes.append(f"{writer.resized} frames of another size, resized to the first one's")
    return Outcome(len(writer.times), interrupted, tuple(notes))


def matte(frame: np.ndarray, prediction: Prediction) -> np.ndarray:
    """The foreground over green, uint8 (H, W, 3) RGB. Raises `BadInput` if the prediction has no alpha."""
    if prediction.alpha is None:
        raise BadInput("--look matte: expected a bundle with the head alpha, received one without. Use --look panel.")
    alpha = np.clip(np.nan_to_num(prediction.alpha), 0, 1)[..., None]
    return (frame * alpha + np.float32(BACKDROP) * (1 - alpha) + 0.5).astype(np.uint8)


def _cutout(frame: np.ndarray, prediction: Prediction) -> np.ndarray:
    if prediction.alpha is None:
        raise BadInput("--alpha-video: expected a bundle with the head alpha, received one without. Use --look panel.")
    return cutout(frame, prediction.alpha)


PICTURES: dict[Look, Callable[[np.ndarray, Prediction], np.ndarray]] = {
    "panel": panel, "matte": matte, "cutout": _cutout}


def open_writer(look: Look, path: Path, fps: float, source: str | None = None) -> Writer | AlphaWriter:
    """A writer of what `PICTURES[look]` gives; `source` is the file whose sound goes along, where there is any."""
    return AlphaWriter(path, fps, source) if look == "cutout" else Writer(path, fps)


class Interrupts:
    """Raise `KeyboardInterrupt` on SIGTERM, which service managers send, so that the file is playable.

    Sets the handler of SIGINT too, because shells start background commands with SIGINT ignored.
    """

    def __init__(self) -> None:
        self._previous: dict[int, object] = {}
        self.number = int(signal.SIGINT)
        """The last signal."""
        self._deferred = self._asked = False

    def _interrupt(self, number: int, _frame: object) -> None:
        self.number = number
        if not self._deferred:
            raise KeyboardInterrupt
        self._asked = True

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block end before a signal is obeyed, so that the file and the list of its times agree."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._interrupt)
                              for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
