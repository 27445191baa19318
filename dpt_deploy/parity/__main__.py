"""python -m dpt_deploy.parity BUNDLE: judge every stage that can run on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..core.errors import BadInput

with cli.needing("cli"):
    import tyro

    from ..cli.options import Count, Json
    from ..core.bundle import Bundle
    from ..core.files import locked
    from ..core.verdict import Stage
    from ..report import write_report
    from ..report.terminal import print_outcome
    from .compare import load_budget
    from .judge import judge

PROG = "python -m dpt_deploy.parity"


@dataclass(frozen=True)
class ParityConfig:
    """Compare every stage that can run on this machine with the PyTorch FP32 outputs stored in the bundle."""

    bundle: tyro.conf.Positional[Path]
    """Bundle: the folder that the export command wrote."""
    images: Path | None = None
    """Image or folder that replaces the bundle's parity images. Needs --checkpoint."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    checkpoint: Path | None = None
    """The checkpoint that the bundle was exported from. Judges the PyTorch stages again, and computes the reference
    outputs for --images."""
    budget: Path | None = None
    """JSON file with other parity budgets."""
    json: Json = False


def main(config: ParityConfig) -> int:
    """Exit status 0 if the verdict is passed, else 1."""
    if config.images is not None and config.checkpoint is None:
        raise BadInput(
            "--images needs --checkpoint, because PyTorch computes the reference outputs for these images. "
            "Add --checkpoint best_model.pth, or leave out --images to use those in the bundle."
        )
    load_budget(config.budget)
    with locked(config.bundle):
        return _judge(config)


def _judge(config: ParityConfig) -> int:
    bundle = Bundle.open(config.bundle)
    log = (lambda line: None) if config.json else print
    judged = _judge_with_pytorch(bundle, config, log) if config.checkpoint is not None else []
    judgement = judge(bundle, config.budget, judged, lambda name: log(f"judging  {name}"))
    report = judgement.report
    write_report(bundle, report, judgement.exhibits, cli.command_line(PROG))
    if config.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_outcome(bundle, report, [])
    return 0 if report.passed else 1


def _judge_with_pytorch(bundle: Bundle, config: ParityConfig, log: Callable[[str], None]) -> list[Stage]:
    with cli.needing("export"):
        from ..export.pytorch_stages import judge_with_checkpoint
    return judge_with_checkpoint(bundle, config.checkpoint, config.images, config.max_images, config.budget, log)


COMMAND = cli.Command(ParityConfig, main, PROG, renamed={"--reference": "--checkpoint"})

if __name__ == "__main__":
    COMMAND.run()
