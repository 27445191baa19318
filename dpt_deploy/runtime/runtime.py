"""Runtime: images in, maps out. Picks the backend and the artefact, and says why."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from ..backends import cuda, device
from ..backends.session import Session, host_array
from ..core.bundle import Artifact, Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, BadInput, ContractError, MissingPackage
from .image import check_frames, postprocess, preprocess, read_image
from .stream import QUEUE, in_order

Backend = Literal["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime-cpu"]
BACKENDS: tuple[Backend, ...] = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime-cpu")
"""All backends, the one preferred first."""
Precision = Literal["fp16", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "fp32")
BATCH = 8  # frames per call where the backend sets no limit: more costs memory and wins no time


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
    """A loaded bundle; `load` makes one. A context manager; calls from many threads are right."""

    def __init__(self, bundle: Bundle, artifact: Artifact, session: Session, reason: str) -> None:
        self.bundle = bundle
        self.artifact = artifact
        """The file that runs, as the manifest describes it."""
        self.session = session
        """For arrays on a GPU, chosen outputs and streams."""
        self.reason = reason
        """Which backend was taken, and why each one preferred to it was not."""

    @property
    def backend(self) -> str:
        """The backend that runs, one of `BACKENDS`."""
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
        return in_order(self._one, frames, queue, self.session.lanes)

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
    bundle: Path | str, backend: Backend | None = None, graph: Graph = "frame",
    precision: Precision | None = None, threads: int | None = None,
) -> Runtime:
    """Load a bundle's folder on the best backend that runs here.

    The order is TensorRT engine, TensorRT-RTX engine, ONNX Runtime with CUDA, OpenVINO, ONNX Runtime on
    the CPU; FP16 before FP32 on a GPU. On the CPU, ONNX Runtime computes in FP32 whatever the graph,
    and OpenVINO takes FP16 only where the processor has FP16 units and the bundle's own parity report
    found that graph within budget in them. `Runtime.reason` says what was taken. `backend`, `precision`
    (fp32, fp16, bf16) and `graph` (frame, model) make their choice strict; with OpenVINO, bf16 computes
    the FP32 graph in BF16 units where the bundle has no BF16 graph. `threads`: CPU threads per operator,
    None for the backend's own choice.

    Raises `BadInput` for an unknown name, `BackendError` where nothing (or not what was asked for) can
    run, `BadBundle` and `ContractError` for a bundle that was changed.
    """
    _known("backend", backend, BACKENDS)
    _known("graph", graph, ("frame", "model"), required=True)
    _known("precision", precision, PRECISIONS)
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BadInput(f"threads: expected a number from 1, received {threads!r}.")
    opened = Bundle.open(bundle)
    refusals: list[tuple[str, str]] = []
    for candidate in (backend,) if backend else BACKENDS:
        artifacts = _artifacts(opened, candidate, graph, precision)
        if not artifacts:
            nothing = _nothing_for(opened, candidate, graph, precision)
            if backend is None and candidate.startswith("tensorrt") and device.compute_capability() is None:
                nothing = nothing.partition(";")[0]  # how to build an engine is of use where it could run
            refusals.append((candidate, nothing))
        for artifact in artifacts:
            try:
                if backend is None:
                    _check_gpu(candidate)
                session = open_session(opened, artifact, candidate, threads, precision)
            except (BackendError, MissingPackage) as error:
                refusal = (candidate, str(error).removeprefix(f"{candidate}: "))
                refusals += [refusal] if refusal not in refusals else []
                continue
            return Runtime(opened, artifact, session, _reason(session, artifact, backend, refusals))
    lines = [f"{candidate}: {refusal}" for candidate, refusal in refusals]
    if backend:
        raise BackendError(" ".join(lines))
    raise BackendError(f"{opened.folder}: no backend can run here.\n" + "\n".join(f"  {line}" for line in lines))


def open_session(
    bundle: Bundle, artifact: Artifact, backend: Backend, threads: int | None = None,
    computes: Precision | None = None,
) -> Session:
    """A session on one artefact of a bundle; the errors are those of the backend's session.

    `computes` is the arithmetic for OpenVINO, the graph's own precision when None; no other backend
    can compute a graph in another type than it was written in.
    """
    if backend == "openvino":
        from ..backends.openvino import OpenVINOSession

        return OpenVINOSession(bundle, artifact, computes, threads)
    if backend in ("tensorrt", "tensorrt-rtx"):
        from ..backends.tensorrt import TensorRTSession

        return TensorRTSession(bundle, artifact)
    from ..backends.onnxruntime import OnnxRuntimeSession

    return OnnxRuntimeSession(bundle, artifact, backend.removeprefix("onnxruntime-"), threads)


def _artifacts(bundle: Bundle, backend: Backend, graph: Graph, precision: str | None) -> list[Artifact]:
    """What `backend` could run, the one preferred first."""
    if backend.startswith("tensorrt"):
        found = bundle.find("engine", graph=graph, builder=backend)
    else:
        found = bundle.find("onnx", graph=graph)
    if backend == "openvino":
        return _for_openvino(bundle, found, precision)
    order = ("fp32", "fp16", "bf16") if backend == "onnxruntime-cpu" else PRECISIONS
    found = [artifact for artifact in found if artifact.precision in ((precision,) if precision else order)]
    return sorted(found, key=lambda artifact: order.index(artifact.precision))


def _for_openvino(bundle: Bundle, found: list[Artifact], precision: str | None) -> list[Artifact]:
    """Its graphs for `precision`, which names the arithmetic; without one, FP32, and before it what parity passed."""
    by_precision = {artifact.precision: artifact for artifact in found}
    if precision == "bf16":
        order = ["bf16"] if "bf16" in by_precision else ["fp32"]
    elif precision:
        order = [precision]
    else:
        half = by_precision.get("fp16")
        order = ["fp16", "fp32"] if half and _passed(bundle, f"OpenVINO {half.graph} fp16", half) else ["fp32"]
    return [by_precision[name] for name in order if name in by_precision]


def _passed(bundle: Bundle, stage: str, artifact: Artifact) -> bool:
    """Whether the bundle's parity report has `stage`, passed with this very file."""
    try:
        stages = json.loads((bundle.folder / "parity.json").read_text(encoding="utf-8"))["stages"]
        return any((one["name"], one["status"], one["sha256"]) == (stage, "passed", artifact.sha256) for one in stages)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_gpu(backend: Backend) -> None:
    """Raise what keeps an engine from running before its library and file, hundreds of megabytes, are read."""
    if backend.startswith("tensorrt"):
        cuda.cudart()
        if device.compute_capability() is None:
            raise BackendError("no GPU is visible here")


def _nothing_for(bundle: Bundle, backend: Backend, graph: Graph, precision: str | None) -> str:
    wanted = f"{graph} graph" + (f" in {precision}" if precision else "")
    if backend.startswith("tensorrt"):
        return (f"the bundle has no such engine of the {wanted}; to build one, on the GPU that will run it: "
                f"python -m dpt_deploy.build {bundle.folder} --builder {backend}")
    have = ", ".join(artifact.file for artifact in bundle.find("onnx")) or "no ONNX graph at all"
    return f"the bundle has no ONNX file of the {wanted}, it has {have}"


def _reason(session: Session, artifact: Artifact, asked: Backend | None, refusals: list[tuple[str, str]]) -> str:
    note = f" {session.note}" if session.note else ""
    taken = f"{session.backend} runs {artifact.file}{note}" + (", as asked for" if asked else "")
    others = "; ".join(f"not {candidate}: {refusal.rstrip('.')}" for candidate, refusal in refusals)
    return f"{taken}; {others}." if others else f"{taken}."


def _known(what: str, value: Any, known: Sequence[str], required: bool = False) -> None:
    if (value is not None or required) and value not in known:
        raise BadInput(f"{what}: expected one of {', '.join(known)}, received {value!r}.")


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
