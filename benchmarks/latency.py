"""python benchmarks/latency.py [BUNDLE]: latency from a frame to full-size maps, of our backends and their peers.

Three steps: open the contenders, time them, summarise.

All contenders run in one process, in interleaved rounds, on the same frame and the same weights. Large matrix products
in the same rounds give the machine's ceiling. Every row includes transfers to and from the GPU, and the parity of the
artifact that was timed.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import dataclasses
import gc
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import tyro

from benchmarks import environment
from benchmarks.contenders import Contender, contenders
from benchmarks.latency_report import plot, show
from benchmarks.matrix_products import Ceiling, matrix_products
from benchmarks.pipeline import Pipeline, Unavailable
from benchmarks.pytorch_pipeline import count_flops
from benchmarks.random_models import vit_base_bundle
from benchmarks.results import log, result_file, write_result
from benchmarks.timing import MAX_DRIFT, Timings, interleave, speedup
from dpt_deploy import cli
from dpt_deploy.cli.options import Json, Names, Size
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput, first_line
from dpt_deploy.core.verdict import StageId, StageKind, to_json
from dpt_deploy.parity import Reference, compare, load_budget
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.reference import FILE

PROG = "python benchmarks/latency.py"
BUDGETS = {"fp32": "fp32", "int8": "int8", "fp8": "int8"}
"""The budget of a row by its precision; fp16 for the others."""
RENAMED = {"--frame": "--frame-size", "--only": "--contenders", "--seconds": "--max-seconds"}


@dataclass(frozen=True)
class LatencyConfig:
    """Measure the latency from a frame to full-size maps, of every backend that can run here and of its peers."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to time, in eight bits too if it has such graphs. Default: ViT-B at 384 with random weights, exported to
    engines/bench-vitb."""
    calibrate: Path | None = None
    """Folder of images: the default bundle is also exported in INT8, with ranges measured on them."""
    frame_size: Size = (720, 1280)
    """Size of the frame [pixels]."""
    batch: int = 1
    """Frames per call."""
    rounds: int = 20
    """Timed calls of each contender."""
    warm_up: int = 3
    """Untimed rounds before them."""
    max_seconds: float | None = None
    """Time limit [s]: after it, no contender is loaded and no round starts."""
    contenders: Names = ()
    """Only contenders whose name contains one of these, such as openvino,PyTorch."""
    parity: bool = True
    """Judge every artifact that was timed."""
    quick: bool = False
    """Smoke test: two rounds, small matrix products."""
    out: Path | None = None
    """Folder of the result files. Default: benchmarks/results."""
    name: str = "latency"
    """Name of the result files: NAME.json and NAME.png."""
    json: Json = False


@dataclass
class Entry:
    """A contender, and what the run finds out about it."""

    contender: Contender
    pipeline: Pipeline | None = None
    """Loaded and working; None otherwise."""
    failure: str = ""
    """Why it did not run."""
    loading: dict[str, float] = field(default_factory=dict)
    """Time and memory of loading it and of its first call."""
    timings: Timings = field(default_factory=Timings)

    def call(self, frames: np.ndarray) -> dict[str, float] | None:
        """One timed call. A contender that fails is not called again, and the others continue."""
        if self.pipeline is None:
            return None
        try:
            self.pipeline(frames)
        except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
            self.fail(f"failed in a timed call: {first_line(error)}")
            return None
        return self.pipeline.steps

    def fail(self, reason: str) -> None:
        """Give up the contender."""
        self.failure = reason
        if self.pipeline is not None:
            self.pipeline.close()
            self.pipeline = None


def main(config: LatencyConfig) -> int:
    """Exit status 0 if at least one contender ran, else 1."""
    if config.quick:
        config = dataclasses.replace(config, rounds=2, warm_up=1)
    if config.bundle and config.calibrate:
        raise BadInput(f"--calibrate: expected no BUNDLE, because only the default one is exported here; received "
                       f"{config.bundle}. Export it in INT8 first: python -m dpt_deploy.export best_model.pth "
                       f"--precision int8 --calibrate {config.calibrate} --out {config.bundle}")
    bundle = Bundle.open(config.bundle or vit_base_bundle(config.calibrate))
    chosen = [one for one in contenders(bundle)
              if not config.contenders or any(part in one.name for part in config.contenders)]
    result = measure(bundle, config, chosen)
    plot(result, result_file(config, ".png"))
    write_result(config, result, show)
    return 0 if any(row["status"] == "ran" for row in result["rows"]) else 1


def measure(bundle: Bundle, config: LatencyConfig, chosen: Sequence[Contender]) -> dict[str, Any]:
    """Open, time and summarise the contenders.

    Args:
        bundle: What they run.
        config: Frame, rounds and limits.
        chosen: The contenders, one row each.

    Returns:
        The result as plain JSON values.
    """
    before = environment.record()
    deadline = time.perf_counter() + (config.max_seconds or math.inf)
    frames = np.stack([scene(*config.frame_size, seed) for seed in range(config.batch)])
    entries = open_contenders(chosen, frames, deadline)
    try:
        ceiling, gpu_states = time_contenders(entries, frames, config, deadline)
        return summarise(bundle, config, entries, frames, ceiling, before, gpu_states)
    finally:
        for entry in entries:
            if entry.pipeline is not None:
                entry.pipeline.close()


# Step 1: open


def open_contenders(chosen: Sequence[Contender], frames: np.ndarray, deadline: float) -> list[Entry]:
    """Load every contender and call it once. One that cannot run keeps the reason in `failure`."""
    entries = [Entry(contender) for contender in chosen]
    for entry in entries:
        try:
            if time.perf_counter() > deadline:
                raise Unavailable("the time limit of this run was reached")
            _open(entry, frames)
            log(f"loaded   {entry.contender.name}")
        except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
            entry.fail(first_line(error))
    return entries


def _open(entry: Entry, frames: np.ndarray) -> None:
    gc.collect()
    resident, free, started = environment.resident_mb(), environment.free_gpu_memory_mb(), time.perf_counter()
    entry.pipeline = entry.contender.open()
    loaded = time.perf_counter()
    entry.pipeline(frames)
    entry.loading = {"load_s": loaded - started, "first_call_s": time.perf_counter() - loaded,
                     "host_memory_mb": environment.resident_mb() - resident}
    if free:
        entry.loading["device_memory_mb"] = free - environment.free_gpu_memory_mb()


# Step 2: time


def time_contenders(
    entries: Sequence[Entry], frames: np.ndarray, config: LatencyConfig, deadline: float
) -> tuple[Ceiling, list[dict[str, Any] | None]]:
    """Time all entries and the matrix products in interleaved rounds; also the GPU's state during and after them."""
    running = [entry for entry in entries if entry.pipeline]
    products = matrix_products(config.quick)
    calls = {entry.contender.name: lambda entry=entry: entry.call(frames) for entry in running}
    gpu_states = []

    def after_round(done: int) -> None:
        if done == config.warm_up:
            gpu_states.append(environment.gpu_state())  # while the clocks are those of the load

    log(f"timing   {len(running)} contenders, {config.rounds} rounds")
    timings = interleave(calls | {one.name: one for one in products}, config.rounds, config.warm_up, after_round,
                         deadline)
    gpu_states.append(environment.gpu_state())
    for entry in running:
        entry.timings = timings[entry.contender.name]
    return Ceiling(products, timings), gpu_states


