"""What the GPU benchmarks count and claim, on a stand-in for the CUDA runtime; no test looks at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cuda_timing
from benchmarks.gpu_validation import BUILD, GOALS, STEPS, ValidationConfig, frame_size, judge_goals, run_for
from dpt_deploy.backends import cuda
from dpt_deploy.backends.device import compute_capability
from dpt_deploy.core.errors import BackendError
from tests.backends.stand_in import StandIn, device, session_on

__all__ = ["device"]
ROOT = Path(__file__).resolve().parents[2]


def test_the_engine_alone_is_one_graph_launched_back_to_back(device: StandIn) -> None:
    inputs = {"frame": np.zeros((1, 6, 8, 3), np.uint8)}
    with session_on(device) as session:
        for _ in range(2):
            session.run(inputs)
        before = device.counts.copy()
        parts = cuda_timing.time_steps(session, inputs, rounds=2)
        made = device.counts - before
        assert parts == {name: [2.0, 2.0, 2.0] for name in ("h2d", "engine", "d2h")}, "40 ms for 20 launches"
        launches = (cuda_timing.WARM_UP + 2) * cuda_timing.LAUNCHES
        assert made["cudaGraphLaunch"] == launches + 2 and made["cudaMemcpyAsync"] == 2 * launches
        assert made["cudaGraphExecDestroy"] == made["cudaStreamBeginCapture"] == 1
        assert made["cudaMalloc"] == made["cudaHostAlloc"] == 0, "the buffers are those of a call"
        have = session.run(inputs)["depth"]
        assert not have.any()
    assert not device.memory and not device.alive


def test_an_engine_that_cannot_be_captured_is_launched_as_it_is(device: StandIn) -> None:
    device.can_capture = False
    with session_on(device) as session:
        assert set(cuda_timing.time_steps(session, {"frame": np.zeros((1, 6, 8, 3), np.uint8)}, rounds=1)) == {
            "h2d", "engine", "d2h"}
        assert not device.counts["cudaGraphLaunch"]


def test_a_backend_that_waits_has_its_steps_told_apart_too(device: StandIn) -> None:
    seen = []

    class Waiting:
        def run(self, inputs: dict[str, Any], stream: int) -> dict[str, cuda.DeviceArray]:
            frame = inputs["frame"]
            seen.append((type(frame), frame.numpy().sum(), stream))
            return {"depth": frame}

    parts = cuda_timing.time_steps(Waiting(), {"frame": np.ones((1, 6, 8, 3), np.uint8)}, rounds=2)
    assert set(parts) == {"h2d", "engine", "d2h"} and all(0 < p50 <= p99 for p50, _, p99 in parts.values())
    assert seen == [(cuda.DeviceArray, 144, cuda.LEGACY_STREAM)] * (cuda_timing.WARM_UP + 2)


def steps(engine_ms: float, share: float, ratio: float) -> dict[str, Any]:
    def row(artifact: str | None, median: float) -> dict[str, Any]:
        return {"name": f"row of {artifact}", "artifact": artifact, "precision": "fp16",
                "times_faster_than_compiled": {"median": median}}

    return {
        "engine time": {"artifact": "a.engine", "times": {"batch 1": {"parts_ms": {"engine": [engine_ms, 9.0, 9.0]}},
                                  "batch 16": {"share_of_fp16_matrix_rate": share}}},
        "latency": {"batches": {"batch 1": {"rows": [
            row("a.engine", ratio), row("b.engine", 0.5), row(None, 9.0), {"artifact": "c", "precision": "fp16"}]}}},
    }


@pytest.mark.parametrize(
    ("values", "met"),
    [((1.4, 0.7, 1.31), [True] * 3), ((1.6, 0.5, 1.2), [False] * 3), ((1.5, 0.6, 1.3), [True] * 3)],
)
def test_goals_are_held_against_what_was_measured(values: tuple[float, ...], met: list[bool]) -> None:
    judged = judge_goals(steps(*values))
    assert [one["value"] for one in judged] == list(values) and [one["met"] for one in judged] == met
    assert [one["of"] for one in judged] == ["a.engine", "a.engine", "row of a.engine"]


def test_what_was_not_measured_is_not_met_either() -> None:
    for nothing in ({}, {"engine time": {"status": "not run"}, "latency": {"status": "not run"}}):
        assert [(one["value"], one["met"]) for one in judge_goals(nothing)] == [(None, None)] * len(GOALS)


@pytest.mark.parametrize("batch", [1, 8, 9, 16])
def test_a_batch_of_frames_fits_the_default_engine(batch: int) -> None:
    h, w = frame_size(batch)
    assert batch * h * w <= 2160 * 3840


def test_a_command_is_killed_in_time_with_what_it_started() -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    status, lines = run_for(1.0, [sys.executable, "-c", nested])
    assert status < 0 and lines == ["stopped after 1 s"]
    assert run_for(60.0, [sys.executable, "-c", "print('a'); raise SystemExit(3)"]) == (3, ["a"])


def test_the_build_step_runs(own_bundle: Path) -> None:
    assert run_for(120.0, [sys.executable, "-c", BUILD, str(own_bundle), "none", "1", "16"]) == (0, [])


@pytest.mark.parametrize("step", ["parity", "latency", "engine time", "leaks"])
def test_a_step_that_does_not_run_on_a_gpu_is_no_step(tiny_bundle: Path, own_bundle: Path, step: str) -> None:
    """Here everything falls back to the processor, and what that takes says nothing about a GPU."""
    if compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    (own_bundle / "reference.npz").write_bytes((tiny_bundle / "reference.npz").read_bytes())
    with pytest.raises(BackendError, match="GPU"):
        STEPS[step](own_bundle, ValidationConfig(), 100.0)


def test_without_a_gpu_the_validation_says_so(tmp_path: Path) -> None:
    if compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    command = [sys.executable, "benchmarks/gpu_validation.py", "any-bundle", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir()), "an earlier result must stay"
