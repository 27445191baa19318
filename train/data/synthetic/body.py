"""People made of ellipsoids, in random poses.

Body space: x to the viewer's right when the person faces the viewer, y up, z towards the viewer;
metres. The origin is the pelvis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SKIN, HAIR, TOP, BOTTOM, SHOE, WHITE, DARK, LIP = range(8)
Sway = Callable[[str], float]
"""What is added to the angle of a joint [degrees], by the joint's name in `JOINTS`."""
JOINTS = ("lean", "twist", "bend", "nod", "turn", "tilt",
          *(f"{joint} {side}" for side in ("left", "right") for joint in ("raise", "arm", "elbow", "leg", "knee")))


@dataclass(frozen=True)
class Body:
    """K ellipsoids: |diag(1/radii) axes^T (p - centre)| = 1."""

    centres: np.ndarray
    """float64 (K, 3) [m]."""
    axes: np.ndarray
    """float64 (K, 3, 3), rotations whose columns are the ellipsoids' axes."""
    radii: np.ndarray
    """float64 (K, 3) [m]."""
    materials: np.ndarray
    """int64 (K,), SKIN to LIP."""
    head: np.ndarray
    """float64 (3,): the head's centre [m]."""

    def moved(self, rotation: np.ndarray, about: np.ndarray, to: np.ndarray) -> Body:
        """The body rotated by (3, 3) about the point `about` (3,), which moves to `to` (3,) [m]."""
        return Body(
            (self.centres - about) @ rotation.T + to, rotation @ self.axes, self.radii, self.materials,
            rotation @ (self.head - about) + to,
        )


