"""Open the session of a stage, and run it on batches of any size."""

from __future__ import annotations

import numpy as np

from ..backends import Session, StageTask, device
from ..core.bundle import Bundle
from ..core.errors import BackendError, Cause
from ..core.manifest import ShapeRange
from .compare import Run
from .reference import Reference


def open_session(bundle: Bundle, task: StageTask, reference: Reference) -> Session:
    """Open the task's session after cheaper checks."""
    refusal = None
    images = reference.without_adversarial().cases
    if task.id.device == "gpu" and device.compute_capability() is None:
        refusal = BackendError(device.NO_GPU, Cause.NO_GPU)
    elif task.profile and not any(fits(case.input(task.id.graph).shape, task.profile) for case in images):
        refusal = BackendError("no image has a size within the engine's profile", Cause.OUTSIDE_PROFILE)
    if refusal is not None:
        bundle.path(task.artifact)  # a damaged file fails even if it cannot run here
        raise refusal
    return task.open()


def fits(shape: tuple[int, ...], profile: ShapeRange) -> bool:
    """Whether a profile accepts an input of this shape without the batch axis."""
    return all(a <= size <= b for a, size, b in zip(profile.min[1:], shape, profile.max[1:], strict=True))


def split_batches(session: Session, profile: ShapeRange | None) -> Run:
    """`session.run` for batches of any size: splits large batches and pads small ones."""
    (input_name,) = session.inputs
    smallest = profile.min[0] if profile else 1

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        largest = session.largest_batch(batch.shape[1:3]) or len(batch)
        pieces = []
        for start in range(0, len(batch), largest):
            piece = batch[start : start + largest]
            padded = np.concatenate([piece, *[piece[-1:]] * max(0, smallest - len(piece))])
            outputs = session.run({input_name: padded})
            pieces.append({key: value[: len(piece)] for key, value in outputs.items()} if smallest > 1 else outputs)
        if len(pieces) == 1:
            return pieces[0]
        return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}

    return run
