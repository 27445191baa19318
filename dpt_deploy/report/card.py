"""MODEL_CARD.md: what a bundle is, for whoever receives it. Written from the bundle alone.

The sections after the line `HAND` belong to people: what stands there is kept when the card is written again.
"""

from __future__ import annotations

import json
from typing import Any

from ..core.bundle import CARD, HAND, Artifact, Bundle, by_hand
from ..core.files import write_text
from ..core.verdict import ParityReport, last_report
from .table import COLUMNS, cell, status_of

TO_FILL = "TO FILL IN"
SPEED = "latency.json"
BLANK = f"""
## Licences

| what | licence | source |
|---|---|---|
| these weights | {TO_FILL} | {TO_FILL} |
| training data | {TO_FILL} | {TO_FILL} |
| pretrained backbone, if any | {TO_FILL} | {TO_FILL} |

## Use

Intended use: {TO_FILL}

Known limits, and people or scenes that the training data lacks: {TO_FILL}

Contact: {TO_FILL}
"""


def write_card(bundle: Bundle) -> Artifact:
    """Write the card into the bundle and describe it in the manifest. Raises `BadInput` when it cannot be written."""
    path = bundle.folder / CARD
    kept = by_hand(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
    write_text(path, render(bundle, last_report(bundle)) + HAND + "\n" + (kept or BLANK.lstrip("\n")))
    return bundle.add(CARD, "report")


def render(bundle: Bundle, report: ParityReport | None) -> str:
    """The part of the card that the bundle itself knows, in Markdown."""
    header = bundle.header
    model, source = header.get("model", {}), header.get("checkpoint", {})
    h, w = bundle.contract.input_size
    parts = [
        f"# {bundle.name}",
        f"A Dense Prediction Transformer that predicts {_list(bundle.contract.heads)} from one RGB image. Backbone "
        f"`{model.get('backbone', 'unknown')}`, network input {h}x{w} pixels (HxW), made from "
        f"`{source.get('file', 'unknown')}` (SHA-256 `{source.get('sha256', 'unknown')}`) on "
        f"{header.get('created', 'an unknown date')}.",
        "## Inputs and outputs", *(_tensors(bundle, graph) for graph in ("frame", "model")), _conventions(bundle),
        "## Training", _training(header.get("training", {})),
        "## Parity with PyTorch FP32", _parity(report),
        "## Engines", _engines(bundle),
        "## Speed", _speed(bundle),
        "## Made with", ", ".join(f"{name} {version}" for name, version in header.get("versions", {}).items()),
    ]
    return "\n\n".join(parts) + "\n\n"


def _tensors(bundle: Bundle, graph: str) -> str:
    """A table of one graph's tensors."""
    use = "images of any size in, maps of that size out" if graph == "frame" else "normalised tensors at network size"
    rows = [f"**{graph.capitalize()} graph**: {use}.", "", "| | name | type | shape | unit | range | meaning |",
            "|---|---|---|---|---|---|---|"]
    for side, specs in (("in", bundle.contract.inputs(graph)), ("out", bundle.contract.outputs(graph))):
        for spec in specs.values():
            shape = " x ".join(map(str, spec.shape))
            rows.append(f"| {side} | `{spec.name}` | {spec.dtype} | {shape} | {spec.unit} | {_range(spec.range)} | "
                        f"{spec.meaning} |")
    return "\n".join(rows)


def _conventions(bundle: Bundle) -> str:
    contract = bundle.contract
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (contract.mean, contract.std))
    return (f"Mean {mean} and standard deviation {std} of RGB in [0, 1]; resize rule `{contract.resize}`. Depth is "
            "z-depth in metres; normals are in camera space, x right, y up, z towards the viewer; alpha is coverage.")


def _range(limits: tuple[float | None, float | None]) -> str:
    low, high = limits
    if low is None and high is None:
        return "any"
    return f"from {low:g}" if high is None else f"up to {high:g}" if low is None else f"{low:g} to {high:g}"


def _training(record: dict[str, Any]) -> str:
    """The training record of the checkpoint, entry by entry, nested ones by dotted names."""
    if not record:
        return "The checkpoint carries no training record."
    rows = ["| what | value |", "|---|---|"]
    rows += [f"| {name} | {_cell(value)} |" for name, value in _flat(record)]
    return "\n".join(rows)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, item in value.items():
        if isinstance(item, dict) and item:
            found += _flat(item, f"{prefix}{name}.")
        else:
            found.append((prefix + name, item))
    return found


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _parity(report: ParityReport | None) -> str:
    if report is None:
        return "Not judged yet."
    columns = [key for key in COLUMNS if any(key[1] in stage.heads.get(key[0], {}) for stage in report.stages)]
    rows = [f"{report.verdict}. Worst value over {len(report.inputs)} inputs; details in `report.html`.", "",
            f"| stage | status | {' | '.join(title for _, _, title in columns)} |",
            "|---|---|" + "---|" * len(columns)]
    for stage in report.stages:
        cells = [cell(stage, head, metric) for head, metric, _ in columns]
        rows.append(f"| {stage.name} | {status_of(stage)} | {' | '.join(cells)} |")
    reasons = [f"- {stage.name}: {stage.status}: {'; '.join(stage.reasons[:2])}"
               for stage in (*report.failed, *report.not_run)]
    return "\n".join([*rows, *([""] if reasons else []), *reasons])


def _engines(bundle: Bundle) -> str:
    rows = ["| file | MB | builder | half, matrix FLOPs | attention | certificate |", "|---|---|---|---|---|---|"]
    for engine in bundle.find("engine"):
        certificate = engine.details.get("certificate", {})
        attention, share = certificate.get("attention", {}), certificate.get("flops", {}).get("share")
        rows.append(
            f"| `{engine.file}` | {engine.bytes / 1e6:.1f} | {engine.details['builder']} "
            f"{engine.details['builder_version']} | {'' if share is None else f'{share:.1%}'} | "
            f"{attention.get('layers', '')}/{attention.get('blocks', '')} blocks | "
            f"{certificate.get('status', 'none')} |"
        )
    return "\n".join(rows) if len(rows) > 2 else "None built yet."


def _speed(bundle: Bundle) -> str:
    """What `python benchmarks/latency.py BUNDLE --out BUNDLE` measured of the files that are here; never guessed."""
    current = {artifact.sha256 for artifact in bundle.artifacts}
    try:
        found = json.loads((bundle.folder / SPEED).read_text(encoding="utf-8"))
        rows = [f"| {row['name']} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} | {'yes' if row['stable'] else 'no'} |"
                for row in found["rows"] if row["status"] == "ran" and row["sha256"] in current]
        place = found["machine"]["gpu"] or found["machine"]["processor"]
        told = (f"From frames of {'x'.join(map(str, found['frame']))} pixels (HxW) in host memory, {found['batch']} in "
                f"a call, to maps in host memory, on {place['name']}, {found['machine']['date'][:10]}.")
    except (OSError, ValueError, KeyError, TypeError):
        return "Not measured."
    if not rows:
        return "Not measured."
    return "\n".join([told, "", "| what | p50 [ms] | p90 [ms] | stable |", "|---|---|---|---|", *rows])


def _list(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
