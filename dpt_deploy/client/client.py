"""The client: images to predictions, as the local runtime gives them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from ..core.compact import Form
from ..core.contract import HEADS
from ..core.errors import BackendError, BadInput
from ..core.image_files import MAX_PIXELS
from ..runtime import Prediction
from ..runtime.image import as_frame
from .served_model import ServedModel
from .shared_memory import SharedMemory
from .transport import Transport, check_map

TIMEOUT = 60.0


class Client:
    """A model of a Triton server. Usable as a context manager. Thread-safe."""

    def __init__(
        self, address: str, model: str | None = None, forms: Mapping[str, str] | str | None = None,
        shared_memory: bool = False, timeout: float = TIMEOUT, max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Connect, and ask the server about the model.

        Args:
            address: HOST:PORT or grpc://HOST:PORT for gRPC, http://HOST:PORT for HTTP, grpcs:// and https:// with TLS.
            model: The model's name. Default: the only one of the server that `dpt triton` wrote.
            forms: By head, the form in which maps travel, such as {"depth": "uint16-mm"}; "smallest" takes the smallest
                ones that the server gives. Default: float32. Maps are decoded to float32 in any case.
            shared_memory: Pass frames and maps in system shared memory, which server and client on one machine share.
            timeout: Longest time for an answer [s].
            max_pixels: Refuse files and PIL images with more pixels.

        Raises:
            BadInput: An argument is not usable, or the model is not one of `dpt triton`.
            BackendError: The server does not answer, or has no such model.
            MissingPackage: tritonclient is not installed.
        """
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e6:
            raise BadInput(f"timeout: expected seconds above 0, received {timeout!r}.")
        self._transport = Transport(address, float(timeout))
        self._max_pixels = max_pixels
        self._memory: SharedMemory | None = None
        self.closed = False
        try:
            self.model = self._find(model)
            """What the server says about the model."""
            self.forms: dict[str, Form] = self.model.chosen(forms)
            """By head, the form in which maps travel."""
        except BaseException:
            self._transport.close()
            raise
        if shared_memory:
            self._memory = SharedMemory(self._transport)
            weakref.finalize(self, self._memory.close)  # regions of the system outlive a process

    def _find(self, name: str | None) -> ServedModel:
        if name is not None:
            return ServedModel.of(self._transport.config(name))
        found, names = [], self._transport.models()
        for one in names:
            try:
                found.append(ServedModel.of(self._transport.config(one)))
            except BadInput:
                continue
        if len(found) != 1:
            received = ", ".join(one.name for one in found) or f"none among {', '.join(names) or 'no model'}"
            raise BadInput(f"{self.address}: expected one model that dpt triton wrote, received {received}. Name it: "
                           "model=NAME.")
        return found[0]

    @property
    def address(self) -> str:
        """The server's address."""
        return self._transport.address

    def ready(self) -> bool:
        """Whether the server takes requests for the model now. False if it does not answer."""
        return self._transport.ready(self.model.name)

    def __call__(self, images: Any, heads: Sequence[str] | None = None) -> Prediction | list[Prediction]:
        """Predict the maps of one or more images. Images of equal size travel as a batch.

        Args:
            images: As for `Runtime`: uint8 (H, W, 3) RGB, a path, a PIL image; or several, as uint8 (N, H, W, 3) or a
                list.
            heads: The maps to request. Default: all. The others are None, and are not sent.

        Returns:
            A `Prediction` for one image, or a list in the same order.

        Raises:
            BadInput: An image or a head is not usable, or the server refused the request.
            BackendError: The server did not answer, or failed.
        """
        wanted = self._heads(heads)
        if isinstance(images, list | tuple):
            frames = [as_frame(image, f"images[{i}]", self._max_pixels) for i, image in enumerate(images)]
            return self._predict(frames, wanted)
        frame = as_frame(images, "image", self._max_pixels, batch=True)
        return self._predict([frame], wanted)[0] if frame.ndim == 3 else self._predict(list(frame), wanted)

    def run(self, frames: np.ndarray, heads: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """One request: float32 maps by head, with a batch axis, for uint8 frames (N, H, W, 3) RGB."""
        if self.closed:
            raise BackendError("this client is closed. Make a new one.", backend="triton")
        forms = [self.forms[head] for head in self._heads(heads)]
        pixels = int(np.prod(frames.shape[:3]))
        if pixels > self.model.max_pixels:
            raise BadInput(f"frame: model {self.model.name} takes at most {self.model.max_pixels} pixels in a request, "
                           f"received {'x'.join(map(str, frames.shape[:3]))}. Scale the image down, or write the model "
                           "again with a larger --max-pixels.")
        answers = (self._memory or self._transport).infer(self.model.name, np.ascontiguousarray(frames), forms)
        return {form.head: check_map(form, answers[form.head], frames.shape, self.address) for form in forms}

    def _heads(self, heads: Sequence[str] | None) -> tuple[str, ...]:
        if heads is None:
            return self.model.heads
        if isinstance(heads, str) or not heads or any(head not in self.model.heads for head in heads):
            raise BadInput(f"heads: expected names among {', '.join(self.model.heads)}, received {heads!r:.100}.")
        return tuple(head for head in HEADS if head in heads)

    def _predict(self, frames: list[np.ndarray], heads: tuple[str, ...]) -> list[Prediction]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, frame in enumerate(frames):
            groups.setdefault(frame.shape, []).append(i)
        predictions: dict[int, Prediction] = {}
        for (height, width, _), indices in groups.items():
            size = max(1, min(self.model.max_batch, self.model.max_pixels // (height * width)))
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                maps = self.run(np.stack([frames[i] for i in chosen]), heads)
                for position, i in enumerate(chosen):
                    predictions[i] = Prediction(**{head: value[position] for head, value in maps.items()},
                                                canonical_focal=self.model.frame_focal((height, width)),
                                                depth_kind=self.model.depth_kind)
        return [predictions[i] for i in range(len(frames))]

    def close(self) -> None:
        """Close the connection, and give shared memory back. The client cannot be used afterwards."""
        self.closed = True
        if self._memory is not None:
            self._memory.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address}, {self.model.name})"
