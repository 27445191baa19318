"""Cameras and network streams as they come: several at once, the newest frame wins, and lost connections come back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ..core.errors import BadInput
from ..runtime import Prediction, Runtime
from ..steady import Steady
from .alpha_video import AlphaWriter
from .reader import Reader, quiet, shown
from .video import PICTURES, Interrupts, Look, Writer

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0  # seconds before a new attempt to connect; doubled each time
GIVE_UP = 60.0  # seconds without a frame
_TICK = 0.2  # seconds; how long a wait goes on before it looks for signals and ends


class LiveSource:
    """One camera, stream or file, read in a thread of its own that keeps only the newest frame.

    A file is played at its own rate and ends. A camera or stream that breaks off is opened again, with growing waits.
    """

    def __init__(self, source: str, wake: threading.Condition, say: Callable[[str], None] = print,
                 give_up: float = GIVE_UP) -> None:
        """Open a source and wait for its first frame.

        Args:
            source: As for `Reader`.
            wake: Notified when a frame has come, and at the end. Guards the fields of this object.
            say: Called with a line when a connection is lost, found again, or given up.
            give_up: Seconds without a frame after which a source that was lost has ended.

        Raises:
            BadInput: No frame can be read.
        """
        self.name = shown(source)
        self.received = self.dropped = self.reconnections = 0
        """Frames that came; those of them that a newer one replaced before they were taken; connections made again."""
        self.ended = False
        self.lost = False
        """Whether the source was given up."""
        self._reader: Reader | None = Reader(source)
        self.fps = self._reader.fps
        self._source, self._file = source, self._reader.file is not None
        self._wake, self._say, self._give_up = wake, say, give_up
        self._newest: tuple[np.ndarray, float] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"dpt-live {self.name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    @property
    def waiting(self) -> bool:
        """Whether there is a frame that was not taken yet."""
        return self._newest is not None

    def take(self) -> tuple[np.ndarray, float] | None:
        """The newest frame, uint8 (H, W, 3) RGB, and when it came, by `time.monotonic`; None if there is no new one."""
        with self._wake:
            taken, self._newest = self._newest, None
        return taken

    def stop(self) -> None:
        """Ask the thread to end, and do not wait for it."""
        self._stop.set()

    def close(self) -> None:
        """Stop reading. Waits for a read that is under way, at most the time limit of the reader."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._reader is not None and not self._stop.is_set():
                with self._reader as reader:
                    self._read(reader)
                if self._file or self._stop.is_set():
                    return
                self._reader = self._connect()
        except Exception as error:
            self.lost = True
            self._say(f"{self.name}: {error}")
        finally:
            with self._wake:
                self.ended = True
                self._wake.notify_all()

    def _read(self, reader: Reader) -> None:
        began = time.monotonic()
        for frame in reader:
            if self._file and self._stop.wait(max(0.0, began + reader.times[-1] / 1000 - time.monotonic())):
                return
            with self._wake:
                self.received += 1
                self.dropped += self._newest is not None
                self._newest = frame, time.monotonic()
                self._wake.notify_all()
            if self._stop.is_set():
                return

    def _connect(self) -> Reader | None:
        """The source opened again; None once it was given up or the reading was stopped."""
        lost, wait = time.monotonic(), FIRST_WAIT
        while time.monotonic() - lost < self._give_up:
            self._say(f"{self.name}: connection lost, trying again in {wait:g} s")
            if self._stop.wait(wait):
                return None
            wait = min(2 * wait, LONGEST_WAIT)
            with contextlib.suppress(BadInput):
                reader = Reader(self._source)
                self.reconnections += 1
                self._say(f"{self.name}: connected again after {time.monotonic() - lost:.1f} s")
                return reader
        self.lost = True
        self._say(f"{self.name}: given up after {self._give_up:g} s without a frame")
        return None


@dataclass(frozen=True)
class LiveOutcome:
    """What became of one source."""

    name: str
    path: Path
    frames: int
    """Number of frames written."""
    received: int
    dropped: int
    """Number of frames that a newer one replaced, because the network is slower than the source."""
    reconnections: int
    lost: bool
    """Whether the source was given up."""
    interrupted: bool
    notes: tuple[str, ...]


