"""Optical flow between two frames, and where it can be trusted.

DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) in both directions; a pixel is trusted
where the two agree (the bound of Sundaram et al., ECCV 2010) and where the frames look alike along the motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LONGEST = 512  # pixels; larger frames are reduced, because the flow of the maps need not be finer
LARGE = 192  # pixels, of the shorter side, from which on DIS gets large patches; OpenCV 5.0 crashes with them at 16
BLUR = 1.0  # pixels, of large frames, because noise is no motion
SMALLEST = 16  # pixels, of a side; smaller frames are enlarged, because DIS needs that
TYPICAL = 40.0  # standard deviation that pictures are brought to, so that a change of exposure is no motion
DARK = 4.0  # grey levels; below this deviation, a picture is noise and is not amplified further
HIDDEN = 2.5  # pixels between the way there and the way back, from which on a point is taken for hidden
LOOK = 24.0  # of those grey levels: a difference along the motion at which a pixel is another one


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the pixels of a frame were in another one."""

    motion: np.ndarray
    """float32 (H, W, 2), x and y [pixels]: from a pixel to its place in the other frame."""
    trust: np.ndarray
    """float32 (H, W) in [0, 1]: 0 where the pixel is hidden or out of sight in the other frame, or not found."""
    seen: np.ndarray
    """float32 (H, W) in [0, 1]: 0 only where it is clearly hidden or out of sight. At edges, where the flow is never
    sure and maps change most, it is higher than `trust`."""


class Tracker:
    """Finds the flow between frames, which are prepared once each."""

    def __init__(self) -> None:
        self._small = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # At 384x384, larger patches and a smoother flow than those of DIS's presets err by 0.39 pixels on the generated
        # clips instead of 0.56, and are trusted in 98 instead of 87 % of the foreground.
        self._large = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self._large.setPatchSize(16)
        self._large.setPatchStride(6)
        self._large.setVariationalRefinementAlpha(40)
        self._large.setVariationalRefinementIterations(10)

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """A frame as the flow takes it: uint8, grey, of bounded size and of a standard exposure.

        Args:
            frame: uint8 (H, W, 3) RGB.
        """
        h, w = frame.shape[:2]
        scale = max(min(1.0, LONGEST / max(h, w)), SMALLEST / min(h, w))
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if scale != 1:
            size = (max(SMALLEST, round(w * scale)), max(SMALLEST, round(h * scale)))
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
        gain = TYPICAL / max(deviation, DARK)
        grey = cv2.convertScaleAbs(np.clip(grey * np.float32(gain) + np.float32(128 - mean * gain), 0, 255))
        return cv2.GaussianBlur(grey, (0, 0), BLUR) if min(grey.shape) >= LARGE else grey

    def flow(self, frame: np.ndarray, other: np.ndarray, size: tuple[int, int]) -> Flow:
        """The flow from a prepared frame to another one of the same shape, for maps of `size` (H, W)."""
        search = self._large if min(frame.shape) >= LARGE else self._small
        motion, back = search.calc(frame, other, None), search.calc(other, frame, None)
        miss = motion + warp(back, motion)
        distance, within = np.sqrt((miss**2).sum(axis=-1)), inside(motion)
        bound = 0.01 * ((motion**2).sum(axis=-1) + (back**2).sum(axis=-1)) + 0.5
        agree = np.clip(1.5 - distance**2 / bound, 0, 1)
        unlike = cv2.blur(abs(frame - warp(other.astype(np.float32), motion)), (3, 3))
        trust = agree * np.clip(1.5 - unlike / LOOK, 0, 1) * within
        seen = np.clip(1 + HIDDEN - distance, 0, 1) * within
        if frame.shape != size:
            factors = np.float32((size[1] / frame.shape[1], size[0] / frame.shape[0]))
            motion = cv2.resize(motion, size[::-1], interpolation=cv2.INTER_LINEAR) * factors
            trust, seen = (cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR) for one in (trust, seen))
        return Flow(motion, trust.astype(np.float32), seen.astype(np.float32))


def warp(picture: np.ndarray, motion: np.ndarray, sharp: bool = False) -> np.ndarray:
    """What another frame's picture shows at the pixels that `motion` leads to.

    Args:
        picture: float32 (H, W) or (H, W, C).
        motion: float32 (H, W, 2), x and y [pixels].
        sharp: Interpolate with cubics, which blur less when a picture is warped again and again, and overshoot; the
            result stays within the range of `picture`. Beyond the border, the border's pixels continue.

    Returns:
        float32, the shape of `picture`; without `sharp` 0 outside of it.
    """
    h, w = motion.shape[:2]
    x = motion[..., 0] + np.arange(w, dtype=np.float32)
    y = motion[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    if not sharp:
        return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    warped = cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(warped, np.fmin.reduce(picture, axis=None), np.fmax.reduce(picture, axis=None))  # NaN bounds nothing


def inside(motion: np.ndarray) -> np.ndarray:
    """Whether `motion` (H, W, 2) leads to a pixel of the picture, bool (H, W)."""
    h, w = motion.shape[:2]
    x, y = motion[..., 0] + np.arange(w), motion[..., 1] + np.arange(h)[:, None]
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
