"""PyTorch with the weights of a bundle: the contenders "PyTorch eager" and "torch.compile", and the FLOP count."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.pipeline import Maps, Pipeline, Unavailable
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import DptError


class PyTorchPipeline(Pipeline):
    """The frame model in PyTorch on the CPU."""

    def __init__(self, module: Any) -> None:
        import torch

        super().__init__()
        self.torch, self.module = torch, module

    def __call__(self, frames: np.ndarray) -> Maps:
        with self.torch.inference_mode():
            return {name: value.numpy() for name, value in self.module(self.torch.from_numpy(frames)).items()}


class PyTorchGpuPipeline(PyTorchPipeline):
    """The frame model in PyTorch on the GPU. It keeps its pinned host buffers; CUDA events time its steps."""

    def __init__(self, module: Any, note: str) -> None:
        super().__init__(module)
        self.note = note
        self.pinned: dict[str, Any] = {}
        self.events = [self.torch.cuda.Event(enable_timing=True) for _ in range(4)]

    def __call__(self, frames: np.ndarray) -> Maps:
        with self.torch.inference_mode():
            source = self._pinned_buffer("frame", frames.shape, self.torch.uint8)
            np.copyto(source.numpy(), frames)
            self.events[0].record()
            on_gpu = source.to("cuda", non_blocking=True)
            self.events[1].record()
            maps = self.module(on_gpu)
            self.events[2].record()
            host = {name: self._pinned_buffer(name, value.shape, value.dtype).copy_(value, non_blocking=True)
                    for name, value in maps.items()}
            self.events[3].record()
            self.events[3].synchronize()
            copies = {name: value.numpy().copy() for name, value in host.items()}
        between = zip(("h2d", "engine", "d2h"), self.events, self.events[1:], strict=False)
        self.steps = {name: start.elapsed_time(end) / 1e3 for name, start, end in between}
        return copies

    def _pinned_buffer(self, name: str, shape: Any, dtype: Any) -> Any:
        if name not in self.pinned or self.pinned[name].shape != tuple(shape):
            self.pinned[name] = self.torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
        return self.pinned[name]


def open_pytorch(bundle: Bundle, precision: str, device: str, compiled: bool = False) -> Pipeline:
    """The bundle's network with pre- and post-processing in PyTorch.

    Args:
        bundle: Gives the weights and the contract.
        precision: `fp32`, without TF32, or `fp16`.
        device: `cpu` or `cuda`.
        compiled: Compile the model with CUDA graphs (`mode="reduce-overhead"`).

    Raises:
        Unavailable: PyTorch or the GPU is missing, or the bundle does not hold the weights.
    """
    model = load_network(bundle)
    import torch

    from dpt_deploy.model.frame import FrameModel

    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("no GPU is visible to PyTorch")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if precision == "fp16":
        from benchmarks.gpu.network import Half

        model = Half(model)
    module = FrameModel(model, bundle.contract).to(device).eval()
    if compiled:
        module = torch.compile(module, mode="reduce-overhead")
    if device == "cpu":
        return PyTorchPipeline(module)
    return PyTorchGpuPipeline(module, "with CUDA graphs" if compiled else "without CUDA graphs")


def load_network(bundle: Bundle) -> Any:
    """The bundle's network in PyTorch, with the weights of its FP32 graph.

    Raises:
        Unavailable: torch or onnx is not installed, or the graph does not hold the checkpoint's weights under their
            names (for example, because a batch norm was folded).
    """
    try:
        import onnx
        import torch
        from onnx import numpy_helper

        from dpt_deploy.model import ModelConfig, MultiTaskDPT
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    try:
        model = MultiTaskDPT(ModelConfig.from_json(bundle.manifest.model.to_json()))
    except (DptError, TypeError) as error:
        raise Unavailable(f"the model cannot be created from the manifest: {error}") from error
    model.set_input_size(bundle.contract.input_size)
    graph = onnx.load(bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0])).graph
    weights = {}
    for tensor in graph.initializer:
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        name = tensor.name.removesuffix(".transposed")
        weights[name] = value.T.contiguous() if tensor.name.endswith(".transposed") else value
    state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    missing = [name for name, value in state.items() if name not in weights or weights[name].shape != value.shape]
    if missing:
        raise Unavailable(f"the FP32 graph lacks {len(missing)} of the checkpoint's weights, such as {missing[0]}")
    model.load_state_dict({name: weights[name] for name in state}, strict=len(state) == len(model.state_dict()))
    return model.eval()


def count_flops(bundle: Bundle) -> float | None:
    """FLOPs of the network for one image, counted by PyTorch on the meta device; None if PyTorch cannot load it."""
    try:
        model = load_network(bundle)
    except Unavailable:
        return None
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    h, w = bundle.contract.input_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.empty(1, 3, h, w, device="meta"))
    return float(counter.get_total_flops())
