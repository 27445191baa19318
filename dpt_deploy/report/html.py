"""ParityReport -> one self-contained HTML page: no script, no network, light and dark, phone and desktop."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.bundle import Artifact, Bundle
from ..core.contract import HEADS
from ..core.verdict import ParityReport, Stage, limits_of, share_of_budget, within
from ..parity.compare import Exhibit
from .plots import colour_of, exhibit_row, number, quantile_plot
from .style import STYLE

TITLES = {"depth": "Depth", "normals": "Normals", "alpha": "Alpha"}
METRICS = {
    "depth": {"abs_rel": "AbsRel", "p99.9": "p99.9", "max": "max"},
    "normals": {"mean": "mean", "p99": "p99", "max": "max"},
    "alpha": {"max": "max", "iou": "IoU", "mean": "mean"},
}
UNITS = {"depth": "relative error", "normals": "degrees", "alpha": "difference of coverage"}
MOST_REASONS = 12

text = html.escape


def render(report: ParityReport, bundle: Bundle, worst: Mapping[str, Exhibit], command: str) -> str:
    """The page: verdict first, then numbers against budgets, distributions, pictures, certificates and origins.

    `worst` holds the maps to show, by head; `command` is the shell line that judged.
    """
    sections = [
        _section("Stages", _stages(report)),
        _section("Distribution of the errors", _plots(report)),
        _section("Worst images", _exhibits(worst)),
        _section("Precision", _precision(bundle)),
        _section("Certificates", _certificates(bundle)),
        _section("Chain of files", _chain(bundle)),
        _section("Made by", _made_by(bundle, command)),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity of {text(bundle.name)}</title><style>{STYLE}</style></head><body>
<div class="eyebrow">Parity with PyTorch FP32</div><h1>{text(bundle.name)}</h1>
{_verdict(report, bundle)}
{"".join(sections)}
</body></html>
"""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>\n" if content else ""


def _verdict(report: ParityReport, bundle: Bundle) -> str:
    status = "passed" if report else "failed" if report.failed else "not-run"
    word, _, rest = report.verdict.partition(": ")
    others = "".join(f"<p>Also, {text(sentence)}.</p>" for sentence in report.blame[1:])
    source = bundle.header["checkpoint"]
    digest = source.get("sha256", "")[:16]
    return (
        f'<div class="verdict {status}"><strong>{word}</strong><p>{text(rest)}.</p>{others}</div>'
        f'<p class="dim">Checkpoint {text(source["file"])}, SHA-256 <code>{digest}</code>. '
        f'{len(report.inputs)} inputs: {text(", ".join(report.inputs))}.</p>'
    )


def _stages(report: ParityReport) -> str:
    heads = [head for head in HEADS if any(head in stage.heads for stage in report.stages)]
    titles = "".join(f'<th>{TITLES[head]} <small>{UNITS[head]}</small></th>' for head in heads)
    bodies = "".join(_stage(stage, report, heads) for stage in report.stages)
    return (
        '<p class="dim">Worst value over the inputs, and its budget; the bar is the share of the budget that is used. '
        "Depth and normals count where the reference's alpha is above 0.5; where that is empty, over the whole image. "
        "Adversarial inputs count for finiteness and for FP32 budgets; FP16 budgets apply to images.</p>"
        f'<table class="stages"><thead><tr><th>Stage</th>{titles}</tr></thead>{bodies}</table>'
    )


def _stage(stage: Stage, report: ParityReport, heads: list[str]) -> str:
    status = stage.status.replace(" ", "-")
    name = (f'<th scope="row">{text(stage.name)} <span class="{status}">{stage.status}</span>'
            f'<small>{text(stage.artifact or "")}</small>'
            f'{"<small>judged earlier; file unchanged</small>" if stage.earlier else ""}</th>')
    if not any(head in stage.heads for head in heads):  # weights, and what did not run
        return (f'<tbody><tr>{name}<td colspan="{max(1, len(heads))}">{_reasons(stage)}</td></tr></tbody>')
    limits = limits_of(report.budget, stage.precision)
    cells = "".join(
        f'<td class="head" data-head="{TITLES[head]}">{_metrics(stage, head, limits.get(head, {}))}</td>'
        for head in heads
    )
    if not stage.reasons:
        return f"<tbody><tr>{name}{cells}</tr></tbody>"
    kind = " failed-why" if stage.status == "failed" else ""
    why = f'<tr class="why{kind}"><td colspan="{1 + len(heads)}">{_reasons(stage)}</td></tr>'
    return f"<tbody><tr>{name}{cells}</tr>{why}</tbody>"


