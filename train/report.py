"""What a run writes for people: the console, metrics, curves, pictures, TensorBoard, run.json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpt_deploy.core.files import write_json, write_text
from train import logs
from train.config import TrainConfig, to_yaml
from train.samples import write_picture
from train.state import Progress

Table = dict[str, dict[str, float]]


class Report:
    """Writes into `config.out`; silent where `main` is False, as on every rank but the first."""

    def __init__(self, config: TrainConfig, main: bool) -> None:
        self.config, self.out, self.main = config, Path(config.out), main
        self.board = logs.TensorBoard(self.out, False)

    def begin(self, record: dict[str, Any], epoch: int) -> None:
        """run.json, config.yaml, and event files that continue after `epoch` epochs."""
        if self.main:
            write_json(self.out / "run.json", {"config": self.config.to_json(), **record, **logs.environment()})
            write_text(self.out / "config.yaml", to_yaml(self.config))
            for line in logs.not_written(self.config.tensorboard):
                self.say(line)
            self.board = logs.TensorBoard(self.out, self.config.tensorboard, epoch + 1)

    def epoch(self, progress: Progress, table: Table, picture: np.ndarray | None, better: bool) -> None:
        """Everything that an epoch's end leaves."""
        row = progress.history[-1]
        self.say(logs.epoch_line(row, self.config.epochs) + ("  best" if better else ""))
        if not self.main or picture is None:
            return
        write_picture(self.out / "training_samples" / f"epoch_{progress.epoch:02d}.png", picture)
        logs.write_csv(self.out / "metrics.csv", progress.history)
        logs.write_curves(self.out / "curves.png", progress.history, progress.constants)
        if table:
            write_json(self.out / "metrics.json",
                       {"epoch": progress.epoch, "validation": table, "constant": progress.constants})
            self.say(logs.metrics_table(table, progress.constants))
        self.board.scalars({key: value for key, value in row.items() if key != "epoch"}, progress.epoch)
        self.board.picture("samples", picture, progress.epoch)

    def end(self) -> None:
        """Close the event files."""
        self.board.close()

    def say(self, text: str, any_rank: bool = False) -> None:
        """A line on the console that leaves a progress bar whole; of other ranks only with `any_rank`."""
        if self.main or any_rank:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
