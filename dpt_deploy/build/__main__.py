"""python -m dpt_deploy.build BUNDLE: build engines for this machine and judge them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from .. import cli

with cli.needing("cli"):
    import tyro

    from ..cli.options import Precisions
    from ..core.bundle import Bundle
    from ..core.files import locked
    from ..parity import load_budget
    from ..parity.judge import judge
    from ..report import write_report
    from ..report.terminal import print_outcome
    from . import EngineOptions, benchmark_command, build_engines
    from .refit import refit_engines

PROG = "python -m dpt_deploy.build"


@dataclass(frozen=True)
class BuildConfig:
    """Build engines for this machine from a bundle, and judge all stages that can run here."""

    bundle: tyro.conf.Positional[Path]
    """Bundle: the folder that the export command wrote."""
    engines: Annotated[EngineOptions, tyro.conf.arg(name="engine")] = field(default_factory=EngineOptions)
    budget: Path | None = None
    """JSON file with parity budgets that replace the default ones. The report names it."""
    precisions: Precisions = ()
    """Build engines in these precisions, such as fp16,fp32. Default: all but FP32."""
    refit: Path | None = None
    """Refit instead of building: copy the refittable engines of this bundle, exported from another checkpoint of the
    same architecture, and set the weights of BUNDLE in them. Give BUNDLE itself to restore the weights of its stripped
    engines."""


def main(config: BuildConfig) -> int:
    """Exit status: 0 if the verdict passed, else 1."""
    load_budget(config.budget)  # fail before the builds if the budget is not valid
    with locked(config.bundle):
        return _build(config)


def _build(config: BuildConfig) -> int:
    bundle = Bundle.open(config.bundle)
    if config.refit is not None:
        engines = refit_engines(bundle, Bundle.open(config.refit))
    else:
        engines = build_engines(bundle, config.engines, precisions=config.precisions)
    command = cli.command_line(PROG)
    judgement = judge(bundle, config.budget, progress=lambda name: print(f"judging  {name}"))
    report = judgement.report
    write_report(bundle, report, judgement.exhibits, command)
    print_outcome(bundle, report, [benchmark_command(bundle, engine) for engine in engines])
    return 0 if report.passed else 1


COMMAND = cli.Command(BuildConfig, main, PROG, renamed={
    "--precision": "--precisions", "--batch": "--batch-range", "--frame-size": "--frame-size-range",
})

if __name__ == "__main__":
    COMMAND.run()
