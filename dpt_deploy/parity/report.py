"""ParityReport -> one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import math
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .. import metrics
from ..bundle import Bundle
from ..picture import colour_depth, colour_error, colour_normals, depth_range
from .compare import AT_LEAST, ParityReport, Stage

if TYPE_CHECKING:
    from .judge import Exhibit

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #5a6472; --line: #d5dae1; --page: #fff; --card: #f5f7f9;
  --good: #1a7f37; --bad: #c62828; --wait: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #9aa5b4; --line: #39414d; --page: #14171c;
  --card: #1d2229; --good: #57c974; --bad: #ff7b72; --wait: #e3b341; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto;
  max-width: 70rem; padding: 1.5rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.verdict { font-size: 1.25rem; font-weight: 600; padding: .8rem 1rem; border-radius: .5rem; background: var(--card);
  border-left: .4rem solid; }
.passed { color: var(--good); } .failed { color: var(--bad); } .not-run { color: var(--wait); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; } td.why { white-space: normal; min-width: 16rem; color: var(--dim); }
td.number { font-variant-numeric: tabular-nums; } .over { color: var(--bad); font-weight: 600; }
figure { margin: 0; } .row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem;
  margin: .6rem 0; } img { width: 100%; border-radius: .3rem; display: block; } figcaption { color: var(--dim);
  font-size: .85rem; } code { overflow-wrap: anywhere; } .dim { color: var(--dim); }
"""
TITLES = {
    ("depth", "abs_rel"): "depth AbsRel", ("depth", "p99.9"): "depth p99.9", ("normals", "mean"): "normals mean [deg]",
    ("normals", "p99"): "normals p99 [deg]", ("alpha", "max"): "alpha max", ("alpha", "iou"): "alpha IoU",
}


def render(report: ParityReport, bundle: Bundle, exhibit: Exhibit, command: str) -> str:
    """The page: verdict first, then the numbers against their budgets, then a picture per head."""
    text = html.escape
    status = "passed" if report else "failed" if report.failed else "not-run"
    source = bundle.header["checkpoint"]
    versions = ", ".join(f"{name} {version}" for name, version in bundle.header["versions"].items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity of {text(bundle.name)}</title><style>{STYLE}</style></head><body>
<h1>Parity of {text(bundle.name)} with PyTorch FP32</h1>
<p class="dim">{text(source["file"])}, SHA-256 <code>{source["sha256"][:16]}</code>; {len(report.inputs)} inputs:
{text(", ".join(report.inputs))}. Worst value over the inputs. Depth and normals count where the reference's alpha is
above 0.5; where that is empty, over the whole image. Adversarial inputs count for finiteness and for FP32 budgets.</p>
<p class="verdict {status}">{text(report.verdict)}</p>
<h2>Stages</h2>{_stages(report)}
{_exhibit(exhibit)}
<h2>Files</h2>{_files(bundle)}
<h2>Made by</h2><p><code>{text(command or "the Python interface")}</code></p>
<p class="dim">{text(versions)}; {bundle.header["created"]}</p>
</body></html>
"""


def _stages(report: ParityReport) -> str:
    columns = [key for key in TITLES if any(key[1] in stage.heads.get(key[0], {}) for stage in report.stages)]
    head = "".join(f"<th>{TITLES[key]}</th>" for key in columns)
    rows = []
    for stage in report.stages:
        cells = "".join(_number(stage, report, head, metric) for head, metric in columns)
        rows.append(
            f'<tr><td>{html.escape(stage.name)}</td><td class="{stage.status.replace(" ", "-")}">{stage.status}</td>'
            f'{cells}<td class="why">{html.escape("; ".join(stage.reasons))}</td></tr>'
        )
    header = f"<tr><th>stage</th><th>status</th>{head}<th>why</th></tr>"
    return f'<div class="scroll"><table>{header}{"".join(rows)}</table></div>'


def _number(stage: Stage, report: ParityReport, head: str, metric: str) -> str:
    value = stage.heads.get(head, {}).get(metric)
    if value is None:
        return "<td></td>"
    bound = report.budget["fp32" if stage.precision == "fp32" else "fp16"].get(head, {}).get(metric)
    over = bound is not None and not (value >= bound if metric in AT_LEAST else value <= bound)
    shown = "NaN" if math.isnan(value) else f"{value:.5f}" if metric == "iou" else f"{value:.2e}"
    limit = f' <span class="dim">/ {bound:g}</span>' if bound is not None else ""
    return f'<td class="number{" over" if over else ""}">{shown}{limit}</td>'


def _files(bundle: Bundle) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(a.file)}</td><td>{a.bytes / 1e6:.1f} MB</td><td><code>{a.sha256[:16]}</code></td></tr>"
        for a in bundle.artifacts if a.kind != "report"
    )
    return f'<div class="scroll"><table><tr><th>file</th><th>size</th><th>SHA-256</th></tr>{rows}</table></div>'


def _exhibit(exhibit: Exhibit) -> str:
    """Reference, candidate and error side by side, a row per head."""
    if not exhibit.candidate:
        return ""
    rows = [f"<h2>{html.escape(exhibit.case)}: PyTorch FP32 and {html.escape(exhibit.stage)}</h2>",
            f'<div class="row">{_figure(exhibit.frame, "input")}</div>']
    for head, want in exhibit.reference.items():
        have = exhibit.candidate.get(head)
        if have is None or have.shape != want.shape:
            continue
        if head == "depth":
            limits = depth_range(want, exhibit.reference.get("alpha"))
            pair = colour_depth(want, limits), colour_depth(have, limits)
            error, unit = metrics.relative_depth_error(have, want), "relative"
        elif head == "normals":
            pair = colour_normals(want), colour_normals(have)
            error, unit = metrics.angle(have, want), "degrees"
        else:
            pair = tuple((np.clip(np.nan_to_num(x), 0, 1)[..., None].repeat(3, 2) * 255).astype(np.uint8)
                         for x in (want, have))
            error, unit = np.abs(have.astype(np.float64) - want), "difference"
        top = float(np.nanmax(np.where(np.isfinite(error), error, np.nan), initial=0.0))
        rows.append(
            f'<div class="row">{_figure(pair[0], f"{head}, PyTorch FP32")}{_figure(pair[1], f"{head}, candidate")}'
            f'{_figure(colour_error(error, top), f"error, black is 0 and white is {top:.1e} ({unit})")}</div>'
        )
    return "".join(rows)


def _figure(rgb: np.ndarray, caption: str) -> str:
    height, width = rgb.shape[:2]
    if width > 480:
        rgb = cv2.resize(rgb, (480, round(height * 480 / width)), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
    encoded = base64.b64encode(data).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
