"""`python -m train --data-root DIR`: train a model; `--help` lists the options."""

from __future__ import annotations

import sys

from dpt_deploy import cli
from dpt_deploy.core.errors import DptError

with cli.needing("train"):
    from .commands import command
    from .config import RENAMED, TrainConfig, from_command_line
    from .loop.process import Interrupted, Stopped, StopRequest
    from .loop.trainer import Trainer


def main(config: TrainConfig) -> int:
    """Exit status: 0 if the run is complete, 128 + the number of the signal that stopped it."""
    with StopRequest() as stop:
        try:
            with stop.interruptible():
                trainer = Trainer(config, stop)
            trainer.run()
        except Interrupted:
            print("stopped before the first step; nothing had to be saved", file=sys.stderr)
            return 128 + stop.received
        except Stopped as stopped:
            if trainer.world.is_main:
                print(stopped, file=sys.stderr)
            return stopped.status
    if not trainer.world.is_main:
        return 0
    best = config.out / "best_model.pth"
    if not best.exists():
        raise DptError(f"no epoch had a finite loss, so there is no {best}. Lower --lr, and check the data: "
                       f"{command('train.check')} --data-root {config.data_root}")
    print(f"best weights: {best}. Next: {command('dpt_deploy.export')} {best}")
    return 0


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


COMMAND = cli.Command(
    TrainConfig, main, f"python -m {__package__}", default=from_command_line,
    renamed={_option(old): _option(new) for old, new in RENAMED.items()},
)

if __name__ == "__main__":
    COMMAND.run()
