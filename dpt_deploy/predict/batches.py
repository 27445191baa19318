"""Decode, compute and encode at the same time: images in, files out, with a bound on the memory.

Threads decode; the calling thread collects images of one size and runs them as a batch; threads encode and write.
OpenCV, zlib and the backends release Python's lock while they work.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..core.errors import BackendError, BadInput, DptError, first_line
from ..core.storage import Item
from ..runtime import Prediction, Runtime
from .decoding import read_picture
from .outputs import Done, Encoded, Output

MOST_PIXELS = 40_000_000
"""Pixels that are decoded and not yet written at most, besides those of the images that are being decoded. A pixel
takes 3 bytes and 20 of maps, and as much again while it is encoded: 2 GB."""
MOST_FAULTS = 20  # calls in a row in which the backend itself fails, before the run ends


class Work(NamedTuple):
    """An image to predict, and where its results go."""

    key: str
    """In the journal: that of the input, and the page if there are several."""
    stem: str
    item: Item
    page: int = 1
    pages: int = 1

    @property
    def label(self) -> str:
        """The name of the input, and the page if there are several."""
        name = (self.item.member or self.item.key).rpartition("/")[2]
        return f"{name}, page {self.page}" if self.pages > 1 else name


@dataclass
class Outcome:
    """What an image came to."""

    work: Work
    size: tuple[int, int] | None = None
    """Height and width [pixels]; None if it failed."""
    files: list[str] = field(default_factory=list)
    failed: BaseException | None = None
    note: str = ""
    """What was left out of it."""

    @property
    def reason(self) -> str:
        """Why it failed, in one line that names it; "" if it did not."""
        if self.failed is None:
            return ""
        text = " ".join(str(self.failed).split())
        if not isinstance(self.failed, DptError):
            text = f"{type(self.failed).__name__}: {first_line(self.failed)}"
        return text if self.work.item.label in text else f"{self.work.item.label}: {text}"


class _Picture(NamedTuple):
    """An image under way."""

    work: Work
    image: np.ndarray
    note: str

    @property
    def pixels(self) -> int:
        return self.image.shape[0] * self.image.shape[1]


class Batches:
    """Runs images through a runtime.

    Args:
        runtime: The loaded bundle.
        output: Takes the results.
        max_pixels: Images with more fail.
        batch: Images of one size in a call at most.
        workers: Threads that decode, and as many that encode.
        most_pixels: See `MOST_PIXELS`.
        serial: Finish each image before the next one is taken.
    """

    def __init__(self, runtime: Runtime, output: Output, max_pixels: int, batch: int, workers: int,
                 most_pixels: int = MOST_PIXELS, serial: bool = False) -> None:
        self.runtime, self.output, self.max_pixels = runtime, output, max_pixels
        self.batch, self.workers, self.most_pixels = batch, max(1, workers), most_pixels
        self.serial = serial
        self._reading: deque[tuple[Work, Future[tuple[np.ndarray, str]]]] = deque()
        self._waiting: dict[tuple[int, ...], list[_Picture]] = {}
        self._encoding: deque[tuple[_Picture, Future[Encoded]]] = deque()
        self._held = 0  # pixels of images that are decoded and not written
        self._faults = 0

    def run(self, works: Iterable[Work]) -> Iterator[Outcome]:
        """Outcomes as they come, one for each image. Close the iterator to stop; what is under way is then given up.

        Raises:
            BadInput: The output cannot be written, for a reason that holds for all images.
            BackendError: The backend failed 20 times in a row.
        """
        works = iter(works)
        more = True
        readers = ThreadPoolExecutor(self.workers, "dpt-decode")
        writers = ThreadPoolExecutor(self.workers, "dpt-encode")
        try:
            while more or self._reading or self._waiting or self._encoding:
                while more and self._has_room():
                    if (work := next(works, None)) is None:
                        more = False
                    else:
                        future = readers.submit(read_picture, work.item, work.page, self.max_pixels)
                        self._reading.append((work, future))
                yield from self._written()
                if self._reading and (self._held < self.most_pixels or not (self._waiting or self._encoding)):
                    yield from self._decoded()
                    for pictures in self._ready():
                        yield from self._compute(pictures, writers)
                elif self._waiting:
                    yield from self._compute(max(self._waiting.values(), key=len), writers)
                else:
                    yield from self._written(wait=True)
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(cancel_futures=True)

    def _has_room(self) -> bool:
        if self.serial or self._held >= self.most_pixels:
            return not (self._reading or self._waiting or self._encoding)
        return len(self._reading) < 2 * self.workers + self.batch

    def _decoded(self) -> Iterator[Outcome]:
        """Wait for the next image; an outcome if it cannot be read."""
        work, future = self._reading.popleft()
        if (error := future.exception()) is not None:  # whatever a decoder raises, it is about this image
            yield Outcome(work, failed=error)
            return
        picture = _Picture(work, *future.result())
        self._held += picture.pixels
        self._waiting.setdefault(picture.image.shape, []).append(picture)

    def _ready(self) -> list[list[_Picture]]:
        """Batches that are full; the largest one if many sizes are waiting."""
        full = [pictures for pictures in self._waiting.values() if len(pictures) >= self.batch]
        if not full and sum(map(len, self._waiting.values())) >= 8 * self.batch:
            return [max(self._waiting.values(), key=len)]
        return full

    def _compute(self, pictures: list[_Picture], writers: ThreadPoolExecutor) -> Iterator[Outcome]:
        """Predict images of one size, and pass them on to be encoded."""
        del self._waiting[pictures[0].image.shape]
        for picture, found in zip(pictures, self._predict(pictures), strict=True):
            if isinstance(found, Prediction):
                self._encoding.append((picture, writers.submit(
                    self.output.encode, picture.work.stem, picture.image, found, picture.work.label,
                    picture.work.item)))
            else:
                self._held -= picture.pixels
                yield Outcome(picture.work, failed=found)

    def _predict(self, pictures: list[_Picture]) -> list[Prediction | BaseException]:
        """A batch; one by one if it fails, to find what is at fault."""
        try:
            found = self.runtime([picture.image for picture in pictures])
            self._faults = 0
            return found
        except (DptError, MemoryError) as error:
            if len(pictures) > 1:
                return [one for picture in pictures for one in self._predict([picture])]
            if isinstance(error, BackendError):
                self._faults += 1
                if self._faults >= MOST_FAULTS:
                    raise
            return [error]

    def _written(self, wait: bool = False) -> Iterator[Outcome]:
        """Those that are encoded; at least one with `wait`, and as many as it takes to keep to the bound."""
        while self._encoding and (wait or self._encoding[0][1].done() or self._held >= self.most_pixels):
            picture, future = self._encoding.popleft()
            wait = False
            error, files = future.exception(), []
            if error is None:
                try:
                    work = picture.work
                    done = Done(work.key, work.stem, picture.image.shape[:2], future.result(), picture.note)
                    files = self.output.add(done)
                except BadInput as found:
                    error = found
            if error is not None and ends_run(error):
                raise error
            self._held -= picture.pixels
            yield Outcome(picture.work, None if error else picture.image.shape[:2], files, error, picture.note)


_OF_ONE_FILE = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTEMPTY, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ,
                errno.EINVAL}


def ends_run(error: BaseException) -> bool:
    """Whether a failed write concerns all images, such as a full disk, and not one file, such as a name too long."""
    cause = error.__cause__
    return isinstance(error, BadInput) and cause is not None and getattr(cause, "errno", None) not in _OF_ONE_FILE
