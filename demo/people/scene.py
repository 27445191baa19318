"""One generated sample: a person before a background, in the form of `train.data.synthetic.scene`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.data.synthetic.body import rotation
from train.data.synthetic.render import Camera
from train.data.synthetic.scene import Scene, kind_of

from .body import Bodies, Person
from .paint import background, develop, shade
from .raster import rasterize, vertex_normals
from .wardrobe import random_look

FINER = 2  # colour and alpha are rendered at this multiple of the resolution, and averaged


def generate(bodies: Bodies, seed: int, number: int, height: int, width: int) -> Scene:
    """Generate sample `number` of a seed: a face, a full body or an upper body in turn."""
    rng = np.random.default_rng((seed, number))
    while True:
        look = random_look(rng)
        person, camera = frame(bodies.person(look, rng), kind_of(number), height, width, rng)
        normals = vertex_normals(person.vertices, person.faces)
        truth = rasterize(person.vertices, person.faces, camera)
        if len(truth.pixels) > 0.04 * height * width:
            break
    fine = Camera(camera.focal * FINER, height * FINER, width * FINER)
    hits = rasterize(person.vertices, person.faces, fine)
    image = background(height, width, rng).repeat(FINER, axis=0).repeat(FINER, axis=1).reshape(-1, 3)
    image[hits.pixels] = shade(person, look, hits, normals_of(person, normals, hits), fine, rng)
    alpha = np.zeros(len(image), np.float32)
    alpha[hits.pixels] = 1
    depth, facing = np.full(height * width, np.inf), np.zeros((height * width, 3), np.float32)
    depth[truth.pixels] = truth.depth
    facing[truth.pixels] = normals_of(person, normals, truth)
    image = averaged(image.reshape(height * FINER, width * FINER, 3))
    return Scene(develop(image, rng), depth.reshape(height, width), facing.reshape(height, width, 3),
                 averaged(alpha.reshape(height * FINER, width * FINER, 1))[..., 0], camera.intrinsics)


def normals_of(person: Person, normals: np.ndarray, hits) -> np.ndarray:
    """Unit normals (M, 3) of the pixels in `hits`, interpolated from those of the vertices (V, 3)."""
    smooth = np.einsum("mk,mkc->mc", hits.weights, normals[person.faces[hits.faces]])
    return smooth / np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-9)


def averaged(fine: np.ndarray) -> np.ndarray:
    """The mean of each FINER x FINER block: (H FINER, W FINER, C) to (H, W, C)."""
    height, width, channels = fine.shape
    return fine.reshape(height // FINER, FINER, width // FINER, FINER, channels).mean(axis=(1, 3))


def frame(person: Person, kind: str, height: int, width: int, rng: np.random.Generator) -> tuple[Person, Camera]:
    """Turn the person, and place the camera so that `kind` fills the image."""
    yaw = rng.normal(0, 28) if rng.random() < 0.88 else rng.uniform(-180, 180)
    turn = (rotation(rng.normal(4, 9), 0, rng.normal(0, 3)) @ rotation(0, yaw)).T
    vertices, eyes = person.vertices @ turn, person.eyes @ turn
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    if kind == "face":
        target, extent = eyes - (0, 0.03, 0.05), rng.uniform(0.27, 0.5)
    elif kind == "upper_body":
        extent = rng.uniform(0.5, 1.1)
        target = eyes - (0, extent * 0.5 - rng.uniform(0.15, 0.25), 0.08)
    else:
        target = (low + high) / 2
        extent = max(high[1] - low[1], (high[0] - low[0]) * height / width) * rng.uniform(1.02, 1.2)
    focal = height / 2 / np.tan(np.radians(rng.uniform(25, 50)) / 2)
    shift = rng.normal(0, 0.04, 2) * extent
    distance = extent * focal / height
    moved = vertices - target + (shift[0], shift[1], -distance)
    return replace(person, vertices=moved, eyes=eyes - target + (shift[0], shift[1], -distance)), \
        Camera(focal, height, width)
