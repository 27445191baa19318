"""python -m benchmarks.many_images: thousands of small images, one in a hundred broken, a process killed in the middle.

Runs `dpt predict` as a user would: first locally, killed with SIGKILL half-way and started again with --resume; then
with --ray, one actor killed half-way. After each it compares the output folder with the input: every image that can be
decoded has its file and one line in the journal, and every broken one has its reason. Before, between and after, it
times the bare loop: images of the same sizes, decoded and in memory, in batches of one size through the runtime.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from benchmarks import environment
from benchmarks.random_models import frame_graph_bundle
from benchmarks.results import log, write_result
from dpt_deploy import cli
from dpt_deploy.cli.options import Count, Json, Name
from dpt_deploy.core.errors import DptError
from dpt_deploy.core.scene import scene
from dpt_deploy.predict.journal import FOLDER
from dpt_deploy.runtime import load

PROG = "python -m benchmarks.many_images"
SIZES = ((64, 64), (48, 64), (64, 48), (72, 96))
BROKEN = 100  # every so many images
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ManyConfig:
    """Predict thousands of small images with dpt predict, locally and with Ray, and kill a worker in the middle."""

    bundle: Path | None = None
    """Bundle to run. Default: a small model with random weights at 64x64 pixels, exported once."""
    max_images: Count = 20_000
    """Images."""
    backend: Name = "openvino"
    """Backend."""
    threads: Count = 1
    """CPU threads per operator, in all runs."""
    batch: Count = 8
    """Images in a call, in all runs."""
    format: Name = "npz"
    """Format of the results."""
    scratch: Path = Path("engines") / "many-images"
    """Folder for the images and the results; it is removed at the end."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "many_images"
    """Name of the result file: NAME.json."""
    json: Json = False


class Failed(DptError):
    """An image is lost, or there twice."""


def main(config: ManyConfig) -> int:
    """Exit status 0; 1 if an image is lost or there twice."""
    bundle = config.bundle or frame_graph_bundle(Path("engines") / "bench-64", "test_vit", features=16,
                                                 backbone_kwargs={"img_size": 64})
    machine = environment.record()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, config.scratch, ignore_errors=True)
        names = write_images(config.scratch / "images", config.max_images)
        bare, rows = [bare_loop(config, bundle)], []
        for ray in (False, True):
            rows.append(run(config, bundle, ray) | check(config.scratch / ("ray" if ray else "local"), names))
            bare.append(bare_loop(config, bundle))
            shutil.rmtree(config.scratch / ("ray" if ray else "local"))
    for row, around in zip(rows, itertools.pairwise(bare), strict=True):
        row["bare_images_per_s"] = statistics.mean(around)
        row["share_of_bare"] = row["images_per_s"] / row["bare_images_per_s"]
    result = {"command": PROG, "bundle": bundle.name, "backend": config.backend, "threads": config.threads,
              "batch": config.batch, "format": config.format, "images": config.max_images,
              "broken": sum(not good for good in names.values()), "sizes": [list(size) for size in SIZES],
              "machine": machine, "load_at_end": list(os.getloadavg()), "bare_images_per_s": bare, "rows": rows}
    write_result(config, result, show)
    return int(any(row["lost"] or row["twice"] for row in rows))


