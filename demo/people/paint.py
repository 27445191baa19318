"""Colours, light and backgrounds of the generated people."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from train.data.synthetic.render import Camera, backdrop

from .body import Person
from .raster import Hits, rasterize
from .wardrobe import BOTTOM, CAP, EYEBALL, SHOE, SKIN, STRANDS, TOP, Look, Waves, cloth

PHOTOGRAPHS = ("coffee", "chelsea", "brick", "grass", "gravel", "rocket")
"""Of `skimage.data`, without people, and free to use."""


def skin(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Albedo (N, 3) of skin at points (N, 3) in rest space: cheeks, lips, brows, beard."""
    tone = rng.beta(0.9, 1.7)
    light, dark = np.array((0.62, 0.37, 0.27)), np.array((0.09, 0.042, 0.026))
    base = np.exp((1 - tone) * np.log(light) + tone * np.log(dark)) * rng.uniform(0.85, 1.15, 3) ** 0.5
    x, y, z = np.abs(rest[:, 0]), rest[:, 1], rest[:, 2]
    colour = np.tile(base, (len(rest), 1))
    colour *= 1 + 0.05 * Waves.draw(rng, 0.05)(rest)[:, None] + 0.03 * Waves.draw(rng, 0.012)(rest)[:, None]
    front = y < -0.07
    blush = np.exp(-((x - 0.045) ** 2 + (z - 0.605) ** 2) / 0.0006) + np.exp(-(x**2 + (z - 0.612) ** 2) / 0.0003)
    colour *= 1 - (front * blush * rng.uniform(0, 0.35))[:, None] * (0.1, 0.8, 0.7)
    lips = front & ((x / 0.026) ** 2 + ((z - 0.5765) / (0.0085 * (1 - 0.3 * x / 0.026))) ** 2 < 1)
    colour[lips] *= np.array((0.9, 0.5, 0.55)) ** rng.uniform(0.4, 1.4)
    arch = z - (0.667 + rng.uniform(0, 0.004) - 6 * (x - 0.032) ** 2)
    brow = front & (np.abs(arch) < rng.uniform(0.002, 0.0045)) & (x > 0.012) & (x < 0.052)
    colour[brow] *= rng.uniform(0.15, 0.5)
    colour[front & (np.abs(z - 0.648) < 0.012) & (np.abs(x - 0.03) < 0.02)] *= rng.uniform(0.7, 1)  # eye sockets
    if rng.random() < 0.3:  # a beard, shaved or not
        beard = front & (z < 0.60) & (z > 0.52) & ~lips
        colour[beard] *= rng.uniform(0.25, 0.85)
    return colour


