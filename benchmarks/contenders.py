"""Who runs: our runtime on every backend that is here, PyTorch, and the peer; each from frame to full-size maps."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import gpu
from benchmarks.peer import SquarePipeline
from dpt_deploy.backends import device
from dpt_deploy.backends.onnxruntime import Device
from dpt_deploy.core.bundle import Artifact, Bundle
from dpt_deploy.core.errors import DptError
from dpt_deploy.runtime import open_session
from dpt_deploy.runtime.image import postprocess, preprocess

ON_GPU = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass
class Contender:
    """One row of the table; `open` loads it."""

    name: str
    precision: str
    """The arithmetic, and with it the parity budget."""
    open: Callable[[], Opened]
    artifact: Artifact | None = None
    peer: bool = False


@dataclass
class Opened:
    """A loaded contender."""

    run: Run
    parts: Callable[[], dict[str, float] | None] = lambda: None
    """Seconds of the steps of the last call, where they can be told apart."""
    close: Callable[[], None] = lambda: None
    apart: Callable[[np.ndarray], dict[str, list[float]]] = lambda frames: {}
    """p50, p90, p99 [ms] of the steps of a call that are timed each by itself, on a GPU."""
    note: Callable[[], str] = lambda: ""
    """How it computes, as far as that is known after a call."""


class NotHere(Exception):
    """This contender cannot run on this machine; the message says why."""


def contenders(bundle: Bundle) -> Iterator[Contender]:
    """Every row, whether it can run here or not: `open` raises what keeps it from running. No two have one name."""
    taken: set[str] = set()
    for one in _contenders(bundle):
        if one.name in taken and one.artifact:  # two engines of one graph, such as one refittable and one not
            one.name += f", {one.artifact.file}"
        taken.add(one.name)
        yield one


def _contenders(bundle: Bundle) -> Iterator[Contender]:
    for graph in ("frame", "model"):
        for artifact in bundle.find("onnx", graph=graph):
            yield _ours(bundle, artifact, "onnxruntime-cpu")
            yield _ours(bundle, artifact, "openvino")
            if artifact.precision == "fp32":
                yield _ours(bundle, artifact, "openvino", "bf16")
            yield _ours(bundle, artifact, "onnxruntime-cuda")
        for artifact in bundle.find("engine", graph=graph):
            yield _ours(bundle, artifact, artifact.details["builder"])
        if not bundle.find("engine", graph=graph, builder="tensorrt"):
            yield Contender(f"tensorrt {graph} fp16", "fp16", _refuse("the bundle has no such engine: build it on "
                            "the GPU with python -m dpt_deploy.build"))
    for name, precision, place, compiled in (
        ("PyTorch eager", "fp32", "cpu", False), ("PyTorch eager", "fp32", "cuda", False),
        ("PyTorch eager", "fp16", "cuda", False), ("torch.compile, CUDA graphs", "fp16", "cuda", True),
    ):
        yield Contender(f"{name} {precision} {place}", precision,
                        lambda p=precision, d=place, c=compiled: _torch(bundle, p, d, c))
    yield Contender("DAViD-style pipeline, ONNX Runtime cpu", "fp32", lambda: _peer(bundle, "cpu"), peer=True)
    yield Contender("DAViD-style pipeline, ONNX Runtime cuda", "fp32", lambda: _peer(bundle, "cuda"), peer=True)


def _ours(bundle: Bundle, artifact: Artifact, backend: str, computes: str | None = None) -> Contender:
    arithmetic = computes or artifact.precision
    if backend == "onnxruntime-cpu":
        arithmetic = "fp32" if artifact.precision == "fp32" else "fp16"  # FP16 weights; the budget is theirs
    name = f"{backend} {artifact.graph} {arithmetic}" + ("" if artifact.graph == "frame" else ", NumPy steps")

    def opened() -> Opened:
        _needs_gpu(backend)
        session = open_session(bundle, artifact, backend, computes=computes)
        (key,) = session.inputs
        on_gpu = backend in ON_GPU
        if artifact.graph == "frame":
            return Opened(lambda frames: session.run({key: frames}), close=session.close, note=lambda: session.note,
                          apart=(lambda frames: gpu.engine_parts(session, {key: frames})) if on_gpu else lambda _: {})
        contract, parts = bundle.contract, {}

        def run(frames: np.ndarray) -> dict[str, np.ndarray]:
            """The model graph, with the NumPy steps around it told apart."""
            started = time.perf_counter()
            image = preprocess(frames, contract)
            prepared = time.perf_counter()
            outputs = session.run({key: image})
            computed = time.perf_counter()
            maps = postprocess(outputs, contract, frames.shape[1:3])
            parts.update(pre=prepared - started, engine=computed - prepared, post=time.perf_counter() - computed)
            return maps

        def apart(frames: np.ndarray) -> dict[str, list[float]]:
            return gpu.engine_parts(session, {key: preprocess(frames, contract)}) if on_gpu else {}

        return Opened(run, lambda: dict(parts), session.close, apart, lambda: session.note)

    return Contender(name, arithmetic, opened, artifact)


def _needs_gpu(backend: str) -> None:
    if backend in ON_GPU and device.compute_capability() is None:
        raise NotHere("no GPU is visible here")


def _peer(bundle: Bundle, device: Device) -> Opened:
    if device == "cuda":
        _needs_gpu("onnxruntime-cuda")
    pipeline = SquarePipeline(bundle, device)
    return Opened(pipeline, lambda: pipeline.parts)


def _torch(bundle: Bundle, precision: str, device: str, compiled: bool) -> Opened:
    if importlib.util.find_spec("torch") is None:
        raise NotHere("torch is not installed")
    import torch

    from dpt_deploy.model.frame import FrameModel

    if device == "cuda" and not torch.cuda.is_available():
        raise NotHere("no GPU is visible to PyTorch")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = network(bundle).to(device)
    if precision == "fp16":
        model = _in_half(model)
    module = FrameModel(model, bundle.contract).to(device).eval()
    if compiled:
        module = torch.compile(module, mode="reduce-overhead")

    if device == "cuda":
        on_gpu = gpu.TorchOnGpu(module)
        return Opened(on_gpu, on_gpu.parts, note=lambda: "with CUDA graphs" if compiled else "without CUDA graphs")

    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in module(torch.from_numpy(frames)).items()}

    return Opened(run)


def _in_half(model: Any) -> Any:
    import torch

    class Half(torch.nn.Module):
        """The network in half, its inputs and outputs in float32."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model.half()

        def forward(self, image: Any) -> dict[str, Any]:
            return {name: value.float() for name, value in self.inner(image.half()).items()}

    return Half()


