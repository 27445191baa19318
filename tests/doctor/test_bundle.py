"""What the doctor says of a bundle, and that each command it gives is one that the build would take."""

from __future__ import annotations

import shlex
import sys

import pytest

from dpt_deploy import cli
from dpt_deploy.build.__main__ import BuildConfig
from dpt_deploy.cli.help import parse
from dpt_deploy.core.bundle import CARD, HAND, Bundle
from dpt_deploy.core.files import write_json, write_text
from dpt_deploy.doctor import bundle as doctor
from dpt_deploy.doctor.__main__ import DoctorConfig, main
from dpt_deploy.doctor.bundle import check_bundle, rebuild_command
from dpt_deploy.report.card import SPEED, TO_FILL, write_card
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401


def found(folder):
    return {check.subject: check for check in check_bundle(Bundle.open(folder))}


@pytest.fixture
def here(monkeypatch):
    """Pretend that a GPU and a version of the builder are here."""
    def pretend(version, capability):
        monkeypatch.setattr(doctor, "_version", lambda module: version)
        monkeypatch.setattr(doctor.machine, "compute_capability", lambda: capability)

    return pretend


def test_an_untouched_bundle_is_intact(tiny_bundle, here):  # noqa: F811
    version = Bundle.open(tiny_bundle).find("engine")[0].details["builder_version"]
    here(version, None)
    checks = found(tiny_bundle)
    assert {checks[name].status for name in checks if not name.endswith(".engine")} == {"ok"}
    engines = [check for name, check in checks.items() if name.endswith(".engine")]
    assert len(engines) == 2 and all(check.status == "not checked" and "no GPU" in check.finding for check in engines)
    here(version, "8.9")
    assert found(tiny_bundle)["frame.fp16.rtx1.7.engine"].status == "ok"


def test_a_damaged_and_a_missing_file_get_the_command_that_makes_them(own_bundle, here):  # noqa: F811
    here(None, None)
    engine, graph = own_bundle / "frame.fp16.rtx1.7.engine", own_bundle / "model.fp16.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    graph.unlink()
    checks = found(own_bundle)
    assert checks[engine.name].status == checks[graph.name].status == "failed"
    assert "missing" in checks[graph.name].finding and "changed" in checks[engine.name].finding
    assert "dpt_deploy.export" in checks[graph.name].remedy
    assert checks[engine.name].remedy == (
        f"python -m dpt_deploy.build {own_bundle} --builder tensorrt-rtx --precisions fp16 --batch-range 1,8 "
        "--frame-size-range 64x64,2160x3840"
    )


def test_an_engine_of_another_version_or_graph(own_bundle, here):  # noqa: F811
    here("9.9.9", None)
    check = found(own_bundle)["model.fp16.rtx1.7.engine"]
    assert check.status == "warning" and "9.9.9 is installed" in check.finding
    assert "--builder tensorrt-rtx" in check.remedy
    here(None, None)
    check = found(own_bundle)["model.fp16.rtx1.7.engine"]
    assert check.status == "not checked" and "not installed" in check.finding
    bundle = Bundle.open(own_bundle)
    bundle.find("engine", graph="model")[0].details["made_from"] = "0" * 64
    bundle.save()
    check = found(own_bundle)["model.fp16.rtx1.7.engine"]
    assert check.status == "failed" and "no longer in the bundle" in check.finding and check.remedy


@pytest.mark.parametrize("variant", [{}, {"weights": "refittable", "version_compatible": True}])
def test_the_command_asks_for_the_engine_that_was_there(tiny_bundle, variant):  # noqa: F811
    bundle = Bundle.open(tiny_bundle)
    (engine,) = bundle.find("engine", graph="frame")
    engine.details.update(variant)
    words = shlex.split(rebuild_command(bundle, engine))
    assert words[:3] == ["python", "-m", "dpt_deploy.build"]
    asked = parse(BuildConfig, "build", arguments=words[3:])
    assert asked.engines.batch_range == (1, 8) and asked.engines.frame_size_range == ((64, 64), (2160, 3840))
    assert asked.precisions == ("fp16",) and asked.engines.builder == "tensorrt-rtx"
    assert asked.engines.variant == variant and asked.bundle == tiny_bundle


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.run(DoctorConfig, main, "doctor")
    return caught.value.code, *capsys.readouterr()


