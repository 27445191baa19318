"""When half precision is out of budget: the smallest part of the model that must compute in FP32, found by measuring.

Real ViTs carry activations beyond FP16's range. One FP32 run records the range of every layer: what
passes the range cannot be in half, so it is moved to FP32 first. Where that is not enough, or nothing
overflows, bisection (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input")
finds a smallest set of units that brings the model within budget. PyTorch in half precision judges: it
rounds at every operator, on the CPU too.
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
from .precision import DTYPES, cast_to, typed

IMAGES = 2  # at least so many are judged while searching; the plan that is found is judged on all
EVALUATIONS = 24  # a search stops after so many trials
MATRIX_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Ranges:
    """What one FP32 run of the model showed."""

    inputs: dict[str, float]
    """Largest magnitude that a module takes in, by module name."""
    outputs: dict[str, float]
    """Largest magnitude that a module gives out."""
    flops: dict[str, float]
    """Matrix FLOPs of one image, by name of the layer; an attention's own products stand under its name."""


def search_plan(
    model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, stage: Stage, budget: Budget,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[PrecisionPlan, Stage, list[TrialRecord]]:
    """Enlarge `plan`, which is out of budget as `stage` says, until every image is within budget.

    `model` in eval mode, float32; `reference` as the bundle carries it. Returns the last plan, its
    verdict, which fails where nothing helps, and all trials.
    """
    start, trials, seen = plan, [], set()
    while not stage.passed and (new := set(stage.worst.values()) - seen):
        seen |= new
        search = Search(model, reference, plan, budget, say, seen)
        if not trials:
            trials.append(search.trial("as asked", plan, stage))
        found = search.run()
        trials += search.trials
        if found is None:
            break
        plan = found
        stage = judge_half(model, plan, reference, budget, stage.name)
    if not stage.passed:
        say(f"search   found nothing that is within budget on every image: {stage.reasons[0]}")
    last = Search(model, reference, start, budget, say, seen)
    last.alternatives()
    return plan, stage, trials + last.trials


class Search:
    """A search for the smallest FP32 part of `model` that is within budget."""

    def __init__(
        self, model: MultiTaskDPT, reference: Reference, plan: PrecisionPlan, budget: Budget,
        say: Callable[[str], None] = lambda line: None, worst: Collection[str] = (),
    ) -> None:
        """Starts from `plan`, in fp16 or bf16. `worst` names the images to look at; others fill up to `IMAGES`."""
        self.model, self.start, self.budget, self.say = model, plan, budget, say
        images = [case for case in reference.cases if case.name in worst]
        others = [case for case in reference.cases if case not in images and not case.adversarial]
        images += others[: max(IMAGES - len(images), 0)]
        self.reference = Reference(tuple(images))
        self.ranges = measure(model, torch.from_numpy(np.stack([case.image for case in images])))
        self.trials: list[TrialRecord] = []

    def run(self) -> PrecisionPlan | None:
        """A larger plan, or None where even FP32 everywhere but in attention does not help."""
        start, precision = self.start.fp32, self.start.precision
        beyond = [unit for unit in overflowing(self.model, self.ranges, torch.finfo(DTYPES[precision]).max)
                  if unit not in start]
        if beyond:
            self.say(f"search   {len(beyond)} units pass {precision}'s range: {', '.join(beyond[:6])}")
            if self._try("what overflows in FP32", self._plus(beyond)):
                return self._plus(beyond)
        rest = [unit for unit in units(self.model) if unit not in (*start, *beyond)]
        if not self._try("all but attention in FP32", self._plus(beyond + rest)):
            return None
        return self._plus(beyond + self._smallest(rest, beyond))

    def alternatives(self) -> None:
        """Try what a user might weigh against the plan: the other half type, and attention in FP32."""
        other: Precision = "bf16" if self.start.precision == "fp16" else "fp16"
        self._try(other.upper(), dataclasses.replace(self.start, precision=other))
        self._try("attention in FP32", self._plus(
            [f"backbone.blocks.{i}.attn" for i in range(len(self.model.backbone.blocks))]
        ))

    def trial(self, name: str, plan: PrecisionPlan, stage: Stage) -> TrialRecord:
        """`plan` with its verdict and its shares in half."""
        backbone_half, decoder_half = half_shares(self.model, plan, self.ranges)
        return TrialRecord(
            name=name, plan=plan, passed=stage.passed, heads=stage.heads, reasons=stage.reasons,
            backbone_half=round(backbone_half, 4), decoder_half=round(decoder_half, 4),
        )

    def _plus(self, fp32: list[str]) -> PrecisionPlan:
        return dataclasses.replace(self.start, fp32=(*self.start.fp32, *fp32))

    def _try(self, name: str, plan: PrecisionPlan) -> bool:
        stage = judge_half(self.model, plan, self.reference, self.budget, name)
        self.trials.append(self.trial(name, plan, stage))
        verdict = "within budget" if stage.passed else stage.reasons[0]
        self.say(f"search   {len(self.trials)}: {name}: {verdict}")
        return stage.passed

    def _smallest(self, candidates: list[str], always: list[str]) -> list[str]:
        """A subset of `candidates` that is enough beside `always`; where trials last, no part of it is."""
        parts = 2
        while len(candidates) > 1 and len(self.trials) < EVALUATIONS:
            size = -(-len(candidates) // parts)
            chunks = [candidates[i : i + size] for i in range(0, len(candidates), size)]
            subsets = chunks + ([[u for u in candidates if u not in c] for c in chunks] if len(chunks) > 2 else [])
            smaller = next((s for s in subsets if len(self.trials) < EVALUATIONS
                            and self._try(f"{len(s)} of {len(candidates)}", self._plus(always + s))), None)
            if smaller is not None:
                candidates, parts = smaller, 2 if smaller in chunks else max(parts - 1, 2)
            elif size == 1:
                break
            else:
                parts = min(2 * parts, len(candidates))
        if len(self.trials) >= EVALUATIONS:
            self.say(f"search   stopped after {EVALUATIONS} trials: a smaller part may be enough")
        return candidates


def judge_half(
    model: MultiTaskDPT, plan: PrecisionPlan, reference: Reference, budget: Budget, title: str,
    graph: Artifact | None = None,
) -> Stage:
    """`model` computing as `plan` says, in PyTorch, against `reference`; `graph` is what was made from that plan."""
    half = typed(model, plan)
    _sum_in_fp32(half)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {key: value.numpy() for key, value in half(torch.from_numpy(batch)).items()}

    stage = StageId(StageKind.PYTORCH, "model", plan.precision, file=graph.file if graph else None, title=title)
    return compare(stage, run, reference, budget, graph.sha256 if graph else None)


def _sum_in_fp32(model: nn.Module) -> None:
    """Let matrix layers in FP16 multiply and add in FP32 between FP16 inputs and outputs, as tensor cores do; in place.

    PyTorch's own kernels for the CPU round in the same places and take more than ten times as long.
    """
    for name, module in model.named_modules():
        # timm's attention may read the weights of qkv without calling it; what it reads is normalised.
        if isinstance(module, MATRIX_LAYERS) and module.weight.dtype is torch.float16 and not name.endswith(".qkv"):
            module.float()  # the values stay those of FP16
            module.register_forward_pre_hook(cast_to(torch.float32))  # after the one that rounds the input
            module.register_forward_hook(lambda _module, _args, output: output.half())


def units(model: MultiTaskDPT) -> list[str]:
    """What can be moved to FP32, coarse to fine within the line; attention cores always stay in half."""
    names = ["residual", "backbone.patch_embed"]
    for i, _ in enumerate(model.backbone.blocks):
        names += [f"backbone.blocks.{i}.attn.proj", f"backbone.blocks.{i}.mlp"]
    names += [name for name, module in model.named_modules()
              if name.startswith(("decoder.", "heads.")) and isinstance(module, MATRIX_LAYERS)]
    return names


def measure(model: MultiTaskDPT, images: torch.Tensor) -> Ranges:
    """Run `model` on images (N, 3, H, W) in FP32 and record ranges and FLOPs."""
    inputs: dict[str, float] = {}
    outputs: dict[str, float] = {}
    flops: dict[str, float] = {}

    def note(largest: dict[str, float], name: str, values: tuple) -> None:
        tensors = [t for t in values if isinstance(t, torch.Tensor) and t.is_floating_point()]
        largest[name] = max([largest.get(name, 0.0), *(float(t.abs().max()) for t in tensors)])

    def hook(name: str):
        def record(module: nn.Module, args: tuple, output: Any) -> None:
            note(inputs, name, args)
            note(outputs, name, (output,))
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
    """Multiplications and additions of one matrix layer for this input and output."""
    if isinstance(module, nn.Linear):
        return 2.0 * y.numel() * module.in_features
    kernel = module.kernel_size[0] * module.kernel_size[1]
    if isinstance(module, nn.ConvTranspose2d):
        return 2.0 * x.numel() * module.out_channels * kernel
    return 2.0 * y.numel() * module.in_channels * kernel


def overflowing(model: MultiTaskDPT, ranges: Ranges, limit: float) -> list[str]:
    """The units whose weights, inputs, outputs or sums pass `limit` in FP32: none of them can be in half."""
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        reads, gives = (largest.get(name, 0.0) > limit for largest in (ranges.inputs, ranges.outputs))
        holds = any(float(weights.detach().abs().max()) > limit for weights in module.parameters(recurse=False))
        if not (reads or gives or holds):
            continue
        if name.startswith("backbone."):
            found |= dict.fromkeys(_backbone_units(name))
        elif isinstance(module, MATRIX_LAYERS):
            found[name] = None
        elif isinstance(module, ResidualConvUnit):
            if gives:  # its sum is in FP32 when one addend is
                found[f"{name}.conv2"] = None
            before = f"{name.rpartition('.')[0]}.skip_unit"
            if reads and before in ranges.outputs and before != name:
                found[f"{before}.conv2"] = None
    return list(found)


def _backbone_units(name: str) -> list[str]:
    """The units that keep the range of the backbone's module `name`."""
    parts = name.split(".")
    if parts[1] != "blocks":
        return ["backbone.patch_embed", "residual"]
    if len(parts) > 3 and parts[3] == "mlp":
        return [f"backbone.blocks.{parts[2]}.mlp"]
    if len(parts) > 3 and parts[3] == "attn":
        return [f"backbone.blocks.{parts[2]}.attn.proj"]
    return ["residual"]  # a block, its norms and its layer scales read or write the stream


def half_shares(model: MultiTaskDPT, plan: PrecisionPlan, ranges: Ranges) -> tuple[float, float]:
    """Shares of the matrix FLOPs of the backbone, and of decoder and heads, that compute in half."""
    if plan.precision == "fp32":
        return 0.0, 0.0

    def in_fp32(layer: str) -> bool:
        return any(layer == name or layer.startswith(f"{name}.") for name in plan.fp32)

    shares = []
    for roots in (("backbone.",), ("decoder.", "heads.")):
        layers = {name: value for name, value in ranges.flops.items() if name.startswith(roots)}
        shares.append(sum(v for name, v in layers.items() if not in_fp32(name)) / sum(layers.values()))
    return shares[0], shares[1]
