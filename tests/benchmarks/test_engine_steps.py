"""The steps on engines: what they time, on a stand-in for the CUDA runtime; no test looks at a time."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cuda_timing
from benchmarks.gpu import engines
from benchmarks.gpu.step import Run
from dpt_deploy.backends import cuda
from dpt_deploy.backends.device import compute_capability
from dpt_deploy.core.errors import BackendError
from tests.backends.stand_in import StandIn, device, session_on

__all__ = ["device"]


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


@pytest.mark.parametrize("batch", [1, 8, 9, 16])
def test_a_batch_of_frames_fits_the_default_engine(batch: int) -> None:
    h, w = engines.frame_size(batch)
    assert batch * h * w <= 2160 * 3840


def test_a_command_is_killed_in_time_with_what_it_started() -> None:
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    status, lines = engines.run_for(1.0, [sys.executable, "-c", nested])
    assert status < 0 and lines == ["stopped after 1 s"]
    assert engines.run_for(60.0, [sys.executable, "-c", "print('a'); raise SystemExit(3)"]) == (3, ["a"])


def test_the_build_step_runs(own_bundle: Path) -> None:
    assert engines.run_for(120.0, [sys.executable, "-c", engines.BUILD, str(own_bundle), "none", "1", "16"]) == (0, [])


@pytest.mark.parametrize("step", [engines.parity, functools.partial(engines.latency_of, batch=1), engines.engine_time,
                                  engines.leaks], ids=["parity", "latency", "engine-time", "leaks"])
def test_a_step_that_does_not_run_on_a_gpu_is_no_step(
    tiny_bundle: Path, own_bundle: Path, tmp_path: Path, step: Callable[[Run], object]
) -> None:
    """Here everything falls back to the processor, and what that takes says nothing about a GPU."""
    if compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    (own_bundle / "reference.npz").write_bytes((tiny_bundle / "reference.npz").read_bytes())
    with pytest.raises(BackendError, match="GPU"):
        step(Run(False, 100.0, tmp_path, bundle=own_bundle))
