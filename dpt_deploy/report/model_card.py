"""MODEL_CARD.md says what a bundle is to whoever receives it. It is written from the bundle alone.

What people wrote below the line `HAND_WRITTEN_MARKER` is kept when the card is written again.
"""

from __future__ import annotations

import json
from typing import Any

from ..core.bundle import MODEL_CARD, Bundle
from ..core.contract import depth_meaning
from ..core.files import write_text
from ..core.manifest import Artifact
from ..core.verdict import ParityReport
from .formatting import (
    POSITIVE,
    SUMMARY_COLUMNS,
    TASK_COLUMNS,
    compared,
    judged_by,
    metric_cell,
    stage_status,
    task_rows,
    task_sentence,
)
from .templates import Markdown, markdown_environment
from .terminal import skipped_images

HAND_WRITTEN_MARKER = "<!-- Below this line is yours: it is kept when the card is written again. -->"
LATENCY_FILE = "latency.json"
MAX_REASONS = 2


def write_model_card(bundle: Bundle, report: ParityReport | None) -> Artifact:
    """Write the card into the bundle, keep what people wrote into it, and describe it in the manifest.

    Args:
        bundle: The bundle.
        report: The verdict on it; None says "Not judged yet."

    Returns:
        The card's entry in the manifest.

    Raises:
        BadInput: The card cannot be written.
        MissingPackage: Jinja2 is not installed.
    """
    path = bundle.folder / MODEL_CARD
    kept = hand_written_part(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
    write_text(path, render_model_card(bundle, report, kept))
    return bundle.add(MODEL_CARD, "report")


def reset_model_card(bundle: Bundle) -> None:
    """Take a verdict that no longer holds out of the card; without a card, do nothing."""
    if (bundle.folder / MODEL_CARD).is_file():
        write_model_card(bundle, None)


def hand_written_part(card: str) -> str:
    """What people wrote into a card: all that follows the marker; without a marker, its last sections or all of it."""
    _, marker, below = card.partition(HAND_WRITTEN_MARKER)
    if not marker:
        _, title, below = card.partition("\n## Licences\n")
        below = title + below if title else card
    return below.lstrip("\n")


def render_model_card(bundle: Bundle, report: ParityReport | None, hand_written: str = "") -> str:
    """The card as Markdown; sections to fill in take the place of `hand_written` if that is empty."""
    stages = report.stages if report is not None else ()
    return markdown_environment().get_template("MODEL_CARD.md.j2").render(
        bundle=bundle, manifest=bundle.manifest, contract=bundle.contract, report=report,
        heads=_list(bundle.contract.heads), training=_flat(bundle.manifest.training),
        description=_flat(bundle.manifest.options.get("description", {})), meaning=_meaning(bundle),
        columns=[c for c in SUMMARY_COLUMNS if any(c[1] in stage.heads.get(c[0], {}) for stage in stages)],
        metric_cell=metric_cell, stage_status=stage_status, compared=compared, value_range=_value_range,
        eight_bits=[stage for stage in stages if judged_by(stage)], judged_by=judged_by, task_rows=task_rows,
        task_columns=TASK_COLUMNS, task_sentence=task_sentence, positive=POSITIVE,
        max_reasons=MAX_REASONS, skipped=skipped_images(bundle),
        latency=_measured_latency(bundle), marker=Markdown(HAND_WRITTEN_MARKER), hand_written=Markdown(hand_written),
    )


def _meaning(bundle: Bundle) -> str:
    """What the maps are, in a sentence."""
    contract = bundle.contract
    depth = depth_meaning(contract.depth, bundle.canonical_focal, "pixels of the network's input")
    words = {"depth": f"depth is {depth}",
             "normals": "normals are in camera space, x right, y up, z towards the viewer",
             "alpha": "alpha is coverage"}
    text = "; ".join(words[head] for head in contract.heads)
    return f"{text[0].upper()}{text[1:]}."


def _value_range(limits: tuple[float | None, float | None]) -> str:
    low, high = limits
    if low is None and high is None:
        return "any"
    return f"from {low:g}" if high is None else f"up to {high:g}" if low is None else f"{low:g} to {high:g}"


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as pairs of a dotted name and its value."""
    found = []
    for name, value in record.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list | tuple) for item in value):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _measured_latency(bundle: Bundle) -> dict[str, Any] | None:
    """What `python benchmarks/latency.py BUNDLE --out BUNDLE` measured of files that are in the bundle now."""
    current = {artifact.sha256 for artifact in bundle.artifacts}
    try:
        found = json.loads((bundle.folder / LATENCY_FILE).read_text(encoding="utf-8"))
        rows = [(row["name"], f"{row['p50_ms']:.1f}", f"{row['p90_ms']:.1f}", "yes" if row["stable"] else "no")
                for row in found["rows"] if row["status"] == "ran" and row["sha256"] in current]
        processor = found["machine"]["gpu"] or found["machine"]["processor"]
        measured = {"rows": rows, "frame": "x".join(map(str, found["frame"])), "batch": found["batch"],
                    "processor": processor["name"], "date": found["machine"]["date"][:10]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return measured if rows else None


def _list(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
