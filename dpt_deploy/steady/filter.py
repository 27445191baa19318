"""Maps of a video that do not flicker: a running mean of what each surface point shows, along its motion."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from ..core.errors import BadInput
from ..runtime import Prediction
from .depth_scale import growth, scale_and_shift
from .flow import Flow, Tracker, warp
from .shots import is_cut

MEMORY = {"depth": 24, "normals": 24, "alpha": 32}
"""Most frames that a mean weighs equally; beyond them, older ones fade."""
HOLD = 8
"""The same for scale and shift of depth."""
REACH = 1 / 48
"""Width of the neighbourhood, as a share of the longer side, that must be all foreground or all background to bound the
mean of alpha. Without bounds, a mean that was warped by the background's motion stays behind a silhouette."""
SURE = 0.1
"""Alpha of that neighbourhood: below this it is background, above one minus this foreground."""
SLACK = 0.05
"""How far the mean of alpha may be beyond what such a neighbourhood shows."""
SURPRISE = {"depth": (0.06, 0.2), "normals": (0.4, 0.8), "alpha": (0.5, 1.0)}
"""Deviations from a mean, from which it is forgotten partly, and wholly: of depth as a share of the map's median, of
unit vectors, of alpha. A network's flicker is smaller, and another surface deviates more."""