def test_exit_status(own_bundle, tmp_path, monkeypatch, capsys):  # noqa: F811
    status, out, _ = run(monkeypatch, capsys, tmp_path / "absent")
    assert status == 2
    (own_bundle / "reference.npz").touch()  # the copy has none
    status, out, _ = run(monkeypatch, capsys, own_bundle)
    assert status == 1 and "FAILED: 1, first reference.npz" in out and "reference.npz: python -m dpt_deploy" in out


def test_the_card_tells_what_the_bundle_is(own_bundle):  # noqa: F811
    bundle = Bundle.open(own_bundle)
    bundle.header["training"] = {"epoch": 7, "data": {"samples": 12}, "note": "a|b"}
    artifact = write_card(bundle)
    text = (own_bundle / CARD).read_text()
    assert artifact.kind == "report" and Bundle.open(own_bundle).intact(artifact)
    for part in ("z-depth", "| m |", "| epoch | 7 |", "| data.samples | 12 |", "a\\|b", "PASSED", "Not measured.",
                 "frame.fp16.rtx1.7.engine", "6/6 blocks", TO_FILL, bundle.header["checkpoint"]["sha256"]):
        assert part in text, part
    bundle.header["training"] = {}
    (own_bundle / "parity.json").unlink()
    write_card(bundle)
    text = (own_bundle / CARD).read_text()
    assert "no training record" in text and "Not judged yet." in text


def test_what_people_wrote_into_the_card_stays(own_bundle, here):  # noqa: F811
    here(None, None)
    bundle = Bundle.open(own_bundle)
    write_card(bundle)
    path = own_bundle / CARD
    write_text(path, path.read_text().replace(TO_FILL, "CC BY 4.0"))
    assert found(own_bundle)[CARD].status == "ok"  # edited, as it is meant to be
    bundle.header["name"] = "renamed"
    write_card(bundle)
    write_card(bundle)
    text = path.read_text()
    assert text.startswith("# renamed") and "CC BY 4.0" in text and TO_FILL not in text and text.count(HAND) == 1
    write_text(path, text.replace(HAND, ""))
    write_card(bundle)
    assert "CC BY 4.0" in path.read_text() and path.read_text().count("# renamed") == 1


def test_the_card_tells_a_speed_that_was_measured_of_these_files(own_bundle):  # noqa: F811
    bundle = Bundle.open(own_bundle)
    (graph,) = bundle.find("onnx", graph="frame", precision="fp32")
    row = {"status": "ran", "name": "onnxruntime-cpu", "p50_ms": 12.34, "p90_ms": 15.0, "stable": True}
    rows = [row | {"sha256": graph.sha256}, row | {"name": "of another file", "sha256": "0" * 64},
            {"status": "not run", "name": "tensorrt", "sha256": None}]
    there = {"gpu": None, "processor": {"name": "a processor"}, "date": "2026-01-02T00:00:00"}
    write_json(own_bundle / SPEED, {"rows": rows, "batch": 1, "frame": [720, 1280], "machine": there})
    write_card(bundle)
    text = (own_bundle / CARD).read_text()
    for part in ("720x1280", "a processor, 2026-01-02", "| onnxruntime-cpu | 12.3 | 15.0 | yes |"):
        assert part in text, part
    assert "of another file" not in text
    write_json(own_bundle / SPEED, {"rows": rows[1:]})
    write_card(bundle)
    assert "Not measured." in (own_bundle / CARD).read_text()
