"""The newest frames of cameras and network streams, several at once, which are opened again when they break."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..core.errors import BadInput
from ..core.places import shown
from .reader import Reader

RECONNECT = 60.0  # seconds
PAUSES = (0.5, 8.0)  # seconds before the first attempt to open a stream again, and the longest; doubled in between
POLL = 0.2  # seconds between two looks at `stopped`
CLOSING = 2.0  # seconds that a thread may take to end; one that waits for a dead network takes longer and is left alone
KEPT = 1000  # times that a reader keeps


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a stream."""

    stream: int
    """Which stream it is of, from 0."""
    image: np.ndarray
    """uint8 (H, W, 3) RGB."""
    time: float
    """When it arrived, on the clock of `time.monotonic` [s]."""


class LiveStream:
    """What became of a stream so far. The counts are written by its thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The source, without the password of an address."""
        self.received = 0
        """Frames that arrived."""
        self.dropped = 0
        """Frames that were replaced by a newer one before they were taken."""
        self.reconnects = 0
        """How often it was opened again."""
        self.lost = ""
        """Why it ended before it was asked to; "" if it did not."""
        self.done = threading.Event()
        """Set when it is not wanted any more."""
        self.ended = False
        self.frame: LiveFrame | None = None
        """The newest frame, until it is taken."""


class LiveStreams:
    """Iterate over the newest frames of several streams: a list of `LiveFrame`, at most one of each stream.

    Each stream is read in a thread of its own, as fast as it comes. A frame that was not taken when the next one
    arrives is dropped and counted, so a slow consumer is late by one frame, however slow it is. A stream that breaks is
    opened again, after 0.5 s at first and at most 8 s. The iteration ends when every stream has ended. A context
    manager, which ends the threads.
    """

    def __init__(
        self, sources: Sequence[str | Reader], reconnect: float = RECONNECT,
        say: Callable[[str], None] = lambda line: None, stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin to read the sources.

        Args:
            sources: Numbers of cameras and addresses, or readers of them, which are closed at the end.
            reconnect: How long to try to open a stream again before it counts as lost [s]. 0: a stream that ends, ends.
            say: Receives a line when a stream breaks, comes back or is lost; called in the stream's thread.
            stopped: Asked five times a second; the iteration ends if it says so.

        Raises:
            BadInput: A source gives no frame, or `reconnect` is not a time.
        """
        if not 0 <= reconnect < float("inf"):
            raise BadInput(f"reconnect: expected a number of seconds from 0, received {reconnect!r}.")
        self._reconnect, self._say, self._stopped = reconnect, say, stopped
        self._changed = threading.Condition()
        self.streams: list[LiveStream] = []
        """In the order of the sources."""
        self._threads: list[threading.Thread] = []
        try:
            for source in sources:
                self.add(source)
        except BaseException:
            self.close()
            raise

    def add(self, source: str | Reader) -> LiveStream:
        """Begin to read one more source."""
        reader = source if isinstance(source, Reader) else Reader(source)
        stream = LiveStream(shown(reader.source))
        thread = threading.Thread(target=self._read, args=(len(self.streams), stream, reader), daemon=True,
                                  name=f"dpt-live-{len(self.streams)}")
        self.streams.append(stream)
        self._threads.append(thread)
        thread.start()
        return stream

    def __iter__(self) -> Iterator[list[LiveFrame]]:
        while True:
            with self._changed:
                while not any(stream.frame and not stream.done.is_set() for stream in self.streams):
                    if all(stream.ended or stream.done.is_set() for stream in self.streams) or self._stopped():
                        return
                    self._changed.wait(POLL)
                frames = [stream.frame for stream in self.streams if stream.frame and not stream.done.is_set()]
                for stream in self.streams:
                    stream.frame = None
            if self._stopped():
                return
            yield frames

    def _read(self, index: int, stream: LiveStream, reader: Reader | None) -> None:
        """Read a stream to its end; the body of its thread."""
        try:
            while reader is not None:
                with reader:
                    for image in reader:
                        if stream.done.is_set():
                            return
                        self._offer(stream, LiveFrame(index, image, time.monotonic()))
                        del reader.times[:-KEPT]  # a stream may run for weeks
                reader = self._open_again(stream, reader.source)
        except Exception as error:  # a thread that dies in silence would leave a picture that stands still
            self._lose(stream, str(error))
        finally:
            with self._changed:
                stream.ended = True
                self._changed.notify()

    def _offer(self, stream: LiveStream, frame: LiveFrame) -> None:
        with self._changed:
            stream.received += 1
            stream.dropped += stream.frame is not None
            stream.frame = frame
            self._changed.notify()

    def _open_again(self, stream: LiveStream, source: str) -> Reader | None:
        if not self._reconnect or stream.done.is_set():
            return None
        broke, (pause, longest) = time.monotonic(), PAUSES
        self._say(f"{stream.name}: interrupted; trying to open it again for {self._reconnect:g} s")
        while not stream.done.wait(min(pause, max(0.0, broke + self._reconnect - time.monotonic()))):
            pause = min(2 * pause, longest)
            try:
                reader = Reader(source)
            except BadInput as error:
                if time.monotonic() - broke >= self._reconnect:
                    self._lose(stream, f"interrupted, and not back within {self._reconnect:g} s; {error}")
                    return None
                continue
            stream.reconnects += 1
            self._say(f"{stream.name}: back after {time.monotonic() - broke:.1f} s")
            return reader
        return None

    def _lose(self, stream: LiveStream, reason: str) -> None:
        stream.lost = f"{stream.name}: {reason}"
        self._say(f"{stream.name}: lost")

    def close(self) -> None:
        """End all threads."""
        for stream in self.streams:
            stream.done.set()
        deadline = time.monotonic() + CLOSING
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