class Steady:
    """Steadies the predictions of one video or camera, frame by frame, without delay.

    Each map is a running mean along the optical flow. It begins anew for points that come into sight, where the flow is
    not sure, where the prediction deviates from the mean by more than flicker, and in all the frame at a cut. Scale and
    shift of depth are held over a shot. Not thread-safe: frames are given in order.

        steady = Steady()
        for frame, prediction in zip(frames, runtime.stream(frames)):
            prediction = steady(frame, prediction)
    """

    delay = 0
    """Frames between a frame and its maps. None: later frames are not needed."""

    def __init__(self) -> None:
        self.shots = 0
        """Number of shots that began."""
        self._tracker = Tracker()
        self._before: np.ndarray | None = None
        self._maps: dict[str, np.ndarray] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._age = 0

    def __call__(self, frame: np.ndarray, prediction: Prediction) -> Prediction:
        """The steadied prediction of the next frame.

        Args:
            frame: uint8 (H, W, 3) RGB.
            prediction: Its maps. They are not changed.

        Returns:
            The maps of the same heads. Normals are of unit length, alpha is within [0, 1].

        Raises:
            BadInput: `frame` has another dtype or shape, or the maps have another size.
        """
        maps = _checked(frame, prediction)
        now, before = self._tracker.prepare(frame), self._before
        self._before = now
        known = before is not None and before.shape == now.shape and \
            {name: value.shape for name, value in self._maps.items()} == {n: v.shape for n, v in maps.items()}
        flow = self._tracker.flow(now, before, frame.shape[:2]) if known else None
        if flow is None or is_cut(flow.trust):
            return self._begin(prediction, maps)
        self._age += 1
        old = {name: warp(value, flow.motion, sharp=True) for name, value in self._maps.items()}
        counts = {name: warp(value, flow.motion) * (flow.seen if name == "alpha" else flow.trust)
                  for name, value in self._counts.items()}
        if "depth" in maps:
            old["depth"], maps["depth"] = self._held(old["depth"], maps, counts["depth"], flow)
        if "alpha" in maps:
            old["alpha"] = _near(old["alpha"], maps["alpha"])
        for name, value in maps.items():
            self._maps[name], self._counts[name] = _mean(name, value, old[name], counts[name])
        return dataclasses.replace(prediction, **{name: value.copy() for name, value in self._maps.items()})

    def reset(self) -> None:
        """Forget all frames, as at a cut."""
        self._before = None

    def _begin(self, prediction: Prediction, maps: dict[str, np.ndarray]) -> Prediction:
        self.shots, self._age = self.shots + 1, 1
        self._maps = {name: value.copy() for name, value in maps.items()}
        self._counts = {name: _finite(value).astype(np.float32) for name, value in maps.items()}
        return prediction

    def _held(
        self, old: np.ndarray, maps: dict[str, np.ndarray], count: np.ndarray, flow: Flow
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth of the frame before, as near as it is now, and depth of this frame with the scale of the shot."""
        depth = maps["depth"]
        weight = np.minimum(count, 1) * (_finite(depth) & _finite(old))
        if "alpha" in maps and (maps["alpha"] > 0.5).any():
            weight = weight * (maps["alpha"] > 0.5)
        old = old / np.float32(growth(flow, weight))
        scale, shift = scale_and_shift(np.nan_to_num(depth), np.nan_to_num(old), weight)
        held = 1 - 1 / min(self._age, HOLD)
        factor, offset = 1 + (scale - 1) * held, shift * held
        # The frame's depth goes to the mean's scale by the share `held`, and the mean goes the rest of the way to the
        # frame's. Without that it would follow an approach only after `MEMORY` frames.
        return _moved(old, factor / scale, offset - shift * factor / scale), _moved(depth, factor, offset)


def _moved(depth: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Depth with another scale and shift; what is positive stays so, where the shift suits the foreground alone."""
    moved = depth * np.float32(scale) + np.float32(shift)
    return np.where(depth > 0, np.maximum(moved, depth / 4), moved)


def _mean(name: str, value: np.ndarray, old: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The running mean with one more frame, and the frames (H, W) that it now weighs."""
    usable = _finite(old) & _finite(value)
    each = usable if value.ndim == 2 else usable[..., None]
    old, new = np.where(each, old, 0), np.where(each, value, 0)
    count = np.where(usable, count, 0) * (1 - _surprise(name, new, old))
    count = np.minimum(count, MEMORY[name] - 1)
    share = 1 / (1 + count)
    mean = np.where(each, old + (share if value.ndim == 2 else share[..., None]) * (new - old), value)
    if name == "normals":
        length = np.linalg.norm(mean, axis=-1, keepdims=True)
        mean = np.where(length > 1e-3, mean / np.maximum(length, 1e-3), value)
    elif name == "alpha":
        mean = np.clip(mean, 0, 1)
    return mean.astype(np.float32), (count + _finite(value)).astype(np.float32)


def _near(old: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A mean of alpha, bounded where the prediction is sure around a pixel. Both are (H, W)."""
    window = np.ones((2 * max(1, round(REACH * max(alpha.shape) / 2)) + 1,) * 2, np.uint8)
    least, most = cv2.erode(alpha, window), cv2.dilate(alpha, window)
    return np.clip(old, np.where(least > 1 - SURE, least - SLACK, 0), np.where(most < SURE, most + SLACK, 1))


def _surprise(name: str, value: np.ndarray, old: np.ndarray) -> np.ndarray:
    """How far a map deviates from its mean beyond flicker, (H, W): 0 for not at all, 1 for entirely."""
    difference = value - old
    deviation = np.sqrt((difference**2).sum(axis=-1)) if difference.ndim == 3 else abs(difference)
    if name == "depth":
        deviation = deviation / max(float(np.nanmedian(abs(value[::4, ::4]))), 1e-6)
    low, high = SURPRISE[name]
    return np.clip((deviation - low) / (high - low), 0, 1)


def _finite(value: np.ndarray) -> np.ndarray:
    """Where a map has a value, bool (H, W)."""
    return np.isfinite(value) if value.ndim == 2 else np.isfinite(value).all(axis=-1)


def _checked(frame: np.ndarray, prediction: Prediction) -> dict[str, np.ndarray]:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise BadInput(f"frame: expected uint8 (H, W, 3) RGB, received {what}.")
    maps = prediction.maps
    for name, value in maps.items():
        if value.shape[:2] != frame.shape[:2]:
            raise BadInput(f"{name}: expected a map of the frame's size {frame.shape[0]}x{frame.shape[1]}, received "
                           f"{value.shape[0]}x{value.shape[1]}. Pass the frame that was predicted.")
    return maps
