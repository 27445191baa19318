"""Predict the newest frames of cameras and network streams together, and write videos of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..core.errors import BadInput, ContractError, DptError
from ..runtime import Prediction, Runtime
from ..steady import Steady
from .alpha_video import AlphaWriter
from .live import LiveFrame, LiveStream, LiveStreams
from .reader import quiet
from .video import PICTURES, Look, Writer, open_writer

PART = 3600.0  # seconds of one file; what a power cut costs at most, and far below what an MP4 index can hold


class Recording:
    """Writes the pictures of a stream to files of at most an hour, and counts them."""

    def __init__(
        self, stream: LiveStream, path: Callable[[int], Path], fps: float, look: Look = "panel", steady: bool = False,
        seconds: float = PART,
    ) -> None:
        """A recording of a stream.

        Args:
            stream: What is recorded.
            path: Gives the name of a file from its number, from 1.
            fps: Nominal frame rate [1/s].
            look: panel, matte, the foreground over green, or cutout, the foreground with transparency.
            steady: Whether to steady the maps.
            seconds: The most that a file holds [s].
        """
        self.stream = stream
        self.frames = 0
        """Number of frames predicted and written."""
        self.files: list[Path] = []
        """The files that were finished."""
        self.resized = 0
        """Number of frames that had another size than the first one of their file."""
        self.failed: DptError | None = None
        """Why the recording ended early."""
        self._path, self._fps, self._look, self._seconds = path, fps, look, seconds
        self._steady = Steady() if steady else None
        self._writer: Writer | AlphaWriter | None = None
        self._start = self._behind = 0.0

    def write(self, frame: LiveFrame, prediction: Prediction, done: float) -> None:
        """Append the picture of a frame.

        Args:
            frame: The frame.
            prediction: Its maps.
            done: When they were there, on the clock of the frame [s].

        Raises:
            BadInput: The file cannot be written, or a map is missing.
        """
        moment = frame.time
        if self._steady is not None:
            prediction = self._steady(frame.image, prediction)
        image = PICTURES[self._look](frame.image, prediction)
        if self._writer is not None and moment - self._start >= self._seconds:
            self.close()
        if self._writer is None:
            self._writer = open_writer(self._look, self._path(len(self.files) + 1), self._fps)
            self._start = moment
        self._writer.write(image, 1000 * (moment - self._start))
        self.frames += 1
        self._behind += done - frame.time

    def fail(self, error: DptError) -> None:
        """End the recording; what was written so far stays."""
        self.failed = self.failed or error
        self.stream.done.set()

    def close(self) -> None:
        """Finish the file. Raises `BadInput`, and removes the file, if it is not as written."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        frames, self.frames = self.frames, self.frames - len(writer.times)
        writer.close()
        self.frames = frames
        self.resized += writer.resized
        self.files.append(writer.path)

    def summary(self) -> str:
        """What was written and dropped and how late it was, in one line."""
        if not self.files:
            return f"{self.stream.name}: no frame written"
        parts = []
        if self.stream.dropped:
            parts.append(f"{self.stream.dropped} of {self.stream.received} received were dropped for newer ones")
        if self.stream.reconnects:
            parts.append("opened again " + ("once" if self.stream.reconnects == 1 else
                                            f"{self.stream.reconnects} times"))
        if self.resized:
            parts.append(f"{self.resized} of another size, resized to the first one's")
        parts.append(f"maps {self._behind / max(self.frames, 1):.2f} s behind")
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return f"{self.stream.name}: {self.frames} frames written to {self.files[0]}{more} ({'; '.join(parts)})"


def predict_live(
    runtime: Runtime, streams: LiveStreams, records: Sequence[Recording],
    max_frames: int | None = None, progress: Callable[[], None] = lambda: None,
) -> None:
    """Record the predictions for the newest frames of each stream, until all streams have ended.

    Frames of equal size that came in the meantime run as a batch. The pictures are encoded in a second thread while the
    next frames are predicted. Each frame is shown from its arrival to that of the next one that was predicted. A stream
    that cannot be predicted or recorded ends, and the others go on.

    Args:
        runtime: Makes the predictions.
        streams: The sources. They are closed at the end.
        records: The recording of each stream, closed at the end.
        max_frames: Stop each stream after this many frames; None for no limit.
        progress: Called after each call of the network.
    """

    def write(frames: Sequence[tuple[LiveFrame, Prediction]], done: float) -> None:
        for frame, prediction in frames:
            record = records[frame.stream]
            if record.failed:
                continue
            try:
                record.write(frame, prediction, done)
            except BadInput as error:  # such as a full disk
                record.fail(error)
            if max_frames is not None and record.frames >= max_frames:
                record.stream.done.set()

    written: Future[None] | None = None
    with quiet(), streams, ThreadPoolExecutor(1, thread_name_prefix="dpt-encode") as encoder:
        try:
            for frames in streams:
                predicted = _predicted(runtime, frames, records)
                if written is not None:
                    written.result()
                written = encoder.submit(write, predicted, time.monotonic())
                if max_frames is not None:
                    written.result()
                progress()
        finally:
            encoder.shutdown()
            _close(records)
    if written is not None:
        written.result()


def _predicted(
    runtime: Runtime, frames: list[LiveFrame], records: Sequence[Recording]
) -> list[tuple[LiveFrame, Prediction]]:
    """The frames and their maps; without those that the runtime refuses, whose recordings end."""
    try:
        return list(zip(frames, runtime([frame.image for frame in frames]), strict=True))
    except (BadInput, ContractError) as error:
        if len(frames) == 1:
            record = records[frames[0].stream]
            record.fail(type(error)(f"{record.stream.name}: {error}"))
            return []
    return [found for frame in frames for found in _predicted(runtime, [frame], records)]


def _close(records: Sequence[Recording]) -> None:
    """Finish all files, whatever happens to one of them."""
    unexpected: Exception | None = None
    for record in records:
        try:
            record.close()
        except BadInput as error:
            record.fail(error)
        except Exception as error:
            unexpected = error
    if unexpected is not None:
        raise unexpected