# Step 3: summarise


def summarise(
    bundle: Bundle, config: LatencyConfig, entries: Sequence[Entry], frames: np.ndarray, ceiling: Ceiling,
    before: dict[str, Any], gpu_states: list[dict[str, Any] | None],
) -> dict[str, Any]:
    """One row per contender: percentiles, ratios with their confidence intervals, share of the ceiling, parity."""
    flops = count_flops(bundle)
    ran = [entry for entry in entries if entry.pipeline]
    baselines = {role: next(entry for entry in ran if entry.contender.role == role)
                 for role in ("peer", "compiled") if any(entry.contender.role == role for entry in ran)}
    parity = judge(bundle, ran) if config.parity else {}
    rows = [_row(entry, frames, baselines, flops, ceiling) | parity.get(entry.contender.name, {}) for entry in entries]
    after = environment.record()
    return {
        "command": cli.command_line(PROG), "bundle": bundle.name, "model": bundle.manifest.model.to_json(),
        "input_size": list(bundle.contract.input_size), "frame": list(config.frame_size), "batch": config.batch,
        "rounds": config.rounds, "warm_up": config.warm_up,
        "counts": "from frames in host memory to maps in host memory, transfers included",
        "machine": before, "load_after": after["load"], "gpu_under_load": gpu_states, "gpu_after": after["gpu"],
        "flops_per_frame": flops, "ceiling_flops_per_s": ceiling.by_precision,
        "matrix_products_flops_per_s": ceiling.rates, "doubts": run_doubts(before, gpu_states, ceiling),
        "peer": baselines["peer"].contender.name if "peer" in baselines else None, "rows": rows,
    }


