"""`python -m train --data-root DIR`: train a model; `--help` lists the options."""

from __future__ import annotations

from dpt_deploy import cli
from dpt_deploy.core.errors import DptError

with cli.needing("train"):
    from .commands import command
    from .config import RENAMED, TrainConfig, from_command_line
    from .loop.trainer import Trainer


def main(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.run()
    if not trainer.world.is_main:
        return
    best = config.out / "best_model.pth"
    if not best.exists():
        raise DptError(f"no epoch had a finite loss, so there is no {best}. Lower --lr, and check the data: "
                       f"{command('train.check')} --data-root {config.data_root}")
    print(f"best weights: {best}. Next: {command('dpt_deploy.export')} {best}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


COMMAND = cli.Command(
    TrainConfig, main, f"python -m {__package__}", default=from_command_line,
    renamed={_option(old): _option(new) for old, new in RENAMED.items()},
)

if __name__ == "__main__":
    COMMAND.run()
