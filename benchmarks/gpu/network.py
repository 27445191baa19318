"""The network that is timed, its inputs, and how its outputs are judged; without a bundle."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dpt_deploy.core import metrics
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model

from .hardware import device_of
from .step import Result, Run

BUDGET = Path(__file__).resolve().parents[2] / "dpt_deploy/parity/budget.json"
Outputs = dict[str, torch.Tensor]
Call = Callable[[torch.Tensor], Outputs]


# Standard deviation of each head's last convolution: maps that vary, away from the ends of the activations.
SPREAD = {"depth": 0.2, "normals": 0.2, "alpha": 1.0}


def new_model(run: Run, device: torch.device | None = None) -> MultiTaskDPT:
    """ViT-B at 384 with three heads and random weights, FP32, in eval mode on the device of the run.

    Neither time nor memory depends on the weights. A rehearsal takes a tiny network.
    """
    return copy.deepcopy(_random_model(run.dry)).to(device or device_of(run))


@functools.cache
def _random_model(tiny: bool) -> MultiTaskDPT:
    """The network on the CPU, with heads whose maps vary as `SPREAD` says, so that parity compares something."""
    torch.manual_seed(0)
    model = create_multitask_dpt_model("test_vit", 8, backbone_kwargs={"img_size": 32, "depth": 4}) if tiny else \
        create_multitask_dpt_model("vit_base_patch16_384", 256)
    model.eval().requires_grad_(False)
    seen: dict[str, torch.Tensor] = {}
    hooks = [head.conv3.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: output}))
             for name, head in model.heads.items()]
    model(images(model, 1))
    for hook in hooks:
        hook.remove()
    for name, head in model.heads.items():
        varying = seen[name] - seen[name].mean(dim=(0, 2, 3), keepdim=True)
        factor = SPREAD[name] / varying.std()
        head.conv3.weight.mul_(factor)
        bias = head.conv3.bias.clone()
        head.conv3.bias.sub_(factor * (seen[name].mean(dim=(0, 2, 3)) - bias))  # the mean stays the initial bias
    return model


def images(model: MultiTaskDPT, batch: int) -> torch.Tensor:
    """Normalised images (N, 3, H, W), float32 on the model's device: generated scenes, or noise without OpenCV."""
    h, w = model.input_size
    if importlib.util.find_spec("cv2") is not None:
        from dpt_deploy.core.scene import scene

        frames = np.stack([scene(h, w, seed) for seed in range(min(batch, 4))])
    else:
        frames = np.random.default_rng(0).integers(0, 256, (min(batch, 4), h, w, 3), dtype=np.uint8)
    contract = model.contract()
    pixels = (frames.astype(np.float32) / 255 - contract.mean) / contract.std
    repeated = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2)).repeat(-(-batch // 4), 1, 1, 1)
    return repeated[:batch].contiguous().to(next(model.parameters()).device)


class Half(nn.Module):
    """A network in FP16, with the float32 inputs and outputs of the contract. It takes over the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model.half()

    def forward(self, image: torch.Tensor) -> Outputs:
        """`image`: float32 (N, 3, H, W), normalised."""
        return {name: value.float() for name, value in self.inner(image.half()).items()}


def forward_flops(model: MultiTaskDPT, image: torch.Tensor) -> dict[str, float]:
    """FLOPs of one image: the total, and by operator."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image[:1])
    by_operator = {str(op).removeprefix("aten."): float(count) for op, count in
                   counter.get_flop_counts()["Global"].items()}
    return {"total": float(counter.get_total_flops())} | by_operator


def reference(model: MultiTaskDPT, image: torch.Tensor) -> list[dict[str, np.ndarray]]:
    """The maps of each image from the network in FP32 on the CPU, where no TF32 exists."""
    on_cpu = MultiTaskDPT(model.config)
    on_cpu.load_state_dict(model.state_dict())
    on_cpu.set_input_size(model.input_size)
    with torch.inference_mode():
        return maps_of(on_cpu.eval()(image.cpu()))


def maps_of(outputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """Outputs of the network as the maps that budgets limit: one dictionary for each image."""
    arrays = {name: (value.float().cpu().numpy() if isinstance(value, torch.Tensor) else value)
              for name, value in outputs.items()}
    return [{"depth": arrays["depth"][i, 0], "normals": arrays["normals"][i].transpose(1, 2, 0),
             "alpha": metrics.sigmoid(arrays["alpha_logits"][i, 0])} for i in range(len(arrays["depth"]))]


def judge(have: list[dict[str, np.ndarray]], want: list[dict[str, np.ndarray]], precision: str) -> Result:
    """Hold maps to the project's budgets: the worst metric of all images, and what exceeds its limit.

    Args:
        have: The maps to judge, at least as many as those of the reference; the others are left out.
        want: The maps of the reference.
        precision: `fp32` or `fp16`, whose budget applies.
    """
    limits = json.loads(BUDGET.read_text(encoding="utf-8"))[precision]
    worst: dict[str, dict[str, float]] = {}
    for mine, theirs in zip(have, want, strict=False):
        finite = {head: bool(np.isfinite(mine[head]).all()) for head in theirs}
        for head, measured, _ in metrics.parity(theirs, mine):
            kept = worst.setdefault(head, {})
            for metric, value in measured.items():
                value = value if finite[head] else float("nan")
                pick = min if metric in metrics.AT_LEAST else max
                kept[metric] = value if value != value else pick(kept.get(metric, value), value)
    over = [f"{head} {metric} {worst[head][metric]:.3g}, budget {bound:.3g}" for head, bounds in limits.items()
            for metric, bound in bounds.items()
            if not metrics.within(metric, worst.get(head, {}).get(metric, float("nan")), bound)]
    compared = min(len(have), len(want))
    return {"status": "passed" if compared and not over else "failed", "budget": precision, "images": compared,
            "over_budget": over, "heads": _without_nan(worst)}


def varies(want: list[dict[str, np.ndarray]]) -> Result:
    """How much the maps of the reference vary: parity of constant maps would say nothing."""
    depth, alpha = (np.stack([maps[name] for maps in want]) for name in ("depth", "alpha"))
    return {"depth_std_over_mean": float(depth.std() / depth.mean()), "foreground": float((alpha > 0.5).mean())}


def _without_nan(worst: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no NaN."""
    return {head: {metric: None if value != value else value for metric, value in kept.items()}
            for head, kept in worst.items()}
