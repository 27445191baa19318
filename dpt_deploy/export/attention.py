"""How half-precision attention is computed: cast up for the exported graph, and as tensor cores do for the judge.

TensorRT's fused FP16 attention sums the products QK^T and PV in FP16. It sums in FP32 if the graph casts query, key and
value to FP32 before the attention operator and the result back after it (release notes of TensorRT 11.3, "FP32
accumulation for FP16 fused attention"). PyTorch's own half attention sums in FP32 in either case.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

SDPA = torch.nn.functional.scaled_dot_product_attention
MMA_K = 16
"""Products per step of the FP16 tensor core instruction (m16n8k16)."""
MAX_SCORES = 1 << 20  # scores of several heads at once: 4 MB, which stay in a processor's cache


class Attention(TorchFunctionMode):
    """Within this context, `compute` replaces `scaled_dot_product_attention` on FP16 and BF16 tensors.

    It reaches the calls inside timm's attention modules of any class, also while `torch.export` traces them.
    """

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        is_half = func is SDPA and args[0].dtype in (torch.float16, torch.bfloat16)
        return (self.compute if is_half else func)(*args, **(kwargs or {}))


def cast_up(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention in FP32 between casts: the pattern in which TensorRT's fused FP16 kernel sums in FP32."""
    return SDPA(q.float(), k.float(), v.float(), *args, **kwargs).to(q.dtype)


def sum_in_half(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention of float16 `q` (N, heads, L, D), `k` and `v` (N, heads, S, D), with FP16 accumulators.

    Modelled are: query and key times the square root of the scale, rounded (as the ONNX operator and TensorRT's parser
    do); sums of `MMA_K` products, exact to FP32, added to an accumulator that is rounded to the nearest FP16 after each
    step, to infinity beyond 65504; softmax in FP32; exponentials rounded to FP16 before they multiply `v`, and divided
    by their sum afterwards, as in flash attention, so that the accumulators of PV grow with the number of keys.

    This is stricter than a kernel that normalises before it multiplies by `v`. Not modelled are: the rescaling of PV's
    accumulators when flash attention meets a larger maximum, kernels with other steps or several accumulators, and how
    a GPU rounds inside a step (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"). The structure is that of
    NVIDIA's published kernels (fmha_v2 of TensorRT-LLM); those of TensorRT are not public.
    """
    root = torch.tensor(_scale(q, *args, **kwargs) ** 0.5).half().item()
    return _attention((q * root).float(), (k * root).float(), v.float(), MMA_K)


def sum_in_fp32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Attention as `sum_in_half`, with FP32 accumulators and without rounding of scaled query and key.

    This is the fused kernel that TensorRT may choose for `cast_up`: its inputs and exponentials are FP16.
    """
    return _attention(q.float() * _scale(q, *args, **kwargs), k.float(), v.float())


def _scale(
    q: torch.Tensor, attn_mask: None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None,
) -> float:
    """The factor of the scores; the arguments are those of `scaled_dot_product_attention` after `v`."""
    if attn_mask is not None or dropout_p or is_causal:
        raise NotImplementedError("attention with a mask or dropout, which no supported backbone has in eval mode")
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, step: int | None = None) -> torch.Tensor:
    """softmax(q k^T) v of float32 tensors, in float16; `step` is that of `_products`."""
    result = torch.empty(*q.shape[:3], v.shape[3], dtype=torch.float16, device=q.device)
    heads = [tensor.flatten(0, 1) for tensor in (q, k.transpose(2, 3), v, result)]
    count = max(MAX_SCORES // (q.shape[2] * k.shape[2]), 1)
    for q, k, v, out in zip(*(tensor.split(count) for tensor in heads), strict=True):
        weights = _products(q, k, step)
        weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
        total = weights.sum(-1, keepdim=True)
        out.copy_(_products(_round(weights), v, step).div_(total))
    return result


def _products(a: torch.Tensor, b: torch.Tensor, step: int | None) -> torch.Tensor:
    """a @ b (heads, L, S) in float32; with `step`, the sum is rounded to FP16 after each `step` products."""
    if step is None:
        return torch.bmm(a, b)
    sums = torch.bmm(a[..., :step], b[:, :step])
    half = torch.empty_like(sums, dtype=torch.float16)  # conversions into one buffer are twice as fast
    _round(sums, half)
    for i in range(step, a.shape[-1], step):
        _round(sums.baddbmm_(a[..., i : i + step], b[:, i : i + step]), half)
    return sums


def _round(x: torch.Tensor, half: torch.Tensor | None = None) -> torch.Tensor:
    """Round float32 `x` to FP16 values, in place."""
    return x.copy_(x.half() if half is None else half.copy_(x))
