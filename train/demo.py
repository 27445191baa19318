"""The training half in three minutes on two cores: `python -m train.demo`.

Generates people, trains a small model on them, and scores it on people it has not seen.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dpt_deploy import cli

with cli.needing("train"):
    from train.config import TrainConfig
    from train.evaluate import EvaluateConfig, evaluate
    from train.logs import metrics_table
    from train.synthetic import SyntheticConfig, write_dataset
    from train.trainer import Trainer


@dataclass(frozen=True)
class DemoConfig:
    """Generate data, train a small model, show samples, curve and held-out metrics."""

    out: Path = Path("runs/demo-train")
    """Folder for all of it; what an earlier demonstration left there is replaced."""
    samples: int = 1200
    """Training images to generate."""
    epochs: int = 8
    """Validations; between two of them, two fifths of the images are seen."""
    size: int = 64
    """Height and width [pixels]."""
    seed: int = 0
    """Seed of data and weights; the held-out images take the next one."""


def demo(config: DemoConfig) -> dict:
    """Run it; returns `train.evaluate`'s result on the held-out images."""
    data, held_out, run = config.out / "data", config.out / "held_out", config.out / "run"
    for folder in (data, held_out, run):
        shutil.rmtree(folder, ignore_errors=True)
    write_dataset(SyntheticConfig(data, config.samples, config.size, config.seed, prepared=True))
    write_dataset(SyntheticConfig(held_out, 150, config.size, config.seed + 1, prepared=True))
    Trainer(TrainConfig(
        data_root=data, out=run, epochs=config.epochs, batch_size=8, lr=8e-4, ema=0.99, warmup=0.1, seed=config.seed,
        backbone="vit_tiny_patch16_384", backbone_kwargs=(f"img_size={config.size}", "patch_size=8", "depth=4"),
        features=32, pretrained=False, depth_scale=1.0, amp="bf16", channels_last=True, zoom=1.0, blur=0.0, noise=0.0,
        jpeg=0.0, val_fraction=0.04, workers=1, limit_train_batches=config.samples // 20,
    )).run()
    return evaluate(EvaluateConfig(run / "best_model.pth", held_out, workers=0))


def main(config: DemoConfig) -> None:
    result = demo(config)
    run = config.out / "run"
    print(f"\n{result['samples']} people it has not seen, beside what constant predictions score:")
    print(metrics_table(result["metrics"], result["constant"]))
    print(f"\nsamples     {run}/training_samples/\ncurve       {run}/curves.png\ncheckpoint  {run}/best_model.pth\n"
          f"next        python -m dpt_deploy.export {run}/best_model.pth")


if __name__ == "__main__":
    cli.run(DemoConfig, main, "python -m train.demo")
