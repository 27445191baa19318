"""The checks of a bundle on the GPU: engines built, judged, timed, and watched for memory leaks.

They need the packages of dpt_deploy's commands, which a bare machine lacks; `catalogue` names them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cuda_timing, environment, latency
from benchmarks.contenders import contenders
from benchmarks.matrix_products import MatrixProduct, matrix_products
from benchmarks.pytorch_pipeline import count_flops
from benchmarks.random_models import vit_base_bundle
from dpt_deploy import backends
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, DptError
from dpt_deploy.core.scene import scene
from dpt_deploy.parity.judge import judge
from dpt_deploy.report import write_report
from dpt_deploy.runtime import Runtime, load

from .catalogue import BATCHES
from .goals import NOT_REHEARSED
from .step import NotRun, Result, Run

# The build command judges parity too, which is a step of its own here.
BUILD = """
import sys
from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.core.bundle import Bundle
folder, builder, low, high = sys.argv[1:]
build_engines(Bundle.open(folder), EngineOptions(builder=builder, batch_range=(int(low), int(high))))
"""


def bundle_of(run: Run) -> Path:
    """The bundle that the steps take: the user's, or ViT-B with random weights, exported without a builder."""
    if run.dry:
        raise NotRun(NOT_REHEARSED)
    return run.bundle or vit_base_bundle()


def build(run: Run) -> Result:
    """Engines of every installed builder. A builder that fails is recorded with its message."""
    folder = bundle_of(run)
    found: dict[str, Any] = {}
    for builder in ("tensorrt", "tensorrt-rtx"):
        command = [sys.executable, "-c", BUILD, str(folder), builder, str(min(BATCHES)), str(max(BATCHES))]
        status, lines = run_for(max(30.0, run.left * 0.45), command)
        found[builder] = {"status": "not run" if status else "ran", "exit": status,
                          "said": lines[-1:] if status else lines}
        run.report({"builders": found})
    if all(one["status"] != "ran" for one in found.values()):
        said = "; ".join(f"{builder}: {(one['said'] or ['no message'])[-1]}" for builder, one in found.items())
        raise BackendError(f"no engine was built. {said}")
    engines = [artifact.file for artifact in Bundle.open(folder).find("engine")]
    return {"builders": found, "engines": engines} | _on_gpu()


