"""Load a bundle on the best available backend and run it on images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import backends, hub
from ..backends import Backend, Session, SessionOptions
from ..core.bundle import MANIFEST, Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, BadInput, MissingPackage
from ..core.hub_address import is_address
from ..core.image_files import MAX_PIXELS
from ..core.manifest import EIGHT_BITS, Artifact, Assumption, Precision
from . import preference
from .image import as_frame, postprocess, preprocess
from .prediction import Prediction
from .stream import QUEUE, ordered_map

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32", "int8", "fp8")
BATCH = 8  # frames per call if the backend has no limit; larger batches are not faster


class Runtime:
    """A loaded bundle, returned by `load`. Usable as a context manager. Thread-safe."""

    def __init__(
        self, bundle: Bundle, artifact: Artifact, session: Session, reason: str, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.bundle = bundle
        self.artifact = artifact
        """The loaded graph or engine."""
        self.session = session
        """For device arrays, selected outputs and CUDA streams."""
        self.reason = reason
        """Which backend was selected, why the preferred ones were not, and whether the file was never judged."""
        self.max_pixels = max_pixels
        """Files and PIL images with more pixels are refused before they are decoded. Arrays have no limit."""

    @property
    def summary(self) -> str:
        """Which backend runs which file, in a few words; `reason` says why."""
        return f"{self.backend} runs {self.artifact.file}"

    @property
    def backend(self) -> str:
        """Name of the selected backend."""
        return self.session.backend

    @property
    def assumed(self) -> tuple[Assumption, ...]:
        """What the export assumed, such as depth_scale. The maps are right only if these values are."""
        return self.bundle.manifest.assumed

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """Predict the maps of one or more images. Images of equal size run as a batch.

        Args:
            images: An image, as uint8 (H, W, 3) RGB or a path; or several, as uint8 (N, H, W, 3) or a list of arrays
                and paths. Arrays can be NumPy arrays or host arrays with `__dlpack__`. PIL images of any mode are
                converted to RGB; they and files are turned upright by their EXIF.

        Returns:
            A `Prediction` for one image, or a list in the same order.

        Raises:
            BadInput: An array has another dtype or shape, or a file cannot be read.
            ContractError: A size is outside the engine's profile.
        """
        if isinstance(images, list | tuple):
            return self._predict([as_frame(image, f"images[{i}]", self.max_pixels) for i, image in enumerate(images)])
        frames = as_frame(images, "image", self.max_pixels, batch=True)
        return self._predict([frames])[0] if frames.ndim == 3 else self._predict(frames)

    def stream(self, frames: Iterable[Any], queue: int = QUEUE) -> Iterator[Prediction]:
        """Predict images in order while reading and computing the next ones in other threads.

        Args:
            frames: uint8 (H, W, 3) RGB arrays or paths, of any sizes. Iterated in a separate thread until the returned
                iterator is closed. Errors of `frames` and of images are raised in order.
            queue: How many images to read ahead at most, at least 1. Bounds the memory.
        """
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 1:
            raise BadInput(f"queue: expected a number from 1, received {queue!r}.")
        return ordered_map(self._one, frames, queue, self.session.concurrency)

    def _one(self, image: Any) -> Prediction:
        return self._predict([as_frame(image, "frame", self.max_pixels)])[0]

    def _predict(self, frames: Sequence[np.ndarray]) -> list[Prediction]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, frame in enumerate(frames):
            groups.setdefault(frame.shape, []).append(i)
        predictions: list[Prediction | None] = [None] * len(frames)
        contract = self.bundle.contract
        for shape, indices in groups.items():
            size = self.session.largest_batch(shape[:2]) or BATCH
            focal = contract.frame_focal(self.bundle.canonical_focal, shape[:2])
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                # A single image and an array of images become a batch without a copy.
                if isinstance(frames, np.ndarray):
                    batch = frames[start : start + size]
                else:
                    batch = frames[chosen[0]][None] if len(chosen) == 1 else np.stack([frames[i] for i in chosen])
                maps = self._run(batch)
                for position, i in enumerate(chosen):
                    predictions[i] = Prediction(**{name: value[position] for name, value in maps.items()},
                                                canonical_focal=focal, depth_kind=contract.depth)
        return predictions

    def _run(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Maps by head for uint8 frames (N, H, W, 3) of one size."""
        if self.artifact.graph == "frame":
            return self.session.run({"frame": frames})
        contract = self.bundle.contract
        return postprocess(self.session.run({"image": preprocess(frames, contract)}), contract, frames.shape[1:3])

    def close(self) -> None:
        """Release all resources. The runtime cannot be used afterwards."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Runtime({self.bundle.name}: {self.reason})"


def load(
    bundle: Path | str, backend: str | None = None, graph: Graph | None = None, precision: Precision | None = None,
    threads: int | None = None, max_pixels: int = MAX_PIXELS, measure: bool = True, compile_eagerly: bool = False,
    description: Path | str | None = None,
) -> Runtime:
    """Load a bundle, or a foreign ONNX model, on the best available backend. `Runtime.reason` explains the choice.

    It also says so if no parity verdict covers the file, for instance because the export was interrupted.

    The order of preference is TensorRT, TensorRT-RTX, ONNX Runtime with CUDA, OpenVINO, ONNX Runtime on the CPU. GPUs
    use FP16 before FP32. On the CPU, ONNX Runtime computes in FP32, and OpenVINO uses FP16 only if the processor
    supports it and the bundle's parity report passed the FP16 graph on OpenVINO.

    On the CPU, the first load without `backend` and `precision` opens all of these, times a few calls and keeps the
    fastest. The result is stored in the user's cache folder; later loads on the same processor use it.

    Args:
        bundle: The folder that an export wrote, or its address on the Hugging Face Hub, hf://OWNER/NAME or
            hf://OWNER/NAME@REVISION, which needs the extra hub. Or an ONNX file of another model, which gets a bundle
            in the user's cache folder. That needs the package onnx, and the bundle has neither engines nor a verdict:
            `dpt import` gives both.
        backend: Use only this backend, one of `dpt_deploy.backends.names()`.
        graph: "frame" resizes frames in the graph; "model" resizes them in NumPy. None takes the frame graph if the
            bundle has one.
        precision: Use only this precision: "fp16", "bf16", "fp32", "int8" or "fp8". Eight bits are used only if
            they are requested here. OpenVINO computes the FP32 graph in BF16 if the bundle has no BF16 graph.
        threads: CPU threads per operator. None uses the backend's default.
        max_pixels: Refuse files and PIL images with more pixels.
        measure: Let a measurement decide between CPU backends. False, or DPT_MEASURE=0 in the environment, keeps the
            order above.
        compile_eagerly: TensorRT-RTX compiles the kernels of a shape in its first call, which takes longer. False runs
            generic kernels until those of the shape have been compiled in the background.
        description: Of a foreign ONNX model: a YAML or JSON file that says what its inputs and outputs mean, or
            "david". Default: that in its metadata or in a file of the same name beside it; the two must not differ.

    Raises:
        BadInput: An option has an invalid value.
        BackendError: No backend, or not the requested one, can run the bundle on this machine.
        BadBundle, ContractError: The bundle is incomplete or was modified.
    """
    if graph is not None:
        _check_name("graph", graph, ("frame", "model"))
    if precision is not None:
        _check_name("precision", precision, PRECISIONS)
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BadInput(f"threads: expected a number from 1, received {threads!r}.")
    tried = [backends.get(backend)] if backend is not None else [b for b in backends.registered() if b.automatic]
    opened = open_bundle(bundle, description)
    graph = graph or ("frame" if any(one.graph == "frame" for one in opened.artifacts) else "model")
    options = SessionOptions(threads, precision, compile_eagerly)
    refusals: dict[tuple[str, str], None] = {}

    def refuse(candidate: Backend, message: str) -> None:
        refusals[candidate.name, message] = None

    def runtime(artifact: Artifact, session: Session, measured: str = "") -> Runtime:
        reason = _reason(session, artifact, backend, list(refusals), opened.unjudged(artifact), measured)
        return Runtime(opened, artifact, session, reason, max_pixels)

    measuring = backend is None and precision is None and preference.enabled(measure)
    for i, candidate in enumerate(tried):
        artifacts = _available(opened, candidate, graph, options, backend is not None, refuse)
        if measuring and artifacts and candidate.device == "cpu":
            measuring = False
            # Why later backends are unavailable is not told: they are not the preferred ones.
            later = [(b, _available(opened, b, graph, options, False, lambda *_: None)) for b in tried[i + 1:]]
            found = preference.contenders((b, a) for b, offered in [(candidate, artifacts), *later] for a in offered)
            choice = preference.choose(opened, graph, found, options, refuse) if len(found) > 1 else None
            if choice is not None:
                return runtime(choice.artifact, choice.session, str(choice.record or ""))
        for artifact in artifacts:
            try:
                session = candidate.open(opened, artifact, options)
            except (BackendError, MissingPackage) as error:
                refuse(candidate, error.message)
                continue
            return runtime(artifact, session)
    lines = [f"{name}: {message}" for name, message in refusals]
    if backend:
        raise BackendError(" ".join(lines))
    raise BackendError(f"{opened.folder}: no backend can run here.\n" + "\n".join(f"  {line}" for line in lines))


def open_bundle(bundle: Path | str, description: Path | str | None = None) -> Bundle:
    """The bundle at a path or an address of the hub, or one around the foreign ONNX file there."""
    path = hub.download(bundle) if is_address(bundle) else Path(bundle)
    foreign = path.suffix.lower() == ".onnx" and not os.path.isdir(path)
    if foreign and (path.parent / MANIFEST).is_file():  # a graph of a bundle is loaded with its bundle
        foreign = not Bundle.open(path.parent).find("onnx", file=path.name)
    if not foreign:
        if description is not None:
            raise BadInput(f"description: expected an ONNX file to describe, received the bundle {path}. Omit it.")
        return Bundle.open(path)
    from ..foreign.bundle import cached_bundle

    return Bundle.open(cached_bundle(path, description))


def _available(
    bundle: Bundle, candidate: Backend, graph: Graph, options: SessionOptions, requested: bool,
    refuse: Callable[[Backend, str], None],
) -> list[Artifact]:
    """What a backend can run here, in order of preference. If nothing, `refuse` is called with the reason."""
    artifacts = candidate.candidates(bundle, graph, options.precision)
    if options.precision is None:  # eight bits are never a default, whatever a backend offers
        artifacts = [artifact for artifact in artifacts if artifact.precision not in EIGHT_BITS]
    if not artifacts:
        missing = candidate.no_candidate(bundle, graph, options.precision)
        # Building an artefact helps only if the backend can run on this machine or was requested.
        useful = requested or candidate.unavailable() is None
        refuse(candidate, str(missing) if useful else missing.message)
    # Checked before reading a large engine. The session of a requested backend raises a more specific error.
    elif not requested and (refusal := candidate.unavailable()) is not None:
        refuse(candidate, str(refusal))
        return []
    return artifacts


def _reason(
    session: Session, artifact: Artifact, requested: str | None, refusals: list[tuple[str, str]], unjudged: str,
    measured: str,
) -> str:
    note = f" {session.note}" if session.note else ""
    chosen = f"{session.backend} runs {artifact.file}{note}" + (", as requested" if requested else "")
    parts = [chosen, measured, *(f"not {name}: {refusal.rstrip('.')}" for name, refusal in refusals)]
    sentence = "; ".join(filter(None, parts)) + "."
    return f"{sentence} Not judged: {unjudged}." if unjudged else sentence


def _check_name(what: str, value: Any, names: Sequence[str]) -> None:
    if value not in names:
        raise BadInput(f"{what}: expected one of {', '.join(names)}, received {value!r}.")
