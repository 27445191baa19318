"""What a step of the GPU validation is, and what it is given."""

from __future__ import annotations

import importlib
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpt_deploy.core.errors import DptError

CARRY = {"pydantic": "pydantic, pydantic-core, annotated-types and typing-inspection"}
"""Packages to install together, where pip cannot fetch what a wheel requires."""

Result = dict[str, Any]


class NotRun(DptError):
    """A step, or a row of one, cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Run:
    """What a step is given."""

    dry: bool
    """A rehearsal on the CPU with tiny sizes. Its figures are no measurements."""
    limit: float
    """Time limit of the step [s]; after it the process is killed."""
    work: Path
    """Folder for files that are not results, such as graphs."""
    bundle: Path | None = None
    """Bundle that the steps on engines take. Default: ViT-B with random weights."""
    rounds: int = 50
    """Timed rounds."""
    report: Callable[[Result], None] = lambda partial: None
    """Keeps what is known so far, in case the step does not end."""
    started: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        """Time left [s]."""
        return self.limit - (time.perf_counter() - self.started)

    @property
    def timed_rounds(self) -> int:
        """Timed rounds: two in a rehearsal."""
        return 2 if self.dry else self.rounds


@dataclass(frozen=True)
class Step:
    """One row of the validation. It runs in a process of its own."""

    name: str
    about: str
    """What it finds out, for --list."""
    limit: float
    """Time limit [s]."""
    function: str
    """"module:function" in benchmarks.gpu. Imported in the step's process, so that listing steps needs no package."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Passed to the function after the `Run`."""
    needs: tuple[str, ...] = ()
    """Packages without which it does not run."""
    gpu: bool = True
    """Whether only a GPU can give its result."""

    def __call__(self, run: Run) -> Result:
        """The result of the step.

        Raises:
            NotRun: A package or the GPU is missing, or a step for a GPU did not use it.
        """
        require(*self.needs)
        if self.gpu and not run.dry:
            require_gpu()
        module, _, name = self.function.partition(":")
        arguments = self.arguments | ({"batch": min(self.arguments["batch"], 2)} if run.dry and "batch" in
                                      self.arguments else {})
        result = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)(run, **arguments)
        if self.gpu and not run.dry and result.get("ran_on") != "gpu":
            raise NotRun("the step did not record that it ran on the GPU, so its result was dropped")
        return result


def require(*packages: str) -> None:
    """Raise `NotRun`, naming the missing packages by import name, unless all are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        carry = "".join(f"; {name} comes as the wheels {CARRY[name]}" for name in missing if name in CARRY)
        raise NotRun(f"not installed: {', '.join(missing)}{carry}")


def require_gpu() -> None:
    """Raise `NotRun` unless PyTorch can compute on a GPU."""
    require("torch")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "no"
        raise NotRun(f"no GPU is visible to PyTorch {torch.__version__} (built for {built} CUDA)")


def ran_on(run: Run, *tensors: Any) -> Result:
    """The field of a result that says where it was computed, from the tensors that were computed.

    Raises:
        NotRun: Outside a rehearsal, one of them is not on the GPU.
    """
    import torch

    places = {tensor.device.type for tensor in tensors}
    if run.dry:
        return {"ran_on": "cpu"}
    if places != {"cuda"}:
        raise NotRun(f"the GPU was to compute it, and the result lies on {', '.join(sorted(places)) or 'nothing'}")
    return {"ran_on": "gpu", "device": torch.cuda.get_device_name()}


def seconds_left(run: Run, share: float) -> float:
    """The reading of `time.perf_counter` at which `share` of the time that is left will be used."""
    return math.inf if run.dry else time.perf_counter() + share * max(0.0, run.left)
