"""Runtime: images in, maps out. Picks the backend and the artefact, and says why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from .. import backends
from ..backends import Session, SessionOptions
from ..backends.session import host_array
from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, BadInput, ContractError, MissingPackage
from ..core.manifest import Artifact, Precision
from .image import check_frames, postprocess, preprocess, read_image
from .stream import QUEUE, in_order

Backend = str
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
BATCH = 8  # frames per call if the backend sets no limit: more costs memory and saves no time


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one image shows, at the image's own size. A map whose head the bundle lacks is None."""

    depth: np.ndarray | None = None
    """float32 (H, W), z-depth [m]."""
    normals: np.ndarray | None = None
    """float32 (H, W, 3), unit vectors in camera space: x right, y up, z towards the viewer."""
    alpha: np.ndarray | None = None
    """float32 (H, W), foreground coverage in [0, 1]."""

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps that are there, by head."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value is not None}


class Runtime:
    """A loaded bundle; `load` makes one. A context manager. Thread-safe."""

    def __init__(self, bundle: Bundle, artifact: Artifact, session: Session, reason: str) -> None:
        self.bundle = bundle
        self.artifact = artifact
        """The file that runs, as the manifest describes it."""
        self.session = session
        """For arrays on a GPU, chosen outputs and streams."""
        self.reason = reason
        """Which backend was chosen, and why each one preferred to it was not."""

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self.session.backend

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """The maps of one image, or of several.

        `images`: uint8 (H, W, 3) RGB, or a path, gives a `Prediction`; uint8 (N, H, W, 3), or a list of
        arrays and paths, gives a list in the same order. Arrays are NumPy, PIL images, or host arrays
        that speak DLPack. Images of one size run as a batch. Raises `BadInput` for what is no such
        image, `ContractError` for a size outside the engine's profile.
        """
        if isinstance(images, list | tuple):
            return self._predict([_frame(image, f"images[{i}]") for i, image in enumerate(images)])
        frames = _frame(images, "image", batch=True)
        return self._predict([frames])[0] if frames.ndim == 3 else self._predict(frames)

    def stream(self, frames: Iterable[Any], queue: int = QUEUE) -> Iterator[Prediction]:
        """The maps of one image after another, in order, while the next ones are being read and computed.

        `frames`: uint8 (H, W, 3) RGB arrays or paths, of any sizes; it is iterated in a thread of its own.
        At most `queue` images are read ahead of the one that the caller holds, so that memory stays
        bounded however slow the caller is. What `frames` or an image raises is raised here, at its
        place. Leaving the loop early stops the reading.
        """
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 1:
            raise BadInput(f"queue: expected a number from 1, received {queue!r}.")
        return in_order(self._one, frames, queue, self.session.concurrency)

    def _one(self, image: Any) -> Prediction:
        return self._predict([_frame(image, "frame")])[0]

    def _predict(self, frames: Sequence[np.ndarray]) -> list[Prediction]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, frame in enumerate(frames):
            groups.setdefault(frame.shape, []).append(i)
        predictions: list[Prediction | None] = [None] * len(frames)
        for shape, indices in groups.items():
            size = self.session.largest_batch(shape[:2]) or BATCH
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                # Neither one image nor an array of several needs a copy to become a batch.
                if isinstance(frames, np.ndarray):
                    batch = frames[start : start + size]
                else:
                    batch = frames[chosen[0]][None] if len(chosen) == 1 else np.stack([frames[i] for i in chosen])
                maps = self._run(batch)
                for position, i in enumerate(chosen):
                    predictions[i] = Prediction(**{name: value[position] for name, value in maps.items()})
        return predictions

    def _run(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Maps by head for uint8 frames (N, H, W, 3) of one size."""
        if self.artifact.graph == "frame":
            return self.session.run({"frame": frames})
        contract = self.bundle.contract
        return postprocess(self.session.run({"image": preprocess(frames, contract)}), contract, frames.shape[1:3])

    def close(self) -> None:
        """Release the backend; the runtime cannot be used afterwards."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Runtime({self.bundle.name}: {self.reason})"


def load(
    bundle: Path | str, backend: str | None = None, graph: Graph = "frame", precision: Precision | None = None,
    threads: int | None = None,
) -> Runtime:
    """Load a bundle's folder on the best backend that runs here; `Runtime.reason` says which one, and why.

    The order of preference is that of the registry: TensorRT, TensorRT-RTX, ONNX Runtime with CUDA, OpenVINO, ONNX
    Runtime on the CPU; FP16 before FP32 on a GPU. On the CPU, ONNX Runtime computes in FP32 whatever the graph, and
    OpenVINO takes FP16 only if the processor has FP16 units and the bundle's parity report passed that graph on it.

    Args:
        bundle: The folder that an export wrote.
        backend: A name of `dpt_deploy.backends.names()`; no other is tried.
        graph: "frame" takes frames of any size; "model" takes the network's input, and the runtime resizes.
        precision: "fp16", "bf16" or "fp32"; no other is tried. OpenVINO computes the FP32 graph in BF16 units if
            BF16 is asked for and the bundle has no BF16 graph.
        threads: CPU threads per operator; None leaves it to the backend.

    Raises:
        BadInput: An unknown name.
        BackendError: Nothing (or not what was asked for) can run here.
        BadBundle, ContractError: The bundle was changed.
    """
    _check_name("graph", graph, ("frame", "model"))
    if precision is not None:
        _check_name("precision", precision, PRECISIONS)
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BadInput(f"threads: expected a number from 1, received {threads!r}.")
    tried = [backends.get(backend)] if backend is not None else [b for b in backends.registered() if b.automatic]
    opened = Bundle.open(bundle)
    options = SessionOptions(threads, precision)
    refusals: dict[tuple[str, str], None] = {}
    for candidate in tried:
        artifacts = candidate.candidates(opened, graph, precision)
        if not artifacts:
            nothing = candidate.no_candidate(opened, graph, precision)
            # How to make an artefact is of use only if the backend could run here, or was asked for.
            useful = backend is not None or candidate.unavailable() is None
            refusals[candidate.name, str(nothing) if useful else nothing.message] = None
        # Asked before an engine of hundreds of megabytes is read; a backend asked for by name says it itself.
        refusal = candidate.unavailable() if artifacts and backend is None else None
        if refusal is not None:
            refusals[candidate.name, str(refusal).removeprefix(f"{candidate.name}: ")] = None
            continue
        for artifact in artifacts:
            try:
                session = candidate.open(opened, artifact, options)
            except (BackendError, MissingPackage) as error:
                refusals[candidate.name, str(error).removeprefix(f"{candidate.name}: ")] = None
                continue
            return Runtime(opened, artifact, session, _reason(session, artifact, backend, list(refusals)))
    lines = [f"{name}: {message}" for name, message in refusals]
    if backend:
        raise BackendError(" ".join(lines))
    raise BackendError(f"{opened.folder}: no backend can run here.\n" + "\n".join(f"  {line}" for line in lines))


def _reason(session: Session, artifact: Artifact, asked: str | None, refusals: list[tuple[str, str]]) -> str:
    note = f" {session.note}" if session.note else ""
    taken = f"{session.backend} runs {artifact.file}{note}" + (", as asked for" if asked else "")
    others = "; ".join(f"not {candidate}: {refusal.rstrip('.')}" for candidate, refusal in refusals)
    return f"{taken}; {others}." if others else f"{taken}."


def _check_name(what: str, value: Any, names: Sequence[str]) -> None:
    if value not in names:
        raise BadInput(f"{what}: expected one of {', '.join(names)}, received {value!r}.")


def _frame(image: Any, name: str, batch: bool = False) -> np.ndarray:
    """A path or array as a contiguous uint8 frame (H, W, 3), or (N, H, W, 3) where `batch` allows it."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if image is None:
        raise BadInput(f"{name}: expected an image, received None. cv2.imread returns None for what it cannot read.")
    if not hasattr(image, "dtype") and hasattr(image, "__array_interface__"):  # PIL
        image = np.asarray(image)
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise BadInput(f"{name}: expected an array or a path, received a {type(image).__name__}. Convert it with "
                       "np.asarray(image).")
    check_frames(image, name)
    if len(image.shape) == 4 and not batch:
        raise BadInput(f"{name}: expected (H, W, 3) in a list, received {tuple(image.shape)}. Pass a batch by itself.")
    try:
        return host_array(image, name)
    except ContractError as error:
        raise BadInput(f"{error} Or pass it to Runtime.session.run, which takes device arrays on a GPU.") from error
