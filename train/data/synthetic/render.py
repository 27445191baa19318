"""Render ellipsoids to image, depth, normals and alpha, analytically.

Camera space: x right, y up, z towards the viewer; the camera looks along -z. The ray of the pixel
with centre (u, v) [pixels, v down] is t (X, Y, -1), where X = (u - cx) / f and Y = -(v - cy) / f, so
t is the z-depth. The centre of a pixel is its index plus one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .body import Body


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels."""

    focal: float
    """Focal length [pixels]."""
    height: int
    width: int

    @property
    def intrinsics(self) -> np.ndarray:
        """float64 (3, 3) [pixels]; the principal point is the centre of the image."""
        return np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1.0]])

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """X (W,) and Y (H, 1) of every pixel's ray, float64."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.focal
        y = -(np.arange(self.height) + 0.5 - self.height / 2) / self.focal
        return x, y[:, None]


@dataclass(frozen=True)
class Surface:
    """What each pixel sees of a body."""

    depth: np.ndarray
    """float64 (H, W): z-depth [m] at the centre of the pixel; inf where there is no surface."""
    normals: np.ndarray
    """float32 (H, W, 3), unit length where depth is finite, else 0."""
    alpha: np.ndarray
    """float32 (H, W), coverage in [0, 1], antialiased along the outer silhouette."""
    pixels: np.ndarray
    """int64 (M,): flat indices of the pixels with alpha > 0."""
    parts: np.ndarray
    """int64 (M,): the ellipsoid that each of these pixels sees."""
    facing: np.ndarray
    """float64 (M, 3): their unit normals; those of the silhouette if the centre misses the body."""
    local: np.ndarray
    """float64 (M, 3): the points they see, in the frame of the ellipsoid [m]."""


def render(body: Body, camera: Camera, near: float = 0.15) -> Surface:
    """Intersect the ray of every pixel with every ellipsoid, within the bounding box of the ellipsoid.

    With A = R diag(1/r^2) R^T, the ray t d meets an ellipsoid at c where t^2 dAd - 2t dAc + cAc = 1. The discriminant
    is a quadratic form in d. Its zero level is the silhouette, and its value divided by its gradient is the distance
    to the silhouette, which gives the coverage.

    Args:
        body: The ellipsoids, in camera space [m].
        camera: Gives focal length and image size.
        near: Ellipsoids nearer than this are left out [m], and so are those smaller than half a pixel.
    """
    x, y = camera.rays()
    form = np.einsum("kij,kj,klj->kil", body.axes, 1 / body.radii**2, body.axes)  # A, (K, 3, 3)
    linear = np.einsum("kij,kj->ki", form, body.centres)  # A c
    constant = np.einsum("ki,ki->k", body.centres, linear) - 1
    silhouette = linear[:, :, None] * linear[:, None, :] - constant[:, None, None] * form
    shape = (camera.height, camera.width)
    depth, alpha = np.full(shape, np.inf), np.zeros(shape)
    part, edge_part = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    largest = body.radii.max(axis=1)
    visible = (-body.centres[:, 2] - largest > near) & (
        largest * camera.focal > 0.5 * -body.centres[:, 2]
    )
    boxes = _boxes(silhouette, camera)
    for k in np.flatnonzero(visible):
        top, bottom, left, right = boxes[k]
        if top >= bottom or left >= right:
            continue
        window = (slice(top, bottom), slice(left, right))
        dx, dy, q, a, b = x[left:right], y[top:bottom], silhouette[k], form[k], linear[k]
        disc = (q[0, 0] * dx - 2 * q[0, 2]) * dx + q[2, 2] + (q[1, 1] * dy - 2 * q[1, 2]) * dy + (2 * q[0, 1] * dy) * dx
        gradient = np.hypot(q[0, 0] * dx + (q[0, 1] * dy - q[0, 2]), q[0, 1] * dx + (q[1, 1] * dy - q[1, 2]))
        cover = disc * (0.5 * camera.focal) / (gradient + 1e-300) + 0.5
        quadratic = (a[0, 0] * dx - 2 * a[0, 2]) * dx + a[2, 2] + (a[1, 1] * dy - 2 * a[1, 2]) * dy
        quadratic += (2 * a[0, 1] * dy) * dx
        t = (b[0] * dx + (b[1] * dy - b[2]) - np.sqrt(np.maximum(disc, 0))) / quadratic
        nearer = (disc > 0) & (t < depth[window])
        np.copyto(depth[window], t, where=nearer)
        np.copyto(part[window], k, where=nearer)
        more = cover > alpha[window]
        np.copyto(alpha[window], cover, where=more)
        np.copyto(edge_part[window], k, where=more)
    np.minimum(alpha, 1, out=alpha)
    return _surface(body, camera, form, linear, depth, alpha, np.where(np.isfinite(depth), part, edge_part))


def _boxes(silhouette: np.ndarray, camera: Camera) -> np.ndarray:
    """Bounds (K, 4) of the silhouettes [pixels]: top, bottom, left, right, from the tangents of the dual conic."""
    dual = np.linalg.inv(silhouette)

    def span(axis: int) -> tuple[np.ndarray, np.ndarray]:
        middle = -dual[:, axis, 2] / dual[:, 2, 2]
        root = np.sqrt(np.maximum(dual[:, axis, 2] ** 2 - dual[:, axis, axis] * dual[:, 2, 2], 0))
        half = root / np.abs(dual[:, 2, 2])
        return middle - half, middle + half

    (left, right), (low, high) = span(0), span(1)
    bounds = np.stack((
        camera.height / 2 - high * camera.focal - 1, camera.height / 2 - low * camera.focal + 2,
        camera.width / 2 + left * camera.focal - 1, camera.width / 2 + right * camera.focal + 2,
    ), axis=1)
    limits = np.array([camera.height, camera.height, camera.width, camera.width])
    return np.clip(np.nan_to_num(bounds), 0, limits).astype(np.int64)


def _surface(body, camera, form, linear, depth, alpha, part) -> Surface:
    x, y = camera.rays()
    hit = np.isfinite(depth)
    pixels = np.flatnonzero(alpha > 0)
    parts = part.reshape(-1)[pixels]
    rows, columns = np.divmod(pixels, camera.width)
    rays = np.stack((x[columns], y[rows, 0], np.full(len(pixels), -1.0)), axis=1)  # (M, 3)
    a, c = form[parts], body.centres[parts]
    # If the centre misses: the point of the ray that is nearest in the metric of the ellipsoid.
    nearest = np.einsum("mi,mi->m", linear[parts], rays) / np.einsum("mi,mij,mj->m", rays, a, rays)
    t = depth.reshape(-1)[pixels]
    offset = np.where(np.isfinite(t), t, nearest)[:, None] * rays - c
    facing = np.einsum("mij,mj->mi", a, offset)
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    normals = np.zeros((*depth.shape, 3), np.float32)
    normals.reshape(-1, 3)[pixels] = facing * hit.reshape(-1)[pixels, None]
    local = np.einsum("mij,mi->mj", body.axes[parts], offset)
    return Surface(depth, normals, alpha.astype(np.float32), pixels, parts, facing, local)


def shade(
    surface: Surface, body: Body, background: np.ndarray, rng: np.random.Generator,
    noise: np.random.Generator | None = None,
) -> np.ndarray:
    """Light the body and composite it over a background.

    The light is mostly frontal, the ambient light is brighter from above, surfaces are a little glossy, and clothes
    have patterns.

    Args:
        surface: What `render` returned.
        body: The body it shows.
        background: float32 (H, W, 3) in [0, 1], linear light.
        rng: Draws light, colours and noise.
        noise: Draws the noise of the sensor instead, so that the frames of a clip share the rest.

    Returns:
        uint8 (H, W, 3) RGB with gamma 2.
    """
    colours, waves, strength, gloss = _materials(rng)
    material = body.materials[surface.parts]
    albedo = colours[material]
    pattern = np.sin(np.einsum("mi,mpi->mp", surface.local, waves[material, :, :3]) + waves[material, :, 3])  # (M, 3)
    albedo = albedo * (1 + strength[material, :1] * np.sign(pattern[:, :1]) + strength[material, 1:] * pattern[:, 1:2]
                       * pattern[:, 2:3])
    light = _direction(rng.normal(0, 28), rng.normal(18, 20))
    diffuse = np.maximum(surface.facing @ light, 0)
    half = light + (0, 0, 1)
    shine = np.maximum(surface.facing @ (half / np.linalg.norm(half)), 0) ** 24
    tint = 1 + rng.normal(0, 0.06, 3)
    ambient = rng.uniform(0.12, 0.40)
    lit = ambient * (0.8 + 0.2 * surface.facing[:, 1]) + rng.uniform(0.65, 1.0) * diffuse
    if rng.random() < 0.3:  # a weaker second light from the side
        side = _direction(rng.choice([-1, 1]) * rng.uniform(50, 110), rng.uniform(0, 40))
        lit = lit + rng.uniform(0.1, 0.4) * np.maximum(surface.facing @ side, 0)
    colour = albedo * lit[:, None] * tint + (gloss[material] * shine)[:, None]
    image = background.reshape(-1, 3).copy()
    cover = surface.alpha.reshape(-1)[surface.pixels, None]
    image[surface.pixels] = cover * colour + (1 - cover) * image[surface.pixels]
    image = image.reshape(background.shape).astype(np.float32) * rng.uniform(0.85, 1.2)
    softness = rng.uniform(0.25, 0.7)
    image = cv2.GaussianBlur(image, (0, 0), softness) if softness > 0.3 else image
    image = np.sqrt(np.clip(image, 0, 1)) * 255  # gamma 2
    grain = (noise or rng).normal(0, 1, image.shape[:2] + (1,)).astype(np.float32)
    image += grain * rng.uniform(0, 4)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector from angles [degrees]; (0, 0) is towards the viewer, azimuth to the right, elevation up."""
    a, e = np.radians((azimuth, np.clip(elevation, -60, 80)))
    return np.array((np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)))


