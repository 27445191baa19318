"""What the model itself costs: one switch at a time, each beside its expected effect, decided by one interleaved run.

The expectations were written before anything ran on a GPU. They hold for a data-centre GPU on which ViT-B at batch 1 is
limited by the host, which launches some 500 kernels, and at batch 16 by the GPU.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dpt_deploy.model import MultiTaskDPT
from dpt_deploy.model.decoder import FeatureFusion

from .inference import compiled, compiled_graphs, eager
from .network import Call, Half, Outputs
from .rows import Variant, measure_variants
from .step import NotRun, Result, Run

BASE = "eager fp16"
HOST_BOUND = "; at batch 1 the host's launches hide it"
Context = Callable[[], contextlib.AbstractContextManager[object]]


def measure(run: Run, batch: int) -> Result:
    """Switches of eager FP16, and CUDA graphs by hand beside those of torch.compile."""
    return measure_variants(run, batch, [
        Variant(BASE, "fp16", eager),
        _graph("CUDA graph", eager, {1: (1.5, 5.0), 16: (1.0, 1.1)},
               "one launch instead of one for each kernel, which is the host's whole time at batch 1"),
        _graph("CUDA graph, channels-last, cuDNN benchmark", _all_layouts, {1: (1.5, 6.0), 16: (1.05, 1.7)},
               "the two next rows and the last one together"),
        Variant("channels-last", "fp16", _channels_last, BASE, {1: (0.9, 1.1), 16: (1.05, 1.6)},
                f"cuDNN's FP16 kernels compute in NHWC and transpose NCHW maps around each convolution{HOST_BOUND}"),
        Variant("cuDNN benchmark", "fp16", _cudnn_benchmark, BASE, {1: (0.9, 1.1), 16: (1.0, 1.3)},
                f"the fastest convolution algorithm by measurement instead of by heuristic{HOST_BOUND}"),
        _attention("flash", SDPBackend.FLASH_ATTENTION, {1: (0.95, 1.05), 16: (0.97, 1.03)},
                   "PyTorch's own choice for FP16 and heads of 64 channels"),
        _attention("memory-efficient", SDPBackend.EFFICIENT_ATTENTION, {1: (0.9, 1.05), 16: (0.9, 1.0)},
                   "tiles as flash does, with older kernels"),
        _attention("cuDNN", SDPBackend.CUDNN_ATTENTION, {1: (0.8, 1.05), 16: (0.98, 1.06)},
                   "on compute capability 9.0 its kernels use instructions that flash 2 does not; attention is about "
                   "5 % of the FLOPs"),
        _attention("math", SDPBackend.MATH, {1: (0.6, 1.0), 16: (0.5, 0.95)},
                   "writes 577 x 577 weights for each head to memory and reads them twice"),
        Variant("fused sum and norm (each block compiled)", "fp16", _compiled_blocks, BASE,
                {1: (0.8, 1.6), 16: (1.02, 1.2)},
                "PyTorch has one kernel for LayerNorm and none for the sum before it; the compiler fuses sum, norm and "
                "GELU, and launches fewer kernels"),
        Variant("FP16 accumulation", "fp16", _half_accumulation, BASE, {1: (0.95, 1.05), 16: (0.97, 1.1)},
                "doubles the matrix rate of GeForce GPUs only, and costs accuracy everywhere"),
        Variant("1x1 convolutions before the upsampling", "fp16", _project_first, BASE, {1: (0.95, 1.05),
                16: (1.0, 1.05)}, f"8 of 277 GFLOPs and three quarters of those layers' traffic less{HOST_BOUND}"),
        compiled_graphs(BASE),
    ])


def compiled_variants() -> list[Variant]:
    """Modes and options of torch.compile, quickest to compile first."""
    graphs = "compile reduce-overhead"

    def row(name: str, expected: dict[int, tuple[float, float]], why: str, **options: object) -> Variant:
        return Variant(name, "fp16", lambda model, run, pixels: compiled(model, run, **options), graphs, expected, why)

    return [
        Variant(BASE, "fp16", eager),
        compiled_graphs(BASE),
        row("compile default", {1: (0.3, 0.8), 16: (0.93, 1.0)}, "the same kernels, launched one by one"),
        Variant("compile reduce-overhead, channels-last", "fp16", _compiled_channels_last, graphs,
                {1: (0.98, 1.1), 16: (0.98, 1.1)}, "Inductor chooses layouts of convolutions itself"),
        row("compile freezing", {1: (1.0, 1.2), 16: (1.0, 1.1)}, "weights are constants, stored in the layout of the "
            "kernels", options={"freezing": True, "triton.cudagraphs": True}),
        row("compile max-autotune", {1: (1.0, 1.3), 16: (1.0, 1.15)}, "the fastest of cuBLAS and Triton for each "
            "product; sums and activations join Triton's", mode="max-autotune"),
    ]


def compiled_modes(run: Run, batch: int) -> Result:
    """The rows of `compiled_variants`."""
    return measure_variants(run, batch, compiled_variants())


def _graph(name: str, make: Callable[[MultiTaskDPT, Run, torch.Tensor], Call],
           expected: dict[int, tuple[float, float]], why: str) -> Variant:
    """A row that captures another one as a CUDA graph."""
    return Variant(name, "fp16", lambda model, run, pixels: captured(make(model, run, pixels), run, pixels), BASE,
                   expected, why)


def captured(call: Call, run: Run, pixels: torch.Tensor) -> Call:
    """`call` as one CUDA graph for inputs of this shape. A rehearsal on the CPU has no graphs and calls it directly."""
    if run.dry:
        return call
    with torch.inference_mode():
        fixed = pixels.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate workspaces in their first calls, which a capture must not see
                call(fixed)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call(fixed)

    def replay(image: torch.Tensor) -> Outputs:
        fixed.copy_(image)
        graph.replay()
        return outputs

    return replay


def _attention(name: str, backend: SDPBackend, expected: dict[int, tuple[float, float]], why: str) -> Variant:
    """Every attention through one kernel; the row is not run if this GPU lacks it."""

    def make(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
        if run.dry and backend is not SDPBackend.MATH:
            raise NotRun("the kernel exists on GPUs only")
        return _within(Half(model), lambda: sdpa_kernel(backend))

    return Variant(f"attention: {name}", "fp16", make, BASE, expected, why)


def _within(call: Call, context: Context) -> Call:
    """`call` within a context that holds for this row alone."""

    def inside(pixels: torch.Tensor) -> Outputs:
        with context():
            return call(pixels)

    return inside


@contextlib.contextmanager
def _flag(owner: object, name: str) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, True)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _channels_last(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    return ChannelsLast(Half(model))


def _cudnn_benchmark(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    return _within(Half(model), lambda: _flag(torch.backends.cudnn, "benchmark"))


def _all_layouts(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    return _within(ChannelsLast(Half(model)), lambda: _flag(torch.backends.cudnn, "benchmark"))


def _half_accumulation(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    return _within(Half(model), lambda: _flag(torch.backends.cuda.matmul, "allow_fp16_accumulation"))


def _compiled_blocks(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    torch._dynamo.config.recompile_limit = 64
    for block in model.backbone.blocks:
        block.compile(**({"backend": "eager"} if run.dry else {}))
    return Half(model)


def _compiled_channels_last(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    model.decoder.to(memory_format=torch.channels_last)
    model.heads.to(memory_format=torch.channels_last)
    return compiled(model, run, mode="reduce-overhead")


def _project_first(model: MultiTaskDPT, run: Run, pixels: torch.Tensor) -> Call:
    """Bilinear weights sum to one, so a 1x1 convolution gives the same before and after the upsampling."""

    def forward(self: FeatureFusion, x: torch.Tensor, skip: torch.Tensor | None, size: tuple[int, int]) -> torch.Tensor:
        if self.skip_unit is not None:
            x = x + self.skip_unit(skip)
        return F.interpolate(self.out(self.unit(x)), size=size, mode="bilinear", align_corners=True)

    for fusion in model.decoder.fusion:
        fusion.forward = types.MethodType(forward, fusion)
    return Half(model)


class ChannelsLast(nn.Module):
    """Decoder and heads with weights and maps in channels-last order. It takes over the network."""

    def __init__(self, network: Half) -> None:
        super().__init__()
        self.network = network
        network.inner.decoder.to(memory_format=torch.channels_last)
        network.inner.heads.to(memory_format=torch.channels_last)

    def forward(self, image: torch.Tensor) -> Outputs:
        """`image`: float32 (N, 3, H, W), normalised."""
        return self.network(image)