def rotation(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    """Rotation matrix Ry Rx Rz of angles [degrees]."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    turn_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return turn_y @ turn_x @ turn_z


class _Builder:
    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, np.ndarray, tuple[float, float, float], int]] = []

    def ellipsoid(self, centre, axes, radii, material) -> None:
        self.parts.append((np.asarray(centre, float), axes, radii, material))

    def limb(self, start: np.ndarray, end: np.ndarray, radius: float, material: int) -> None:
        """An ellipsoid that reaches a little beyond two joints."""
        along = end - start
        length = np.linalg.norm(along)
        y = along / length
        x = np.cross(y, (0.0, 0.0, 1.0) if abs(y[2]) < 0.9 else (1.0, 0.0, 0.0))
        x /= np.linalg.norm(x)
        axes = np.stack((x, y, np.cross(x, y)), axis=1)
        self.ellipsoid((start + end) / 2, axes, (radius, length / 2 + 0.7 * radius, radius), material)

    def build(self, scale: float, head: np.ndarray) -> Body:
        centres, axes, radii, materials = zip(*self.parts, strict=True)
        return Body(
            np.stack(centres) * scale, np.stack(axes), np.array(radii, float) * scale,
            np.array(materials), head * scale,
        )


def still(joint: str) -> float:
    """The sway of a body that does not move."""
    return 0.0


def random_body(rng: np.random.Generator, seated_share: float = 0.15, sway: Sway = still) -> Body:
    """A person of 1.5 to 1.95 m in a random pose, facing +z; seated with probability `seated_share`.

    Equal states of `rng` give the same person, with the same ellipsoids in the same order, whatever `sway` adds to the
    pose.
    """
    build = _Builder()
    girth = rng.uniform(0.85, 1.25)
    spine = rotation(rng.normal(4, 8) + sway("lean"), rng.normal(0, 12) + sway("twist"),
                     rng.normal(0, 5) + sway("bend"))
    neck = spine @ (0.0, 0.50, 0.0)
    _torso(build, spine, neck, girth)
    head = _head(build, rng, spine, neck, sway)
    sleeve = int(rng.choice([TOP, SKIN], p=[0.6, 0.4]))
    for side in (-1.0, 1.0):
        _arm(build, rng, spine, neck, side, girth, sleeve, sway)
    seated = rng.random() < seated_share
    shin = int(rng.choice([BOTTOM, SKIN], p=[0.75, 0.25]))
    for side in (-1.0, 1.0):
        _leg(build, rng, side, girth, shin, seated, sway)
    return build.build(rng.uniform(1.5, 1.95) / 1.75, head)


def _torso(build: _Builder, spine: np.ndarray, neck: np.ndarray, girth: float) -> None:
    level = np.eye(3)
    build.ellipsoid((0, 0, 0), level, (0.165 * girth, 0.13, 0.125 * girth), BOTTOM)
    build.ellipsoid(spine @ (0, 0.15, 0.01), spine, (0.145 * girth, 0.17, 0.11 * girth), TOP)
    build.ellipsoid(spine @ (0, 0.32, 0.005), spine, (0.175 * girth, 0.175, 0.118 * girth), TOP)
    for side in (-1, 1):
        build.limb(spine @ (side * 0.05, 0.45, -0.01), spine @ (side * 0.165, 0.43, -0.01), 0.062 * girth, TOP)
        build.ellipsoid(spine @ (side * 0.08, 0.335, 0.06 * girth), spine, (0.085, 0.075, 0.06), TOP)
    build.limb(neck - spine @ (0, 0.04, 0.01), neck + spine @ (0, 0.08, 0.015), 0.052, SKIN)


def _head(
    build: _Builder, rng: np.random.Generator, spine: np.ndarray, neck: np.ndarray, sway: Sway
) -> np.ndarray:
    axes = spine @ rotation(rng.normal(0, 9) + sway("nod"), rng.normal(0, 18) + sway("turn"),
                            rng.normal(0, 5) + sway("tilt"))
    centre = neck + spine @ (0, 0.06, 0.01) + axes @ (0, 0.12, 0.015)
    wide, tall = rng.uniform(0.93, 1.07, 2)

    def part(x: float, y: float, z: float, radii: tuple[float, float, float], material: int) -> None:
        build.ellipsoid(centre + axes @ (x * wide, y * tall, z), axes, radii, material)

    part(0, 0, 0, (0.075 * wide, 0.108 * tall, 0.092), SKIN)
    part(0, -0.062, 0.024, (0.054 * wide, 0.050, 0.060), SKIN)  # jaw
    part(0, -0.016, 0.090, (0.0135, 0.028, 0.020), SKIN)  # nose
    part(0, -0.058, 0.079, (0.024, 0.0085, 0.012), LIP)
    for side in (-1, 1):
        part(side * 0.031, 0.012, 0.0755, (0.0150, 0.0110, 0.0130), WHITE)
        part(side * 0.031, 0.012, 0.0830, (0.0072, 0.0072, 0.0070), DARK)  # iris
        part(side * 0.031, 0.036, 0.0800, (0.0210, 0.0050, 0.0090), HAIR)  # brow
        part(side * 0.078, -0.005, -0.005, (0.011, 0.028, 0.018), SKIN)  # ear
    style = rng.choice(4, p=[0.1, 0.45, 0.3, 0.15])
    if style > 0:  # all but bald
        full = rng.uniform(1.0, 1.15)
        part(0, 0.038, -0.026, (0.083 * wide * full, 0.092 * tall * full, 0.094 * full), HAIR)
    if style > 1:
        long = rng.uniform(0.10, 0.20)
        part(0, -0.02 - 0.35 * long, -0.055, (0.085 * wide, long, 0.055), HAIR)
    if style > 2:
        part(0, 0.125 * tall, -0.06, (0.045, 0.04, 0.045), HAIR)  # a bun
    return centre


def _arm(
    build: _Builder, rng: np.random.Generator, spine: np.ndarray, neck: np.ndarray, side: float, girth: float,
    sleeve: int, sway: Sway,
) -> None:
    name = _side(side)
    shoulder = neck + spine @ (side * 0.185, -0.065, -0.005)
    raised = rng.uniform(4, 35) if rng.random() < 0.7 else rng.uniform(35, 130)
    upper = spine @ rotation(-rng.uniform(-25, 55) + sway(f"arm {name}"), 0, side * (raised + sway(f"raise {name}")))
    elbow = shoulder + upper @ (0, -0.28, 0)
    lower = upper @ rotation(0, side * rng.uniform(-60, 40)) @ rotation(-rng.uniform(5, 110) + sway(f"elbow {name}"))
    wrist = elbow + lower @ (0, -0.25, 0)
    build.ellipsoid(shoulder, np.eye(3), (0.062 * girth,) * 3, TOP)
    build.limb(shoulder, elbow, 0.047 * girth, TOP)
    build.ellipsoid(elbow, np.eye(3), (0.040,) * 3, sleeve)
    build.limb(elbow, wrist, 0.037, sleeve)
    build.ellipsoid(wrist + lower @ (0, -0.075, 0), lower, (0.040, 0.085, 0.022), SKIN)


def _leg(
    build: _Builder, rng: np.random.Generator, side: float, girth: float, shin: int, seated: bool, sway: Sway
) -> None:
    name = _side(side)
    hip = np.array((side * 0.09 * girth, -0.05, 0.0))
    swing = rng.uniform(70, 95) if seated else rng.normal(5, 16)
    swing -= sway(f"leg {name}")
    upper = rotation(0, side * rng.uniform(0, 25)) @ rotation(-swing, 0, side * rng.uniform(0, 10))
    knee = hip + upper @ (0, -0.42, 0)
    lower = upper @ rotation((rng.uniform(60, 95) if seated else abs(rng.normal(0, 18))) + sway(f"knee {name}"))
    ankle = knee + lower @ (0, -0.40, 0)
    build.limb(hip, knee, 0.082 * girth, BOTTOM)
    build.ellipsoid(knee, np.eye(3), (0.060,) * 3, shin)
    build.limb(knee, ankle, 0.053, shin)
    build.ellipsoid(ankle + lower @ (0, -0.045, 0.055), lower, (0.042, 0.036, 0.115), SHOE)


def _side(side: float) -> str:
    return "left" if side < 0 else "right"