class _Channel:
    """A source and the video that is made of it."""

    def __init__(self, source: LiveSource, path: Path, look: Look, steady: bool) -> None:
        self.source, self.path, self.look = source, path, look
        self.writer = AlphaWriter(path, source.fps) if look == "cutout" else Writer(path, source.fps)
        self.steady = Steady() if steady else None
        self.done = False
        self._began: float | None = None

    def write(self, frame: np.ndarray, prediction: Prediction, moment: float) -> None:
        if self.steady is not None:
            prediction = self.steady(frame, prediction)
        self._began = moment if self._began is None else self._began
        times = self.writer.times
        self.writer.write(PICTURES[self.look](frame, prediction),
                          max((moment - self._began) * 1000, times[-1] + 1 if times else 0.0))

    def outcome(self, interrupted: bool) -> LiveOutcome:
        source = self.source
        notes = (f"steadied in {self.steady.shots} {'shot' if self.steady.shots == 1 else 'shots'}",) \
            if self.steady is not None else ()
        return LiveOutcome(source.name, self.path, len(self.writer.times), source.received, source.dropped,
                           source.reconnections, source.lost, interrupted, notes)


class Live:
    """Several sources that are open at once. A context manager, which stops them."""

    def __init__(self, sources: Sequence[str], say: Callable[[str], None] = print, give_up: float = GIVE_UP) -> None:
        """Open the sources. Raises `BadInput` if one of them gives no frame."""
        self.wake = threading.Condition()
        self.sources: list[LiveSource] = []
        with quiet():
            for source in sources:
                self.sources.append(LiveSource(source, self.wake, say, give_up))

    def wait(self, sources: Sequence[LiveSource]) -> list[tuple[LiveSource, np.ndarray, float]]:
        """The newest frame of each of these sources that has one; waits until one has, or all have ended."""
        with self.wake:
            while not any(one.waiting for one in sources) and not all(one.ended for one in sources):
                self.wake.wait(_TICK)
        taken = [(one, one.take()) for one in sources]
        return [(one, *found) for one, found in taken if found is not None]

    def __enter__(self) -> Self:
        for source in self.sources:
            source.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for source in self.sources:
            source.stop()
        for source in self.sources:
            source.close()


def predict_live(
    runtime: Runtime, live: Live, paths: Sequence[Path], look: Look = "panel", steady: bool = False,
    max_frames: int | None = None, progress: Callable[[int], None] = lambda done: None,
) -> list[LiveOutcome]:
    """Write a video of each source's predictions until the sources end, or Ctrl-C or SIGTERM.

    The newest frames of all sources go through the network in one call, as a batch as far as they have one size. While
    it runs, newer frames replace those that wait: the delay stays below two calls, whatever the rate of the sources.
    Each frame is shown at the time when it came.

    Args:
        runtime: Makes the predictions.
        live: The open sources.
        paths: The file of each, as for `predict_video`.
        look: As for `predict_video`.
        steady: Steady the predictions of each source, without delay.
        max_frames: Stop a source after this many frames; None for no limit.
        progress: Called with the number of frames that are done.

    Raises:
        BadInput: A file cannot be written, or is not complete when it is read back.
    """
    channels = {source: _Channel(source, path, look, steady)
                for source, path in zip(live.sources, paths, strict=True)}
    interrupted, done = False, 0
    with quiet(), Interrupts() as interrupts, contextlib.ExitStack() as stack, live:
        for channel in channels.values():
            stack.enter_context(channel.writer)
        try:
            while active := [source for source, channel in channels.items() if not channel.done]:
                found = live.wait(active)
                predictions = runtime([frame for _, frame, _ in found]) if found else []
                for (source, frame, moment), prediction in zip(found, predictions, strict=True):
                    channel = channels[source]
                    with interrupts.deferred():
                        channel.write(frame, prediction, moment)
                    done += 1
                    if len(channel.writer.times) == max_frames:
                        channel.done = True
                        source.stop()
                for source in active:
                    channels[source].done |= source.ended and not source.waiting
                progress(done)
        except KeyboardInterrupt:
            interrupted = True
        with contextlib.suppress(KeyboardInterrupt), interrupts.deferred():
            for channel in channels.values():
                channel.writer.close()
    return [channel.outcome(interrupted) for channel in channels.values()]
