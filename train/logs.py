"""What a run says: console table, metrics.csv, curves.png, TensorBoard, run.json."""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.core.errors import missing_package
from dpt_deploy.core.files import replacing, write_text
from train.scores import METRICS

PACKAGES = ("dpt-deploy", "torch", "timm", "numpy", "opencv-python", "OpenEXR")


def metrics_table(table: dict[str, dict[str, float]], constants: dict[str, dict[str, float]]) -> str:
    """Lines of text: a row per metric; a column per kind, and what constants score on all."""
    columns = list(table)
    lines = ["".join([f"{'':34}", *(f"{name:>13}" for name in columns), f"{'constant':>13}"])]
    for metric, label in METRICS.items():
        if metric in table["all"]:
            cells = [table[name].get(metric, float("nan")) for name in columns]
            cells.append(constants.get("all", {}).get(metric, float("nan")))
            head = metric.split("_")[0]
            lines.append("".join([f"{head + ' ' + label:34}", *(f"{cell:13.4f}" for cell in cells)]))
    return "\n".join(lines)


def epoch_line(row: dict[str, float], epochs: int) -> str:
    """One line per epoch."""
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"train {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val {row['val_loss']:.4f}")
    for metric, label in (("depth_abs_rel", "AbsRel {:.3f}"), ("normals_mean", "normals {:.1f} deg"),
                          ("alpha_iou", "IoU {:.3f}")):
        if metric in row:
            parts.append(label.format(row[metric]))
    return "  ".join([*parts, f"lr {row['lr']:.1e}", f"{row['images_per_second']:.1f} images/s"])


def write_csv(path: Path, history: list[dict[str, float]]) -> None:
    """All epochs so far, one row each, atomically."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def write_curves(path: Path, history: list[dict[str, float]], constants: dict[str, dict[str, float]]) -> None:
    """Losses and the main metric of each head over epochs, with what a constant scores."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    panels = [("losses", ("train_loss", "val_loss"), None), ("depth AbsRel", ("depth_abs_rel",), "depth_abs_rel"),
              ("normals, mean angle [deg]", ("normals_mean", "normals_median"), "normals_mean"),
              ("alpha IoU", ("alpha_iou",), "alpha_iou")]
    panels = [panel for panel in panels if any(name in row for row in history for name in panel[1])]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, names, constant) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else "")
        if constant and constant in constants.get("all", {}):
            axes.axhline(constants["all"][constant], color="grey", linestyle="--", label="constant prediction")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def not_written(tensorboard: bool) -> list[str]:
    """What a run cannot write for want of a package: a sentence each."""
    wanted = {"matplotlib": "draw curves.png"}
    if tensorboard:
        wanted["tensorboard"] = "write TensorBoard event files"
    return [str(missing_package(name, "train", why)) for name, why in wanted.items() if find_spec(name) is None]


class TensorBoard:
    """Event files in `folder`/tensorboard; nothing where the package is absent or not wanted."""

    def __init__(self, folder: Path, wanted: bool, first_epoch: int = 1) -> None:
        self.writer = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            # A resumed run replaces what an interrupted one had logged from here on.
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_epoch)

    def scalars(self, row: dict[str, float], step: int) -> None:
        """Every value of `row`, grouped by the first part of its name."""
        if self.writer:
            for name, value in row.items():
                self.writer.add_scalar(name.replace("_", "/", 1), value, step)
            self.writer.flush()

    def picture(self, name: str, rgb: np.ndarray, step: int) -> None:
        """uint8 (H, W, 3)."""
        if self.writer:
            self.writer.add_image(name, rgb, step, dataformats="HWC")

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def environment() -> dict[str, Any]:
    """Versions of what computes; the commit of the code where it is in a git checkout, and whether it was changed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "commit": _git("rev-parse", "HEAD"),
            "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", ".", "../dpt_deploy"))}


def _git(*arguments: str) -> str | None:
    """What git says of the folder of this file; None where it is in no checkout."""
    try:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
                              ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
