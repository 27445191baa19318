"""python -m dpt_deploy.build BUNDLE: engines for this machine, judged, from the bundle alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from .. import cli

with cli.needing("cli"):
    import tyro

    from ..cli.options import Precisions
    from ..core.bundle import Bundle
    from ..parity import load_budget
    from ..parity.judge import judge
    from ..report import write_report
    from ..report.terminal import print_outcome
    from . import EngineOptions, build_engines, run_line
    from .refit import refit_engines

PROG = "python -m dpt_deploy.build"


@dataclass(frozen=True)
class BuildConfig:
    """Build engines for this machine from a bundle, and judge every stage that can run here."""

    bundle: tyro.conf.Positional[Path]
    """Bundle: the folder that the export command wrote."""
    engines: Annotated[EngineOptions, tyro.conf.arg(name="engine")] = field(default_factory=EngineOptions)
    budget: Path | None = None
    """JSON file with other parity budgets. The report names it."""
    precisions: Precisions = ()
    """Build engines of these precisions, such as fp16,fp32. Default: every half-precision graph."""
    refit: Path | None = None
    """Skip building. Copy the refittable engines of this bundle, which was made from another checkpoint of the same
    architecture, and give them the weights of BUNDLE. If it is BUNDLE itself, put the weights back into its stripped
    engines."""


def main(config: BuildConfig) -> int:
    """Exit status 0 only if the verdict is."""
    load_budget(config.budget)  # a bad budget should fail now and not after the builds
    bundle = Bundle.open(config.bundle)
    if config.refit is not None:
        engines = refit_engines(bundle, Bundle.open(config.refit))
    else:
        engines = build_engines(bundle, config.engines, precisions=config.precisions)
    command = cli.command_line(PROG)
    judgement = judge(bundle, config.budget, progress=lambda name: print(f"judging  {name}"))
    report = judgement.report
    write_report(bundle, report, judgement.exhibits, command)
    print_outcome(bundle, report, [run_line(bundle, engine) for engine in engines])
    return 0 if report.passed else 1


COMMAND = cli.Command(BuildConfig, main, PROG, renamed={
    "--precision": "--precisions", "--batch": "--batch-range", "--frame-size": "--frame-size-range",
})

if __name__ == "__main__":
    COMMAND.run()