def write_images(folder: Path, count: int) -> dict[str, bool]:
    """JPEG and PNG files, a thousand in a folder. Returns whether each can be decoded, by its key."""
    encoded = {(size, suffix): cv2.imencode(suffix, scene(*size, 7))[1].tobytes() for size in SIZES
               for suffix in (".jpg", ".png")}
    kinds = list(encoded)
    names = {}
    for i in range(count):
        size, suffix = kinds[(i * 7 + i // 5) % len(kinds)]
        name = f"{i // 1000:03d}/{i:06d}{suffix}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data, names[name] = encoded[size, suffix], i % BROKEN != BROKEN - 1
        path.write_bytes(data if names[name] else data[: len(data) // 3])
    return names


def bare_loop(config: ManyConfig, bundle: Path, seconds: float = 10.0) -> float:
    """Images per second of the runtime alone."""
    with load(bundle, config.backend, threads=config.threads, compile_eagerly=True) as runtime:
        batches = [[scene(*size, seed) for seed in range(config.batch)] for size in SIZES]
        for batch in batches:
            runtime(batch)
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            for batch in batches:
                runtime(batch)
                count += len(batch)
    log(f"bare loop: {count / passed:.1f} images/s")
    return count / passed


def run(config: ManyConfig, bundle: Path, ray: bool) -> dict[str, Any]:
    """One run in which a worker is killed when half of the images are done."""
    out = config.scratch / ("ray" if ray else "local")
    command = [sys.executable, "-m", "dpt_deploy.predict", str(bundle), str(config.scratch / "images"), "--recursive",
               "--out", str(out), "--format", config.format, "--backend", config.backend, "--threads",
               str(config.threads), "--batch", str(config.batch)]
    command += ["--ray"] if ray else []
    spans = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    first = _wait(process, out, 1)
    half = _wait(process, out, config.max_images // 2)
    victim = _actor(out) if ray else process.pid
    os.kill(victim, signal.SIGKILL)
    log(f"killed {'an actor' if ray else 'the process'} at {half.lines} images")
    if not ray:
        process.communicate()
        spans.append((half.at - first.at, half.lines - first.lines))
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   text=True, cwd=ROOT)
        first = _wait(process, out, half.lines + 2 * config.batch)
    _, errors = process.communicate()
    end = _Moment(time.perf_counter(), _lines(out))
    spans.append((end.at - first.at, end.lines - first.lines))
    if process.returncode != 1:
        raise Failed(f"expected exit status 1, since images are broken, received {process.returncode}: {errors[-500:]}")
    return {"how": "ray" if ray else "local", "images_per_s": sum(n for _, n in spans) / sum(s for s, _ in spans),
            "killed": "an actor" if ray else "the process", "killed_at": half.lines}


@dataclass(frozen=True)
class _Moment:
    at: float
    lines: int


def _wait(process: subprocess.Popen, out: Path, lines: int) -> _Moment:
    while (found := _lines(out)) < lines:
        if process.poll() is not None:
            raise Failed(f"the run ended at {found} images: {process.stderr.read()[-500:]}")
        time.sleep(0.2)
    return _Moment(time.perf_counter(), found)


_sizes: dict[Path, tuple[int, int]] = {}


def _lines(out: Path) -> int:
    """Lines in the journal, without reading again what was read."""
    total = 0
    for path in (out / FOLDER).glob("part-*.jsonl"):
        at, lines = _sizes.get(path, (0, 0))
        with open(path, "rb") as file:
            file.seek(at)
            data = file.read()
        _sizes[path] = at + len(data), lines + data.count(b"\n")
        total += _sizes[path][1]
    return total


def _actor(out: Path) -> int:
    """Process of the actor that wrote the latest block."""
    path = max((out / FOLDER).glob("part-*-*.jsonl"), key=lambda path: path.stat().st_mtime)
    return json.loads(path.read_text().splitlines()[0])["run"]["pid"]


def check(out: Path, names: dict[str, bool]) -> dict[str, Any]:
    """Compare the journal and the files with the input."""
    done, failed = Counter(), set()
    for line in _journal(out):
        if "files" in line:
            files = [(out / name).stat().st_size == size for name, size, _ in line["files"]]
            done[line["key"]] += all(files)
        elif "failed" in line:
            failed.add(line["key"])
    good = {name for name, fine in names.items() if fine}
    files = sum(1 for path in out.rglob("*") if path.is_file() and FOLDER not in path.parts)
    return {"done": len(done), "failed": len(failed), "files": files,
            "lost": len(good - done.keys()) + len(names.keys() - good - failed),
            "twice": sum(count > 1 for count in done.values()) + max(0, files - len(done))}


def _journal(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / FOLDER).glob("part-*.jsonl")):
        for text in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(text)


def show(result: dict[str, Any]) -> None:
    """Print the rows."""
    for row in result["rows"]:
        print(f"{row['how']:6} {row['images_per_s']:8.1f} images/s   bare loop {row['bare_images_per_s']:8.1f}   "
              f"{row['share_of_bare']:.0%}   {row['done']} done, {row['failed']} failed, {row['lost']} lost, "
              f"{row['twice']} twice; {row['killed']} killed at {row['killed_at']}")


if __name__ == "__main__":
    cli.run(ManyConfig, main, PROG)
