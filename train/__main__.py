"""`python -m train --data-root DIR`: train; see `--help` for every option."""

from __future__ import annotations

from dpt_deploy import cli

with cli.needing("train"):
    from .config import TrainConfig, from_command_line
    from .trainer import Trainer

def main(config: TrainConfig) -> None:
    Trainer(config).run()
    best = config.out / "best_model.pth"
    print(f"best weights: {best}. Next: python -m dpt_deploy.export {best}")


if __name__ == "__main__":
    cli.run(TrainConfig, main, "python -m train", default=from_command_line)
