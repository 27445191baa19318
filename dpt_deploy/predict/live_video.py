"""Predict the newest frames of cameras and network streams together, and write a video of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput
from ..runtime import Prediction, Runtime
from .live import LiveFrame, LiveStream, LiveStreams
from .reader import quiet
from .video import Look, Writer, picture


@dataclass
class LiveOutcome:
    """What became of a stream."""

    stream: LiveStream
    path: Path
    """The MP4 file."""
    frames: int = 0
    """Number of frames predicted and written."""
    behind: float = 0.0
    """Sum over the frames of the time from the arrival to the maps [s]."""
    failed: BadInput | None = None
    """Why the file could not be written."""

    def summary(self) -> str:
        """What was written, dropped and how late it was, in one line."""
        parts = []
        if self.stream.dropped:
            parts.append(f"{self.stream.dropped} of {self.stream.received} received were dropped for newer ones")
        if self.stream.reconnects:
            parts.append(f"opened again {self.stream.reconnects} times" if self.stream.reconnects > 1 else
                         "opened again once")
        if self.frames:
            parts.append(f"maps {self.behind / self.frames:.2f} s behind")
        return f"{self.stream.name}: {self.frames} frames written to {self.path} ({'; '.join(parts)})"


def predict_live(
    runtime: Runtime, streams: LiveStreams, paths: Sequence[Path], fps: Sequence[float], look: Look = "panel",
    max_frames: int | None = None, progress: Callable[[Sequence[LiveOutcome]], None] = lambda outcomes: None,
) -> list[LiveOutcome]:
    """Write a video of the predictions for the newest frames of each stream, until all have ended.

    Frames of equal size that came in the meantime run as a batch. The pictures are encoded in a second thread while the
    next frames are predicted. Each frame is shown from its arrival to that of the next one that was predicted.

    Args:
        runtime: Makes the predictions.
        streams: The sources. They are closed at the end.
        paths: The MP4 file of each stream.
        fps: Nominal frame rate of each stream [1/s].
        look: panel, or matte, the foreground over green.
        max_frames: Stop each stream after this many frames; None for no limit.
        progress: Called with the outcomes so far after each call of the network.
    """
    outcomes = [LiveOutcome(stream, path) for stream, path in zip(streams.streams, paths, strict=True)]
    writers = [Writer(path, rate) for path, rate in zip(paths, fps, strict=True)]
    starts = [0.0] * len(writers)

    def write(frames: list[LiveFrame], predictions: list[Prediction]) -> None:
        for frame, prediction in zip(frames, predictions, strict=True):
            outcome, writer = outcomes[frame.stream], writers[frame.stream]
            if not outcome.frames:
                starts[frame.stream] = frame.time
            try:
                shown = picture(look, frame.image, prediction)
                writer.write(shown, 1000 * (frame.time - starts[frame.stream]))
                outcome.frames += 1
            except BadInput as error:  # such as a full disk; the other streams go on
                outcome.failed = error
                outcome.stream.done.set()

    written: Future[None] | None = None
    with quiet(), streams, ThreadPoolExecutor(1, thread_name_prefix="dpt-encode") as encoder:
        try:
            for frames in streams:
                predictions = runtime([frame.image for frame in frames])
                now = time.monotonic()
                if written is not None:
                    written.result()
                for frame in frames:
                    outcomes[frame.stream].behind += now - frame.time
                written = encoder.submit(write, frames, predictions)
                if max_frames is not None:
                    written.result()
                    for outcome in outcomes:
                        if outcome.frames >= max_frames:
                            outcome.stream.done.set()
                progress(outcomes)
        finally:
            if written is not None:
                written.result()
            for outcome, writer in zip(outcomes, writers, strict=True):
                try:
                    writer.close()
                except BadInput as error:
                    outcome.failed = outcome.failed or error
    return outcomes
