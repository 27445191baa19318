"""python -m dpt_deploy.parity BUNDLE: judge every stage that can run on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import cli
from ..core.errors import BadInput

with cli.needing("cli"):
    import tyro

    from ..cli.commands import training_module
    from ..cli.options import Count, Json, Name, Place, check_companions
    from ..core.bundle import SKIPPED_IMAGES, Bundle
    from ..core.files import locked
    from ..core.image_files import MAX_PIXELS
    from ..core.plan import EIGHT_BITS
    from ..core.verdict import Stage
    from ..report import write_report
    from ..report.terminal import print_outcome, skipped_images
    from .compare import load_budget
    from .judge import WorstMaps, judge, load_reference
    from .server import judge_server
    from .task_loss import Labelled, Part

PROG = "python -m dpt_deploy.parity"


@dataclass(frozen=True)
class ParityConfig:
    """Compare every stage that can run on this machine with the PyTorch FP32 outputs stored in the bundle."""

    bundle: tyro.conf.Positional[Path]
    """Bundle: the folder that the export command wrote."""
    images: Path | None = None
    """Image or folder that replaces the bundle's parity images. Needs --checkpoint; an imported model has none, and is
    imported again with --images."""
    max_images: Count = 8
    """Use at most this many images of a folder, evenly spaced."""
    max_pixels: Count = MAX_PIXELS
    """Refuse images with more pixels than this."""
    checkpoint: Path | None = None
    """The checkpoint that the bundle was exported from. Judges the PyTorch stages again, and computes the reference
    outputs for --images."""
    budget: Path | None = None
    """JSON file with other parity budgets."""
    data_root: Place | None = None
    """Labelled data as for training: graphs and engines in eight bits are judged by the change of the task metrics."""
    data_images: Count = 128
    """Use at most this many samples of --data-root, evenly spaced. Every second one gives the verdict; the others are
    left out, because an export with the same options chooses its plan by them."""
    normal_axes: Name | None = None
    """How the files of --data-root store the components of normals. Default: as in the training."""
    server: Name | None = None
    """Address of a Triton server, as HOST:PORT or http://HOST:PORT: also judge the maps that it gives."""
    server_model: Name | None = None
    """Name of the server's model. Default: the only one that dpt triton wrote."""
    json: Json = False


def main(config: ParityConfig) -> int:
    """Exit status 0 if the verdict is passed and every image of --images was read, else 1."""
    _check_imported(config)
    if config.images is not None and config.checkpoint is None:
        raise BadInput(
            "--images needs --checkpoint, because PyTorch computes the reference outputs for these images. "
            "Add --checkpoint best_model.pth, or leave out --images to use those in the bundle."
        )
    check_companions(config, {"images": ("max_images",), "data_root": ("data_images", "normal_axes"),
                              "server": ("server_model",)})
    load_budget(config.budget)
    with locked(config.bundle):
        return _judge(config)


def _check_imported(config: ParityConfig) -> None:
    """Refuse options that need a checkpoint for a bundle that has none."""
    options = {"--images": config.images, "--checkpoint": config.checkpoint}
    given = [option for option, value in options.items() if value is not None]
    if not given:
        return
    bundle = Bundle.open(config.bundle)
    if bundle.manifest.imported:
        images = f" --images {shlex.quote(str(config.images))}" if config.images is not None else ""
        raise BadInput(f"{given[0]}: {bundle.folder} was imported and has no checkpoint. Its reference is made by the "
                       f"import: {bundle.remake_command}{images}")


def _judge(config: ParityConfig) -> int:
    bundle = Bundle.open(config.bundle)
    log = (lambda line: None) if config.json else print
    labelled = _labelled(bundle, config, log)
    worst = WorstMaps()
    judged = _judge_with_pytorch(bundle, config, log, worst) if config.checkpoint is not None else []
    judged += _judge_server(bundle, config, log, worst)
    judgement = judge(bundle, config.budget, judged, lambda name: log(f"judging  {name}"), worst, labelled)
    report = judgement.report
    write_report(bundle, report, judgement.exhibits, cli.command_line(PROG))
    skipped = skipped_images(bundle)
    if config.json:
        print(json.dumps(report.to_json() | ({SKIPPED_IMAGES: skipped} if skipped else {}), indent=2))
    else:
        print_outcome(bundle, report, [])
    return 0 if report.passed and not (skipped and config.images) else 1


def _labelled(bundle: Bundle, config: ParityConfig, log: Callable[[str], None]) -> Labelled | None:
    """The images of --data-root that give the verdict; None without the option."""
    if config.data_root is None:
        return None
    if not any(bundle.find(kind, precision=precision) for kind in ("onnx", "engine") for precision in EIGHT_BITS):
        raise BadInput("--data-root: expected a bundle with a graph or an engine in eight bits, received "
                       f"{bundle.folder} without any. "
                       + ("An import makes none; omit the option." if bundle.manifest.imported else
                          "Export with --precision int8 or fp8, or omit the option."))
    data = training_module("train.labelled").open_labelled(
        config.data_root, bundle.contract, bundle.manifest.training, config.data_images, config.normal_axes,
        config.max_pixels, say=log)
    return Part(data, range(1, len(data), 2))


def _judge_with_pytorch(
    bundle: Bundle, config: ParityConfig, log: Callable[[str], None], worst: WorstMaps
) -> list[Stage]:
    with cli.needing("export"):
        from ..export.pytorch_stages import judge_with_checkpoint
    return judge_with_checkpoint(
        bundle, config.checkpoint, config.images, config.max_images, config.budget, log, worst, config.max_pixels
    )


def _judge_server(bundle: Bundle, config: ParityConfig, log: Callable[[str], None], worst: WorstMaps) -> list[Stage]:
    if config.server is None:
        return []
    budget, _ = load_budget(config.budget)
    reference, _ = load_reference(bundle)
    return judge_server(bundle, config.server, config.server_model, reference, budget, worst,
                        lambda name: log(f"judging  {name}"))


COMMAND = cli.Command(ParityConfig, main, PROG, renamed={"--reference": "--checkpoint"})

if __name__ == "__main__":
    COMMAND.run()
