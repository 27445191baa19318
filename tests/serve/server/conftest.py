"""These tests run in the environment of `make serve-test`: elsewhere nothing of this folder is collected."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpt_deploy import load
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.compact import FORMS
from dpt_deploy.core.scene import scene
from dpt_deploy.runtime import Prediction
from dpt_deploy.serve import ServeOptions, write_repository
from tests.serve.server.server import Server

if importlib.util.find_spec("pytriton") is None:
    collect_ignore_glob = ["test_*.py"]

COMPACT = tuple(form for forms in FORMS.values() for form in forms.values() if not form.plain)
MAX_PIXELS = 200 * 300
SIZES = ((96, 128), (64, 80), (120, 90))
ADDRESSES = ("grpc", "http")


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The tiny bundle, which `make serve-test` made in the main environment."""
    return Bundle.open(os.environ["DPT_SERVE_BUNDLE"])


def options(name: str, **changes: object) -> ServeOptions:
    """A model that computes as `local` does."""
    values = {"served_by": "python", "backend": "onnxruntime-cpu", "threads": 1, "device": "cpu", "sizes": SIZES[:1],
              "max_pixels": MAX_PIXELS}
    return ServeOptions(name, **values | changes)


@pytest.fixture(scope="session")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model of all forms, `all`, one of float32 alone, `plain`, and one with a short queue.

    `canonical` is `plain` of a network that was trained with --canonical-focal 200.
    """
    folder = tmp_path_factory.mktemp("repository")
    write_repository(bundle, folder, options("all", forms=COMPACT))
    write_repository(bundle, folder, options("plain"))
    trained = bundle.manifest.model_copy(update={"training": {"canonical_focal": 200.0}})
    write_repository(Bundle(bundle.folder, trained), folder, options("canonical"))
    write_repository(bundle, folder, options("short", queue=1, delay=0.0, max_batch=1))
    return folder


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """A server that runs during all tests; those that stop one start their own."""
    with Server(repository, ["all", "plain", "short", "canonical"]) as running:
        yield running


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Frames of several sizes."""
    return [scene(*SIZES[i % 3], seed=i) for i in range(9)]


@pytest.fixture(scope="session")
def expected(bundle: Bundle, frames: list[np.ndarray]) -> list[Prediction]:
    """What the local runtime makes of them, one at a time."""
    with load(bundle.folder, "onnxruntime-cpu", precision="fp32", threads=1) as runtime:
        return [runtime(frame) for frame in frames]


def same(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions are equal, bit by bit."""
    return one.maps.keys() == other.maps.keys() and all(
        np.array_equal(value, other.maps[head]) and value.dtype == other.maps[head].dtype
        for head, value in one.maps.items())
