"""It learns: eight images are overfitted in a bounded number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.config import TrainConfig
from train.loop.optim import rate_factor, set_rate
from train.loop.trainer import Trainer
from train.monitoring.scores import Scores
from train.synthetic import SyntheticConfig, write_dataset

STEPS = 240


@pytest.mark.slow
def test_eight_images_are_overfitted(tmp_path: Path):
    write_dataset(SyntheticConfig(tmp_path / "data", count=8, image_size=(64, 64), seed=21, workers=1, prepared=True))
    trainer = Trainer(TrainConfig(
        data_root=tmp_path / "data", out=tmp_path / "run", batch_size=8, lr=1e-3, backbone="vit_tiny_patch16_384",
        backbone_kwargs=("img_size=64", "patch_size=8", "depth=4"), features=32, pretrained=False, depth_scale=1.0,
        val_fraction=0.0, augment=False, workers=0, tensorboard=False, device="cpu", check_data=False,
    ))
    batch = trainer.forward.to_device(next(iter(trainer.loader)))
    for step in range(STEPS):
        set_rate(trainer.optimization.optimizer, rate_factor(step, STEPS, warmup=0.05))
        assert not trainer.stepper([batch]).skipped
    scores = Scores()
    with torch.no_grad():
        scores.add(trainer.forward.maps(trainer.forward(trainer.model, batch), batch), batch)
    row = scores.table()["all"]
    assert row["alpha_iou"] > 0.8
    assert row["normals_mean"] < 22
    assert row["depth_abs_rel"] < 0.05
