"""Error distributions as inline SVG, drawn by matplotlib; colours follow the page, in light and in dark."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ..core.budget import limits_of
from ..core.errors import missing_package
from ..core.manifest import EightBitTrial, PrecisionPlan
from ..core.verdict import LEVELS, Budget, Stage
from .formatting import error_units, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_COLOURS = ("#4269d0", "#e8590c", "#2f9e44", "#a463f2", "#d6336c", "#0c8599", "#b08900", "#868e96")
"""Readable on white and on near black."""
SIZE = 340, 230  # of a plot [pixels]
PAGE_COLOURS = {"#010101": "var(--ink)", "#020202": "var(--dim)", "#030303": "var(--line)", "#040404": "var(--page)"}
"""Stand-ins that matplotlib draws with, and the colours of the page's style that replace them."""
INK, DIM, GRID, PAGE = PAGE_COLOURS
QUANTILE_OF = {"p99": 0.99, "p99.9": 0.999, "max": 1.0}
"""Metrics that are a quantile of the error map: their budgets are drawn."""
TICKS = {0.5: "median", 0.9: "90%", 0.99: "99%", 0.999: "99.9%", 1.0: "max"}
MAX_DECADES = 9


def line_colours(stages: Sequence[Stage]) -> dict[str, str]:
    """A colour for each stage that has quantiles, by name."""
    drawn = [stage.name for stage in stages if stage.quantiles]
    return {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(drawn)}


def quantile_plot(head: str, stages: Sequence[Stage], budget: Budget, metric_depth: bool = True) -> str:
    """One head's error quantiles on a logarithmic axis, and the budgets that bound a quantile.

    Args:
        head: depth, normals or alpha.
        stages: A line is drawn for each one that has quantiles of this head.
        budget: Limits by precision, head and metric.
        metric_depth: Whether depth is in metres.

    Returns:
        An `<svg>` element without ids, scripts or references, or "" if there is nothing to draw.
    """
    drawn = [stage for stage in stages if head in stage.quantiles]
    budgets = _quantile_budgets(head, drawn, budget)
    values = [value for stage in drawn for value in stage.quantiles[head] if math.isfinite(value) and value > 0]
    values += [bound for _, _, bound in budgets]
    if not values:
        return ""
    high = math.ceil(math.log10(max(values)) + 1e-9)
    low = max(min(math.floor(math.log10(max(min(values), 1e-12))), high - 1), high - MAX_DECADES)
    svg = io.StringIO()
    with _axes(svg) as axes:
        axes.set(xlim=(_position(0.5), _position(1.0)), yscale="log", ylim=(10.0**low, 10.0**high))
        axes.set_xticks([_position(level) for level in TICKS], labels=TICKS.values())
        decades = range(high, low - 1, -1 if high - low < 6 else -2)
        axes.set_yticks([10.0**decade for decade in decades], labels=[number(10.0**decade) for decade in decades])
        colours = line_colours(stages)
        for i, stage in enumerate(drawn):
            points = [(_position(level), min(max(value, 10.0**low), 10.0**high))
                      for level, value in zip(LEVELS, stage.quantiles[head], strict=True) if math.isfinite(value)]
            axes.plot(*zip(*points, strict=True) if points else ((), ()), color=colours[stage.name], linewidth=1.8,
                      gid=f"stage {i}")
        for precision, level, bound in budgets:
            axes.plot([_position(level) - 0.1, _position(level) + 0.1], [bound, bound], color=INK, linewidth=2)
            axes.annotate(f"{precision.upper()} budget", (_position(level), bound), (-12, 0), color=INK, ha="right",
                          va="center", textcoords="offset points",
                          bbox={"facecolor": PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 1})
    label = f"{head}: quantiles of the error ({error_units(metric_depth)[head]}), one line per stage"
    return _inline(svg.getvalue(), label, {f"stage {i}": stage.name for i, stage in enumerate(drawn)})


