"""Variants of one network, side by side: made, judged, and timed in interleaved rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import environment
from benchmarks.timing import MAX_DRIFT, Timings, interleave, speedup
from dpt_deploy.core.errors import first_line
from dpt_deploy.model import MultiTaskDPT

from .hardware import device_of, product, synchronize
from .network import Call, Outputs, forward_flops, images, judge, maps_of, new_model, reference, varies
from .step import NotRun, Result, Run, ran_on, seconds_left

SECONDS_PER_CALL = 0.02  # one timed call repeats a fast network, so that waiting for the GPU does not count


@dataclass(frozen=True)
class Variant:
    """One row: a way to run the network."""

    name: str
    precision: str
    """`fp32` or `fp16`. It selects the budget."""
    make: Callable[[MultiTaskDPT, Run, torch.Tensor], Call]
    """From a network of its own and the input to a call. It may raise `NotRun`."""
    against: str = ""
    """The row that it is compared with."""
    expected: dict[int, tuple[float, float]] | None = None
    """How many times faster than that row it should be, at least and at most, by batch size. Written before any run."""
    why: str = ""
    """The reason for the expectation."""


def measure_variants(run: Run, batch: int, variants: list[Variant]) -> Result:
    """One row for each variant, with parity, times, and the outcome of its expectation.

    Parity is held against FP32 on the CPU, and all ratios come from the same interleaved rounds. A result is incomplete
    if a row had no time.
    """
    model = new_model(run)
    pixels = images(model, batch)
    flops = forward_flops(model, pixels)["total"]
    want = reference(model, pixels[:2])
    found: Result = {"batch": batch, "flops_per_image": flops, "maps_of_the_reference": varies(want), "rows": []}
    rows = {variant.name: {"name": variant.name, "precision": variant.precision} for variant in variants}
    calls: dict[str, Call] = {}
    late: list[str] = []
    for variant in variants:
        row = rows[variant.name]
        found["rows"].append(row)
        try:
            if not run.dry and run.left < 0.4 * run.limit:
                late.append(variant.name)
                raise NotRun("no time left in this step")
            row |= _open(run, variant, calls, pixels, want)
        except Exception as error:  # compilers and drivers raise exceptions of many types
            calls.pop(variant.name, None)
            row |= {"status": "not run", "reason": first_line(error)[:300]}
            if not isinstance(error, NotRun):
                row["error"] = type(error).__name__
        run.report(found)
    if not calls:
        raise NotRun("; ".join(f"{row['name']}: {row['reason']}" for row in rows.values()))
    timings, ceiling, states = _time(run, calls, pixels, rows)
    for variant in variants:
        if variant.name in timings:
            rows[variant.name] |= _timed(run, variant, batch, timings, flops)
    doubts = environment.gpu_doubts(states)
    if (drift := ceiling.drift()) > MAX_DRIFT:
        doubts.append(f"the matrix product drifted by {drift:.0%} between the halves of the run")
    with torch.inference_mode():
        last = next(iter(calls.values()))(pixels)
    if late:
        found |= {"status": "incomplete", "reason": f"rows without time: {', '.join(late)}"}
    return found | {"fp16_matrix_flops_per_s": _rate(ceiling, run), "under_load": states, "doubts": doubts} | \
        ran_on(run, pixels, *last.values())


def _open(run: Run, variant: Variant, calls: dict[str, Call], pixels: torch.Tensor, want: list[Any]) -> Result:
    """Make a variant, call it, judge its maps, and time it alone: what is known if the step ends here."""
    if not run.dry:  # the networks of earlier rows stay, and count for them
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    kept = 0 if run.dry else torch.cuda.memory_reserved()
    before = time.perf_counter()
    call = calls[variant.name] = variant.make(new_model(run), run, pixels)
    with torch.inference_mode():
        outputs: Outputs = {name: value.clone() for name, value in call(pixels).items()}
        synchronize(run)
        first = time.perf_counter() - before
        where = ran_on(run, *outputs.values())
        for _ in range(1 if run.dry else 3):
            call(pixels)
        synchronize(run)
        begin, count = time.perf_counter(), 1 if run.dry else 5
        for _ in range(count):
            call(pixels)
        synchronize(run)
        alone = (time.perf_counter() - begin) / count
    peak = None if run.dry else (torch.cuda.max_memory_reserved() - kept) / 2**20
    return {"status": "ran", "first_call_s": first, "alone_ms": 1e3 * alone, "added_mib": peak,
            "parity": judge(maps_of(outputs), want, variant.precision)} | where


def _time(
    run: Run, calls: dict[str, Call], pixels: torch.Tensor, rows: dict[str, Result]
) -> tuple[dict[str, Timings], Timings, list[Any]]:
    """Interleaved rounds of all variants and of an FP16 matrix product."""
    multiply, _ = product(device_of(run), _ceiling_size(run), torch.float16)
    repeats = {name: 1 if run.dry else max(1, min(50, round(SECONDS_PER_CALL * 1e3 / rows[name]["alone_ms"])))
               for name in calls}

    def timed(name: str) -> Callable[[], None]:
        def call() -> None:
            with torch.inference_mode():
                for _ in range(repeats[name]):
                    calls[name](pixels)
                synchronize(run)

        return call

    states: list[Any] = []
    rounds, warm_up = run.timed_rounds, 1 if run.dry else 3
    timings = interleave({name: timed(name) for name in calls} | {"": multiply}, rounds, warm_up,
                         lambda done: states.append(environment.gpu_state()) if done in (warm_up, rounds) else None,
                         seconds_left(run, 0.8), pause=0)
    ceiling = timings.pop("")
    for name, one in timings.items():
        one.seconds = [seconds / repeats[name] for seconds in one.seconds]
    return timings, ceiling, states


def _timed(run: Run, variant: Variant, batch: int, timings: dict[str, Timings], flops: float) -> Result:
    """Times, rates, and the comparison with the other row."""
    mine = timings[variant.name]
    seconds = mine.summary()["p50_ms"] / 1e3
    row = mine.summary() | {"images_per_s": batch / seconds, "flops_per_s": flops * batch / seconds,
                            "doubts": mine.doubts()}
    row.pop("parts_ms")
    if variant.against in timings:
        row["against"], row["times_faster"] = variant.against, speedup(mine, timings[variant.against])
    if variant.expected and batch in variant.expected:
        low, high = variant.expected[batch]
        row["expected"] = {"times_faster": [low, high], "why": variant.why,
                           "outcome": outcome(run, row.get("times_faster"), low, high)}
    return row


def outcome(run: Run, ratio: Result | None, low: float, high: float) -> str:
    """Whether a result of `speedup` lies in the expected range, from the whole interval of its median."""
    if run.dry:
        return "rehearsal"
    if ratio is None:
        return "not measured"
    begin, end = ratio["interval"] or (ratio["median"],) * 2
    return "below" if end < low else "above" if begin > high else "as expected"


def _ceiling_size(run: Run) -> int:
    return 128 if run.dry else 8192


def _rate(ceiling: Timings, run: Run) -> float:
    return 2.0 * _ceiling_size(run) ** 3 / sorted(ceiling.seconds)[len(ceiling.seconds) // 2]