def run_for(seconds: float, command: list[str]) -> tuple[int, list[str]]:
    """Exit status and output lines of a command. After `seconds` it is killed, with the processes that it started."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               process_group=0)  # of this session still, so that the step's own limit reaches it
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said.strip().splitlines()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -signal.SIGKILL, [f"stopped after {seconds:.0f} s"]


def parity(run: Run) -> Result:
    """Judge every stage of the bundle that can run here; the report and the verdict go into the bundle too."""
    bundle = Bundle.open(bundle_of(run))
    judgement = judge(bundle)
    write_report(bundle, judgement.report, judgement.exhibits, "python benchmarks/gpu_validation.py --steps parity")
    report = judgement.report
    if not any(stage.id.device == "gpu" and stage.status != "not run" and not stage.earlier for stage in report.stages):
        raise BackendError(f"no stage ran on the GPU: {report.verdict}")
    return {"passed": report.passed, "verdict": report.verdict, "report": report.to_json()} | _on_gpu()


def latency_of(run: Run, batch: int) -> Result:
    """From frame to maps, against all peers."""
    folder = bundle_of(run)
    _load_on_gpu(folder).close()
    bundle = Bundle.open(folder)
    on_gpu = [contender for contender in contenders(bundle) if contender.device == "gpu"]
    options = latency.LatencyConfig(frame_size=frame_size(batch), batch=batch, rounds=run.timed_rounds, warm_up=10,
                                    parity=batch == 1, max_seconds=run.left * 0.7)
    return latency.measure(bundle, options, on_gpu) | _on_gpu()


def frame_size(batch: int) -> tuple[int, int]:
    """720p if a default engine takes such a batch, else a frame that is small enough."""
    return (720, 1280) if batch * 720 * 1280 <= 2160 * 3840 else (480, 640)


def engine_time(run: Run) -> Result:
    """Upload, engine and download, each on its own, and the engine's share of the matrix-product rate."""
    found: dict[str, Any] = {}
    folder = bundle_of(run)
    flops = count_flops(Bundle.open(folder))
    product = next((one for one in matrix_products() if one.precision == "fp16"), None)
    with _load_on_gpu(folder) as runtime:
        for batch in BATCHES:
            frames = np.stack([scene(*frame_size(batch), seed) for seed in range(batch)])
            inputs = {"frame": frames}
            try:
                rates = _rates(product)
                parts = cuda_timing.time_steps(runtime.session, inputs, run.timed_rounds)
                rates += _rates(product)
                whole = []
                for _ in range(run.timed_rounds):
                    started = time.perf_counter()
                    runtime.session.run(inputs)
                    whole.append((time.perf_counter() - started) * 1e3)
            except DptError as error:
                found[f"batch {batch}"] = {"status": "not run", "reason": str(error)}
                continue
            times = {"status": "ran", "frame": list(frame_size(batch)), "parts_ms": parts,
                     "host_to_host_ms": cuda_timing.percentiles(whole)}
            if flops and rates:
                reached = flops * batch / (parts["engine"][0] / 1e3)
                times |= {"fp16_matrix_flops_per_s": float(np.median(rates)),
                          "share_of_fp16_matrix_rate": reached / float(np.median(rates))}
            found[f"batch {batch}"] = times
        note = ("p50, p90, p99 [ms], each step repeated on its own; the frame engine includes pre- and "
                f"post-processing, which the {flops or 0:.3g} FLOPs per frame do not count; "
                f"host to host {runtime.session.note}")
        return {"backend": runtime.backend, "artifact": runtime.artifact.file, "note": note, "times": found} | _on_gpu()


def leaks(run: Run) -> Result:
    """Memory on host and GPU over cycles of load, run and close, and over many calls of one session."""
    folder, frame = bundle_of(run), scene(720, 1280, 0)
    until = time.perf_counter() + min(90.0, run.left * 0.5)
    host, free = [], []
    while time.perf_counter() < until and len(host) < 100:
        with _load_on_gpu(folder) as runtime:
            runtime(frame)
        host.append(environment.resident_mb())
        free.append(environment.free_gpu_memory_mb())
    cycles = len(host)
    warm = cycles // 10
    with _load_on_gpu(folder) as runtime:
        for _ in range(20):
            runtime(frame)
        before, free_before = environment.resident_mb(), environment.free_gpu_memory_mb()
        for _ in range(300):
            runtime(frame)
        grown, taken = environment.resident_mb() - before, free_before - environment.free_gpu_memory_mb()
    return {"cycles": cycles, "host_mb_grown_after_warm_up": host[-1] - host[warm],
            "device_mb_taken_after_warm_up": free[warm] - free[-1],
            "calls": 300, "host_mb_grown_over_calls": grown, "device_mb_taken_over_calls": taken} | _on_gpu()


def _load_on_gpu(folder: Path) -> Runtime:
    """The bundle on the GPU. Raises `BackendError` if `load` chooses the processor."""
    runtime = load(folder, measure=False, compile_eagerly=True)
    if backends.get(runtime.backend).device != "gpu":
        runtime.close()
        raise BackendError(f"no artefact of the bundle runs on the GPU. {runtime.reason}")
    return runtime


def _on_gpu() -> Result:
    """The fields that say where it ran; each step has checked the device of what it ran."""
    state = environment.gpu_state()
    if state is None:
        raise NotRun("the driver reports no GPU")
    return {"ran_on": "gpu", "device": state["name"]}


def _rates(product: MatrixProduct | None) -> list[float]:
    """FLOP/s of 20 large matrix products, after 5 warm-up calls."""
    if product is None:
        return []
    rates = []
    for _ in range(25):
        started = time.perf_counter()
        product()
        rates.append(product.flops / (time.perf_counter() - started))
    return rates[5:]
