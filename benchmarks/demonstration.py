"""python -m benchmarks.demonstration BEFORE AFTER --held-out NAME=DIR,...: two checkpoints on the same images.

Task metrics on labelled data, and what both see of photographs of people, as one picture. There is no ground truth for
the photographs: with --teacher, alpha is compared with another network's matte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from benchmarks import environment
from benchmarks.results import result_file, write_result
from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import sha256

with cli.needing("train"):
    import tyro

    from demo.photographs import Teacher, compare, predictor
    from dpt_deploy.cli.options import Json, Names
    from dpt_deploy.report.writers import write_png
    from train.evaluate import EvaluateConfig, evaluate

PROG = "python -m benchmarks.demonstration"
SHOWN = ("depth_abs_rel", "depth_abs_rel_aligned", "normals_mean", "alpha_mae", "alpha_iou")


@dataclass(frozen=True)
class DemonstrationConfig:
    """Compare two checkpoints on held-out images and on photographs."""

    before: Annotated[Path, tyro.conf.Positional]
    """Checkpoint."""
    after: Annotated[Path, tyro.conf.Positional]
    """The checkpoint that may replace it."""
    held_out: Annotated[Names, tyro.conf.arg(metavar="NAME=DIR,...")] = ()
    """Labelled data that neither has seen, as for python -m train.evaluate."""
    teacher: Path | None = None
    """MediaPipe's selfie_segmentation.tflite."""
    out: Path | None = None
    """Folder of the result files. Default: benchmarks/results."""
    name: str = "demonstration"
    """Name of the result files: NAME.json and NAME.png."""
    json: Json = False

    def sets(self) -> dict[str, Path]:
        """The held-out sets by name. Raises `BadInput` for an entry without a name or a folder."""
        found = {}
        for entry in self.held_out:
            name, equals, folder = entry.partition("=")
            if not (name and equals and folder):
                raise BadInput(f"--held-out: expected NAME=DIR, received {entry!r}.")
            found[name] = Path(folder)
        return found


def main(config: DemonstrationConfig) -> None:
    models, sets = {"before": config.before, "after": config.after}, config.sets()
    teacher = Teacher(config.teacher) if config.teacher else None
    picture, overlaps = compare({name: predictor(path) for name, path in models.items()}, teacher)
    scores = {held_out: {name: evaluate(EvaluateConfig(path, folder, workers=0)) for name, path in models.items()}
              for held_out, folder in sets.items()}
    result = {
        "machine": environment.record(),
        "checkpoints": {name: {"sha256": sha256(path)} for name, path in models.items()},
        "held_out": {held_out: {"samples": by_model["before"]["samples"], "constant": by_model["before"]["constant"],
                                **{name: found["metrics"] for name, found in by_model.items()}}
                     for held_out, by_model in scores.items()},
        "photographs": {"alpha_iou_with_teacher": overlaps, "teacher": config.teacher and {
            "file": config.teacher.name, "sha256": sha256(config.teacher)}},
    }
    write_png(result_file(config, ".png"), picture)
    write_result(config, result, show)


def show(result: dict[str, Any]) -> None:
    """Print the main metrics, before and after."""
    for held_out, found in result["held_out"].items():
        for metric in SHOWN:
            if metric in found["before"]["all"]:
                print(f"{held_out:20}{metric:25}{found['before']['all'][metric]:10.3f}{found['after']['all'][metric]:10.3f}")
    overlaps = result["photographs"]["alpha_iou_with_teacher"]
    for title in overlaps.get("before", {}):
        print(f"{title:20}{'IoU with teacher':25}{overlaps['before'][title]:10.3f}{overlaps['after'][title]:10.3f}")


if __name__ == "__main__":
    cli.run(DemonstrationConfig, main, PROG)