def eyes(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Albedo (N, 3) of eyeballs: white, iris and pupil."""
    radius = np.hypot(np.abs(rest[:, 0]) - 0.030 + rng.normal(0, 0.002), rest[:, 2] - 0.648)
    colour = np.tile(np.array((0.65, 0.62, 0.6)), (len(rest), 1))
    colour[radius < 0.0062] = rng.uniform(0.02, 0.25, 3)
    colour[radius < 0.0027] = 0.01
    return colour


def fabric(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Albedo (N, 3) of a garment: plain, striped, checked, dotted, mottled, or with a photograph's texture."""
    kind = rng.choice(6, p=[0.4, 0.15, 0.13, 0.07, 0.15, 0.1])
    first, second = dye(rng), dye(rng)
    size = rng.uniform(0.01, 0.06)
    axis = rng.choice(3, p=[0.35, 0.1, 0.55])
    colour = np.tile(first, (len(rest), 1))
    wave = np.sin(2 * np.pi * rest / size)
    if kind == 1:
        colour[wave[:, axis] > rng.uniform(-0.5, 0.8)] = second
    elif kind == 2:
        share = ((wave[:, 0] > 0.3).astype(float) + (wave[:, 2] > 0.3))[:, None] / 2
        colour = colour * (1 - share) + second * share
    elif kind == 3:
        colour[wave[:, 0] * wave[:, 2] > 0.5] = second
    elif kind == 4:
        share = np.clip(0.5 + 0.7 * Waves.draw(rng, size * 3)(rest), 0, 1)[:, None]
        colour = colour * (1 - share) + second * share
    elif kind == 5:
        picture = photograph(rng)
        scale = rng.uniform(300, 1500)  # pixels per metre
        row = (rest[:, 2] * scale).astype(np.int64) % picture.shape[0]
        column = (rest[:, 0] * scale).astype(np.int64) % picture.shape[1]
        colour = picture[row, column] * (0.3 + first)
    if rng.random() < 0.25:  # a print, a badge, a row of buttons
        centre = np.array((rng.uniform(-0.1, 0.1), rng.uniform(0.15, 0.42)))
        near = np.abs(rest[:, [0, 2]] - centre).max(axis=1) < rng.uniform(0.02, 0.1)
        colour[near & (rest[:, 1] < 0)] = dye(rng)
    return colour * (1 + 0.06 * Waves.draw(rng, 0.006)(rest)[:, None])


def dye(rng: np.random.Generator) -> np.ndarray:
    """A colour (3,) of cloth in linear light: black, white, grey, muted or bright."""
    value = np.exp(rng.uniform(np.log(0.012), np.log(0.8)))
    hue = np.clip(cv2.cvtColor(np.float32([[[rng.uniform(0, 360), 1, 1]]]), cv2.COLOR_HSV2RGB)[0, 0], 0, 1)
    share = rng.choice([rng.uniform(0, 0.15), rng.uniform(0.1, 0.6), rng.uniform(0.6, 0.97)], p=[0.35, 0.35, 0.3])
    return np.clip(value * (1 - share + share * hue), 0.005, 0.85)


def strands(rest: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Albedo (N, 3) of hair."""
    palette = np.array(((0.012, 0.009, 0.008), (0.05, 0.025, 0.014), (0.13, 0.065, 0.03), (0.34, 0.21, 0.09),
                        (0.25, 0.08, 0.03), (0.4, 0.39, 0.38)))
    base = palette[rng.choice(6, p=[0.3, 0.25, 0.17, 0.13, 0.05, 0.1])] * rng.uniform(0.6, 1.4)
    fine = Waves.draw(rng, 0.01, stretch=(1.5, 1.5, 0.2))(rest) + 0.6 * Waves.draw(rng, 0.035)(rest)
    return base * np.clip(1 + 0.45 * fine, 0.2, 2)[:, None]


@lru_cache
def _photographs() -> list[np.ndarray]:
    import skimage.data

    pictures = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    pictures = [np.repeat(p[..., None], 3, axis=2) if p.ndim == 2 else p[..., :3] for p in pictures]
    return [(p.astype(np.float32) / 255) ** 2 for p in pictures]


def photograph(rng: np.random.Generator) -> np.ndarray:
    """One of the photographs, float32 (H, W, 3) in linear light."""
    pictures = _photographs()
    return pictures[rng.integers(len(pictures))]


def background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (H, W, 3) in [0, 1], linear light: generated, or a piece of a photograph, mirrored, turned and tinted."""
    if rng.random() < 0.45:
        return backdrop(height, width, rng)
    image = _piece(height, width, rng)
    if rng.random() < 0.35:  # two photographs, divided by a wall's edge
        edge = int(rng.uniform(0.2, 0.8) * width)
        image[:, edge:] = _piece(height, width, rng)[:, edge:]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), height * rng.uniform(0.003, 0.03))
    if rng.random() < 0.3:
        image = 0.5 * image + 0.5 * backdrop(height, width, rng)
    return np.clip(image, 0, 1)


