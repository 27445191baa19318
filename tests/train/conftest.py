"""Generated data, and a config that trains in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.tiny import own_bundle, tiny_bundle  # noqa: F401
from train.config import TrainConfig
from train.synthetic import SyntheticConfig, write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples of 64x64 in SynthHuman's layout: eight faces, eight full bodies, eight upper bodies."""
    root = tmp_path_factory.mktemp("synthhuman")
    write_dataset(SyntheticConfig(root, count=24, image_size=(64, 64), seed=3, workers=1))
    return root


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A function giving a small, quick `TrainConfig`, with any fields changed."""
    base = TrainConfig(
        data_root=data, out=tmp_path / "run", epochs=1, batch_size=4, lr=1e-3, backbone="test_vit",
        backbone_kwargs=("img_size=64",), features=8, pretrained=False, depth_scale=1.0, val_fraction=0.2, workers=0,
        tensorboard=False, samples=3, device="cpu",
    )
    return lambda **changes: dataclasses.replace(base, **changes)


def tensors_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