def network(bundle: Bundle) -> Any:
    """The bundle's network in PyTorch, with the weights of its FP32 graph.

    Raises `NotHere` where onnx is missing, or the graph's weights are not those of the checkpoint by name
    (a batch norm that was folded away).
    """
    try:
        import onnx
        import torch
        from onnx import numpy_helper

        from dpt_deploy.model import create_multitask_dpt_model
    except ImportError as error:
        raise NotHere(f"{error.name} is not installed") from error
    header = bundle.header["model"]
    try:
        model = create_multitask_dpt_model(**header | {"heads": tuple(header["heads"])})
    except (DptError, TypeError) as error:
        raise NotHere(f"the model cannot be made again: {error}") from error
    model.set_input_size(bundle.contract.input_size)
    graph = onnx.load(bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0])).graph
    weights = {}
    for tensor in graph.initializer:
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        name = tensor.name.removesuffix(".transposed")
        weights[name] = value.T.contiguous() if tensor.name.endswith(".transposed") else value
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    if lost := [name for name, value in state.items() if name not in weights or weights[name].shape != value.shape]:
        raise NotHere(f"the FP32 graph does not carry {len(lost)} of the checkpoint's weights, such as {lost[0]}")
    model.load_state_dict({name: weights[name] for name in state}, strict=len(state) == len(model.state_dict()))
    return model.eval()


def _refuse(why: str) -> Callable[[], Opened]:
    def refuse() -> Opened:
        raise NotHere(why)

    return refuse


def flops(bundle: Bundle) -> float | None:
    """FLOPs of the network for one image, counted by PyTorch on tensors without content; None without torch."""
    try:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        model = network(bundle)
    except (ImportError, NotHere):
        return None
    h, w = bundle.contract.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.empty(1, 3, h, w, device="meta"))
    return float(counter.get_total_flops())
