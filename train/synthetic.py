"""Generate data in SynthHuman's format: `python -m train.synthetic --out DIR --count N --size S --seed K`.

Posed people made of ellipsoids, with analytic depth and normals. Sample n of a seed is the same on
every machine and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpt_deploy import cli
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import cannot_write

with cli.needing("train"):
    import cv2
    import numpy as np
    from tqdm import tqdm

    from train import exr
    from train.body import Body, random_body, rotation
    from train.cache import write_cache
    from train.layout import FIRST_INDEX, KINDS, NO_DEPTH, chunk_name
    from train.parallel import parallel
    from train.render import Camera, backdrop, render, shade
    from train.sample import Sample


@dataclass(frozen=True)
class SyntheticConfig:
    """Generate people made of ellipsoids in SynthHuman's format."""

    out: Path
    """Folder to write; chunks SynthHuman_0000, ... are made inside it."""
    count: int = 300
    """Samples, in turn faces, full bodies and upper bodies."""
    size: int = 256
    """Height and width [pixels]."""
    seed: int = 0
    """Seed; another seed gives other people."""
    width: int = 0
    """Width, where it differs from the height [pixels]; 0 is square."""
    workers: int = 0
    """Processes; 0 is one per core."""
    prepared: bool = False
    """Write one cache, as `python -m train.prepare` makes, instead of files: faster to write and to read."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 3 * 97_000:
            raise BadInput(f"count: expected 1 to 291000 samples, received {self.count}.")
        if min(self.size, self.width or self.size) < 16:
            raise BadInput(f"size: expected at least 16 pixels, received {self.width or self.size}x{self.size}.")


@dataclass(frozen=True)
class Scene:
    """One generated sample."""

    rgb: np.ndarray
    """uint8 (H, W, 3)."""
    depth: np.ndarray
    """float64 (H, W): z-depth [m]; inf where there is none."""
    normals: np.ndarray
    """float32 (H, W, 3), 0 where there is no surface."""
    alpha: np.ndarray
    """float32 (H, W) in [0, 1]."""
    intrinsics: np.ndarray
    """float64 (3, 3) [pixels]."""


def kind_of(number: int) -> str:
    """Whether sample `number` is a face, a full_body or an upper_body."""
    return KINDS[number % 3]


def file_index(number: int) -> int:
    """The index in the file names of sample `number`: each kind lies in its published range."""
    return FIRST_INDEX[kind_of(number)] + number // 3


def generate(seed: int, number: int, height: int, width: int) -> Scene:
    """Sample `number` of `seed`. Deterministic in its arguments."""
    rng = np.random.default_rng((seed, number))
    while True:
        body = random_body(rng)
        body, camera = _frame(body, kind_of(number), height, width, rng)
        surface = render(body, camera)
        if (surface.alpha > 0.5).mean() > 0.04:
            break
    rgb = shade(surface, body, backdrop(height, width, rng), rng)
    return Scene(rgb, surface.depth, surface.normals, surface.alpha, camera.intrinsics)


def _frame(body: Body, kind: str, height: int, width: int, rng: np.random.Generator) -> tuple[Body, Camera]:
    """Turn the body, and stand the camera where `kind` fills the image."""
    yaw = rng.normal(0, 32) if rng.random() < 0.8 else rng.uniform(-180, 180)
    turn = rotation(rng.normal(4, 9), 0, rng.normal(0, 3)) @ rotation(0, yaw)
    body = body.moved(turn, np.zeros(3), np.zeros(3))
    reach = np.sqrt(np.einsum("kij,kj->ki", body.axes**2, body.radii**2))  # half extents along x, y, z
    low, high = (body.centres - reach).min(axis=0), (body.centres + reach).max(axis=0)
    if kind == "face":
        target, extent = body.head - (0, 0.03, 0), rng.uniform(0.30, 0.50)
    elif kind == "upper_body":
        target, extent = body.head - (0, 0.27, 0), rng.uniform(0.75, 1.05)
    else:
        target = (low + high) / 2
        extent = max(high[1] - low[1], (high[0] - low[0]) * height / width) * rng.uniform(1.02, 1.15)
    field_of_view = np.radians(rng.uniform(32, 48))
    focal = height / 2 / np.tan(field_of_view / 2)
    distance = extent * focal / height
    shift = rng.normal(0, 0.03, 2) * extent
    return body.moved(np.eye(3), target, np.array((shift[0], shift[1], -distance))), Camera(focal, height, width)


def write_sample(folder: Path, index: int, scene: Scene) -> None:
    """Write one sample in SynthHuman's files: depth in cm with 65504 for none, normals with B, G, R = x, y, z."""
    stem = f"{index:07d}"
    centimetres = np.where(np.isfinite(scene.depth), scene.depth * 100, NO_DEPTH)
    for name, pixels in (("rgb", scene.rgb[..., ::-1]), ("alpha", np.round(scene.alpha * 255).astype(np.uint8))):
        if not cv2.imwrite(str(folder / f"{name}_{stem}.png"), pixels):
            raise OSError(None, "the picture could not be written", str(folder / f"{name}_{stem}.png"))
    exr.write_depth(folder / f"depth_{stem}.exr", centimetres)
    exr.write_vectors(folder / f"normal_{stem}.exr", scene.normals)
    np.savetxt(folder / f"cam_{stem}.txt", scene.intrinsics, fmt="%.6f")


def _write(number: int, config: SyntheticConfig) -> None:
    index = file_index(number)
    folder = config.out / chunk_name(index)
    folder.mkdir(parents=True, exist_ok=True)
    write_sample(folder, index, generate(config.seed, number, config.size, config.width or config.size))


def as_sample(scene: Scene, number: int) -> Sample:
    """A scene as the reader gives it."""
    depth = np.where(np.isfinite(scene.depth), scene.depth, 0).astype(np.float32)
    return Sample(f"{file_index(number):07d}", kind_of(number), scene.rgb, depth, scene.normals, scene.alpha,
                  scene.intrinsics)


def _make(number: int, config: SyntheticConfig) -> Sample:
    return as_sample(generate(config.seed, number, config.size, config.width or config.size), number)


def write_dataset(config: SyntheticConfig) -> None:
    """Write `config.count` samples. Raises `BadInput` when the folder cannot be written."""
    numbers = range(config.count)
    if config.prepared:
        samples = tqdm(parallel(partial(_make, config=config), numbers, config.workers), "generate", config.count)
        contract = Contract(input_size=(config.size, config.width or config.size))
        source = f"train.synthetic seed {config.seed} size {config.size} count {config.count}"
        write_cache(config.out, samples, config.count, contract, source)
        return
    try:
        for _ in tqdm(parallel(partial(_write, config=config), numbers, config.workers), "generate", config.count):
            pass
    except OSError as error:
        raise cannot_write(config.out, error) from error


def main(config: SyntheticConfig) -> None:
    write_dataset(config)
    print(f"{config.count} samples in {config.out}. Train on them: python -m train --data-root {config.out}")


COMMAND = cli.Command(SyntheticConfig, main, "python -m train.synthetic")

if __name__ == "__main__":
    COMMAND.run()
