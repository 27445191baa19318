"""What people look at: the HTML report, the model card, terminal tables, plots, colours, panels and file writers."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.bundle import PARITY_JSON, REPORT_HTML, Bundle
from ..core.exhibit import Exhibit
from ..core.files import write_json, write_text
from ..core.verdict import ParityReport
from .model_card import reset_model_card, write_model_card
from .terminal import print_outcome

__all__ = ["print_outcome", "reset_model_card", "write_report"]


def write_report(bundle: Bundle, report: ParityReport, exhibits: Mapping[str, Exhibit], command: str = "") -> None:
    """Write parity.json, report.html and MODEL_CARD.md into a bundle and describe them in its manifest.

    Args:
        bundle: The bundle that was judged.
        report: The verdict on it.
        exhibits: By head, the maps to show: those that use most of their budget.
        command: The shell line that judged; "" if it was called from Python.

    Raises:
        BadInput: A file cannot be written.
        MissingPackage: Jinja2 or matplotlib is not installed.
    """
    from .html import render_html  # it needs the runtime, which `report.colours` and training do without

    write_json(bundle.folder / PARITY_JSON, report.to_json())
    bundle.add(PARITY_JSON, "report")
    write_text(bundle.folder / REPORT_HTML, render_html(bundle, report, exhibits, command))
    bundle.add(REPORT_HTML, "report")
    write_model_card(bundle, report)
