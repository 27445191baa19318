"""python -m dpt_deploy.parity BUNDLE: judge every stage of a bundle that can run here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..core.errors import BadInput

with cli.needing("cli"):
    import tyro

    from ..core.bundle import Bundle
    from ..core.verdict import Stage
    from ..report import write_report
    from ..report.terminal import print_outcome
    from .compare import load_budget
    from .judge import judge

PROG = "python -m dpt_deploy.parity"


@dataclass(frozen=True)
class ParityConfig:
    """Judge every stage of a bundle that can run here against PyTorch FP32's answers, which the bundle carries."""

    bundle: tyro.conf.Positional[Path]
    """Folder that python -m dpt_deploy.export wrote."""
    images: Path | None = None
    """Image or folder to judge on from now on, beside adversarial inputs; needs --reference."""
    max_images: int = 8
    """At most this many images of a folder are used, evenly spaced."""
    reference: Path | None = None
    """The checkpoint that the bundle was exported from: judges what needs PyTorch again, and answers --images."""
    budget: Path | None = None
    """JSON file with other budgets; the report says so."""
    json: bool = False
    """Print the report as JSON and nothing else."""


def main(config: ParityConfig) -> int:
    """Exit status 0 only if the verdict is."""
    if config.images is not None and config.reference is None:
        raise BadInput(
            "--images: expected --reference CHECKPOINT beside it, for PyTorch must say what is right on these images. "
            "Add --reference best_model.pth, or judge on the images that the bundle carries."
        )
    load_budget(config.budget)
    bundle = Bundle.open(config.bundle)
    say = (lambda line: None) if config.json else print
    known = _with_torch(bundle, config, say) if config.reference is not None else []
    judgement = judge(bundle, config.budget, known, lambda name: say(f"judging  {name}"))
    report = judgement.report
    write_report(bundle, report, judgement.exhibits, cli.command_line(PROG))
    if config.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_outcome(bundle, report, [])
    return 0 if report.passed else 1


def _with_torch(bundle: Bundle, config: ParityConfig, say: Callable[[str], None]) -> list[Stage]:
    """The stages that need PyTorch, which no other way through this command imports."""
    with cli.needing("export"):
        from ..export.pytorch_stages import judge_with_checkpoint
    return judge_with_checkpoint(bundle, config.reference, config.images, config.max_images, config.budget, say)


COMMAND = cli.Command(ParityConfig, main, PROG, renamed={"--reference": "--checkpoint"})

if __name__ == "__main__":
    COMMAND.run()
