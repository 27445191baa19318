"""What the doctor says of a bundle, and that each command it gives is one that the build would take."""

from __future__ import annotations

import shlex
import sys

import pytest

from dpt_deploy import cli
from dpt_deploy.backends import device, tensorrt
from dpt_deploy.build.__main__ import BuildConfig
from dpt_deploy.cli.help import parse
from dpt_deploy.core.bundle import MODEL_CARD, Bundle
from dpt_deploy.core.files import write_text
from dpt_deploy.doctor.__main__ import DoctorConfig, main
from dpt_deploy.doctor.bundle import check_bundle, rebuild_command
from tests.tiny import change_details, own_bundle, tiny_bundle  # noqa: F401


def found(folder):
    return {check.subject: check for check in check_bundle(Bundle.open(folder))}


@pytest.fixture
def here(monkeypatch):
    """Pretend that a GPU and a version of the builder are here."""
    def pretend(version, capability):
        monkeypatch.setattr(tensorrt, "_version", lambda module: version)
        monkeypatch.setattr(device, "compute_capability", lambda: capability)

    return pretend


def test_an_untouched_bundle_is_intact(tiny_bundle, here):  # noqa: F811
    version = Bundle.open(tiny_bundle).find("engine")[0].details.builder_version
    here(version, None)
    checks = found(tiny_bundle)
    assert {checks[name].status for name in checks if not name.endswith(".engine")} == {"ok"}
    engines = [check for name, check in checks.items() if name.endswith(".engine")]
    assert len(engines) == 2
    assert all(check.status == "not checked" and device.NO_GPU in check.finding for check in engines)
    here(version, "8.9")
    assert found(tiny_bundle)["frame.fp16.rtx1.7.engine"].status == "ok"


def test_a_damaged_and_a_missing_file_get_the_command_that_makes_them(own_bundle, here):  # noqa: F811
    here(None, None)
    engine, graph = own_bundle / "frame.fp16.rtx1.7.engine", own_bundle / "model.fp16.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"?")
    graph.unlink()
    checks = found(own_bundle)
    assert checks[engine.name].status == checks[graph.name].status == "failed"
    assert "missing" in checks[graph.name].finding and "modified" in checks[engine.name].finding
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
    change_details(bundle, bundle.find("engine", graph="model")[0], made_from="0" * 64)
    bundle.save()
    check = found(own_bundle)["model.fp16.rtx1.7.engine"]
    assert check.status == "failed" and "no longer in the bundle" in check.finding and check.remedy


@pytest.mark.parametrize("variant", [{}, {"weights": "refittable", "version_compatible": True}])
def test_the_command_asks_for_the_engine_that_was_there(tiny_bundle, variant):  # noqa: F811
    bundle = Bundle.open(tiny_bundle)
    (engine,) = bundle.find("engine", graph="frame")
    engine = change_details(bundle, engine, **variant)
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


def test_a_model_card_may_be_edited(own_bundle):  # noqa: F811
    path = own_bundle / MODEL_CARD
    write_text(path, path.read_text().replace("TO FILL IN", "CC BY 4.0"))
    assert found(own_bundle)[MODEL_CARD].status == "ok"  # edited, as it is meant to be