def _materials(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Albedo (8, 3), pattern waves (8, 3, 4) [rad/m and rad], their strengths (8, 2), gloss (8,)."""
    tone = rng.random()
    skin = (1 - tone) * np.array((0.72, 0.48, 0.36)) + tone * np.array((0.16, 0.08, 0.05))
    grey = rng.random()
    hair = rng.uniform(0.5, 1.2) * ((1 - grey) * np.array((0.09, 0.05, 0.03)) + grey * np.array((0.38, 0.28, 0.16)))
    clothes = [_muted(rng.uniform(0.03, 0.75, 3), rng) for _ in range(3)]
    colours = np.stack((skin, hair, *clothes, np.full(3, 0.8), rng.uniform(0.02, 0.15, 3), skin * (0.85, 0.5, 0.5)))
    waves = np.concatenate((rng.normal(0, 60, (8, 3, 3)), rng.uniform(0, 6.28, (8, 3, 1))), axis=2)
    strength = np.zeros((8, 2))
    strength[:, 1] = 0.06
    strength[2:5] = rng.uniform(0, 1, (3, 2)) * (0.35, 0.3) * (rng.random((3, 2)) < (0.35, 0.5))
    gloss = np.array((0.05, 0.10, 0.01, 0.01, 0.06, 0.2, 0.2, 0.08)) * rng.uniform(0.3, 1.3)
    return colours, waves, strength, gloss


def _muted(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The colour (3,), desaturated by a random share."""
    return colour.mean() + rng.uniform(0.2, 0.9) * (colour - colour.mean())


def backdrop(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random background, float32 (H, W, 3) in [0, 1], linear light: gradient, cloud, room or clutter."""
    kind = rng.choice(4, p=[0.2, 0.25, 0.3, 0.25])
    base = _muted(rng.uniform(0.02, 0.85, 3), rng)
    corners = base + rng.normal(0, 0.10, (2, 2, 1)) + rng.normal(0, 0.03, (2, 2, 3))
    image = cv2.resize(np.clip(corners, 0.01, 1).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    if kind == 1:
        for cells in (4, 9, 18):
            noise = rng.normal(0, 1, (cells, cells, 1)) + rng.normal(0, 0.35, (cells, cells, 3))
            noise = (noise * 0.2 / cells**0.5).astype(np.float32)
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == 2:
        floor = int(height * rng.uniform(0.55, 0.95))
        image[floor:] = np.clip(base[::-1] * rng.uniform(0.3, 1.2), 0, 1)
        for _ in range(rng.integers(1, 5)):
            _rectangle(image, rng, 0.15, 0.5)
    elif kind == 3:
        for _ in range(rng.integers(4, 12)):
            _rectangle(image, rng, 0.08, 0.4)
        for _ in range(rng.integers(0, 5)):
            centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            axes = (int(width * rng.uniform(0.03, 0.15)) + 1, int(height * rng.uniform(0.03, 0.15)) + 1)
            angle, colour = rng.uniform(0, 180), _muted(rng.uniform(0.02, 0.7, 3), rng)
            cv2.ellipse(image, centre, axes, angle, 0, 360, colour.tolist(), -1)
    if kind >= 2:
        blur = height * rng.uniform(0.002, 0.02)
        image = cv2.GaussianBlur(image, (0, 0), max(blur, 0.3))
    return np.clip(image, 0, 1)


def _rectangle(image: np.ndarray, rng: np.random.Generator, smallest: float, largest: float) -> None:
    h, w = image.shape[:2]
    size = rng.uniform(smallest, largest, 2) * (w, h)
    x, y = rng.uniform(-0.1, 0.95, 2) * (w, h)
    colour = tuple(np.clip(image[0, 0] + rng.normal(0, 0.2) + rng.normal(0, 0.1, 3), 0.01, 0.95).tolist())
    cv2.rectangle(image, (int(x), int(y)), (int(x + size[0]), int(y + size[1])), colour, -1)
