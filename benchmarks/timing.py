"""Timing of several contenders in interleaved rounds, and the statistics of the times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PAUSE = 0.06  # [s] between calls: ONNX Runtime's threads spin for 20 to 50 ms after a call and would slow the next one
MIN_CALLS = 10
MAX_SPREAD = 0.10  # of p10 to p90, as a share of the median
MAX_DRIFT = 0.05  # of the median, from the first half of the run to the second

Call = Callable[[], Mapping[str, float] | None]
"""One complete call. It may return the duration of each of its steps [s]."""


@dataclass
class Timings:
    """The timed calls of one contender, in order."""

    seconds: list[float] = field(default_factory=list)
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Duration of each step of every call [s], if the contender reports its steps."""

    def summary(self) -> dict[str, Any]:
        """Percentiles [ms], spread (p90 - p10) / p50, and the median of each step [ms]."""
        p10, p50, p90, p99 = np.percentile(self.seconds, (10, 50, 90, 99)) * 1e3
        return {
            "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "runs": len(self.seconds),
            "spread": float((p90 - p10) / p50),
            "parts_ms": {name: float(np.median(values) * 1e3) for name, values in self.steps.items()},
        }

    def doubts(self) -> list[str]:
        """Reasons not to call the result stable. An empty list means stable."""
        found = []
        if len(self.seconds) < MIN_CALLS:
            found.append(f"too few timed calls: {len(self.seconds)}, expected at least {MIN_CALLS}")
        if (spread := self.summary()["spread"]) > MAX_SPREAD:
            found.append(f"p10 to p90 spans {spread:.0%} of the median, more than {MAX_SPREAD:.0%}")
        return found

    def drift(self) -> float:
        """Relative change of the median from the first half of the calls to the second."""
        half = len(self.seconds) // 2
        if not half:
            return 0.0
        first, second = np.median(self.seconds[:half]), np.median(self.seconds[half:])
        return float(abs(second / first - 1))


def interleave(
    calls: Mapping[str, Call], rounds: int, warm_up: int, after_round: Callable[[int], None] = lambda done: None,
    deadline: float = math.inf, pause: float = PAUSE,
) -> dict[str, Timings]:
    """Time all contenders in turn (A B C A B C ...), so that a disturbance of the machine affects all of them alike.

    Args:
        calls: What to time, by name.
        rounds: Timed rounds, with one call of each contender.
        warm_up: Rounds before the timed ones.
        after_round: Called after each round with the number of rounds so far, warm-up included.
        deadline: No round starts after this reading of `time.perf_counter` [s], except the first timed one.
        pause: Time between calls [s]; 0 keeps the clocks of a GPU up.

    Returns:
        The timings by name.
    """
    timings = {name: Timings() for name in calls}
    timed = 0
    for i in range(warm_up + rounds):
        late = time.perf_counter() > deadline
        if late and timed:
            break
        keep = late or i >= warm_up
        timed += keep
        for name, call in calls.items():
            time.sleep(pause)
            start = time.perf_counter()
            steps = call()
            seconds = time.perf_counter() - start
            if not keep:
                continue
            timings[name].seconds.append(seconds)
            for step, duration in (steps or {}).items():
                timings[name].steps.setdefault(step, []).append(duration)
        after_round(i + 1)
    return timings


def speedup(timings: Timings, baseline: Timings) -> dict[str, Any]:
    """How many times faster `timings` is than `baseline`, from the ratios within each round.

    Returns:
        `median`, `p10` and `p90` of the ratios, and `interval`, the distribution-free 95 % confidence interval of the
        median: two order statistics, from the binomial distribution. It assumes independent rounds. None with fewer
        than six rounds, because no two order statistics reach 95 % then.
    """
    ratios = np.array(baseline.seconds) / np.array(timings.seconds)
    p10, p50, p90 = np.percentile(ratios, (10, 50, 90))
    return {"median": float(p50), "p10": float(p10), "p90": float(p90),
            "interval": median_interval(ratios)}


def median_interval(values: Sequence[float]) -> list[float] | None:
    """95 % confidence interval of the median of independent values: two order statistics; None if none reach 95 %.

    The number of values below the median is binomial with p = 1/2 (David and Nagaraja, Order Statistics, section 7.1).
    """
    n, below, outside = len(values), 0.0, -1
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            break
        outside = k
    ordered = np.sort(values)
    return None if outside < 0 else [float(ordered[outside]), float(ordered[n - 1 - outside])]


def speedup_text(found: Mapping[str, Any]) -> str:
    """A result of `speedup` as text, such as "1.13 (1.10 to 1.17)"."""
    low, high = found["interval"] or (None, None)
    return f"{found['median']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")
