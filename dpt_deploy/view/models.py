"""The one or two models behind the page, and the work that a request asks of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.contract import DEPTHS
from ..core.errors import BadInput, ContractError, DptError
from ..core.image_files import image_from_bytes
from ..core.image_header import header_of
from ..geometry import Intrinsics
from ..report.colours import colour_depth
from ..runtime import Prediction, Runtime
from .answer import Shown, pack, shrunk
from .downloads import DOWNLOADS, Choices, camera

Wanted = Callable[[], bool]
"""Says whether somebody still waits for an answer. Asked before a model computes."""

KEPT_BYTES = 1 << 30
"""Results of an image are kept for its downloads if they take no more."""


class Refused(Exception):
    """A request that cannot be served: an HTTP status, and one sentence for the person in front of the page."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Unwanted(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Result:
    """What one model made of an image, and how long it took."""

    key: tuple[str, int, tuple[int, int]]
    """SHA-256 of the file, number of the model, and size (H, W)."""
    prediction: Prediction
    milliseconds: float


class Models:
    """A runtime, and perhaps a second one to compare it with. Thread-safe: one request computes at a time."""

    def __init__(self, runtimes: Sequence[Runtime], max_pixels: int) -> None:
        self.runtimes, self.max_pixels = tuple(runtimes), max_pixels
        self.labels = labels(runtimes)
        self._lock = threading.Lock()
        self._kept: list[Result] = []

    def info(self) -> dict[str, object]:
        """What the page shows of the models, as plain JSON."""
        first = self.runtimes[0]
        return {
            "bundle": first.bundle.name, "assumed": [str(one) for one in first.assumed], "colours": _colours(),
            "models": [{"label": label, "summary": one.summary, "heads": one.bundle.contract.heads,
                        "depth": one.bundle.contract.depth}
                       for label, one in zip(self.labels, self.runtimes, strict=True)],
        }

    def look(
        self, data: bytes, compare: bool = False, live: bool = False, film: float | None = None,
        wanted: Wanted = lambda: True,
    ) -> bytes:
        """The maps of an image file for the page, by one model or both. Results of live pictures are not kept.

        `film` is the focal length [mm on 35 mm film]; see `downloads.camera`.

        Raises:
            Refused: The file is no image that can be read, or the models cannot run on it.
            Unwanted: `wanted` said no.
        """
        _check(wanted)
        image = self._image(data)
        small = shrunk(image)
        digest = "" if live else hashlib.sha256(data).hexdigest()
        with self._lock:
            numbers = range(len(self.runtimes) if compare else 1)
            results = [self._result(digest, number, small, wanted) for number in numbers]
        _check(wanted)
        lens = camera(data, small.shape[:2], film)
        shown = [Shown(label, _scaled(one.prediction, lens), one.milliseconds, one.prediction.canonical_focal > 0)
                 for label, one in zip(self.labels, results, strict=False)]
        return pack(small, shown, image.shape[:2], lens)

    def download(
        self, data: bytes, name: str, choices: Choices, number: int = 0, wanted: Wanted = lambda: True
    ) -> bytes:
        """The file `name` of `DOWNLOADS` for an image file, at the image's own size, by the model `number`.

        Raises as `look` does, and `Refused` for a file that the model cannot give.
        """
        _check(wanted)
        if name not in DOWNLOADS:
            raise Refused(404, f"There is no download {name}; there are {', '.join(DOWNLOADS)}.")
        if number not in range(len(self.runtimes)):
            raise Refused(404, "There is no second model: start the page with --compare or --compare-precision.")
        contract = self.runtimes[number].bundle.contract
        lacking = [head for head in DOWNLOADS[name].heads if head not in contract.heads]
        if lacking:
            raise Refused(404, f"This model predicts no {lacking[0]}, which {name} needs.")
        if DOWNLOADS[name].metres and contract.depth != "metric":
            raise Refused(404, f"This model predicts {DEPTHS[contract.depth]}, and {name} needs metres. "
                          "depth.exr and maps.exr hold such depth, and say so.")
        image = self._image(data)
        with self._lock:
            result = self._result(hashlib.sha256(data).hexdigest(), number, image, wanted)
        _check(wanted)
        lens = camera(data, image.shape[:2], choices.film)
        # As in `dpt predict`, depth is not rescaled by a guess: the file says for which focal length it is.
        prediction = result.prediction if lens.guessed else _scaled(result.prediction, lens)
        try:
            return DOWNLOADS[name].make(image, prediction, lens, choices)
        except BadInput as error:
            raise Refused(422, str(error)) from error

    def close(self, seconds: float = -1) -> bool:
        """Release the runtimes when no request computes any more.

        A computation cannot be interrupted. False if one still runs after `seconds`: nothing is released then. -1 waits
        as long as it takes.
        """
        if not self._lock.acquire(timeout=seconds):
            return False
        with contextlib.ExitStack() as closing:
            closing.callback(self._lock.release)
            for runtime in self.runtimes:
                closing.callback(runtime.close)
        return True

    def _image(self, data: bytes) -> np.ndarray:
        if not data:
            raise Refused(400, "The file is empty. Choose another image.")
        header = header_of(data)
        try:
            return image_from_bytes(data, "This file", self.max_pixels)
        except BadInput as error:
            if header.unusable:
                raise Refused(415, f"This is a {header.format} file: {header.unusable}.") from error
            if header.size and header.size[0] * header.size[1] > self.max_pixels:
                raise Refused(413, f"This image has {header.size[0] * header.size[1] / 1e6:.4g} megapixels, and the "
                              f"limit is {self.max_pixels / 1e6:g}. Scale it down and try again.") from error
            if header.format:
                raise Refused(400, f"This {header.format} file is damaged or incomplete. Save it again as PNG or JPEG, "
                              "or choose another image.") from error
            raise Refused(415, "This is not an image that can be read. Choose a PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF "
                          "or JPEG 2000 file.") from error
        except MemoryError as error:
            raise Refused(413, "This image does not fit into memory. Scale it down and try again.") from error

    def _result(self, digest: str, number: int, image: np.ndarray, wanted: Wanted) -> Result:
        key = (digest, number, image.shape[:2])
        for one in self._kept:
            if digest and one.key == key:
                return one
        _check(wanted)  # it may have waited for the lock, or for the other model
        start = time.perf_counter()
        try:
            prediction = self.runtimes[number](image)
        except ContractError as error:
            raise Refused(422, f"The model cannot run on an image of this size: {error}") from error
        except (DptError, MemoryError) as error:
            raise Refused(500, f"The model failed on this image: {error or 'out of memory'}") from error
        result = Result(key, prediction, (time.perf_counter() - start) * 1000)
        if digest:
            self._kept = [one for one in self._kept if one.key[0] == digest]
            if sum(map(_bytes, [*self._kept, result])) <= KEPT_BYTES:
                self._kept.append(result)
        return result


def _check(wanted: Wanted) -> None:
    if not wanted():
        raise Unwanted


def _scaled(prediction: Prediction, lens: Intrinsics) -> Prediction:
    """With depth in metres for this camera, or relative depth as it is."""
    return prediction.in_metres(lens) if prediction.depth_kind == "metric" else prediction


def _colours() -> str:
    """The colours of depth, far to near, 256 times RGB in base64."""
    ramp = colour_depth(np.linspace(1, 0, 256)[None], (0, 1))
    return base64.b64encode(ramp.tobytes()).decode()


def _bytes(result: Result) -> int:
    return sum(values.nbytes for values in result.prediction.maps.values())


def labels(runtimes: Sequence[Runtime]) -> list[str]:
    """A name for each model that tells them apart."""
    names = [one.bundle.name for one in runtimes]
    if len(set(names)) < len(names):
        names = [f"{one.bundle.name}, {one.artifact.precision}" for one in runtimes]
    if len(set(names)) < len(names):
        names = [f"{name} ({one.backend}, {i + 1})" for i, (name, one) in enumerate(zip(names, runtimes, strict=True))]
    return names
