"""Inline SVG and pictures for the report; colours come from the page's style, so that light and dark both work."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

import cv2
import numpy as np

from ..core.verdict import LEVELS, Stage, limits_of
from ..parity.compare import Exhibit, error_map
from .colours import colour_depth, colour_error, colour_normals, depth_range

COLOURS = ("#4269d0", "#e8590c", "#2f9e44", "#a463f2", "#d6336c", "#0c8599", "#b08900", "#868e96")
WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
PICTURE = 400  # widest picture [pixels]
AXIS = {"depth": "relative error", "normals": "degrees", "alpha": "difference of coverage"}
QUANTILE_LIMITS = {"p99": 0.99, "p99.9": 0.999, "max": 1.0}  # budgets that a quantile plot can show


def colour_of(stages: Sequence[Stage]) -> dict[str, str]:
    """A colour for each stage that has quantiles, by name."""
    drawn = [stage.name for stage in stages if stage.quantiles]
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(drawn)}


def quantile_plot(head: str, stages: Sequence[Stage], budget: dict) -> str:
    """One head's error quantiles, a line per stage, logarithmic, with the budgets that bound a quantile; SVG."""
    colours = colour_of(stages)
    lines = {stage.name: stage.quantiles[head] for stage in stages if head in stage.quantiles}
    marks = [
        (QUANTILE_LIMITS[metric], bound, precision) for precision in ("fp32", "fp16")
        if any((stage.precision == "fp32") == (precision == "fp32") for stage in stages if stage.name in lines)
        for metric, bound in limits_of(budget, precision).get(head, {}).items()
        if metric in QUANTILE_LIMITS and bound > 0
    ]
    values = [v for line in lines.values() for v in line if math.isfinite(v) and v > 0] + [m[1] for m in marks]
    if not values:
        return ""
    low, high = math.floor(math.log10(max(min(values), 1e-12))), math.ceil(math.log10(max(values)) + 1e-9)
    low = max(min(low, high - 1), high - 9)

    def x(level: float) -> float:
        # Nines are spread evenly: what a budget bounds is the tail.
        position = -math.log10(1 - level) if level < 1 else 3.5
        return LEFT + (position - 0.3) / 3.2 * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        level = min(max(math.log10(value), low), high) if value > 0 else low
        return TOP + (high - level) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for decade in range(low, high + 1):
        if (decade - high) % (1 if high - low < 6 else 2) == 0:
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(10.0**decade):.1f}" '
                         f'y2="{y(10.0**decade):.1f}"/><text x="{LEFT - 6}" y="{y(10.0**decade) + 4:.1f}" '
                         f'text-anchor="end">{number(10.0**decade)}</text>')
    for level, label in ((0.5, "median"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"), (1.0, "max")):
        anchor = "start" if level == 0.5 else "end" if level == 1.0 else "middle"
        parts.append(f'<line class="grid" x1="{x(level):.1f}" x2="{x(level):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
                     f'<text x="{x(level):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{label}</text>')
    for name, line in lines.items():
        points = [(x(level), y(value)) for level, value in zip(LEVELS, line, strict=True) if math.isfinite(value)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        title = f"<title>{html.escape(name)}</title>"
        parts.append(f'<polyline points="{path}" stroke="{colours[name]}">{title}</polyline>')
    for level, bound, precision in marks:
        a, b = x(level), y(bound)
        parts.append(f'<path class="mark" d="M{a - 9:.1f} {b:.1f}H{min(a + 9, WIDTH - 2):.1f}"/><text class="marked" '
                     f'x="{a - 12:.1f}" y="{b + 4:.1f}" text-anchor="end">{precision.upper()} budget</text>')
    label = f"{head}: quantiles of the error ({AXIS[head]}), one line per stage"
    return (f'<figure><figcaption><strong>{head.capitalize()}</strong>, {AXIS[head]}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>')


def exhibit_row(exhibit: Exhibit) -> str:
    """The input, the reference's map, the stage's and their difference, as figures."""
    want, have, head = exhibit.maps[exhibit.head], exhibit.have, exhibit.head
    if head == "depth":
        limits = depth_range(want, exhibit.maps.get("alpha"))
        pair = colour_depth(want, limits), colour_depth(have, limits)
        scale = f"bright {limits[0]:.2f} m, dark {limits[1]:.2f} m"
    elif head == "normals":
        pair, scale = (colour_normals(want), colour_normals(have)), "red right, green up, blue to the viewer"
    else:
        pair, scale = (_gray(want), _gray(have)), "white is foreground"
    with np.errstate(invalid="ignore"):
        error = error_map(head, have, want)
    finite = error[np.isfinite(error)]
    top = float(finite.max(initial=0.0))
    unit = {"depth": "", "normals": "°", "alpha": ""}[head]
    told = f"error: black 0, white {number(top)}{unit}"
    told += "; magenta is NaN or Inf" if finite.size < error.size else ""
    return '<div class="maps">' + "".join([
        _figure(exhibit.case.frame, f"input, {exhibit.case.frame.shape[1]} x {exhibit.case.frame.shape[0]}", ".jpg"),
        _figure(pair[0], f"PyTorch FP32; {scale}"), _figure(pair[1], exhibit.stage),
        _figure(colour_error(error, top), told),
    ]) + "</div>"


def number(value: float) -> str:
    """A number as people read it: three digits, with an exponent only where it is far from 1."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _gray(alpha: np.ndarray) -> np.ndarray:
    return (np.clip(np.nan_to_num(alpha), 0, 1)[..., None].repeat(3, axis=2) * 255).astype(np.uint8)


def _figure(rgb: np.ndarray, caption: str, kind: str = ".png") -> str:
    height, width = rgb.shape[:2]
    scale = min(1.0, PICTURE / max(height, width))
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(kind, np.ascontiguousarray(rgb[..., ::-1]))
    encoded = base64.b64encode(data).decode()
    caption = html.escape(caption)
    mime = {".png": "png", ".jpg": "jpeg"}[kind]
    return (f'<figure><img alt="{caption}" src="data:image/{mime};base64,{encoded}">'
            f"<figcaption>{caption}</figcaption></figure>")
