"""The verdict on a bundle as one self-contained HTML page: no script, no network, light and dark, any width."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..core import metrics
from ..core.budget import largest_share, limits_of, share_of_budget, within
from ..core.bundle import Bundle
from ..core.contract import HEADS
from ..core.exhibit import Exhibit
from ..core.manifest import Artifact
from ..core.verdict import Fault, ParityReport, Stage
from .colours import colour_alpha, colour_depth, colour_error, colour_normals, depth_range
from .formatting import (
    HEAD_TITLES,
    METRIC_TITLES,
    POSITIVE,
    TASK_COLUMNS,
    budget_share,
    compared,
    error_units,
    judged_by,
    metric_value,
    number,
    task_rows,
    task_sentence,
)
from .plots import backend_colours, line_colours, quantile_plot, trials_plot
from .templates import html_environment
from .terminal import skipped_images

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_REASONS = 12
MAX_PICTURE = 400  # longest side [pixels]
MEASURED = (Fault.OVER_BUDGET, Fault.OVER_MARGIN)  # findings on maps that are valid
MAX_LINE = 90  # of a dict that is shown as a line [characters]


@dataclass(frozen=True)
class Metric:
    """One metric of a stage beside its budget."""

    title: str
    value: str
    bound: float | None
    share: float = 0.0
    """How much of the budget is used."""
    within: bool = True


@dataclass(frozen=True)
class Picture:
    """One picture of the page."""

    caption: str
    uri: str
    """The picture itself, as a data URI."""


def render_html(bundle: Bundle, report: ParityReport, exhibits: Mapping[str, Exhibit], command: str = "") -> str:
    """The page: verdict first, then numbers beside budgets, distributions, pictures, certificates and origins.

    Args:
        bundle: The bundle that was judged.
        report: The verdict on it.
        exhibits: By head, the maps to show.
        command: The shell line that judged; "" if it was called from Python.

    Raises:
        MissingPackage: Jinja2 or matplotlib is not installed.
    """
    drawn = [stage for stage in report.stages if stage.quantiles]
    metric_depth = bundle.contract.depth == "metric"
    in_metres = metric_depth and not bundle.canonical_focal
    plots = {head: quantile_plot(head, drawn, report.budget, metric_depth) for head in HEADS}
    return environment().get_template("report.html.j2").render(
        bundle=bundle, manifest=bundle.manifest, report=report, command=command, max_reasons=MAX_REASONS,
        skipped=skipped_images(bundle),
        heads=[head for head in HEADS if any(head in stage.heads for stage in report.stages)],
        titles=HEAD_TITLES, units=error_units(metric_depth),
        metrics=lambda stage, head: stage_metrics(stage, head, limits_of(report.budget, stage.precision)),
        has_invalid_answer=_has_invalid_answer, compared=compared, judged_by=judged_by,
        eight_bits=[stage for stage in report.stages if judged_by(stage)], task_rows=task_rows,
        task_columns=TASK_COLUMNS, task_sentence=task_sentence, positive=POSITIVE,
        plots={head: plot for head, plot in plots.items() if plot}, legend=line_colours(drawn),
        unpictured=_unpictured(report, exhibits), trials_plot=trials_plot,
        backend_colours=backend_colours,
        exhibits=[(exhibits[head], exhibit_pictures(exhibits[head], report.against, in_metres))
                  for head in HEADS if head in exhibits],
        graphs=_engines_by_graph(bundle), orphans=_engines_without_graph(bundle),
        created=re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", bundle.manifest.created),
    )


def environment() -> Environment:
    """The templates with the filters and tests that they use."""
    made = html_environment()
    made.filters |= {"number": number, "budget_share": budget_share, "plain": plain, "one_line": one_line,
                     "label": lambda key: str(key).replace("_", " ")}
    made.tests |= {"short_mapping": is_short_mapping, "table_row": is_table_row, "infinite": math.isinf}
    return made


def stage_metrics(stage: Stage, head: str, limits: Mapping[str, Mapping[str, float]]) -> list[Metric]:
    """The metrics of a head that have a budget; if none has, the first one that was measured.

    They come without the budget if the loss of the task decides.
    """
    values, bounds, titles = stage.heads.get(head, {}), limits.get(head, {}), METRIC_TITLES[head]
    if not values:
        return []
    found = []
    for metric in [metric for metric in titles if metric in bounds] or list(titles)[:1]:
        value, bound = values.get(metric, math.nan), bounds.get(metric)
        title, text = titles[metric], metric_value(metric, value) if metric in values else "not measured"
        if bound is None or stage.by_task:
            found.append(Metric(title, text, None))
        else:
            share = share_of_budget(metric, value, bound)
            found.append(Metric(title, text, bound, share, within(metric, value, bound)))
    return found


def exhibit_pictures(exhibit: Exhibit, against: str, in_metres: bool) -> list[Picture]:
    """The input, the map that it is compared with, the stage's map, and their difference."""
    want, have, head = exhibit.want, exhibit.have, exhibit.head
    if head == "depth":
        limits = depth_range(want, exhibit.alpha)
        pair = colour_depth(want, limits), colour_depth(have, limits)
        unit = " m" if in_metres else ""
        scale = f"bright {limits[0]:.2f}{unit}, dark {limits[1]:.2f}{unit}"
    elif head == "normals":
        pair, scale = (colour_normals(want), colour_normals(have)), "red right, green up, blue towards the viewer"
    else:
        pair, scale = (colour_alpha(want), colour_alpha(have)), "white is foreground"
    with np.errstate(invalid="ignore"):
        error = metrics.error_map(head, have, want, exhibit.metric_depth)
    finite = error[np.isfinite(error)]
    top = float(finite.max(initial=0.0))
    caption = f"error: black 0, white {number(top)}{'°' if head == 'normals' else ''}"
    caption += "; magenta is NaN or Inf" if finite.size < error.size else ""
    height, width = exhibit.frame.shape[:2]
    return [
        Picture(f"input, {height}x{width}", data_uri(exhibit.frame, "jpeg")),
        Picture(f"{against}; {scale}", data_uri(pair[0])), Picture(str(exhibit.stage), data_uri(pair[1])),
        Picture(caption, data_uri(colour_error(error, top))),
    ]


