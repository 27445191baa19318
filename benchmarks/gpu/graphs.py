"""ONNX graphs of the network, without a bundle: exported and judged on the CPU, then timed on ONNX Runtime CUDA."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks import environment
from benchmarks.timing import interleave
from dpt_deploy.core.errors import first_line

from .hardware import device_of, synchronize
from .network import images, judge, maps_of, new_model, reference, varies
from .step import NotRun, Result, Run, seconds_left

OPSET = 20  # ONNX Runtime CUDA has no kernel of opset 23's attention
PLANS = {"fp32": SimpleNamespace(precision="fp32", fp32=()),
         "fp16": SimpleNamespace(precision="fp16", fp32=("activations", "resize"))}
CUDA = "CUDAExecutionProvider"


def export(run: Run) -> Result:
    """Write the FP32 and FP16 model graphs with the installed torch, and judge them on ONNX Runtime's CPU provider."""
    model = new_model(run, torch.device("cpu"))
    pixels = images(model, 2)
    want = reference(model, pixels)
    found: Result = {"opset": OPSET, "torch": torch.__version__, "maps_of_the_reference": varies(want), "rows": [],
                     "ran_on": "cpu"}
    for precision in PLANS:
        begin = time.perf_counter()
        path = write(model, precision, run.work)
        row = {"name": path.name, "precision": precision, "export_s": time.perf_counter() - begin,
               "bytes": path.stat().st_size, "status": "ran"}
        found["rows"].append(row)
        try:
            row["parity"] = _judged_on_cpu(path, pixels.numpy(), want, precision)
        except ImportError:
            row["parity"] = {"status": "not run", "reason": "onnxruntime is not installed"}
        run.report(found)
    return found


def write(model: torch.nn.Module, precision: str, folder: Path) -> Path:
    """Export the model graph in `fp32` or `fp16`; returns the file."""
    from dpt_deploy.export.graph import export_graph
    from dpt_deploy.export.precision import typed

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model.{precision}.onnx"
    export_graph(typed(copy.deepcopy(model), PLANS[precision]), model.contract(), path, OPSET, {})
    return path


def _judged_on_cpu(path: Path, pixels: np.ndarray, want: list[Any], precision: str) -> Result:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    have = maps_of(dict(zip(names, session.run(None, {session.get_inputs()[0].name: pixels}), strict=True)))
    note = "ONNX Runtime's CPU provider computes FP16 graphs mostly in FP32: this judges graph and weights"
    return judge(have, want, precision) | ({"note": note} if precision == "fp16" else {})


def onnxruntime_cuda(run: Run, batch: int) -> Result:
    """The graphs on ONNX Runtime CUDA, on buffers of the device, in interleaved rounds; FP32 without TF32."""
    import onnxruntime

    provider = "CPUExecutionProvider" if run.dry else CUDA
    if provider not in onnxruntime.get_available_providers():
        raise NotRun(f"the installed onnxruntime {onnxruntime.__version__} has no {CUDA}; onnxruntime-gpu has it, and "
                     "replaces onnxruntime")
    model = new_model(run)
    pixels = images(model, batch)
    want = reference(model, pixels[:2])
    calls, rows = {}, {}
    for precision in PLANS:
        row = rows[precision] = {"name": f"ONNX Runtime {precision}", "precision": precision}
        path = run.work / f"model.{precision}.onnx"
        try:
            if not path.exists():
                write(model.cpu(), precision, run.work)
            call, outputs, used = _bound(run, path, pixels, provider)
            call()
            row |= {"status": "ran", "providers": used, "parity": judge(maps_of(outputs()), want, precision)}
            calls[precision] = call
        except Exception as error:  # ONNX Runtime's exceptions have no narrower base class
            row |= {"status": "not run", "reason": first_line(error)[:300], "error": type(error).__name__}
    if not calls:
        raise NotRun("; ".join(row["reason"] for row in rows.values()))
    states: list[Any] = []
    warm_up = 1 if run.dry else 5
    timings = interleave(calls, run.timed_rounds, warm_up,
                         lambda done: states.append(environment.gpu_state()) if done in (warm_up, run.timed_rounds) else
                         None, seconds_left(run, 0.8), pause=0)
    for precision, timing in timings.items():
        rows[precision] |= timing.summary() | {"doubts": timing.doubts(),
                                               "images_per_s": batch / timing.summary()["p50_ms"] * 1e3}
    return {"batch": batch, "rows": list(rows.values()), "under_load": states,
            "ran_on": "cpu" if run.dry else "gpu", "device": None if run.dry else torch.cuda.get_device_name(),
            "note": "input and outputs stay on the device; with the wait at the end of each call"}


def _bound(run: Run, path: Path, pixels: torch.Tensor, provider: str) -> tuple[Any, Any, list[str]]:
    """A call on bound buffers, a function that reads its outputs, and the providers that the session really has.

    Raises:
        NotRun: The session fell back to the CPU.
    """
    import onnxruntime

    options = [(provider, {"use_tf32": "0"})] if provider == CUDA else [provider]
    settings = onnxruntime.SessionOptions()
    if provider == CUDA:  # no node may run on the CPU without a word
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(str(path), settings, providers=options)
    used = session.get_providers()
    if used[0] != provider:
        raise NotRun(f"ONNX Runtime fell back to {used[0]}; its CUDA libraries do not load")
    synchronize(run)  # ONNX Runtime computes on a stream of its own
    binding = session.io_binding()
    kind = device_of(run).type
    binding.bind_input(session.get_inputs()[0].name, kind, 0, np.float32, tuple(pixels.shape), pixels.data_ptr())
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, kind)

    def call() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> dict[str, np.ndarray]:
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return call, outputs, used
