"""Search for what must stay wide, if a network with everything in eight bits is out of its limits.

Every trial is a graph that the backends of this machine run, never a simulation: the same file can be right in one and
wrong in another. First each unit is quantized alone, which tells how much it costs; the units that cost most for their
work are kept wide, as few as are enough. Then the modules inside the units that were kept are tried in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...core.manifest import EightBitTrial, PrecisionPlan
from ...core.plan import covers
from .layers import Layer, eight_bit, units

HEADROOM = 0.8
"""The share of its limits that a plan may use in a trial. The verdict is on other images."""
WORTH_REFINING = 0.02
"""The share of the FLOPs that kept units must have for the modules inside them to be tried one by one."""


@dataclass(frozen=True)
class Outcome:
    """What a trial measured."""

    loss: float
    """The largest share of its limit that one of the measured values uses; infinite for values that are not finite."""
    heads: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    """What is over its limit."""

    @property
    def passed(self) -> bool:
        return self.loss <= HEADROOM


Judge = Callable[[PrecisionPlan, str], Outcome]


class Bench(Protocol):
    """Makes and runs the graph of a plan."""

    backends: Sequence[str]
    """Names of the backends that run eight-bit graphs on this machine, in order of preference."""

    def run(self, plan: PrecisionPlan, backend: str) -> Outcome:
        """What decides on a plan: the loss of the task if there is labelled data, else the distance to FP32."""

    def cost(self, plan: PrecisionPlan, backend: str) -> Outcome:
        """The distance to FP32 on a few images, which compares parts of the network with each other."""


class Search:
    """A search for the plan with the most work in eight bits that is within the limits in every backend."""

    def __init__(
        self, bench: Bench, layers: Sequence[Layer], total_flops: int, plan: PrecisionPlan,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`layers` are those of the network, `total_flops` those of all its matrix products, `plan` the start."""
        self.bench, self.layers, self.total, self.start, self.say = bench, layers, total_flops, plan, say
        self.trials: list[EightBitTrial] = []
        self._known: dict[tuple[tuple[str, ...], str, bool], Outcome] = {}

    def run(self) -> tuple[PrecisionPlan, bool]:
        """The plan, and whether it is within the limits. If no plan is, the plan to start from."""
        failing = self._failing("everything in eight bits" if not self.start.wide else "as requested", self.start,
                                self.bench.backends)
        if not failing:
            return self.start, True
        quantized = eight_bit(self.layers, self.start.wide)
        kept = self._fewest(units(quantized), failing)
        if kept is None:
            self.say("search   no plan is within the limits: not even one unit can be in eight bits")
            return self.start, False
        inside = [layer for layer in quantized if covers(kept, layer.module)]
        if sum(layer.flops for layer in inside) > WORTH_REFINING * self.total:
            kept = self._fewest([layer.module for layer in inside], failing) or kept
        return self._plan(kept), True

    def share(self, plan: PrecisionPlan) -> float:
        """The fraction of the matrix FLOPs that a plan has in eight bits."""
        if plan.weights_only:
            return 0.0
        return sum(layer.flops for layer in eight_bit(self.layers, plan.wide)) / self.total

    def _fewest(self, names: list[str], failing: Sequence[str]) -> list[str] | None:
        """The fewest of `names` to keep wide, the costliest for their work first; None if all are not enough."""
        self.say(f"search   measuring what each of {len(names)} parts costs in {', '.join(failing)}")
        everything = list(dict.fromkeys(layer.module for layer in eight_bit(self.layers, self.start.wide)))
        cost: dict[str, float] = {}
        for name in names:
            only = self._plan([module for module in everything if not covers([name], module)])
            flops = sum(layer.flops for layer in self.layers if covers([name], layer.module))
            losses = [self._try(f"only {name}", only, one, self.bench.cost).loss for one in failing]
            cost[name] = max(losses) / max(flops, 1)
        order = sorted(names, key=lambda name: -cost[name])
        found, low, high = None, 1, len(order)
        while low <= high:
            middle = (low + high) // 2
            plan = self._plan(order[:middle])
            if self.share(plan) == 0 and not plan.weights_only:  # that is the FP32 graph
                high, passed = middle - 1, True
            else:
                passed = not self._failing(f"{middle} of {len(order)} wide", plan, self.bench.backends)
                if passed:
                    found = order[:middle]
            low, high = (low, middle - 1) if passed else (middle + 1, high)
        return found

    def _plan(self, wide: Sequence[str]) -> PrecisionPlan:
        return dataclasses.replace(self.start, wide=(*self.start.wide, *(w for w in wide if w not in self.start.wide)))

    def _failing(self, name: str, plan: PrecisionPlan, backends: Sequence[str]) -> list[str]:
        return [backend for backend in backends if not self._try(name, plan, backend, self.bench.run).passed]

    def _try(self, name: str, plan: PrecisionPlan, backend: str, judge: Judge) -> Outcome:
        key = (plan.wide, backend, judge == self.bench.run)
        if key not in self._known:
            outcome = self._known[key] = judge(plan, backend)
            share = self.share(plan)
            self.trials.append(EightBitTrial(
                name=name, plan=plan, backend=backend, passed=outcome.passed, share=round(share, 4), loss=outcome.loss,
                heads=outcome.heads, reasons=outcome.reasons,
            ))
            over = "; ".join(outcome.reasons[:1]) or f"more than {HEADROOM:.0%}"
            verdict = "within the limits" if outcome.passed else over
            self.say(f"search   {len(self.trials)}: {name}, {backend}: {share:.1%} in eight bits, uses "
                     f"{outcome.loss:.0%} of its limits: {verdict}")
        return self._known[key]

