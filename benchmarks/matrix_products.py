"""Large matrix products. The fastest one of a precision is the ceiling that a network is compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.environment import processor
from benchmarks.timing import Timings


@dataclass(frozen=True)
class MatrixProduct:
    """A square matrix product. Calling it computes one product and returns when it is done."""

    precision: str
    library: str
    multiply: Callable[[], object]
    flops: float

    def __call__(self) -> None:
        self.multiply()

    @property
    def name(self) -> str:
        """Name in the results."""
        return f"product {self.precision}, {self.library}"


@dataclass(frozen=True)
class Ceiling:
    """What the machine reaches at most: the matrix products timed in the same rounds."""

    products: Sequence[MatrixProduct]
    timings: Mapping[str, Timings]

    @property
    def rates(self) -> dict[str, float]:
        """FLOP/s of every product, by name."""
        return {one.name: one.flops / float(np.median(self.timings[one.name].seconds)) for one in self.products}

    @property
    def fastest(self) -> dict[str, str]:
        """Name of the fastest product of each precision."""
        by_rate = sorted(self.products, key=lambda one: self.rates[one.name])
        return {one.precision: one.name for one in by_rate}

    @property
    def by_precision(self) -> dict[str, float]:
        """FLOP/s of the fastest product of each precision."""
        return {precision: self.rates[name] for precision, name in self.fastest.items()}


def matrix_products(quick: bool = False) -> list[MatrixProduct]:
    """Products by precision and library.

    On a GPU: PyTorch in fp32 (without TF32) and fp16. On a CPU: every installed library, because none has the fastest
    kernel on every processor, in fp32 and, if the processor has BF16 instructions, in bf16.

    Args:
        quick: Small matrices, without OpenVINO; for smoke tests.
    """
    cpu_size, gpu_size = (256, 256) if quick else (3072, 8192)
    precisions = ("fp32", "bf16") if {"avx512_bf16", "amx_bf16"} & set(processor()["units"]) else ("fp32",)
    has_torch = importlib.util.find_spec("torch") is not None
    if has_torch:
        import torch

        if torch.cuda.is_available():
            return [_with_torch(precision, gpu_size, "cuda") for precision in ("fp32", "fp16")]
    found = [_with_numpy(cpu_size)]
    if has_torch:
        found += [_with_torch(precision, cpu_size, "cpu") for precision in precisions]
    if importlib.util.find_spec("openvino") is not None and not quick:
        found += [_with_openvino(precision, cpu_size) for precision in precisions]
    return found


def _with_numpy(n: int) -> MatrixProduct:
    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    out = np.empty_like(a)
    return MatrixProduct("fp32", "NumPy", lambda: np.matmul(a, a, out=out), 2.0 * n**3)


def _with_torch(precision: str, n: int, device: str) -> MatrixProduct:
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    a = torch.randn(n, n, device=device).to(dtype)
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.mm(a, a, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return MatrixProduct(precision, "PyTorch", multiply, 2.0 * n**3)


def _with_openvino(precision: str, n: int) -> MatrixProduct:
    import openvino
    from openvino import opset13

    from dpt_deploy.backends.openvino import shared_core

    a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    x = opset13.parameter([n, n], np.float32)
    graph = openvino.Model([opset13.matmul(x, opset13.constant(a), False, False)], [x], "product")
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = shared_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    tensor = openvino.Tensor(a, shared_memory=True)

    def multiply() -> None:
        request.set_input_tensor(tensor)  # the closure keeps the shared memory alive
        request.infer()

    return MatrixProduct(precision, "OpenVINO", multiply, 2.0 * n**3)
