"""python benchmarks/throughput.py [BUNDLE]: frames per second of batches, and of a stream beside single calls.

A stream decodes, computes and hands over at the same time; single calls do one after the other. Both run on the same
encoded frames, in turn, so that drift hits both alike.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import machine
from benchmarks.latency import RESULTS
from benchmarks.measure import Samples, doubts
from benchmarks.models import default_bundle
from dpt_deploy import cli
from dpt_deploy.core.files import write_json
from dpt_deploy.parity.images import scene
from dpt_deploy.runtime import Backend, Precision, Runtime, load

PROG = "python benchmarks/throughput.py"


@dataclass(frozen=True)
class ThroughputConfig:
    """Frames per second of batches and streams."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to time; when not given, one of ViT-B at 384 with random weights is made."""
    backend: Backend | None = None
    """What runs it; the best that can run here when not given."""
    precision: Precision | None = None
    """The backend's preference when not given."""
    frame: tuple[int, int] = (720, 1280)
    """Height and width of the frames [pixels]."""
    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Batch sizes."""
    frames: int = 12
    """Frames of the stream."""
    rounds: int = 5
    """Timed turns."""
    out: Path = RESULTS
    """Folder for the JSON."""
    name: str = "throughput"
    """Name of the file in it."""


def main(config: ThroughputConfig) -> int:
    """Exit status 0."""
    with load(config.bundle or default_bundle(), config.backend, precision=config.precision) as runtime:
        result = measure(runtime, config)
    path = config.out / f"{config.name}.json"
    write_json(path, result)
    shown = Table("what", "frames/s", "spread", "stable", title=Text(result["runtime"]), title_justify="left")
    for row in result["rows"]:
        stable = "no" if row["doubts"] else "yes"
        shown.add_row(row["name"], f"{row['frames_per_s']:.2f}", f"{row['spread']:.0%}", stable)
    Console().print(shown)
    print(f"written: {path}")
    return 0


def measure(runtime: Runtime, config: ThroughputConfig) -> dict[str, Any]:
    """All rows, as plain JSON values."""
    before = machine.record()
    h, w = config.frame
    encoded = [cv2.imencode(".jpg", scene(h, w, seed))[1] for seed in range(min(4, config.frames))]
    frames = np.stack([scene(h, w, seed) for seed in range(max(config.batches))])

    def decoded() -> Iterator[np.ndarray]:
        for i in range(config.frames):
            yield cv2.cvtColor(cv2.imdecode(encoded[i % len(encoded)], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def single() -> None:
        for frame in decoded():
            _use(runtime(frame))

    def stream() -> None:
        for prediction in runtime.stream(decoded()):
            _use(prediction)

    work = {f"batch {n}": (lambda n=n: runtime(frames[:n]), n) for n in config.batches}
    work |= {"decode, compute, read: one after the other": (single, config.frames),
             "decode, compute, read: Runtime.stream": (stream, config.frames)}
    samples = {name: Samples() for name in work}
    for i in range(config.rounds + 1):
        for name, (call, _) in work.items():
            started = time.perf_counter()
            call()
            if i:  # the first round warms up
                samples[name].seconds.append(time.perf_counter() - started)
    rows = [
        {"name": name, "frames_per_s": count * 1e3 / samples[name].summary()["p50_ms"],
         "doubts": doubts(samples[name])} | samples[name].summary()
        for name, (_, count) in work.items()
    ]
    return {"command": cli.command_line(PROG), "bundle": runtime.bundle.name, "runtime": runtime.reason,
            "frame": [h, w], "rounds": config.rounds, "machine": before, "rows": rows}


def _use(prediction: Any) -> None:
    """What a caller at least does with the maps: read them once."""
    for value in prediction.maps.values():
        value.mean()


if __name__ == "__main__":
    cli.run(ThroughputConfig, main, PROG)
