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

    from ..cli.options import Count, Json
    from ..core.bundle import Bundle
    from ..core.verdict import Stage
    from ..report import write_report
    from ..report.terminal import print_outcome
    from .compare import load_budget
    from .judge import judge

PROG = "python -m dpt_deploy.parity"


@dataclass(frozen=True)
class ParityConfig:
    """Judge every stage of a bundle that can run here against the outputs of PyTorch FP32 that the bundle carries."""

    bundle: tyro.conf.Positional[Path]
    """Bundle: the folder that the export command wrote."""
    images: Path | None = None
    """Image or folder to judge on from now on, beside adversarial inputs. Needs --checkpoint."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    checkpoint: Path | None = None
    """The checkpoint that the bundle was exported from. PyTorch then judges its stages again, and computes the
    reference outputs for --images."""
    budget: Path | None = None
    """JSON file with other parity budgets. The report names it."""
    json: Json = False


def main(config: ParityConfig) -> int:
    """Exit status 0 only if the verdict is."""
    if config.images is not None and config.checkpoint is None:
        raise BadInput(
            "--images needs --checkpoint, because PyTorch computes the reference outputs for these images. "
            "Add --checkpoint best_model.pth, or judge on the images that the bundle carries."
        )
    load_budget(config.budget)
    bundle = Bundle.open(config.bundle)
    say = (lambda line: None) if config.json else print
    known = _with_torch(bundle, config, say) if config.checkpoint is not None else []
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
    return judge_with_checkpoint(bundle, config.checkpoint, config.images, config.max_images, config.budget, say)


COMMAND = cli.Command(ParityConfig, main, PROG, renamed={"--reference": "--checkpoint"})

if __name__ == "__main__":
    COMMAND.run()