def trials_plot(trials: Sequence[EightBitTrial], chosen: PrecisionPlan) -> str:
    """What the plans that a search tried cost: share of its limits against share of the FLOPs in eight bits.

    Plans with more than half of the largest share are drawn, one colour per backend; the chosen one has a ring.

    Returns:
        An `<svg>` element without ids, scripts or references, or "" if there are not two plans to draw.
    """
    finite = [trial for trial in trials if math.isfinite(trial.loss) and trial.loss > 0]
    most = max((trial.share for trial in finite), default=0.0)
    drawn = [trial for trial in finite if trial.share > most / 2]
    if len({trial.plan for trial in drawn}) < 2:
        return ""
    colours = backend_colours(trials)
    losses = [trial.loss for trial in drawn]
    high = math.ceil(math.log10(max(*losses, 1.0)) + 1e-9)
    low = min(math.floor(math.log10(min(losses))), -1)
    svg, titles = io.StringIO(), {}
    with _axes(svg) as axes:
        axes.set(xlim=(50 * most, 102), yscale="log", ylim=(10.0**low, 10.0**high))
        ticks = [tick for tick in range(0, 101, 10) if tick >= 50 * most]
        axes.set_xticks(ticks, labels=[f"{tick}%" for tick in ticks])
        axes.set_yticks([10.0**decade for decade in range(low, high + 1)],
                        labels=[f"{100 * 10.0**decade:g}%" for decade in range(low, high + 1)])
        axes.axhline(1.0, color=INK, linewidth=2)
        for i, trial in enumerate(drawn):
            # Markers would be references within the SVG; the round ends of a short line are none.
            x, y = (100 * trial.share, 100 * trial.share + 1e-3), (trial.loss, trial.loss)
            if trial.plan == chosen:
                axes.plot(x, y, color=INK, linewidth=12, solid_capstyle="round")
            axes.plot(x, y, color=colours[trial.backend], linewidth=8, solid_capstyle="round", gid=f"trial {i}")
            titles[f"trial {i}"] = f"{trial.name}, {trial.backend}"
    label = "share of the limits that a plan uses, against the share of the matrix FLOPs in eight bits"
    return _inline(svg.getvalue(), label, titles)


def backend_colours(trials: Sequence[EightBitTrial]) -> dict[str, str]:
    """A colour for each backend that ran a trial."""
    names = dict.fromkeys(trial.backend for trial in trials)
    return {name: LINE_COLOURS[i % len(LINE_COLOURS)] for i, name in enumerate(names)}


@contextlib.contextmanager
def _axes(svg: io.StringIO) -> Iterator[Axes]:
    """Axes in the page's colours, which are written to `svg` at the end. Raises `MissingPackage`."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "cli", "draw the plots of the report") from error

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own style must not change the report
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dpt-deploy", "font.size": 10.5})
        figure = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72))  # SVG has 72 pixels per inch
        axes = figure.add_axes((0.135, 0.148, 0.83, 0.8), frame_on=False)
        yield axes
        axes.minorticks_off()
        axes.tick_params(left=False, bottom=False, labelcolor=DIM)
        axes.grid(color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        # Without these entries matplotlib writes no metadata, so that equal reports give equal files.
        figure.savefig(svg, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _quantile_budgets(head: str, stages: Sequence[Stage], budget: Budget) -> list[tuple[str, float, float]]:
    """Precision, quantile and bound of the budgets that apply to a stage that is drawn."""
    return [
        (precision, QUANTILE_OF[metric], bound) for precision in ("fp32", "fp16", "int8")
        if any(limits_of(budget, stage.precision) is budget.get(precision) for stage in stages)
        for metric, bound in limits_of(budget, precision).get(head, {}).items()
        if metric in QUANTILE_OF and bound > 0
    ]


def _position(level: float) -> float:
    """Where a quantile lies on the axis: nines are spread evenly, because budgets bound the tail."""
    return -math.log10(1 - level) if level < 1 else 3.5


def _inline(svg: str, label: str, titles: dict[str, str]) -> str:
    """Matplotlib's SVG as an element of the page, with a tooltip for each group whose id is in `titles`."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for defs in parent.findall("{*}defs"):  # a style for the whole page, and clip paths
            parent.remove(defs)
        parent.attrib.pop("clip-path", None)
        if (title := titles.get(parent.attrib.pop("id", ""))) is not None:
            ElementTree.SubElement(parent, "title").text = title
        if style := parent.get("style"):
            for stand_in, colour in PAGE_COLOURS.items():
                style = style.replace(stand_in, colour)
            parts = [part for part in style.split("; ") if not (parent.tag == "text" and part.startswith("font"))]
            parent.set("style", "; ".join(parts))
        if "d" in parent.attrib:
            parent.set("d", parent.attrib["d"].replace("\n", ""))
        parent.tail = None
        if not (parent.text or "").strip():
            parent.text = None
    root.attrib = {"viewBox": f"0 0 {SIZE[0]} {SIZE[1]}", "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")
