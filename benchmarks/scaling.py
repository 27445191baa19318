"""python benchmarks/scaling.py: cost against frame size, batch, model size and heads, and memory against frame size.

Every point runs in a process of its own, because the largest resident memory of a process never falls. The models have
random weights; neither time nor memory depends on them.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import machine
from benchmarks.latency import RESULTS
from benchmarks.models import graph_bundle
from dpt_deploy import cli
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import HEADS
from dpt_deploy.core.files import replacing, write_json
from dpt_deploy.runtime import Backend, load

PROG = "python benchmarks/scaling.py"
MODELS = {"tiny": "vit_tiny_patch16_384", "small": "vit_small_patch16_384", "base": "vit_base_patch16_384",
          "large": "vit_large_patch16_384"}


@dataclass(frozen=True)
class ScalingConfig:
    """Cost against frame size, batch, model size and heads."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle for frame sizes and batches; when not given, ViT-B at 384."""
    backends: tuple[Backend, ...] = ("openvino", "onnxruntime-cpu")
    """What runs them."""
    frames: tuple[str, ...] = ("480x640", "720x1280", "1080x1920", "2160x3840")
    """Frame sizes, HEIGHTxWIDTH [pixels]."""
    batches: tuple[int, ...] = (1, 2, 4)
    """Batch sizes, at 720x1280."""
    models: tuple[str, ...] = tuple(MODELS)
    """Sizes of the ViT, each with the factory's default of 256 features."""
    heads: tuple[str, ...] = ("depth,normals,alpha", "depth,alpha", "depth")
    """Subsets of ViT-B's heads."""
    calls: int = 3
    """Timed calls of each point, after one that is not counted."""
    out: Path = RESULTS
    """Folder for the JSON and the plot."""
    name: str = "scaling"
    """Name of the files in it."""
    point: str | None = None
    """Used by the command itself: measure this one point and print it."""


def main(config: ScalingConfig) -> int:
    """Exit status 0 when every point ran. Raises `BadBundle` where there is no bundle."""
    if config.point:
        print(json.dumps(_point(**json.loads(config.point))))
        return 0
    if config.bundle:
        Bundle.open(config.bundle)  # raises for all points at once, before anything is written
    before = machine.record()
    usual = {"frame": "720x1280", "batch": 1, "model": "given" if config.bundle else "base", "heads": ",".join(HEADS)}
    given = usual | {"bundle": str(config.bundle or _random("base"))}
    wanted = [given | {"axis": "frame", "frame": frame} for frame in config.frames]
    wanted += [given | {"axis": "batch", "batch": n} for n in config.batches]
    wanted += [usual | {"axis": "model", "model": name, "bundle": str(_random(name))} for name in config.models]
    wanted += [usual | {"axis": "heads", "model": "base", "heads": heads, "bundle": str(_random("base", heads))}
               for heads in config.heads]
    rows = []
    for point in wanted:
        for backend in config.backends:
            rows.append(_apart(point, backend, config.calls))
            print("measured", {key: value for key, value in rows[-1].items() if key != "bundle"}, flush=True)
    result = {"command": cli.command_line(PROG), "machine": before, "calls": config.calls,
              "rows": [{key: value for key, value in row.items() if key != "bundle"} for row in rows]}
    path = config.out / f"{config.name}.json"
    write_json(path, result)
    _show(rows)
    _plot(rows, path.with_suffix(".png"))
    return 0 if all("p50_ms" in row for row in rows) else 1


def _random(size: str, heads: str = ",".join(HEADS)) -> Path:
    return graph_bundle(Path("engines") / f"scaling-{size}-{heads.replace(',', '-')}", MODELS[size],
                        tuple(heads.split(",")))


def _apart(point: dict[str, Any], backend: str, calls: int) -> dict[str, Any]:
    arguments = {"bundle": point["bundle"], "frame": point["frame"], "batch": point["batch"], "backend": backend,
                 "calls": calls}
    done = subprocess.run([sys.executable, __file__, "--point", json.dumps(arguments)], capture_output=True, text=True,
                          check=False)
    row = point | {"backend": backend}
    if done.returncode:
        return row | {"status": "not run", "reason": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return row | {"status": "ran"} | json.loads(done.stdout.strip().splitlines()[-1])


def _point(bundle: str, frame: str, batch: int, backend: Backend, calls: int) -> dict[str, float]:
    h, w = (int(part) for part in frame.split("x"))
    rng = np.random.default_rng(0)
    frames = np.kron(rng.integers(0, 256, (batch, h // 8, w // 8, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8))
    seconds = []
    with load(bundle, backend) as runtime:
        loaded = machine.peak_mb()
        for _ in range(calls + 1):
            started = time.perf_counter()
            runtime(frames)
            seconds.append(time.perf_counter() - started)
    return {"p50_ms": float(np.median(seconds[1:]) * 1e3), "ms_per_frame": float(np.median(seconds[1:]) * 1e3 / batch),
            "first_call_ms": seconds[0] * 1e3, "loaded_mb": loaded, "peak_mb": machine.peak_mb()}


def _show(rows: list[dict[str, Any]]) -> None:
    shown = Table("axis", "model", "heads", "frame", "batch", "backend", "ms per frame", "peak MB")
    for row in rows:
        ran = "p50_ms" in row
        cells = (f"{row['ms_per_frame']:.0f}", f"{row['peak_mb']:.0f}") if ran else ("not run", Text(row["reason"]))
        shown.add_row(row["axis"], row["model"], row["heads"], row["frame"], str(row["batch"]), row["backend"], *cells)
    Console().print(shown)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), layout="constrained")
    panels = (("frame", "ms_per_frame", "ms per frame against frame size"), ("batch", "ms_per_frame", "against batch"),
              ("model", "ms_per_frame", "against model size"), ("heads", "ms_per_frame", "against heads"),
              ("frame", "peak_mb", "peak memory [MB] against frame size"),
              ("model", "peak_mb", "peak memory [MB] against model size"))
    for one, (axis, value, title) in zip(axes.flat, panels, strict=True):
        for backend in dict.fromkeys(row["backend"] for row in rows):
            ran = [row for row in rows if row["axis"] == axis and row["backend"] == backend and "p50_ms" in row]
            one.plot([str(row[axis]) for row in ran], [row[value] for row in ran], "o-", label=backend)
        one.set(title=title, ylim=(0, None))
        one.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    cli.run(ScalingConfig, main, PROG)
