"""Timing of several contenders in interleaved rounds, and what the numbers may claim."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PAUSE = 0.06  # seconds between calls: ONNX Runtime's threads spin for 20 to 50 ms after their work, on the next one's
WIDE = 0.10  # a result whose middle 80 % spreads over more than this share of its median is not called stable
DRIFT = 0.05  # nor one whose ceiling moved by more than this between the halves of the run


@dataclass
class Samples:
    """All calls of one contender, in order."""

    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    """Where the contender tells its own steps apart: seconds of each, per call."""

    def summary(self) -> dict[str, Any]:
        """Percentiles [ms], spread (p90 - p10) / p50, and the median of each part [ms]."""
        p10, p50, p90, p99 = np.percentile(self.seconds, (10, 50, 90, 99)) * 1e3
        return {
            "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99), "runs": len(self.seconds),
            "spread": float((p90 - p10) / p50),
            "parts_ms": {name: float(np.median(values) * 1e3) for name, values in self.parts.items()},
        }


Call = Callable[[], dict[str, float] | None]
"""One complete call; may return the seconds of its parts."""


def interleave(
    calls: dict[str, Call], rounds: int, warm_up: int, say: Callable[[int], None] = lambda done: None,
    until: float = math.inf,
) -> dict[str, Samples]:
    """Call A B C A B C ..., so that whatever the machine does besides hits all alike. `warm_up` rounds are not kept.

    No round begins after `until` on the clock of `time.perf_counter`, but for one that is kept.
    """
    samples = {name: Samples() for name in calls}
    kept = 0
    for i in range(warm_up + rounds):
        late = time.perf_counter() > until
        if late and kept:
            break
        keep = late or i >= warm_up
        kept += keep
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            parts = call()
            seconds = time.perf_counter() - start
            if not keep:
                continue
            samples[name].seconds.append(seconds)
            for part, value in (parts or {}).items():
                samples[name].parts.setdefault(part, []).append(value)
        say(i + 1)
    return samples


def ratios(samples: Samples, to: Samples) -> dict[str, Any]:
    """How many times faster `samples` is than `to`, round by round: median, p10, p90, and what the median is sure of.

    `interval` holds the true median with 95 % confidence for independent rounds, whatever their
    distribution: it lies between two order statistics, found by the binomial distribution of how many
    rounds fall below it. None with fewer than six rounds, where even the smallest and the largest
    promise less.
    """
    each = np.sort(np.array(to.seconds) / np.array(samples.seconds))
    p10, p50, p90 = np.percentile(each, (10, 50, 90))
    n, below, outside = len(each), 0, 0.0
    for k in range(n // 2):
        outside += math.comb(n, k) / 2**n  # the chance that at most k rounds fall below the true median
        if 2 * outside > 0.05:
            break
        below = k + 1
    interval = [float(each[below - 1]), float(each[n - below])] if below else None
    return {"median": float(p50), "p10": float(p10), "p90": float(p90), "interval": interval}


def doubts(samples: Samples, rounds_wanted: int = 10) -> list[str]:
    """Why one contender's numbers cannot be called stable; empty when they can."""
    found = []
    if len(samples.seconds) < rounds_wanted:
        found.append(f"{len(samples.seconds)} runs are too few to tell")
    spread = samples.summary()["spread"]
    if spread > WIDE:
        found.append(f"the middle 80 % of its runs spread over {spread:.0%} of the median, more than {WIDE:.0%}")
    return found


def drift(samples: Samples) -> float:
    """How much the median moved from the first half of the run to the second, as a share."""
    half = len(samples.seconds) // 2
    if not half:
        return 0.0
    first, second = np.median(samples.seconds[:half]), np.median(samples.seconds[half:])
    return float(abs(second / first - 1))
