"""python benchmarks/training.py: speed and memory of AMP training, with and without torch.compile.

Times the trainer's own step (forward, losses, backward, clipping, AdamW) on images that are already on the device;
benchmarks/dataloader.py measures how long reading files takes. The ceiling is a large matrix product in the same
precision on the same device. Needs a GPU; --device cpu is a small smoke test.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from rich.table import Table

from benchmarks import environment
from benchmarks.results import write_result
from benchmarks.train_step import GUIDE_BATCH, guide_claim, matrix_rate, measure
from dpt_deploy import cli
from dpt_deploy.cli.options import Batches, Json
from dpt_deploy.core.errors import BackendError
from dpt_deploy.report.terminal import plain_console

PROG = "python benchmarks/training.py"


@dataclass(frozen=True)
class TrainingConfig:
    """Measure images per second, share of the matrix-product rate, and peak memory of training."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cpu is a smoke test with a small model, not a measurement."""
    amp: Literal["fp16", "bf16"] = "fp16"
    """Precision. fp16 uses loss scaling."""
    batches: Batches = (GUIDE_BATCH, 32)
    """Batch sizes."""
    steps: int = 30
    """Timed steps of each batch size."""
    warm_up: int = 8
    """Untimed steps before them; the first ones compile."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "training"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: TrainingConfig) -> int:
    """Exit status 0 if every row ran, else 1.

    Raises:
        BackendError: No GPU is visible.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BackendError("no GPU is visible to PyTorch. Run this command on a machine with an NVIDIA GPU, or add "
                           "--device cpu for a smoke test.")
    result: dict[str, Any] = {"command": cli.command_line(PROG), "machine": environment.record(),
                              "amp": config.amp, "device": config.device, "rows": []}
    result["matrix_tflops"] = matrix_rate(config.device, config.amp, config.warm_up, config.steps) / 1e12
    for compiled in (False, True) if config.device == "cuda" else (False,):
        for batch in config.batches:
            result["rows"].append(measure(config.device, config.amp, batch, compiled, 1e12 * result["matrix_tflops"],
                                          config.warm_up, config.steps))
    result["guide"] = guide_claim(result["rows"], config.device)
    write_result(config, result, show)
    return 0 if all(row["status"] == "ran" for row in result["rows"]) else 1


def show(result: dict[str, Any]) -> None:
    """Print one row per batch size."""
    table = Table(title=f"training in {result['amp']} on {result['device']}; matrix product "
                        f"{result['matrix_tflops']:.3g} TFLOP/s", title_justify="left")
    for column in ("batch", "compiled", "images/s", "ms/step", "of the matrix rate", "peak GiB"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        cells = [row["reason"], "", "", ""] if row["status"] != "ran" else [
            f"{row['images_per_s']:.1f}", f"{row['ms_per_step']:.1f}", f"{row['share_of_matrix_rate']:.0%}",
            "not measured" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"]
        table.add_row(str(row["batch"]), "yes" if row["compiled"] else "no", *cells)
    plain_console().print(table)


if __name__ == "__main__":
    cli.run(TrainingConfig, main, PROG)
