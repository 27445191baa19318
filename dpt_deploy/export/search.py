"""Search for the smallest part of the model that must compute in FP32, if half precision is out of budget.

Activations of real ViTs can exceed FP16's range. One FP32 run records the range of each layer, and the search first
moves everything that overflows to FP32. If that is not enough, or nothing overflows, it casts attention up, so that it
sums in FP32, and then minimises the set of FP32 units by delta debugging (Zeller and Hildebrandt 2002, "Simplifying and
isolating failure-inducing input"). Plans are judged by PyTorch in half precision, which rounds after each operator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core.manifest import Artifact, Precision, PrecisionPlan, TrialRecord
from ..core.verdict import Budget, Stage, StageId, StageKind
from ..model import MultiTaskDPT
from ..model.decoder import ResidualConvUnit
from ..parity import Reference, compare
from ..parity.judge import WorstMaps
from .attention import sum_in_fp32, sum_in_half
from .precision import DTYPES, cast_to, typed

MIN_IMAGES = 2  # judged in each trial; the plan that is found is judged on all images
MAX_TRIALS = 24
JUDGE_VERSION = 2  # part of the key of a stored verdict: raising it judges half precision again
MATRIX_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Ranges:
    """What one FP32 run of the model recorded, by module name."""

    inputs: dict[str, float]
    """Largest magnitude of the inputs."""
    outputs: dict[str, float]
    """Largest magnitude of the outputs."""
    flops: dict[str, float]
    """Matrix FLOPs of one image; an attention module counts only the products of activations."""


def search_plan(
    model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, stage: Stage, budget: Budget,
    say: Callable[[str], None] = lambda line: None, worst: WorstMaps | None = None,
) -> tuple[PrecisionPlan, Stage, list[TrialRecord]]:
    """Extend the FP32 part of a plan that is out of budget until all images are within budget.

    Args:
        model: The model, float32, in eval mode.
        reference: The parity images with the outputs of PyTorch FP32.
        plan: The plan to start from, in fp16 or bf16.
        stage: The verdict on `plan`.
        budget: Limits by precision, head and metric.
        say: Receives progress lines.
        worst: Receives the exhibits of the last plan, in place of those that it has.

    Returns:
        The last plan, its verdict (failed if no plan is within budget), and all trials.
    """
    start, trials, searched = plan, [], set()
    while not stage.passed and (new := set(stage.worst.values()) - searched):
        searched |= new
        search = Search(model, reference, plan, budget, say, searched)
        if not trials:
            trials.append(search.trial("as requested", plan, stage))
        larger = search.run()
        trials += search.trials
        if larger is None:
            break
        plan = larger
        if worst is not None:
            worst.by_head.clear()
        stage = judge_half(model, plan, reference, budget, stage.name, worst=worst)
    if not stage.passed:
        say(f"search   no plan is within budget on all images: {stage.reasons[0]}")
    comparison = Search(model, reference, start, budget, say, searched)
    comparison.alternatives()
    return plan, stage, trials + comparison.trials


class Search:
    """A search for the smallest FP32 part of `model` that is within budget."""

    def __init__(
        self, model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, budget: Budget,
        say: Callable[[str], None] = lambda line: None, worst: Collection[str] = (),
    ) -> None:
        """Trials start from `plan` and use the images named in `worst`, and others up to `MIN_IMAGES`."""
        self.model, self.start, self.budget, self.say = model, plan, budget, say
        images = [case for case in reference.cases if case.name in worst]
        others = [case for case in reference.cases if case not in images and not case.adversarial]
        images += others[: max(MIN_IMAGES - len(images), 0)]
        self.reference = reference.only(images)
        self.ranges = measure(model, torch.from_numpy(np.stack([case.image for case in images])))
        self.trials: list[TrialRecord] = []

    def run(self) -> PrecisionPlan | None:
        """A plan that is within budget; None if not even all units in FP32 are."""
        start, precision = self.start.fp32, self.start.precision
        overflows = [unit for unit in overflowing(self.model, self.ranges, torch.finfo(DTYPES[precision]).max)
                     if unit not in start]
        if overflows:
            self.say(f"search   {len(overflows)} units exceed the range of {precision}: {', '.join(overflows[:6])}")
            if self._try("overflowing units in FP32", self._extended(overflows)):
                return self._extended(overflows)
        others = [unit for unit in units(self.model, precision) if unit not in (*start, *overflows)]
        if "attention" in others and self._try("attention cast up", self._extended([*overflows, "attention"])):
            return self._extended([*overflows, "attention"])
        if not self._try("all units in FP32", self._extended(overflows + others)):
            return None
        return self._extended(overflows + self._minimise(others, overflows))

    def alternatives(self) -> None:
        """Try alternatives for comparison: the other half-precision type, and attention in FP32."""
        other: Precision = "bf16" if self.start.precision == "fp16" else "fp16"
        self._try(other.upper(), dataclasses.replace(self.start, precision=other))
        attention = [f"backbone.blocks.{i}.attn" for i in range(len(self.model.backbone.blocks))]
        self._try("attention in FP32", self._extended(attention))

    def trial(self, name: str, plan: PrecisionPlan, stage: Stage) -> TrialRecord:
        """The record of `plan` with its verdict and its FLOPs in half precision."""
        backbone_half, decoder_half = half_shares(self.model, plan, self.ranges)
        return TrialRecord(name=name, plan=plan, passed=stage.passed, heads=stage.heads, reasons=stage.reasons,
                           backbone_half=round(backbone_half, 4), decoder_half=round(decoder_half, 4))

    def _extended(self, fp32: list[str]) -> PrecisionPlan:
        return dataclasses.replace(self.start, fp32=(*self.start.fp32, *fp32))

    def _try(self, name: str, plan: PrecisionPlan) -> bool:
        stage = judge_half(self.model, plan, self.reference, self.budget, name)
        self.trials.append(self.trial(name, plan, stage))
        verdict = "within budget" if stage.passed else stage.reasons[0]
        self.say(f"search   {len(self.trials)}: {name}: {verdict}")
        return stage.passed

    def _minimise(self, candidates: list[str], always: list[str]) -> list[str]:
        """A subset of `candidates` that is enough together with `always`; minimal unless the trials run out."""
        parts = 2
        while len(candidates) > 1 and len(self.trials) < MAX_TRIALS:
            size = -(-len(candidates) // parts)
            chunks = [candidates[i : i + size] for i in range(0, len(candidates), size)]
            subsets = chunks + ([[u for u in candidates if u not in c] for c in chunks] if len(chunks) > 2 else [])
            smaller = next((s for s in subsets if len(self.trials) < MAX_TRIALS
                            and self._try(f"{len(s)} of {len(candidates)}", self._extended(always + s))), None)
            if smaller is not None:
                candidates, parts = smaller, 2 if smaller in chunks else max(parts - 1, 2)
            elif size == 1:
                break
            else:
                parts = min(2 * parts, len(candidates))
        if len(self.trials) >= MAX_TRIALS:
            self.say(f"search   stopped after {MAX_TRIALS} trials: a smaller FP32 part may be enough")
        return candidates


def judge_half(
    model: MultiTaskDPT, plan: PrecisionPlan, reference: Reference, budget: Budget, title: str,
    graph: Artifact | None = None, worst: WorstMaps | None = None,
) -> Stage:
    """Judge PyTorch in the precisions of `plan` against `reference`.

    FP16 attention sums as TensorRT's fused kernels do, in FP16 (`attention.sum_in_half`), or in FP32 if the plan casts
    it up. `model` is float32 and in eval mode. `title` is that of the stage, `graph` the ONNX graph exported with
    `plan`. `worst` receives the exhibits.
    """
    half = typed(model, plan)
    _sum_in_fp32(half)
    if plan.precision == "fp16":  # BF16 attention sums in FP32 on every GPU
        half.attention = sum_in_fp32 if "attention" in plan.fp32 else sum_in_half

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {key: value.numpy() for key, value in half(torch.from_numpy(batch)).items()}

    stage = StageId(StageKind.PYTORCH, "model", plan.precision, file=graph.file if graph else None, title=title)
    return compare(stage, run, reference, budget, graph.sha256 if graph else None, on_exhibit=worst or WorstMaps())


def _sum_in_fp32(model: nn.Module) -> None:
    """Let FP16 matrix layers accumulate in FP32, with FP16 inputs and outputs, as tensor cores do; in place.

    PyTorch's FP16 kernels for the CPU round at the same points, but are more than ten times slower.
    """
    for name, module in model.named_modules():
        # timm's attention may read the weights of qkv without calling it.
        if isinstance(module, MATRIX_LAYERS) and module.weight.dtype is torch.float16 and not name.endswith(".qkv"):
            module.float()  # weights keep their FP16 values
            module.register_forward_pre_hook(cast_to(torch.float32))  # runs after the hook that rounds to FP16
            module.register_forward_hook(lambda _module, _args, output: output.half())


def units(model: MultiTaskDPT, precision: Precision) -> list[str]:
    """Names that the search can move to FP32, in model order; query, key and value stay in half precision."""
    names = ["attention"] if precision == "fp16" else []  # BF16 attention sums in FP32 anyway
    names += ["residual", "backbone.patch_embed"]
    for i, _ in enumerate(model.backbone.blocks):
        names += [f"backbone.blocks.{i}.attn.proj", f"backbone.blocks.{i}.mlp"]
    names += [name for name, module in model.named_modules()
              if name.startswith(("decoder.", "heads.")) and isinstance(module, MATRIX_LAYERS)]
    return names


def measure(model: MultiTaskDPT, images: torch.Tensor) -> Ranges:
    """Run `model` in FP32 on `images` (N, 3, H, W) and record ranges and FLOPs."""
    inputs: dict[str, float] = {}
    outputs: dict[str, float] = {}
    flops: dict[str, float] = {}

    def update_largest(largest: dict[str, float], name: str, values: tuple) -> None:
        tensors = [t for t in values if isinstance(t, torch.Tensor) and t.is_floating_point()]
        largest[name] = max([largest.get(name, 0.0), *(float(t.abs().max()) for t in tensors)])

    def hook(name: str):
        def record(module: nn.Module, args: tuple, output: Any) -> None:
            update_largest(inputs, name, args)
            update_largest(outputs, name, (output,))
            if isinstance(module, MATRIX_LAYERS):
                flops[name] = matrix_flops(module, args[0], output) / len(images)
            elif name.endswith(".attn"):
                _, tokens, dim = args[0].shape
                flops[name] = 4.0 * tokens * tokens * dim
        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return Ranges(inputs, outputs, flops)


def matrix_flops(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """FLOPs of one matrix layer with input `x` and output `y`; a multiply-add is two operations."""
    if isinstance(module, nn.Linear):
        return 2.0 * y.numel() * module.in_features
    kernel = module.kernel_size[0] * module.kernel_size[1]
    if isinstance(module, nn.ConvTranspose2d):
        return 2.0 * x.numel() * module.out_channels * kernel
    return 2.0 * y.numel() * module.in_channels * kernel


def overflowing(model: MultiTaskDPT, ranges: Ranges, limit: float) -> list[str]:
    """The units whose weights, inputs, outputs or sums exceed `limit` in FP32."""
    names: dict[str, None] = {}  # an ordered set
    for name, module in model.named_modules():
        large_input, large_output = (r.get(name, 0.0) > limit for r in (ranges.inputs, ranges.outputs))
        large_weight = any(float(weights.detach().abs().max()) > limit for weights in module.parameters(recurse=False))
        if not (large_input or large_output or large_weight):
            continue
        if name.startswith("backbone."):
            names |= dict.fromkeys(_backbone_units(name))
        elif isinstance(module, MATRIX_LAYERS):
            names[name] = None
        elif isinstance(module, ResidualConvUnit):
            if large_output:  # the sum is FP32 if one addend is
                names[f"{name}.conv2"] = None
            skip_unit = f"{name.rpartition('.')[0]}.skip_unit"
            if large_input and skip_unit in ranges.outputs and skip_unit != name:
                names[f"{skip_unit}.conv2"] = None
    return list(names)


def _backbone_units(name: str) -> list[str]:
    """The units to move to FP32 for the module `name` of the backbone."""
    parts = name.split(".")
    if parts[1] != "blocks":
        return ["backbone.patch_embed", "residual"]
    if len(parts) > 3 and parts[3] == "mlp":
        return [f"backbone.blocks.{parts[2]}.mlp"]
    if len(parts) > 3 and parts[3] == "attn":
        return [f"backbone.blocks.{parts[2]}.attn.proj"]
    return ["residual"]  # blocks, norms and layer scales read or write the residual stream


def half_shares(model: MultiTaskDPT, plan: PrecisionPlan, ranges: Ranges) -> tuple[float, float]:
    """Shares of matrix FLOPs in half precision: of the backbone, and of decoder and heads together."""
    if plan.precision == "fp32":
        return 0.0, 0.0

    def in_fp32(layer: str) -> bool:
        if "attention" in plan.fp32 and layer.endswith(".attn"):
            return True
        return any(layer == name or layer.startswith(f"{name}.") for name in plan.fp32)

    shares = []
    for roots in (("backbone.",), ("decoder.", "heads.")):
        layers = {name: value for name, value in ranges.flops.items() if name.startswith(roots)}
        shares.append(sum(v for name, v in layers.items() if not in_fp32(name)) / sum(layers.values()))
    return shares[0], shares[1]
