"""python -m dpt_deploy.parity BUNDLE: judge every stage of a bundle that can run here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .. import cli

with cli.needing("cli"):
    import tyro

    from ..bundle import Bundle
    from .judge import judge
    from .table import print_outcome

PROG = "python -m dpt_deploy.parity"


@dataclass(frozen=True)
class ParityConfig:
    """Judge every stage of a bundle that can run here against PyTorch FP32's answers, which the bundle carries."""

    bundle: tyro.conf.Positional[Path]
    """Folder that python -m dpt_deploy.export wrote."""
    budget: Path | None = None
    """JSON file with other budgets; the report says so."""
    json: bool = False
    """Print the report as JSON and nothing else."""


def main(config: ParityConfig) -> int:
    """Exit status 0 only if the verdict is."""
    bundle = Bundle.open(config.bundle)
    say = (lambda name: None) if config.json else (lambda name: print(f"judging  {name}"))
    report = judge(bundle, config.budget, progress=say, command=cli.command_line(PROG))
    if config.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_outcome(bundle, report, [])
    return 0 if report else 1


if __name__ == "__main__":
    cli.run(ParityConfig, main, PROG)
