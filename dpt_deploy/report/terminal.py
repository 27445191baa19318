"""What a command prints when it ends: the files, the verdict, and what to run next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core.bundle import REPORT_HTML, SKIPPED_IMAGES, Bundle
from ..core.manifest import Artifact, EngineDetails, GraphDetails
from ..core.verdict import ParityReport, Stage
from .formatting import (
    POSITIVE,
    SUMMARY_COLUMNS,
    TASK_COLUMNS,
    compared_images,
    judged_by,
    metric_cell,
    stage_status,
    task_rows,
    task_sentence,
)

if TYPE_CHECKING:
    from rich.console import Console

MAX_REASONS = 3
STATUS_COLOURS = {"passed": "green", "failed": "red", "not run": "yellow"}
CONTENTS = {
    "reference": "parity inputs and the maps to compare with", "data": "weights of a graph",
    "compat": "graph for another program", "cache": "kernel timings of TensorRT's builder", "report": "verdict",
}


def plain_console(**options: Any) -> Console:
    """A console that prints text as it is: brackets and colons in names are neither markup nor emoji.

    Every command prints with it. Style is set with `rich.text.Text` or `style=`.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def print_outcome(bundle: Bundle, report: ParityReport, timing_commands: Iterable[str]) -> None:
    """Print the files of a bundle, its stages, the verdict and how to time it.

    Args:
        bundle: The bundle that was judged.
        report: The verdict on it.
        timing_commands: Shell lines that time its engines.
    """
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    console.print(f"Bundle {bundle.folder}", style="italic", soft_wrap=True)  # a title of the table would be broken
    files = Table("file", "MB", "contents")
    for artifact in bundle.artifacts:
        files.add_row(Text(artifact.file), f"{artifact.bytes / 1e6:.1f}", Text(_contents(artifact)))
    console.print(files)
    columns = [column for column in SUMMARY_COLUMNS if not column[1].startswith("p99")]
    stages = Table(title=f"Parity with {report.against}", title_justify="left", padding=0, show_edge=False)
    stages.add_column("stage", min_width=min(17, max(len(stage.name) for stage in report.stages)))
    for title in ("status", "images"):
        stages.add_column(title)
    for _, _, title in columns:
        stages.add_column(Text(title))
    for stage in report.stages:
        stages.add_row(Text(stage.name), Text(stage_status(stage), STATUS_COLOURS[stage.status]),
                       compared_images(stage),
                       *(metric_cell(stage, head, metric) for head, metric, _ in columns))
    console.print(stages)
    _print_eight_bits(console, report)
    for stage in (*report.failed, *report.not_run):
        console.print(Text(_reasons(stage)))
    for line in (f"report   {bundle.folder / REPORT_HTML}", *(f"time it  {line}" for line in timing_commands)):
        console.print(Text(line), soft_wrap=True)
    if skipped := skipped_images(bundle):
        for line in (f"{len(skipped)} images of the folder were skipped and not judged:", *skipped):
            console.print(Text(f"skipped  {line}"), soft_wrap=True)
    for sentence in report.assumed:
        console.print(Text(f"assumed  {sentence}", "yellow"), soft_wrap=True)
    console.print(Text(report.verdict, "bold green" if report.passed else "bold red"), soft_wrap=True)


def skipped_images(bundle: Bundle) -> list[str]:
    """The images of --images that could not be read when the reference was made, one line each."""
    found = bundle.manifest.options.get(SKIPPED_IMAGES)
    return [str(line) for line in found] if isinstance(found, list) else []


def _print_eight_bits(console: Console, report: ParityReport) -> None:
    """How each stage in eight bits was judged, and the table of the task's loss."""
    from rich.table import Table
    from rich.text import Text

    for stage in (stage for stage in report.stages if judged_by(stage)):
        sentence = task_sentence(stage)
        console.print(Text(f"{stage.name}: {judged_by(stage)}{f'. {sentence}' if sentence else ''}"), soft_wrap=True)
        if stage.task is None:
            continue
        table = Table(*TASK_COLUMNS, padding=0, show_edge=False)
        for row in task_rows(stage):
            table.add_row(*map(Text, row[:-1]), Text(row.verdict, STATUS_COLOURS.get(row.verdict, "")))
        console.print(table)
    if any(stage.task is not None for stage in report.stages):
        console.print(Text(POSITIVE), soft_wrap=True)


def _reasons(stage: Stage) -> str:
    return f"{stage.name}: {stage.status}: {'; '.join(stage.reasons[:MAX_REASONS])}"


def _contents(artifact: Artifact) -> str:
    if artifact.graph is None:
        return CONTENTS.get(artifact.kind, artifact.kind)
    details = ""
    match artifact.details:
        case EngineDetails(builder=builder, builder_version=version):
            details = f", {builder} {version}"
        case GraphDetails(opset=opset) if opset is not None:
            details = f", opset {opset}"
    return f"{artifact.graph} graph, {artifact.precision}{details}"
