"""What a command prints at its end: what was made, the verdict, and what to run next."""

from __future__ import annotations

import math

from ..core.bundle import Bundle
from ..parity.compare import ParityReport, Stage

COLUMNS = (  # head, metric, title; those of the tails stand in the model card alone
    ("depth", "abs_rel", "AbsRel"), ("depth", "p99.9", "depth p99.9"), ("normals", "mean", "normals [deg]"),
    ("normals", "p99", "normals p99 [deg]"), ("alpha", "max", "alpha max"), ("alpha", "iou", "IoU"),
)


def print_outcome(bundle: Bundle, report: ParityReport, lines: list[str]) -> None:
    """Print the files, the stages, the verdict, and `lines` to run. Uses rich where it is installed."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    files = Table("file", "MB", "what", title=f"Bundle {bundle.folder}", title_justify="left")
    for artifact in bundle.artifacts:
        files.add_row(artifact.file, f"{artifact.bytes / 1e6:.1f}", _what(artifact))
    console.print(files)
    columns = [column for column in COLUMNS if not column[1].startswith("p99")]
    stages = Table("stage", "status", *(title for _, _, title in columns), title="Parity with PyTorch FP32",
                   title_justify="left")
    for stage in report.stages:
        colour = {"passed": "green", "failed": "red", "not run": "yellow"}[stage.status]
        stages.add_row(stage.name, f"[{colour}]{status_of(stage)}[/]", *(cell(stage, h, m) for h, m, _ in columns))
    console.print(stages)
    for stage in (*report.failed, *report.not_run):
        console.print(f"{stage.name}: {stage.status}: {'; '.join(stage.reasons[:3])}", markup=False)
    console.print(f"report   {bundle.folder / 'report.html'}", markup=False, soft_wrap=True)
    for line in lines:
        console.print(f"time it  {line}", markup=False, soft_wrap=True)
    console.print(report.verdict, style="bold green" if report else "bold red", markup=False, soft_wrap=True)


def _what(artifact) -> str:
    if artifact.kind == "engine":
        return f"{artifact.graph} graph, {artifact.precision}, {artifact.details['builder']} " + \
               artifact.details["builder_version"]
    if artifact.kind == "onnx":
        return f"{artifact.graph} graph, {artifact.precision}, opset {artifact.details['opset']}"
    return {"reference": "parity inputs and PyTorch FP32's answers", "data": "weights of a graph",
            "cache": "kernel timings of TensorRT's builder",
            "report": "verdict"}[artifact.kind]


def status_of(stage: Stage) -> str:
    """Whether a stage passed, and whether that is of this run."""
    return f"{stage.status}, judged earlier" if stage.earlier else stage.status


def cell(stage: Stage, head: str, metric: str) -> str:
    """The number of a metric, "" where it was not measured."""
    value = stage.heads.get(head, {}).get(metric)
    if value is None:
        return ""
    return "NaN" if math.isnan(value) else f"{value:.5f}" if metric == "iou" else f"{value:.1e}"
