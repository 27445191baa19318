"""Metrics for people: the table in the terminal, a line per epoch, metrics.csv and curves.png."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dpt_deploy.core.files import replacing, write_text

from .scores import METRICS

Table = dict[str, dict[str, float]]
"""Column, "all" or a kind -> metric -> value."""


def metrics_table(table: Table, constants: Table) -> str:
    """The metrics of all images and per kind as lines of text; the last column scores constant predictions."""
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
    """The metrics of an epoch as one line; `epochs` is how many there will be."""
    parts = [f"epoch {row['epoch']:.0f}/{epochs}", f"train {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val {row['val_loss']:.4f}")
    for metric, label in (("depth_abs_rel", "AbsRel {:.3f}"), ("normals_mean", "normals {:.1f} deg"),
                          ("alpha_iou", "IoU {:.3f}")):
        if metric in row:
            parts.append(label.format(row[metric]))
    return "  ".join([*parts, f"lr {row['lr']:.1e}", f"{row['images_per_second']:.1f} images/s"])


def write_csv(path: Path, history: list[dict[str, float]]) -> None:
    """Write one row per epoch, atomically."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def write_curves(path: Path, history: list[dict[str, float]], constants: Table) -> None:
    """Draw the losses and the main metric of each head over epochs, with the scores of constant predictions.

    Does nothing if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
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
        axes.set_xlim(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