def data_uri(picture: np.ndarray, kind: str = "png") -> str:
    """A picture, uint8 (H, W, 3) RGB, made smaller if it is large, as a data URI of type png or jpeg."""
    height, width = picture.shape[:2]
    scale = min(1.0, MAX_PICTURE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(f".{kind}", np.ascontiguousarray(picture[..., ::-1]))[1]
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def one_line(value: Mapping[str, Any]) -> str:
    """A dict of plain values as one line; empty ones are left out."""
    return "; ".join(f"{str(key).replace('_', ' ')} {plain(item)}" for key, item in value.items() if item != "")


def is_short_mapping(value: Mapping[str, Any]) -> bool:
    """Whether a dict can be read as one line."""
    flat = not any(isinstance(item, Mapping | list | tuple) for item in value.values())
    return bool(value) and flat and len(one_line(value)) < MAX_LINE


def is_table_row(item: Any) -> bool:
    """Whether a value is a dict that fits into a table's row."""
    if not isinstance(item, Mapping) or len(item) < 2:
        return False
    lists: list[Sequence[Any]] = [value for value in item.values() if isinstance(value, list | tuple)]
    deep = any(isinstance(value, Mapping) for value in item.values())
    return not deep and not any(isinstance(part, Mapping | list) for one in lists for part in one)


def plain(value: Any) -> str:
    """A plain JSON value for people."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)


def _unpictured(report: ParityReport, exhibits: Mapping[str, Exhibit]) -> list[str]:
    """A sentence for each head of which a stage that was judged earlier uses more of the budget than the picture."""
    sentences = []
    for head in HEADS:
        shown = exhibits[head].share if head in exhibits else -math.inf
        shares = [(stage_share(stage, head, report), stage) for stage in report.stages if stage.earlier]
        share, stage = max(shares, key=lambda pair: pair[0], default=(-math.inf, None))
        if stage is not None and share > shown:
            used = "no valid map" if math.isinf(share) else f"{budget_share(share)} of the budget"
            sentences.append(f"{HEAD_TITLES[head]}: {stage.name}, judged earlier and not pictured, has {used} on "
                             f"{stage.worst.get(head, 'an unnamed input')}; parity --checkpoint judges it again.")
    return sentences


def stage_share(stage: Stage, head: str, report: ParityReport) -> float:
    """The largest share of its budget that a metric of `head` uses in a stage. Infinite for an invalid map."""
    if any(finding.head == head and finding.fault not in MEASURED for finding in stage.findings):
        return math.inf
    if head not in stage.heads:
        return -math.inf
    return largest_share(stage.heads[head], limits_of(report.budget, stage.precision).get(head, {}))


def _has_invalid_answer(stage: Stage, head: str) -> bool:
    """Whether a stage failed for `head` in another way than by a number that is out of budget."""
    return any(finding.fault not in MEASURED for finding in stage.findings_of(head))


def _engines_by_graph(bundle: Bundle) -> list[tuple[Artifact, list[Artifact]]]:
    """The ONNX graphs, each with the engines that were made from it."""
    return [(graph, bundle.find("engine", made_from=graph.sha256)) for graph in bundle.find("onnx")]


def _engines_without_graph(bundle: Bundle) -> list[Artifact]:
    """Engines whose graph is no longer in the bundle."""
    graphs = {graph.sha256 for graph in bundle.find("onnx")}
    return [engine for engine in bundle.find("engine") if engine.details.made_from not in graphs]
