"""Garments, hair and hats: which parts of the body they cover, in rest space, and how far they stand off it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

TORSO, ARM, HAND, LEG, FOOT, HEAD, EYE, HAIR, HAT = range(9)
SKIN, TOP, BOTTOM, SHOE, STRANDS, CAP, EYEBALL = range(7)
"""What a pixel of a person is made of."""

_GROUPS = (("eye", EYE), ("head", HEAD), ("upperarm", ARM), ("lowerarm", ARM), ("wrist", HAND), ("finger", HAND),
           ("metacarpal", HAND), ("upperleg", LEG), ("lowerleg", LEG), ("foot", FOOT), ("toe", FOOT))

Extra = tuple[np.ndarray, np.ndarray, float, int]
"""A ball in rest space: centre (3,) and radii (3,) [m], roughness in [0, 1], group."""


def grouped(bones: list[str]) -> np.ndarray:
    """The group of each of Anny's bones, int64."""
    return np.array([next((group for start, group in _GROUPS if bone.startswith(start)), TORSO) for bone in bones])


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a mean of sine waves, about in [-1, 1]."""

    directions: np.ndarray
    """float64 (3, K) [rad/m]."""
    phases: np.ndarray
    """float64 (K,) [rad]."""

    @classmethod
    def draw(cls, rng: np.random.Generator, length: float, count: int = 5, stretch: tuple = (1, 1, 1)) -> Waves:
        """Waves of about this length [m], shorter by `stretch` along x, y and z."""
        directions = rng.normal(0, 2 * np.pi / length / 3**0.5, (3, count)) * np.array(stretch)[:, None]
        return cls(directions, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (N,) at points (N, 3)."""
        return np.sin(points @ self.directions + self.phases).sum(axis=1) / len(self.phases) ** 0.5


@dataclass(frozen=True)
class Look:
    """What a person wears; lengths and heights in rest space [m]."""

    sleeve: float
    """Distance from the middle of the body to the end of the sleeve: 0.17 is no sleeve, 0.45 the wrist."""
    waist: float
    hem: float
    """Height of the end of the trousers; the sole is at -0.87."""
    boot: float
    collar: float
    neckline: float
    """How far the collar comes down in front."""
    thickness: tuple[float, float, float]
    """How far top, trousers and shoes stand off the body."""
    smoothing: int
    """How little the garments follow the body."""
    wrinkles: float
    hair: float
    """How far the hair stands off the head; 0 is none."""
    hairline: float
    """How far the hair has receded."""
    hat: bool
    waves: tuple[Waves, ...]
    roughness: Waves
    extras: tuple[Extra, ...] = field(default=())

    def folds(self, rest: np.ndarray) -> np.ndarray:
        """Displacement (V,) of garments by their folds [m]."""
        return self.wrinkles * sum(wave(rest) for wave in self.waves)


