"""Sample `number` of a set, for the processes that generate one. They cannot import what a `__main__` defines."""

from __future__ import annotations

from functools import cache

from train.data.sample import Sample
from train.data.synthetic.scene import as_sample
from train.data.synthetic.scene import generate as generate_ellipsoids

from .body import Bodies
from .scene import generate


def sample(number: int, *, seed: int, image_size: tuple[int, int], ellipsoids: int) -> Sample:
    """Generate a person with Anny's body, or every `ellipsoids`-th one with that of `train.synthetic` (0: none)."""
    if ellipsoids and number % ellipsoids == ellipsoids - 1:
        return as_sample(generate_ellipsoids(seed, number, *image_size), number)
    return as_sample(generate(bodies(), seed, number, *image_size), number)


@cache
def bodies() -> Bodies:
    """The body model of this process. Raises `BadInput` without the package anny."""
    import cv2
    import torch

    torch.set_num_threads(1)  # the processes are the parallelism
    cv2.setNumThreads(1)
    return Bodies()
