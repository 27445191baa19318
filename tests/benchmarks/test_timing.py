"""Rounds are interleaved, and the statistics are those of the textbooks."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import environment
from benchmarks.timing import Timings, interleave, speedup, speedup_text


def test_rounds_are_interleaved_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    timings = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert len(timings["a"].seconds) == len(timings["b"].seconds) == 3


def test_after_the_deadline_one_timed_round_remains() -> None:
    timings = interleave({"a": lambda: None}, rounds=50, warm_up=10, deadline=0.0)
    assert len(timings["a"].seconds) == 1


def test_steps_that_a_call_reports_are_kept() -> None:
    timings = interleave({"a": lambda: {"pre": 0.5}}, rounds=2, warm_up=1)
    assert timings["a"].steps == {"pre": [0.5, 0.5]} and timings["a"].summary()["parts_ms"] == {"pre": 500.0}


def test_percentiles_and_doubts() -> None:
    even = Timings([0.1] * 20)
    assert even.summary()["p50_ms"] == pytest.approx(100) and not even.doubts() and even.drift() == 0
    assert "p10 to p90" in Timings([0.1, 0.2] * 10).doubts()[0]
    assert "too few" in Timings([0.1] * 3).doubts()[0]
    assert Timings([0.1] * 10 + [0.15] * 10).drift() == pytest.approx(0.5)


def order_statistics(n: int) -> tuple[int, int] | None:
    """Ranks of the 95 % interval of a median (David and Nagaraja, Order Statistics, section 7.1), from 0."""
    tails = [2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(n // 2)]
    within = [k for k, tail in enumerate(tails) if tail <= 0.05]
    return (within[-1], n - 1 - within[-1]) if within else None


@pytest.mark.parametrize("n", [*range(1, 40), 100, 301])
def test_the_interval_of_a_median_is_the_binomial_one(n: int) -> None:
    seconds = [float(i) for i in np.random.default_rng(n).permutation(n) + 1]
    ranks = order_statistics(n)
    found = speedup(Timings([1.0] * n), Timings(seconds))
    assert found["interval"] == (None if ranks is None else [float(rank + 1) for rank in ranks])
    assert found["median"] == pytest.approx(np.median(seconds))


def test_a_speedup_as_text() -> None:
    assert speedup_text({"median": 1.234, "interval": [1.1, 1.3]}) == "1.23 (1.10 to 1.30)"
    assert speedup_text({"median": 4.0, "interval": None}) == "4.00"


def test_memory_has_the_unit_of_the_committed_results() -> None:
    kib = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    assert environment.resident_mb() == pytest.approx(kib / 1e3, rel=0.05)
    assert environment.peak_resident_mb() >= 0.95 * environment.resident_mb()


def test_the_environment_says_what_readers_of_the_results_expect() -> None:
    found = environment.record()
    assert {"date", "commit", "processor", "memory_gb", "gpu", "load", "python", "system", "versions"} == set(found)
    assert set(found["processor"]) == {"name", "cores", "units"} and found["processor"]["cores"] >= 1


def test_a_gpu_is_described_by_the_keys_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = environment.pynvml

    def unsupported(*_: Any) -> None:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetHandleByIndex": lambda index: "gpu",
        "nvmlDeviceGetName": lambda gpu: "A GPU", "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetClockInfo": lambda gpu, kind: 1980, "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: 2000,
        "nvmlDeviceGetPowerUsage": lambda gpu: 350_000, "nvmlDeviceGetPowerManagementLimit": unsupported,
        "nvmlDeviceGetTemperature": lambda gpu, sensor: 50, "nvmlDeviceGetPerformanceState": lambda gpu: 0,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: 4,
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=2**30, used=2**20),
        "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)],
    }
    for name, answer in answers.items():
        assert hasattr(nvml, name), f"nvidia-ml-py has no {name}"
        monkeypatch.setattr(nvml, name, answer)
    state = environment.gpu_state()
    assert state["name"] == "A GPU" and state["pstate"] == "P0" and state["other_processes"] == 1
    assert state["power.draw"] == 350 and state["power.limit"] is None and state["memory.total"] == 1024
    assert "0x4" in environment.gpu_doubts([state])[0]


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise environment.pynvml.NVMLError(environment.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(environment.pynvml, "nvmlInit", missing)
    assert environment.gpu_state() is None


def test_a_gpu_whose_clocks_changed_is_not_stable() -> None:
    calm = {"clocks.sm": 1980, "clocks_event_reasons.active": 1}
    assert not environment.gpu_doubts([None, None]) and not environment.gpu_doubts([calm, calm | {"clocks.sm": 1965}])
    assert not environment.gpu_doubts([{"clocks.sm": None, "clocks_event_reasons.active": None}])
    assert "0x4" in environment.gpu_doubts([calm, calm | {"clocks_event_reasons.active": 4}])[0]
    assert "1410 to 1980 MHz" in environment.gpu_doubts([calm, calm | {"clocks.sm": 1410}])[0]