def _metrics(stage: Stage, head: str, limits: Mapping[str, float]) -> str:
    """The metrics that have a budget, with bars; where none has, the first one that was measured."""
    values = stage.heads.get(head, {})
    shown = [metric for metric in METRICS[head] if metric in limits] or list(METRICS[head])[:1]
    lines = []
    for metric in shown if values else ():
        value, bound = values.get(metric, math.nan), limits.get(metric)
        told = f"{value:.5f}" if metric == "iou" else number(value)
        if bound is None:
            lines.append(f'<div class="metric"><span class="dim">{METRICS[head][metric]}</span><b>{told}</b></div>')
            continue
        share = share_of_budget(metric, value, bound)
        width = 100 * min(share, 1.0)
        lines.append(
            f'<div class="metric{"" if within(metric, value, bound) else " over"}">'
            f'<span class="dim">{METRICS[head][metric]}</span>'
            f'<span><b>{told}</b> <span class="dim">of {number(bound)}, {_share(share)}</span></span>'
            f'<div class="bar"><i style="width:{width:.1f}%"></i></div></div>'
        )
    if stage.status == "failed" and any(not reason.startswith(f"{head} ") for reason in stage.reasons_of(head)):
        lines.append('<div class="failed">no valid answer on an input; see below</div>')
    return "".join(lines)


def _share(share: float) -> str:
    """How much of a budget is used, for people."""
    if math.isinf(share):
        return "not finite"
    if share >= 10:
        return f"{share:.0f} times"
    return f"{share:.0%}" if share >= 0.1 or share == 0 else f"{share:.1%}"


def _reasons(stage: Stage) -> str:
    shown = [text(reason) for reason in stage.reasons[:MOST_REASONS]]
    if (more := len(stage.reasons) - len(shown)) > 0:
        shown.append(f"and {more} more, in parity.json")
    if len(shown) == 1:
        return shown[0]
    return f"<ul>{''.join(f'<li>{reason}</li>' for reason in shown)}</ul>" if shown else ""


def _plots(report: ParityReport) -> str:
    drawn = [stage for stage in report.stages if stage.quantiles]
    plots = "".join(quantile_plot(head, drawn, report.budget) for head in HEADS)
    colours = colour_of(drawn)
    legend = "".join(f'<li><i style="background:{colour}"></i>{text(name)}</li>' for name, colour in colours.items())
    return (
        '<p class="dim">Each point is the quantile of one input\'s error map, the worst over the inputs that count. '
        f'Lines that lie on each other are stages that agree.</p><div class="plots">{plots}</div>'
        f'<ul class="legend">{legend}</ul>'
    ) if plots else ""


def _exhibits(worst: Mapping[str, Exhibit]) -> str:
    parts = []
    for head in HEADS:
        if (exhibit := worst.get(head)) is not None:
            used = _share(exhibit.share) + ("" if math.isinf(exhibit.share) else " of the budget")
            title = f"{TITLES[head]}: {exhibit.case.name} in {exhibit.stage}, {used}"
            parts.append(f"<h3>{text(title)}</h3>{exhibit_row(exhibit)}")
    intro = '<p class="dim">Per head, the image that uses most of its budget in any stage that ran now.</p>'
    return intro + "".join(parts) if parts else ""


def _precision(bundle: Bundle) -> str:
    """The precision plan, and what was tried to find it."""
    record = bundle.header.get("precision") or {}
    plan = record.get("plan") or {}
    if not plan:
        return ""
    kept = ", ".join(plan.get("fp32", [])) or "nothing"
    told = f"<p>{text(str(plan.get('precision', '')).upper())}; in FP32: {text(kept)}.</p>"
    rows = "".join(
        f'<tr><td>{text(str(trial.get("name", "")))}</td><td class="{"passed" if trial.get("passed") else "failed"}">'
        f'{"within budget" if trial.get("passed") else "out of budget"}</td>'
        f'<td>{_percent(trial.get("backbone_half"))}</td><td>{_percent(trial.get("decoder_half"))}</td></tr>'
        for trial in record.get("trials") or []
    )
    header = "<tr><th>tried</th><th>verdict</th><th>backbone in half</th><th>decoder and heads in half</th></tr>"
    table = f'<div class="scroll"><table><thead>{header}</thead><tbody>{rows}</tbody></table></div>'
    return told + (table if rows else "")


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else ""


