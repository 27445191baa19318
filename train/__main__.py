"""`python -m train --data-root DIR`: train; see `--help` for every option."""

from __future__ import annotations

from dpt_deploy import cli
from dpt_deploy.core.errors import DptError

with cli.needing("train"):
    from train.config import TrainConfig, from_command_line
    from train.trainer import Trainer


def main(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.run()
    if not trainer.world.is_main:
        return
    best = config.out / "best_model.pth"
    if not best.exists():
        raise DptError(f"no epoch had a finite loss, so there is no {best}. Lower --lr, and look at the data: "
                       f"python -m train.check {config.data_root}")
    print(f"best weights: {best}. Next: python -m dpt_deploy.export {best}")


COMMAND = cli.Command(TrainConfig, main, "python -m train", default=from_command_line)

if __name__ == "__main__":
    COMMAND.run()
