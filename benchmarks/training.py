"""python benchmarks/training.py: speed and memory of AMP training, with and without torch.compile.

Times the trainer's own step (forward, losses, backward, clipping, AdamW) on images that are already on the device;
benchmarks/dataloader.py measures how long reading files takes. The ceiling is a large matrix product in the same
precision on the same device. Needs a GPU; --device cpu is a small smoke test.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import environment
from benchmarks.results import write_result
from dpt_deploy import cli
from dpt_deploy.cli.options import Batches, Json
from dpt_deploy.core.errors import BackendError
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from dpt_deploy.report.terminal import plain_console
from train.config import TrainConfig
from train.loop.memory import example_batch, is_out_of_memory, release
from train.loop.optim import parameter_groups
from train.loop.process import World
from train.loop.step import Stepper
from train.model.forward import ForwardPass

PROG = "python benchmarks/training.py"
GUIDE_BATCH, GUIDE_GB = 6, 8.0  # "Minimum: 8GB GPU memory for batch_size=6"


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
    result["matrix_tflops"] = matrix_rate(config) / 1e12
    for compiled in (False, True) if config.device == "cuda" else (False,):
        for batch in config.batches:
            result["rows"].append(measure(config, batch, compiled, 1e12 * result["matrix_tflops"]))
    result["guide"] = guide_claim(result["rows"], config.device)
    write_result(config, result, show)
    return 0 if all(row["status"] == "ran" for row in result["rows"]) else 1


def new_model(config: TrainingConfig) -> MultiTaskDPT:
    """The model of the training guide with random weights; neither speed nor memory depends on them."""
    torch.manual_seed(0)
    if config.device == "cpu":
        return create_multitask_dpt_model("test_vit", 8, backbone_kwargs={"img_size": 64})
    return create_multitask_dpt_model("vit_base_patch16_384", 256).to(config.device)


def measure(config: TrainingConfig, batch: int, compiled: bool, ceiling: float) -> dict[str, Any]:
    """One row: `batch` images per step, with or without torch.compile. `ceiling` is in FLOP/s."""
    row: dict[str, Any] = {"batch": batch, "compiled": compiled}
    release()
    try:
        model = new_model(config)
        stepper, images = new_stepper(config, model, compiled), example_batch(
            batch, model.contract(), torch.device(config.device))
        operations = step_flops(model, images["pixels"])
        reset_peak(config)
        seconds = per_call(lambda: stepper([images]), config)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return row | {"status": "not run", "reason": "out of memory"}
    peak = torch.cuda.max_memory_reserved() / 2**30 if config.device == "cuda" else None
    return row | {
        "status": "ran", "ms_per_step": 1e3 * seconds, "images_per_s": batch / seconds,
        "gflop_per_image": operations / batch / 1e9, "share_of_matrix_rate": operations / seconds / ceiling,
        "peak_gib": peak,
    }


def new_stepper(config: TrainingConfig, model: MultiTaskDPT, compiled: bool) -> Stepper:
    """The trainer's step with its default options."""
    defaults = TrainConfig(data_root=Path())
    device = torch.device(config.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    groups = parameter_groups(model, defaults.lr, defaults.weight_decay, 0.1)
    optimizer = torch.optim.AdamW(groups, fused=True if device.type == "cuda" else None)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    amp = {"fp16": torch.float16, "bf16": torch.bfloat16}[config.amp]
    forward = ForwardPass(model.contract(), device, amp)
    return Stepper(torch.compile(model) if compiled else model, optimizer, scaler, defaults.losses, forward,
                   World(0, 1, device), defaults.clip_norm)


def step_flops(model: MultiTaskDPT, pixels: torch.Tensor) -> float:
    """FLOPs that a step needs: three times those of the forward pass, without what the implementation recomputes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixels[:1])
    return 3.0 * len(pixels) * counter.get_total_flops()


def matrix_rate(config: TrainingConfig) -> float:
    """FLOP/s of a large square matrix product in the precision of the run."""
    n = 8192 if config.device == "cuda" else 256
    dtype = torch.float16 if config.amp == "fp16" else torch.bfloat16
    a = torch.randn(n, n, device=config.device).to(dtype)
    out = torch.empty_like(a)
    return 2.0 * n**3 / per_call(lambda: torch.mm(a, a, out=out), config)


def per_call(call: Callable[[], object], config: TrainingConfig) -> float:
    """Mean time of a call over `config.steps` consecutive calls, after the warm-up [s]."""
    for _ in range(config.warm_up):
        call()
    wait(config)
    begin = time.perf_counter()
    for _ in range(config.steps):
        call()
    wait(config)
    return (time.perf_counter() - begin) / config.steps


def wait(config: TrainingConfig) -> None:
    """Wait until the device has finished."""
    if config.device == "cuda":
        torch.cuda.synchronize()


def reset_peak(config: TrainingConfig) -> None:
    """Start measuring peak GPU memory."""
    if config.device == "cuda":
        release()
        torch.cuda.reset_peak_memory_stats()


def guide_claim(rows: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """Whether batch 6 fits the 8 GB of the training guide; None if that was not measured."""
    row = next((row for row in rows if row["batch"] == GUIDE_BATCH and not row["compiled"]), None)
    peak = row.get("peak_gib") if row and device == "cuda" else None
    return {"batch": GUIDE_BATCH, "claimed_gb": GUIDE_GB, "peak_gib": peak,
            "holds": None if peak is None else peak * 2**30 <= GUIDE_GB * 1e9}


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