def _certificates(bundle: Bundle) -> str:
    parts = []
    for engine in bundle.find("engine"):
        certificate = engine.details.get("certificate")
        content = definitions(certificate) if isinstance(certificate, Mapping) else "<p>None was recorded.</p>"
        parts.append(f"<div><h3>{text(engine.file)}</h3>{content}</div>")
    return f'<div class="certificates">{"".join(parts)}</div>' if parts else ""


def definitions(value: Any, inner: bool = False) -> str:
    """Any plain JSON value as HTML: a dict as a definition list, a list of dicts as a table; small ones as a line."""
    if isinstance(value, Mapping):
        line = "; ".join(f"{str(key).replace('_', ' ')} {_plain(item)}" for key, item in value.items() if item != "")
        flat = not any(isinstance(item, Mapping | list | tuple) for item in value.values())
        if inner and value and flat and len(line) < 90:
            return text(line)
        rows = "".join(
            f"<dt>{text(str(key).replace('_', ' '))}</dt><dd>{definitions(item, True)}</dd>"
            for key, item in value.items()
        )
        return f"<dl>{rows}</dl>" if rows else "none"
    if isinstance(value, list | tuple):
        if all(not isinstance(item, Mapping | list | tuple) for item in value):
            return text(", ".join(str(item) if type(item) is int else _plain(item) for item in value)) or "none"
        if all(isinstance(item, Mapping) and _is_flat(item) for item in value):
            return _rows(value)
        return "<ul>" + "".join(f"<li>{definitions(item)}</li>" for item in value) + "</ul>"
    return text(_plain(value))


def _is_flat(item: Mapping[str, Any]) -> bool:
    """Whether a dict fits into a table's row."""
    lists = [value for value in item.values() if isinstance(value, list | tuple)]
    deep = any(isinstance(value, Mapping) for value in item.values())
    return len(item) > 1 and not deep and not any(isinstance(part, Mapping | list) for one in lists for part in one)


def _rows(items: Sequence[Mapping[str, Any]]) -> str:
    """Dicts of plain values as a table."""
    keys = list(dict.fromkeys(key for item in items for key in item))
    header = "".join(f"<th>{text(str(key).replace('_', ' '))}</th>" for key in keys)
    rows = "".join(
        "<tr>" + "".join(f"<td>{definitions(item.get(key, ''))}</td>" for key in keys) + "</tr>" for item in items
    )
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)


def _chain(bundle: Bundle) -> str:
    """Checkpoint, the graphs made from it, the engines made from each."""
    source = bundle.header["checkpoint"]
    graphs = bundle.find("onnx")
    engines = bundle.find("engine")
    items = []
    for graph in graphs:
        made = [engine for engine in engines if engine.details.get("made_from") == graph.sha256]
        inner = "".join(f"<li>{_file(engine)}</li>" for engine in made)
        items.append(f"<li>{_file(graph)}{f'<ul>{inner}</ul>' if inner else ''}</li>")
    known = {graph.sha256 for graph in graphs}
    items += [f"<li>{_file(e)} (its graph is no longer here)</li>" for e in engines
              if e.details.get("made_from") not in known]
    items += [f"<li>{_file(reference)}</li>" for reference in bundle.find("reference")]
    return (
        f'<ul class="chain"><li>{text(source["file"])} <span class="dim">checkpoint</span><br>'
        f'<code>{source.get("sha256", "")}</code><ul>{"".join(items)}</ul></li></ul>'
    )


def _file(artifact: Artifact) -> str:
    size = f"{artifact.bytes / 1e6:.1f} MB"
    return f'{text(artifact.file)} <span class="dim">{size}</span><br><code>{artifact.sha256}</code>'


def _made_by(bundle: Bundle, command: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in bundle.header.get("versions", {}).items())
    values = {
        "judged by": command or "the Python interface",
        "exported by": bundle.header.get("command") or "the Python interface",
        "exported at": re.sub(r"T(\d\d:\d\d).*", r" \1 UTC", bundle.header.get("created", "")),
        "versions": versions,
    }
    rows = "".join(
        f"<dt>{key}</dt><dd>{f'<code>{text(value)}</code>' if key.endswith('by') else text(value)}</dd>"
        for key, value in values.items() if value
    )
    return f"<dl>{rows}</dl>"
