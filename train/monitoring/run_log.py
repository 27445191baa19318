"""The log of a run: console, run.json, metrics, curves, sample pictures and TensorBoard."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpt_deploy.core.errors import missing_package
from dpt_deploy.core.files import write_json, write_text
from dpt_deploy.report.writers import write_png

from ..config import TrainConfig, to_yaml
from .tables import Table, epoch_line, metrics_table, write_csv, write_curves

PACKAGES = ("dpt-deploy", "torch", "timm", "numpy", "opencv-python", "OpenEXR")


class RunLog:
    """Prints, and writes files into `config.out`; other processes than the main one print only with `any_rank`."""

    def __init__(self, config: TrainConfig, main: bool) -> None:
        self.config, self.out, self.main = config, Path(config.out), main
        self.board: Any = None
        self._shown = 0  # the epoch whose table was printed last

    def say(self, text: str, any_rank: bool = False) -> None:
        """Print a line without breaking a progress bar; other processes than the main one only with `any_rank`."""
        if self.main or any_rank:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin(self, record: dict[str, Any], epoch: int) -> None:
        """Write run.json, with `record` beside options and versions, and config.yaml; open the TensorBoard files.

        After `epoch` epochs of an earlier part of the run, what TensorBoard has beyond them is replaced.
        """
        if not self.main:
            return
        write_json(self.out / "run.json", {"config": self.config.to_json(), **record, **environment()})
        write_text(self.out / "config.yaml", to_yaml(self.config))
        wanted = {"matplotlib": "draw curves.png"}
        if self.config.tensorboard:
            wanted["tensorboard"] = "write TensorBoard event files"
            self.board = _summary_writer(self.out / "tensorboard", epoch + 1)
        for package, why in wanted.items():
            if find_spec(package) is None:
                self.say(str(missing_package(package, "train", why)))

    def epoch(
        self, history: list[dict[str, float]], table: Table, best: tuple[int, Table], constants: Table,
        picture: np.ndarray | None,
    ) -> None:
        """Write what the end of an epoch leaves.

        Args:
            history: A row per epoch, the last one of this epoch.
            table: Validation metrics; empty without validation.
            best: The best epoch so far, and its validation metrics.
            constants: The scores of constant predictions.
            picture: uint8 (H, W, 3) RGB for training_samples/; None in other processes than the main one.
        """
        row = history[-1]
        epoch = round(row["epoch"])
        self.say(epoch_line(row, self.config.epochs) + ("  best" if best[0] == epoch else ""))
        if not self.main or picture is None:
            return
        write_png(self.out / "training_samples" / f"epoch_{epoch:02d}.png", picture)
        write_csv(self.out / "metrics.csv", history)
        write_curves(self.out / "curves.png", history, constants)
        if table:
            write_json(self.out / "metrics.json", {
                "epoch": epoch, "validation": table, "best": {"epoch": best[0], "validation": best[1]},
                "constant": constants,
            })
            self.say(metrics_table(table, constants))
            self._shown = epoch
        if self.board:
            for name, value in row.items():
                if name != "epoch":
                    self.board.add_scalar(name.replace("_", "/", 1), value, epoch)  # grouped by the part before _
            self.board.add_image("samples", picture, epoch, dataformats="HWC")
            self.board.flush()

    def best(self, row: dict[str, float], done: int, table: Table, constants: Table) -> None:
        """Print the best of `done` epochs, `row`, with its validation metrics unless they are the ones just printed."""
        self.say(f"best: {epoch_line(row, done)}")
        if table and self._shown != round(row["epoch"]):
            self.say(metrics_table(table, constants))

    def end(self) -> None:
        """Close the TensorBoard files."""
        if self.board:
            self.board.close()


def _summary_writer(folder: Path, first_epoch: int) -> Any:
    """A writer of TensorBoard files that replaces what they have from `first_epoch` on; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_epoch)


def environment() -> dict[str, Any]:
    """Versions of Python and packages; in a git checkout also the commit, and whether files were changed since."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _git("rev-parse", "HEAD"),
            "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", ".", "../dpt_deploy"))}


def _git(*arguments: str) -> str | None:
    """The output of git in the folder of this package; None outside a checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