def _piece(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    picture = photograph(rng)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.25:
        picture = picture.transpose(1, 0, 2)
    tall, wide = picture.shape[:2]
    share = rng.uniform(0.3, 1.0)
    side_h = max(8, int(share * min(tall, wide * height / width)))
    side_w = max(8, int(side_h * width / height))
    top, left = rng.integers(0, tall - side_h + 1), rng.integers(0, max(1, wide - side_w + 1))
    piece = np.ascontiguousarray(picture[top:top + side_h, left:left + side_w])
    piece = cv2.resize(piece, (width, height), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        piece = piece @ (np.eye(3) + rng.normal(0, 0.08, (3, 3))).astype(np.float32)
    return np.clip(piece * np.exp(rng.normal(0, 0.4)), 0, 1).astype(np.float32)


def shade(person: Person, look: Look, hits: Hits, normals: np.ndarray, camera: Camera,
          rng: np.random.Generator) -> np.ndarray:
    """Radiance (M, 3) of the pixels in `hits`; normals are theirs, (M, 3)."""
    rest = np.einsum("mk,mkc->mc", hits.weights, person.rest[person.faces[hits.faces]])
    material = cloth(rest, person.groups[hits.faces], look)
    albedo = np.zeros((len(rest), 3))
    paints = {SKIN: skin, TOP: fabric, BOTTOM: fabric, SHOE: fabric, STRANDS: strands, CAP: fabric, EYEBALL: eyes}
    gloss = np.array((0.06, 0.01, 0.01, 0.05, 0.10, 0.02, 0.3))[material] * rng.uniform(0.2, 1.6)
    for kind, paint in paints.items():
        where = material == kind
        if where.any():
            albedo[where] = paint(rest[where], rng)
    light = direction(rng.normal(0, 35), rng.normal(25, 22))
    diffuse = np.maximum(normals @ light, 0)
    if rng.random() < 0.6:
        diffuse *= 1 - rng.uniform(0.4, 1.0) * shadowed(person, hits, camera, light)
    wrap = rng.uniform(0, 0.35)  # large lamps light past the terminator
    diffuse = (1 - wrap) * diffuse + wrap * (0.5 + 0.5 * normals @ light)
    half = light + (0, 0, 1)
    shine = np.maximum(normals @ (half / np.linalg.norm(half)), 0) ** rng.uniform(8, 40)
    ambient = rng.uniform(0.1, 0.5) * (0.75 + 0.25 * normals[:, 1])
    lit = (ambient[:, None] * (1 + rng.normal(0, 0.1, 3)) + rng.uniform(0.6, 1.2) * diffuse[:, None]
           * (1 + rng.normal(0, 0.08, 3)))
    if rng.random() < 0.35:  # a second light from the side or behind
        second = direction(rng.choice([-1, 1]) * rng.uniform(50, 140), rng.uniform(-10, 45))
        lit += rng.uniform(0.1, 0.6) * np.maximum(normals @ second, 0)[:, None] * (1 + rng.normal(0, 0.15, 3))
    return albedo * lit + (gloss * shine)[:, None]


def shadowed(person: Person, hits: Hits, camera: Camera, light: np.ndarray) -> np.ndarray:
    """The share (M,) of 2 x 2 samples near each pixel where the person stands between it and the light."""
    x, y = camera.rays()
    row, column = np.divmod(hits.pixels, camera.width)
    points = np.stack((x[column], y[row, 0], np.full(len(row), -1.0)), axis=1) * hits.depth[:, None]
    side = np.cross((0, 1, 0.0), light)
    side /= np.linalg.norm(side)
    frame = np.stack((side, np.cross(light, side), light), axis=1)  # columns
    middle = points.mean(axis=0)
    mesh, seen = (person.vertices - middle) @ frame, (points - middle) @ frame
    far, size = 50.0, 160  # a camera so far away that its rays are parallel
    reach = np.abs(seen[:, :2]).max() * 1.05
    lamp = Camera(far / reach * size / 2, size, size)
    found = rasterize(mesh - (0, 0, far), person.faces, lamp)
    depth = np.full(size * size, np.inf)
    depth[found.pixels] = found.depth
    depth = depth.reshape(size, size)
    u = size / 2 + lamp.focal * seen[:, 0] / far
    v = size / 2 - lamp.focal * seen[:, 1] / far
    behind = np.zeros(len(points))
    for du in (-0.75, 0.75):
        for dv in (-0.75, 0.75):
            r = np.clip((v + dv).astype(np.int64), 0, size - 1)
            c = np.clip((u + du).astype(np.int64), 0, size - 1)
            behind += far - seen[:, 2] > depth[r, c] + 0.012 + reach * 0.01
    return behind / 4


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector of angles [degrees]; (0, 0) is towards the viewer, azimuth to the right, elevation up."""
    a, e = np.radians((azimuth, np.clip(elevation, -50, 80)))
    return np.array((np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)))


def develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, 3) with gamma 2 of float32 linear light: exposure, softness, noise."""
    image = image.astype(np.float32) * np.float32(np.exp(rng.normal(0.25, 0.3)))
    softness = rng.uniform(0.1, 0.7)
    image = cv2.GaussianBlur(image, (0, 0), softness) if softness > 0.3 else image
    image = np.sqrt(np.clip(image, 0, 1)) * 255
    image += rng.normal(0, 1, image.shape[:2] + (1,)).astype(np.float32) * rng.uniform(0, 4)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
