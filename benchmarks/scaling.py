"""python benchmarks/scaling.py [BUNDLE]: time and memory against frame size, batch, model size and heads.

Every point runs in a process of its own, because the peak memory of a process never falls. The models have random
weights; neither time nor memory depends on them.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import tyro
from rich.table import Table

from benchmarks import environment
from benchmarks.random_models import frame_graph_bundle
from benchmarks.results import log, result_file, write_result
from dpt_deploy import backends, cli
from dpt_deploy.cli.options import Backends, Batches, Json, Names, Sizes, size_text
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import HEADS
from dpt_deploy.core.errors import BadInput, first_line
from dpt_deploy.core.files import replacing
from dpt_deploy.report.terminal import plain_console
from dpt_deploy.runtime import load

PROG = "python benchmarks/scaling.py"
RENAMED = {"--frames": "--frame-sizes", "--heads": "--head-sets"}
MODELS = {"tiny": "vit_tiny_patch16_384", "small": "vit_small_patch16_384", "base": "vit_base_patch16_384",
          "large": "vit_large_patch16_384"}
ALL_HEADS = ",".join(HEADS)
Point = dict[str, Any]


@dataclass(frozen=True)
class ScalingConfig:
    """Measure time and memory against frame size, batch, model size and heads."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle for frame sizes and batches. Default: ViT-B at 384 with random weights."""
    backends: Backends | None = None
    """Backends to measure. Default: those that run on this CPU."""
    frame_sizes: Sizes = ((480, 640), (720, 1280), (1080, 1920), (2160, 3840))
    """Frame sizes [pixels]."""
    batches: Batches = (1, 2, 4)
    """Batch sizes, at 720x1280."""
    models: Names = tuple(MODELS)
    """Sizes of the ViT among tiny, small, base and large, each with 256 features."""
    head_sets: str = f"{ALL_HEADS}:depth,alpha:depth"
    """Subsets of the heads of ViT-B, separated by colons."""
    calls: int = 3
    """Timed calls of each point, after one warm-up call."""
    out: Path | None = None
    """Folder of the result files. Default: benchmarks/results."""
    name: str = "scaling"
    """Name of the result files: NAME.json and NAME.png."""
    json: Json = False


def main(config: ScalingConfig) -> int:
    """Exit status 0 if every point ran, else 1."""
    if config.bundle:
        Bundle.open(config.bundle)  # a missing bundle is an error before anything is written
    before = environment.record()
    chosen = config.backends or tuple(one.name for one in backends.registered()
                                      if one.automatic and one.device == "cpu" and one.unavailable() is None)
    rows = []
    for point in points(config):
        for backend in chosen:
            rows.append(_without_bundle(point) | {"backend": backend} | _in_new_process(point, backend, config.calls))
            log(f"measured {rows[-1]}")
    result = {"command": cli.command_line(PROG), "machine": before, "calls": config.calls, "rows": rows}
    plot(rows, result_file(config, ".png"))
    write_result(config, result, show)
    return 0 if all(row["status"] == "ran" for row in rows) else 1


def points(config: ScalingConfig) -> list[Point]:
    """What to measure: along each axis one value changes, and the others stay at those of `usual`."""
    if unknown := [name for name in config.models if name not in MODELS]:
        raise BadInput(f"--models: expected names among {', '.join(MODELS)}, received {', '.join(unknown)}.")
    head_sets = [heads for heads in config.head_sets.split(":") if heads]
    if unknown := [name for heads in head_sets for name in heads.split(",") if name not in HEADS]:
        raise BadInput(f"--head-sets: expected sets such as depth,alpha:depth of names among {', '.join(HEADS)}, "
                       f"received {', '.join(map(repr, unknown))}.")
    usual = {"frame": "720x1280", "batch": 1, "model": "base", "heads": ALL_HEADS}
    given = usual | ({"model": "given", "bundle": str(config.bundle)} if config.bundle else {})
    found = [given | {"axis": "frame", "frame": size_text(size)} for size in config.frame_sizes]
    found += [given | {"axis": "batch", "batch": n} for n in config.batches]
    found += [usual | {"axis": "model", "model": name} for name in config.models]
    found += [usual | {"axis": "heads", "heads": heads} for heads in head_sets]
    return [{"bundle": _random_bundle(point)} | point if "bundle" not in point else point for point in found]


def _random_bundle(point: Point) -> str:
    size, heads = point["model"], point["heads"]
    folder = Path("engines") / f"scaling-{size}-{heads.replace(',', '-')}"
    return str(frame_graph_bundle(folder, MODELS[size], tuple(heads.split(","))))


def _without_bundle(point: Point) -> Point:
    return {key: value for key, value in point.items() if key != "bundle"}


def _in_new_process(point: Point, backend: str, calls: int) -> dict[str, Any]:
    """`measure` in a fresh interpreter; "not run" if it fails or the system kills it."""
    fresh = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            return pool.submit(measure, point, backend, calls).result()
    except BrokenProcessPool:
        return {"status": "not run", "reason": "the process was killed, probably because memory ran out"}


def measure(point: Point, backend: str, calls: int) -> dict[str, Any]:
    """Median time of a call and peak memory of this process, for one point on one backend."""
    height, width = (int(part) for part in point["frame"].split("x"))
    batch = point["batch"]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (batch, height // 8, width // 8, 3), dtype=np.uint8)
    frames = np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))
    seconds = []
    try:
        with load(point["bundle"], backend, compile_eagerly=True) as runtime:
            loaded = environment.peak_resident_mb()
            for _ in range(calls + 1):
                started = time.perf_counter()
                runtime(frames)
                seconds.append(time.perf_counter() - started)
    except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
        return {"status": "not run", "reason": first_line(error)}
    median = float(np.median(seconds[1:]) * 1e3)
    return {"status": "ran", "p50_ms": median, "ms_per_frame": median / batch, "first_call_ms": seconds[0] * 1e3,
            "loaded_mb": loaded, "peak_mb": environment.peak_resident_mb()}


def show(result: dict[str, Any]) -> None:
    """Print one row per point and backend."""
    table = Table("axis", "model", "heads", "frame", "batch", "backend", "ms per frame", "peak MB")
    for row in result["rows"]:
        ran = row["status"] == "ran"
        cells = (f"{row['ms_per_frame']:.0f}", f"{row['peak_mb']:.0f}") if ran else ("not run", row["reason"])
        table.add_row(row["axis"], row["model"], row["heads"], row["frame"], str(row["batch"]), row["backend"], *cells)
    plain_console().print(table)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the six panels (PNG); nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = (("frame", "ms_per_frame", "ms per frame against frame size"), ("batch", "ms_per_frame", "against batch"),
              ("model", "ms_per_frame", "against model size"), ("heads", "ms_per_frame", "against heads"),
              ("frame", "peak_mb", "peak memory [MB] against frame size"),
              ("model", "peak_mb", "peak memory [MB] against model size"))
    for axes, (axis, value, title) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for backend in dict.fromkeys(row["backend"] for row in rows):
            ran = [row for row in rows if (row["axis"], row["backend"], row["status"]) == (axis, backend, "ran")]
            axes.plot([str(row[axis]) for row in ran], [row[value] for row in ran], "o-", label=backend)
        axes.set(title=title, ylim=(0, None))
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    cli.run(ScalingConfig, main, PROG, renamed=RENAMED)
