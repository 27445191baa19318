"""python benchmarks/throughput.py [BUNDLE]: frames per second of batches, and of a stream beside single calls.

A stream decodes, computes and hands over maps concurrently; single calls do one after the other. Both run on the same
encoded frames, in turn, so that a disturbance of the machine affects both alike.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import tyro
from rich.table import Table

from benchmarks import environment
from benchmarks.random_models import vit_base_bundle
from benchmarks.results import write_result
from benchmarks.timing import interleave
from dpt_deploy import cli
from dpt_deploy.cli.options import Batches, Json, Size
from dpt_deploy.parity.images import scene
from dpt_deploy.report.terminal import plain_console
from dpt_deploy.runtime import Precision, Runtime, load

PROG = "python benchmarks/throughput.py"
RENAMED = {"--frame": "--frame-size", "--frames": "--max-frames"}


@dataclass(frozen=True)
class ThroughputConfig:
    """Measure frames per second of batches and streams."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to time. Default: ViT-B at 384 with random weights, exported to engines/bench-vitb."""
    backend: str | None = None
    """Backend to use. Default: the best one that can run here."""
    precision: Precision | None = None
    """Precision to use. Default: the backend's preference."""
    frame_size: Size = (720, 1280)
    """Size of the frames [pixels]."""
    batches: Batches = (1, 2, 4, 8)
    """Batch sizes."""
    max_frames: int = 12
    """Length of the stream [frames]."""
    rounds: int = 5
    """Timed rounds."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "throughput"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: ThroughputConfig) -> int:
    """Exit status 0."""
    with load(config.bundle or vit_base_bundle(), config.backend, precision=config.precision,
              compile_eagerly=True) as runtime:
        result = measure(runtime, config)
    write_result(config, result, show)
    return 0


def measure(runtime: Runtime, config: ThroughputConfig) -> dict[str, Any]:
    """All rows, as plain JSON values."""
    before = environment.record()
    h, w = config.frame_size
    encoded = [cv2.imencode(".jpg", scene(h, w, seed))[1] for seed in range(min(4, config.max_frames))]
    frames = np.stack([scene(h, w, seed) for seed in range(max(config.batches))])

    def decode_all() -> Iterator[np.ndarray]:
        for i in range(config.max_frames):
            yield cv2.cvtColor(cv2.imdecode(encoded[i % len(encoded)], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def run_batch(size: int) -> None:
        runtime(frames[:size])

    def run_single_calls() -> None:
        for frame in decode_all():
            _read_maps(runtime(frame))

    def run_stream() -> None:
        for prediction in runtime.stream(decode_all()):
            _read_maps(prediction)

    calls = {f"batch {n}": lambda n=n: run_batch(n) for n in config.batches}
    calls |= {"decode, compute, read: one after the other": run_single_calls,
              "decode, compute, read: Runtime.stream": run_stream}
    frames_per_call = [*config.batches, config.max_frames, config.max_frames]
    timings = interleave(calls, config.rounds, warm_up=1)
    rows = []
    for (name, one), count in zip(timings.items(), frames_per_call, strict=True):
        summary = one.summary()
        rows.append({"name": name, "frames_per_s": count * 1e3 / summary["p50_ms"], "doubts": one.doubts()} | summary)
    return {"command": cli.command_line(PROG), "bundle": runtime.bundle.name, "runtime": runtime.reason,
            "frame": [h, w], "rounds": config.rounds, "machine": before, "rows": rows}


def _read_maps(prediction: Any) -> None:
    """The least that a caller does with the maps."""
    for value in prediction.maps.values():
        value.mean()


def show(result: dict[str, Any]) -> None:
    """Print the rows."""
    table = Table("what", "frames/s", "spread", "stable", title=result["runtime"], title_justify="left")
    for row in result["rows"]:
        stable = "no" if row["doubts"] else "yes"
        table.add_row(row["name"], f"{row['frames_per_s']:.2f}", f"{row['spread']:.0%}", stable)
    plain_console().print(table)


if __name__ == "__main__":
    cli.run(ThroughputConfig, main, PROG, renamed=RENAMED)
