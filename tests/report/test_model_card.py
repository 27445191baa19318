"""The model card says what a bundle is, and never loses what people wrote into it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dpt_deploy.core.bundle import MODEL_CARD, Bundle
from dpt_deploy.core.files import write_json, write_text
from dpt_deploy.core.manifest import EightBitFlops
from dpt_deploy.report import print_outcome, reset_model_card, write_report
from dpt_deploy.report.model_card import (
    HAND_WRITTEN_MARKER,
    LATENCY_FILE,
    hand_written_part,
    render_model_card,
    write_model_card,
)
from tests.tiny import change_details

TO_FILL = "TO FILL IN"


def test_all_files_of_a_report_are_written_and_described(judged):
    bundle = judged.bundle
    write_report(*judged, "a command")
    again = Bundle.open(bundle.folder)
    assert [a.file for a in again.find("report")] == ["parity.json", "report.html", MODEL_CARD]
    assert all(again.intact(artifact) for artifact in again.artifacts)


def test_the_card_tells_what_the_bundle_is(judged):
    bundle, report, _ = judged
    bundle.update(training={"epoch": 7, "data": {"samples": 12, "heads": ["a", "b"]}, "note": "a|b"})
    card = render_model_card(bundle, report)
    for part in ("z-depth", "| m |", "| epoch | 7 |", "| data.samples | 12 |", "| data.heads | a, b |", "a\\|b",
                 f"\n{report.verdict}.", "Not measured.", "frame.engine", "12/12 blocks", "97.0%", "tensorrt 11.4",
                 TO_FILL, bundle.manifest.checkpoint.sha256, "- C++ runtime frame fp32: not run: not built\n",
                 "RGB in [0, 1]", "batch x 3 x 384 x 384", "torch 2\n"):
        assert part in card, part
    assert "Depth is z-depth in metres;" in card
    bundle.update(training={"canonical_focal": 500.0})
    card = render_model_card(bundle, report)
    assert "Depth is z-depth for a focal length of 500 pixels of the network's input:" in card
    bundle.update(training={})
    card = render_model_card(bundle, None)
    assert "no training record" in card and "Not judged yet." in card


@pytest.mark.parametrize(
    ("eight_bits", "cell"),
    [({"type": "int8", "layers": 85, "share": 0.9538}, "| 97.0%, 95.4% INT8 |"),
     ({"type": "int8", "layers": 0, "weights_only": 85, "share": 0.0}, "| 97.0%, weights in INT8 |"),
     ({}, "| 97.0% |")],
)
def test_the_card_tells_the_share_of_an_engine_in_eight_bits(judged, eight_bits, cell):
    bundle, report, _ = judged
    (engine,) = bundle.find("engine")
    certificate = engine.details.certificate.model_copy(update={"eight_bits": EightBitFlops(**eight_bits)})
    change_details(bundle, engine, certificate=certificate)
    assert cell in render_model_card(bundle, report)


def test_what_people_wrote_into_the_card_stays(judged):
    bundle, report, _ = judged
    path = bundle.folder / MODEL_CARD
    write_model_card(bundle, report)
    write_text(path, path.read_text().replace(TO_FILL, "CC BY 4.0 *as it is*, <b>really</b> {{ 1 }}"))
    kept = hand_written_part(path.read_text())
    bundle.update(name="renamed")
    write_model_card(bundle, report)
    write_model_card(bundle, report)
    text = path.read_text()
    assert text.startswith("# renamed") and hand_written_part(text) == kept and text.count(HAND_WRITTEN_MARKER) == 1
    reset_model_card(bundle)
    assert "Not judged yet." in path.read_text() and "FAILED" not in path.read_text()
    assert hand_written_part(path.read_text()) == kept and bundle.intact(bundle.find("report")[0])
    write_text(path, text.replace(HAND_WRITTEN_MARKER, ""))
    write_model_card(bundle, report)
    assert "CC BY 4.0" in path.read_text() and path.read_text().count("# renamed") == 1


def test_there_is_nothing_to_reset_without_a_card(judged):
    reset_model_card(judged.bundle)
    assert not (judged.bundle.folder / MODEL_CARD).exists()


def test_what_people_wrote_is_found_without_the_line_above_it():
    assert hand_written_part(f"# x\n\n{HAND_WRITTEN_MARKER}\n\nmine\n") == "mine\n"
    assert hand_written_part("# x\n\n## Licences\n\nMIT\n") == "## Licences\n\nMIT\n"
    assert hand_written_part("# my own card\n") == "# my own card\n"


def test_the_card_tells_a_latency_that_was_measured_of_these_files(judged):
    bundle = judged.bundle
    row = {"status": "ran", "name": "onnxruntime-cpu", "p50_ms": 12.34, "p90_ms": 15.0, "stable": True}
    rows = [row | {"sha256": bundle.artifacts[0].sha256}, row | {"name": "of another file", "sha256": "0" * 64},
            {"status": "not run", "name": "tensorrt", "sha256": None}]
    machine = {"gpu": None, "processor": {"name": "a processor"}, "date": "2026-01-02T00:00:00"}
    found = {"rows": rows, "batch": 1, "frame": [720, 1280], "machine": machine}
    write_json(bundle.folder / LATENCY_FILE, found)
    card = render_model_card(bundle, None)
    for part in ("720x1280", "a processor, 2026-01-02", "| onnxruntime-cpu | 12.3 | 15.0 | yes |"):
        assert part in card, part
    assert "of another file" not in card
    for broken in (found | {"rows": rows[1:]}, {"rows": rows}, [], None):
        write_json(bundle.folder / LATENCY_FILE, broken)
        assert "Not measured." in render_model_card(bundle, None)


def test_the_terminal_prints_strings_from_outside_as_they_are(judged, capsys):
    bundle, report, _ = judged
    print_outcome(bundle, report, ["time [/] [red]x"])
    out = capsys.readouterr().out
    assert "[/] [red]x" in out and report.verdict in out and "C++ runtime frame fp32: not run: not built" in out


def test_the_report_is_light_to_import():
    code = ("import sys, dpt_deploy.report, dpt_deploy.report.colours, dpt_deploy.report.writers\n"
            "heavy = {'jinja2', 'matplotlib', 'rich', 'torch', 'OpenEXR', 'dpt_deploy.runtime'}\n"
            "print(sorted(heavy & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
