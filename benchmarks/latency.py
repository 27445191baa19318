"""python benchmarks/latency.py [BUNDLE]: from one frame to full-size maps, our runtime beside its peers.

All contenders run in one process, in interleaved rounds, on the same frame and the same weights. Every row carries the
parity of the very artefact that was timed, and the ceiling is a large matrix product timed in the same rounds.
Transfers to and from the GPU are counted in every row; on a GPU its steps are told apart besides: host to device,
engine and device to host. A row's note says whether CUDA graphs ran.
"""

# ruff: noqa: E402 - this file is run by its path, and finds its neighbours through the line below
from __future__ import annotations

import dataclasses
import gc
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import tyro

from benchmarks import machine
from benchmarks.contenders import Contender, NotHere, contenders, flops
from benchmarks.measure import DRIFT, Samples, doubts, drift, interleave, ratios
from benchmarks.models import default_bundle
from benchmarks.show import plot, table
from dpt_deploy import cli
from dpt_deploy.backends.session import first_line
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.files import write_json
from dpt_deploy.parity import Reference, compare, load_budget
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.reference import FILE

RESULTS = Path(__file__).parent / "results"
PROG = "python benchmarks/latency.py"


@dataclass(frozen=True)
class LatencyConfig:
    """Latency from frame to full-size maps, of every backend that can run here and of its peers."""

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to time; when not given, one of ViT-B at 384 with random weights is made in engines/bench-vitb."""
    frame: tuple[int, int] = (720, 1280)
    """Height and width of the frame [pixels]."""
    batch: int = 1
    """Frames in one call."""
    rounds: int = 20
    """Timed calls of each contender."""
    warm_up: int = 3
    """Rounds before those, not counted."""
    seconds: float | None = None
    """Load nothing and begin no round after this time [s]; no limit when not given."""
    only: tuple[str, ...] = ()
    """Contenders whose name contains one of these; all when not given."""
    parity: bool = True
    """Judge every artefact that was timed."""
    quick: bool = False
    """A smoke test: two rounds, and nothing is called stable."""
    out: Path = RESULTS
    """Folder for the JSON and the plot."""
    name: str = "latency"
    """Name of the files in it."""


def main(config: LatencyConfig) -> int:
    """Exit status 0 when at least one contender ran."""
    if config.quick:
        config = dataclasses.replace(config, rounds=2, warm_up=1)
    folder = config.bundle or default_bundle()
    result = measure(Bundle.open(folder), config)
    path = config.out / f"{config.name}.json"
    write_json(path, result)
    plot(result, path.with_suffix(".png"))
    table(result)
    print(f"written: {path} and {path.with_suffix('.png').name}")
    return 0 if any(row["status"] == "ran" for row in result["rows"]) else 1


def measure(bundle: Bundle, config: LatencyConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """All rows, as plain JSON values."""
    before = machine.record()
    until = time.perf_counter() + (config.seconds or math.inf)
    frames = np.stack([scene(*config.frame, seed) for seed in range(config.batch)])
    wanted = [row for row in contenders(bundle) if not config.only or any(part in row.name for part in config.only)]
    rows = {row.name: {"name": row.name, "precision": row.precision, "peer": row.peer} for row in wanted}
    opened = {}
    for contender in wanted:
        row = rows[contender.name]
        row["artifact"] = contender.artifact.file if contender.artifact else None
        row["sha256"] = contender.artifact.sha256 if contender.artifact else None
        try:
            if time.perf_counter() > until:
                raise NotHere(f"the {config.seconds:.0f} s for this run were used up")
            opened[contender.name] = _open(contender, frames, row)
            say(f"loaded   {contender.name}")
        except Exception as error:  # ONNX Runtime's share no other base class
            row |= {"status": "not run", "reason": first_line(error)}
    failed: dict[str, str] = {}
    calls = {name: _call(one, frames, name, failed) for name, one in opened.items()}
    products = {f"product {one.precision}, {one.library}": one for one in machine.matrix_products(config.quick)}
    calls |= {name: lambda one=one: _product(one) for name, one in products.items()}
    say(f"timing   {len(opened)} contenders, {config.rounds} rounds")
    states = []

    def watch(done: int) -> None:
        if done == config.warm_up:
            states.append(machine.gpu_state())  # while its clocks are those of the work

    samples = interleave(calls, config.rounds, config.warm_up, watch, until)
    states.append(machine.gpu_state())
    for name, why in failed.items():
        rows[name] |= {"status": "not run", "reason": why}
        opened.pop(name).close()
    rates = {name: one.flops / float(np.median(samples[name].seconds)) for name, one in products.items()}
    fastest: dict[str, str] = {}  # by precision, the product that serves as ceiling
    for name in sorted(rates, key=lambda name: rates[name]):
        fastest[products[name].precision] = name
    ceilings = {precision: rates[name] for precision, name in fastest.items()}
    operations = flops(bundle)
    peer = next((row.name for row in wanted if row.peer and row.name in opened), None)
    compiled = next((row.name for row in wanted if row.name.startswith("torch.compile") and row.name in opened), None)
    for contender in wanted:
        row = rows[contender.name]
        if contender.name not in opened:
            continue
        row |= {"status": "ran"} | samples[contender.name].summary()
        row["note"] = opened[contender.name].note()
        try:
            row["parts_ms"] |= {name: times[0] for name, times in opened[contender.name].apart(frames).items()}
        except Exception as error:  # the row stands without
            row["not_told_apart"] = first_line(error)
        row["frames_per_s"] = config.batch * 1e3 / row["p50_ms"]
        row["doubts"] = doubts(samples[contender.name])
        row["stable"] = not row["doubts"]
        if peer:
            row["times_faster_than_peer"] = ratios(samples[contender.name], samples[peer])
        if compiled:
            row["times_faster_than_compiled"] = ratios(samples[contender.name], samples[compiled])
        if operations and contender.precision in ceilings:
            share = row["share_of_ceiling"] = operations * row["frames_per_s"] / ceilings[contender.precision]
            if share > 1:
                row["doubts"].append(f"it reached {share:.0%} of the ceiling: no product here was as fast as it")
                row["stable"] = False
    if config.parity:
        _judge(bundle, wanted, opened, rows, say)
    for one in opened.values():
        one.close()
    after = machine.record()
    return {
        "command": cli.command_line(PROG), "bundle": bundle.name, "model": bundle.header["model"],
        "input_size": list(bundle.contract.input_size), "frame": list(config.frame), "batch": config.batch,
        "rounds": config.rounds, "warm_up": config.warm_up, "counts": "frame in host memory to maps in host memory; "
        "transfers counted; CUDA graphs only where a row's note says so",
        "machine": before, "load_after": after["load"], "gpu_under_load": states, "gpu_after": after["gpu"],
        "flops_per_frame": operations, "ceiling_flops_per_s": ceilings, "matrix_products_flops_per_s": rates,
        "doubts": _run_doubts(before, states, {name: samples[name] for name in fastest.values()}),
        "peer": peer, "rows": list(rows.values()),
    }


def _open(contender: Contender, frames: np.ndarray, row: dict[str, Any]) -> Any:
    """Load, and call once; both are timed, and so is the memory that stays."""
    gc.collect()
    resident, free, started = machine.resident_mb(), machine.device_free_mb(), time.perf_counter()
    one = contender.open()
    loaded = time.perf_counter()
    one.run(frames)
    row["load_s"], row["first_call_s"] = loaded - started, time.perf_counter() - loaded
    row["host_memory_mb"] = machine.resident_mb() - resident
    if free:
        row["device_memory_mb"] = free - machine.device_free_mb()
    return one


def _call(one: Any, frames: np.ndarray, name: str, failed: dict[str, str]) -> Callable[[], dict[str, float] | None]:
    def call() -> dict[str, float] | None:
        if name in failed:
            return None
        try:
            one.run(frames)
            return one.parts()
        except Exception as error:  # the others go on
            failed[name] = f"failed among the timed calls: {first_line(error)}"
            return None

    return call


def _product(one: machine.MatrixProduct) -> None:
    one.call()


def _judge(
    bundle: Bundle, wanted: list[Contender], opened: dict[str, Any], rows: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Give every row that ran the parity of what it ran."""
    found = bundle.find("reference", file=FILE)
    if not found:
        return
    reference, (budget, _) = Reference.load(bundle.path(found[0])), load_budget(None)
    for contender in wanted:
        if contender.name not in opened:
            continue
        say(f"judging  {contender.name}")
        stage = compare(contender.name, opened[contender.name].run, reference, "frame", contender.precision, budget)
        rows[contender.name]["parity"] = {
            "status": stage.status, "budget": "fp32" if contender.precision == "fp32" else "fp16",
            "heads": stage.heads, "reasons": list(stage.reasons)[:6],
        }


def _run_doubts(
    before: dict[str, Any], states: list[dict[str, str] | None], ceilings: dict[str, Samples]
) -> list[str]:
    """Why nothing of this run can be called stable."""
    found = machine.gpu_doubts(states)
    for name, one in ceilings.items():
        if drift(one) > DRIFT:
            found.append(f"the ceiling, {name}, moved by {drift(one):.0%} between the halves of the run")
    if before["gpu"] and before["gpu"].get("other_processes", "0") != "0":
        found.append("other processes were on the GPU")
    if before["load"][0] > 0.5 * before["processor"]["cores"]:
        found.append(f"the machine was busy with other work: load {before['load'][0]:.1f} before the run began")
    return found


if __name__ == "__main__":
    cli.run(LatencyConfig, main, PROG)