def _row(
    entry: Entry, frames: np.ndarray, baselines: Mapping[str, Entry], flops: float | None, ceiling: Ceiling
) -> dict[str, Any]:
    contender, artifact = entry.contender, entry.contender.artifact
    row = {"name": contender.name, "precision": contender.precision, "peer": contender.role == "peer",
           "artifact": artifact.file if artifact else None, "sha256": artifact.sha256 if artifact else None}
    row |= entry.loading
    if entry.pipeline is None:
        return row | {"status": "not run", "reason": entry.failure}
    row |= {"status": "ran"} | entry.timings.summary() | {"note": entry.pipeline.note}
    try:
        row["parts_ms"] |= {step: times[0] for step, times in entry.pipeline.repeat_steps(frames).items()}
    except Exception as error:  # the row is complete without its steps
        row["not_told_apart"] = first_line(error)
    row |= {"frames_per_s": len(frames) * 1e3 / row["p50_ms"], "doubts": entry.timings.doubts()}
    for role, baseline in baselines.items():
        row[f"times_faster_than_{role}"] = speedup(entry.timings, baseline.timings)
    if flops and contender.precision in ceiling.by_precision:
        share = row["share_of_ceiling"] = flops * row["frames_per_s"] / ceiling.by_precision[contender.precision]
        if share > 1:
            row["doubts"].append(f"it reached {share:.0%} of the ceiling, which must be too low")
    return row | {"stable": not row["doubts"]}


def judge(bundle: Bundle, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """The field `parity` of each entry's row, by name; empty if the bundle has no reference."""
    found = bundle.find("reference", file=FILE)
    if not found:
        return {}
    reference, (budget, _) = Reference.load(bundle.path(found[0]), bundle.contract), load_budget(None)
    verdicts = {}
    for entry in entries:
        name, precision = entry.contender.name, entry.contender.precision
        log(f"judging  {name}")
        identity = StageId(StageKind.BACKEND, "frame", precision, device=entry.contender.device, title=name)
        stage = compare(identity, entry.pipeline, reference, budget)
        verdicts[name] = {"parity": {
            "status": stage.status, "budget": BUDGETS.get(precision, "fp16"),
            "heads": to_json(stage)["heads"], "reasons": list(stage.reasons)[:6],
        }}
    return verdicts


def run_doubts(before: dict[str, Any], gpu_states: list[dict[str, Any] | None], ceiling: Ceiling) -> list[str]:
    """Reasons not to call anything in this run stable."""
    found = environment.gpu_doubts(gpu_states)
    for name in ceiling.fastest.values():
        if (drift := ceiling.timings[name].drift()) > MAX_DRIFT:
            found.append(f"the ceiling, {name}, drifted by {drift:.0%} between the halves of the run")
    if before["gpu"] and before["gpu"]["other_processes"]:
        found.append("other processes used the GPU")
    if before["load"][0] > 0.5 * before["processor"]["cores"]:
        found.append(f"the machine was busy before the run: load {before['load'][0]:.1f}")
    return found


if __name__ == "__main__":
    cli.run(LatencyConfig, main, PROG, renamed=RENAMED)
