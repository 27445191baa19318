"""Training in three minutes on two cores: `python -m train.demo`.

Generates people, trains a small model on them, and scores it on people that it has not seen.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dpt_deploy import cli

with cli.needing("train"):
    from dpt_deploy.cli.options import Size

    from .commands import command
    from .config import TrainConfig
    from .evaluate import EvaluateConfig, evaluate
    from .loop.trainer import Trainer
    from .monitoring.tables import metrics_table
    from .synthetic import SyntheticConfig, write_dataset


@dataclass(frozen=True)
class DemoConfig:
    """Generate data, train a small model, and show sample pictures, curves and held-out metrics."""

    out: Path = Path("runs/demo-train")
    """Folder for data and run; those of an earlier demonstration are replaced."""
    count: int = 1200
    """Training images to generate."""
    epochs: int = 8
    """Number of validations; two fifths of the images are seen before each."""
    image_size: Size = (64, 64)
    """Size of the images [pixels]."""
    seed: int = 0
    """Seed of data and weights; the held-out images use the next one."""


def demo(config: DemoConfig) -> dict:
    """Run it; returns the result of `evaluate` on the held-out images."""
    data, held_out, run = config.out / "data", config.out / "held_out", config.out / "run"
    for folder in (data, held_out, run):
        shutil.rmtree(folder, ignore_errors=True)
    write_dataset(SyntheticConfig(data, config.count, config.image_size, config.seed, prepared=True))
    write_dataset(SyntheticConfig(held_out, 150, config.image_size, config.seed + 1, prepared=True))
    Trainer(TrainConfig(
        data_root=data, out=run, epochs=config.epochs, batch_size=8, lr=8e-4, ema=0.99, warmup=0.1, seed=config.seed,
        backbone="vit_tiny_patch16_384", input_size=config.image_size,
        backbone_kwargs=("patch_size=8", "depth=4"),
        features=32, pretrained=False, depth_scale=1.0, amp="bf16", channels_last=True, zoom=1.0, blur=0.0, noise=0.0,
        jpeg=0.0, val_fraction=0.04, workers=1, max_train_batches=config.count // 20,
    )).run()
    return evaluate(EvaluateConfig(run / "best_model.pth", held_out, workers=0))


def main(config: DemoConfig) -> None:
    result = demo(config)
    run = config.out / "run"
    print(f"\n{result['samples']} people that the model has not seen, beside constant predictions:")
    print(metrics_table(result["metrics"], result["constant"]))
    print(f"\nsamples     {run}/training_samples/\ncurve       {run}/curves.png\ncheckpoint  {run}/best_model.pth\n"
          f"next        {command('dpt_deploy.export')} {run}/best_model.pth")


RENAMED = {"--samples": "--count", "--size": "--image-size"}
COMMAND = cli.Command(DemoConfig, main, f"python -m {__package__}.demo", renamed=RENAMED)

if __name__ == "__main__":
    COMMAND.run()