def random_look(rng: np.random.Generator) -> Look:
    """A random person's garments and hair."""
    length = rng.choice(4, p=[0.12, 0.38, 0.38, 0.12])  # of the hair: none, short, long, up
    hat = rng.random() < 0.15
    full = rng.uniform(0.008, 0.03) if rng.random() < 0.85 else rng.uniform(0.03, 0.06)
    extras = []
    if length == 2:
        long = rng.uniform(0.06, 0.17)
        extras.append((np.array((0, 0.03, 0.68 - 0.85 * long)), np.array((0.085 + full / 2, 0.06, long)), 0.1, HAIR))
        for side in (-1, 1):
            if rng.random() < 0.8:
                centre = np.array((side * (0.07 + full / 2), -0.03, 0.66 - 0.8 * long))
                extras.append((centre, np.array((0.03, 0.045, long * rng.uniform(0.7, 1.0))), 0.15, HAIR))
    if length == 3:
        centre = np.array((0, rng.uniform(0.03, 0.08), rng.uniform(0.68, 0.78)))
        extras.append((centre, rng.uniform(0.035, 0.055, 3), 0.1, HAIR))
    if hat and rng.random() < 0.6:
        extras.append((np.array((0, -0.135, 0.725)), np.array((0.075, 0.07, 0.009)), 0.0, HAT))
    short, bare_legs, bulky = rng.random() < 0.4, rng.random() < 0.25, rng.random() < 0.3
    return Look(
        sleeve=rng.uniform(0.17, 0.33) if short else rng.uniform(0.40, 0.455),
        waist=rng.uniform(0.04, 0.16) if rng.random() < 0.8 else rng.uniform(-0.25, 0.04),
        hem=rng.uniform(-0.45, -0.15) if bare_legs else rng.uniform(-0.80, -0.70),
        boot=-0.78 if rng.random() < 0.7 else rng.uniform(-0.75, -0.5),
        collar=rng.uniform(0.50, 0.56) if rng.random() < 0.75 else rng.uniform(0.56, 0.62),
        neckline=rng.uniform(0, 0.03) if rng.random() < 0.7 else rng.uniform(0.03, 0.13),
        thickness=(rng.uniform(0.02, 0.05) if bulky else rng.uniform(0.006, 0.025), rng.uniform(0.006, 0.03),
                   rng.uniform(0.008, 0.02)),
        smoothing=int(rng.integers(4, 30)), wrinkles=rng.uniform(0.001, 0.006),
        hair=0.0 if length == 0 else full, hairline=rng.uniform(-0.015, 0.025), hat=hat,
        waves=(Waves.draw(rng, 0.25), Waves.draw(rng, 0.10, stretch=(0.6, 0.6, 1.2))),
        roughness=Waves.draw(rng, 0.06), extras=tuple(extras),
    )


def cloth(rest: np.ndarray, groups: np.ndarray, look: Look) -> np.ndarray:
    """SKIN, TOP, BOTTOM, SHOE, STRANDS, CAP or EYEBALL, for points (N, 3) in rest space and their groups (N,)."""
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    material = np.full(len(rest), SKIN)
    torso, arm, leg = groups == TORSO, groups == ARM, groups == LEG
    open_front = look.neckline * np.clip(1 - x / 0.09, 0, 1) * (y < -0.02)
    material[torso & (z < look.collar - open_front)] = TOP
    material[arm & (x < look.sleeve)] = TOP
    trousers = (torso & (z < look.waist)) | (leg & (z > look.hem))
    material[trousers & (z < look.waist)] = BOTTOM
    material[leg & (z > max(look.waist, look.hem))] = TOP
    material[(groups == FOOT) | (leg & (z < look.boot))] = SHOE
    material[(groups == HEAD) & (hairline(rest, look) > 0) & (look.hair > 0 or look.hat)] = CAP if look.hat else STRANDS
    material[groups == HAIR] = STRANDS
    material[groups == HAT] = CAP
    material[groups == EYE] = EYEBALL
    return material


def covered(rest: np.ndarray, groups: np.ndarray, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Whether vertices are under a garment (V,), and how far it stands off [m] (V,)."""
    material = cloth(rest, groups, look)
    heights = np.zeros(7)
    heights[[TOP, BOTTOM, SHOE]] = look.thickness
    return (material >= TOP) & (material <= SHOE), heights[material]


def hairline(rest: np.ndarray, look: Look) -> np.ndarray:
    """Distance (N,) above the line where the hair begins, from the nape to the forehead [m]."""
    line = 0.60 + 0.81 * (0.04 - rest[:, 1]) + look.hairline * (rest[:, 1] < -0.06)
    return rest[:, 2] - line + 0.006 * look.roughness(rest)


def hair_height(rest: np.ndarray, look: Look) -> np.ndarray:
    """How far hair or hat stands off the head (V,) [m]."""
    height = max(look.hair, 0.012) if look.hat else look.hair
    rise = np.clip(hairline(rest, look) / 0.03, 0, 1)
    return height * rise * (1 + (0.05 if look.hat else 0.25) * look.roughness(rest))
