"""The commands as a user runs them: reuse, options, and one clear sentence for each bad input."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from dpt_deploy import cli
from dpt_deploy.build.__main__ import BuildConfig
from dpt_deploy.build.__main__ import main as build_main
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.files import locked
from dpt_deploy.core.manifest import GraphDetails, PrecisionPlan, ShapeRange
from dpt_deploy.export.__main__ import main as export_main
from dpt_deploy.export.config import ExportConfig
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from dpt_deploy.parity.__main__ import ParityConfig
from dpt_deploy.parity.__main__ import main as parity_main
from dpt_deploy.runtime import load
from tests.parity.conftest import loose_budget
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command in this process: (exit status, standard output, standard error)."""
    def run(config, main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.run(config, main, "command")
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pth"
    torch.manual_seed(0)
    save_checkpoint(path, create_multitask_dpt_model("test_vit", features=16))
    return path


def refused(run, tmp_path, *arguments):
    """The one sentence of an export that must not leave anything behind."""
    out = tmp_path / "bundle"
    status, _, error = run(ExportConfig, export_main, *arguments, "--out", out)
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not out.exists() or not list(out.iterdir())
    return error


def test_a_second_run_reuses_everything_and_says_so(tiny_bundle, command):  # noqa: F811
    before = {a.file: a.sha256 for a in Bundle.open(tiny_bundle).artifacts if a.kind != "report"}
    source = tiny_bundle.parent / "tiny.pth"
    status, out, _ = command(ExportConfig, export_main, source, "--out", tiny_bundle, "--builder", "tensorrt-rtx")
    assert status == 0 and "PASSED" in out
    assert out.count("reused ") == 8 and "exported " not in out and "built " not in out
    assert {a.file: a.sha256 for a in Bundle.open(tiny_bundle).artifacts if a.kind != "report"} == before


def test_a_damaged_graph_is_exported_again(tiny_bundle, tmp_path, command):  # noqa: F811
    folder = shutil.copytree(tiny_bundle, tmp_path / "own")
    graph = folder / "model.fp32.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    source = tiny_bundle.parent / "tiny.pth"
    status, out, _ = command(ExportConfig, export_main, source, "--out", folder, "--builder", "tensorrt-rtx")
    assert status == 0 and out.count("exported ") == 1 and "exported model.fp32.onnx" in out
    assert graph.read_bytes() == whole


def test_the_whole_bundle_is_there(tiny_bundle):  # noqa: F811
    bundle = Bundle.open(tiny_bundle)
    files = {artifact.file for artifact in bundle.artifacts}
    assert {"model.fp32.onnx", "frame.fp32.onnx", "model.fp16.onnx", "frame.fp16.onnx", "reference.npz", "parity.json",
            "report.html"} <= files
    assert {f"{a.graph}.{a.precision}" for a in bundle.find("engine")} == {"model.fp16", "frame.fp16"}
    assert {p.name for p in tiny_bundle.iterdir()} == files | {"manifest.json"}  # nothing temporary stays
    for artifact in bundle.artifacts:
        bundle.path(artifact)
    text = (tiny_bundle / "manifest.json").read_text() + (tiny_bundle / "report.html").read_text()
    assert str(tiny_bundle.parent) not in text.replace(bundle.manifest.command, "")


def test_parity_command(own_bundle, tiny_bundle, command):  # noqa: F811
    (own_bundle / "reference.npz").write_bytes((tiny_bundle / "reference.npz").read_bytes())
    status, out, _ = command(ParityConfig, parity_main, own_bundle, "--json")
    assert status == 0 and out.startswith("{") and '"verdict": "PASSED' in out
    strict = loose_budget(own_bundle.parent / "strict.json", depth={"abs_rel": 0})
    status, out, _ = command(ParityConfig, parity_main, own_bundle, "--budget", strict)
    assert status == 1 and "FAILED" in out and "strict.json" in out


def test_build_needs_neither_torch_nor_the_checkpoint(own_bundle, tiny_bundle):  # noqa: F811
    (own_bundle / "reference.npz").write_bytes((tiny_bundle / "reference.npz").read_bytes())
    blocked = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
runpy.run_module("dpt_deploy.build", run_name="__main__", alter_sys=True)
"""
    options = ("--builder", "tensorrt-rtx", "--batch-range", "1,2", "--frame-size-range", "64x64,480x640")
    done = subprocess.run([sys.executable, "-c", blocked, str(own_bundle), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("built ") == 2 and "PASSED" in done.stdout
    assert "5 judged earlier" in done.stdout  # the stages that need PyTorch are carried over from the export
    profile = Bundle.open(own_bundle).find("engine", graph="frame")[0].details.profile["frame"]
    assert profile == ShapeRange(min=(1, 64, 64, 3), opt=(1, 480, 640, 3), max=(2, 480, 640, 3))


def test_fp32_engines_build_although_no_fused_attention_exists_for_them(own_bundle):  # noqa: F811
    from dpt_deploy.build import EngineOptions, build_engines

    bundle = Bundle.open(own_bundle)
    built = build_engines(bundle, EngineOptions("tensorrt-rtx"), lambda line: None, ["fp32"])
    assert {artifact.precision for artifact in built} == {"fp32"}
    assert built[0].details.certificate.attention.layers == 6


@pytest.mark.slow
def test_options_and_the_users_images(checkpoint, tmp_path, command):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (90, 120, 3), np.uint8)
        cv2.imwrite(str(images / f"{i}.png"), cv2.GaussianBlur(image, (0, 0), 3))
    (images / "0b.png").write_bytes((images / "0.png").read_bytes()[:500])
    out = tmp_path / "bundle"
    status, text, error = command(
        ExportConfig, export_main, checkpoint, "--out", out, "--input-size", "192x128", "--heads", "depth,alpha",
        "--resize", "letterbox", "--opset", "20", "--images", images, "--max-images", "3", "--fp32-modules",
        "decoder.fusion.0", "--builder", "none",
    )
    bundle = Bundle.open(out)
    assert bundle.last_report().passed and status == 1 and "skipped  0b.png" in text, text + error
    assert "0b.png" in (out / "report.html").read_text() and "0b.png" in (out / "MODEL_CARD.md").read_text()
    assert bundle.contract.heads == ("depth", "alpha")
    assert bundle.contract.input_size == (192, 128) and bundle.contract.resize == "letterbox"
    (graph,) = bundle.find("onnx", graph="frame", precision="fp16")
    plan = PrecisionPlan("fp16", ("activations", "resize", "decoder.fusion.0"))
    assert graph.details == GraphDetails(opset=20, plan=plan)
    assert "2.png" in (out / "parity.json").read_text() and "1.png" not in (out / "parity.json").read_text()


@pytest.mark.slow
def test_bf16_is_judged_and_an_fp16_record_beside_it_stays(checkpoint, tmp_path, command):
    out = tmp_path / "bundle"
    command(ExportConfig, export_main, checkpoint, "--out", out, "--builder", "tensorrt-rtx")
    _, text, _ = command(ExportConfig, export_main, checkpoint, "--out", out, "--precision", "bf16", "--builder",
                         "tensorrt-rtx")
    files = {a.file for a in Bundle.open(out).artifacts}
    assert {"model.bf16.onnx", "frame.fp16.onnx", "frame.bf16.rtx1.7.engine"} <= files or "could not build" in text
    report = (out / "parity.json").read_text()
    assert "PyTorch bf16" in report and "PyTorch fp16" in report


def test_bad_files(checkpoint, tmp_path, command):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:2000])
    other = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    nan = tmp_path / "nan.pth"
    state = torch.load(checkpoint, weights_only=True)
    torch.save({name: value * float("nan") for name, value in state.items()}, nan)
    assert "there is no file" in refused(command, tmp_path, tmp_path / "absent.pth")
    assert "the folder" in refused(command, tmp_path, tmp_path)
    assert "truncated" in refused(command, tmp_path, damaged)
    assert "another architecture" in refused(command, tmp_path, other)
    assert "NaN" in refused(command, tmp_path, nan)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--input-size", "150"), "144 or 160"),
        (("--input-size", "abc"), "a size such as 384"),
        (("--heads", "depth,albedo"), "albedo"),
        (("--batch-range", "4,2"), "smallest <= largest"),
        (("--frame-size-range", "512,256"), "expected smallest,largest"),
        (("--fp32-modules", "decoder.fusion.9"), "no module decoder.fusion.9"),
        (("--images", "nowhere"), "no file nowhere"),
        (("--budget", "nowhere.json"), "a budget file"),
        (("--builder", "tensorrt"), "pip install"),
        (("--precision", "bf16", "--opset", "20"), "expected --opset 23"),
        (("--precision", "fp32", "--fp32-modules", "residual"), "everything is FP32"),
    ],
)
def test_bad_options(checkpoint, tmp_path, command, options, part):
    assert part in refused(command, tmp_path, checkpoint, *options)


def test_options_that_exclude_each_other_are_refused_before_any_work(tmp_path, command):
    """Even before the checkpoint is looked for: a search could take minutes first."""
    error = refused(command, tmp_path, tmp_path / "absent.pth", "--precision", "bf16", "--opset", "20")
    assert "--precision bf16" in error


@pytest.mark.parametrize("options", [("absent.pth",), (__file__, "--precision", "bf16", "--opset", "20"), ("--help",)])
def test_wrong_options_are_refused_before_torch_is_imported(options):
    """That import alone takes seconds."""
    code = ("import sys; from dpt_deploy.export.__main__ import COMMAND\ntry:\n    COMMAND.run()\n"
            "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)")
    run = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == ("0 False" if options == ("--help",) else "2 False"), run.stderr


@pytest.mark.parametrize("place", ["torch.onnx.export",
                                   pytest.param("onnx.checker.check_model", marks=pytest.mark.slow)])
def test_what_fails_in_a_library_is_one_sentence_and_leaves_no_half_bundle(
    checkpoint, tmp_path, command, monkeypatch, place
):
    def fail(*_args, **_kwargs):
        raise onnx.checker.ValidationError("first line\nand many more")

    monkeypatch.setattr(place, fail)
    error = refused(command, tmp_path, checkpoint, "--builder", "none")
    assert "model.fp16.onnx" in error and "first line" in error


def test_an_engine_that_cannot_be_built_leaves_judged_graphs(checkpoint, tmp_path, command, monkeypatch):
    def fail(*_args, **_kwargs):
        raise BuildError("the builder failed.")

    monkeypatch.setattr("dpt_deploy.build.build_engine", fail)
    out = tmp_path / "bundle"
    budget = loose_budget(tmp_path / "loose.json")
    status, _, error = command(ExportConfig, export_main, checkpoint, "--out", out, "--budget", budget, "--builder",
                               "tensorrt-rtx", "--no-search", "--heads", "alpha")
    assert status == 2 and "the builder failed. The graphs in" in error and error.count("\n") == 1
    report = Bundle.open(out).last_report()
    assert report is not None and report.verdict in error and not Bundle.open(out).find("engine")


def test_what_was_assumed_stands_beside_the_verdict(checkpoint, tmp_path, command):
    """A checkpoint without a description: its depth scale is a guess, and a pass does not confirm it."""
    plain, out = tmp_path / "plain.pth", tmp_path / "bundle"
    torch.save(dict(torch.load(checkpoint, weights_only=True)), plain)
    budget = loose_budget(tmp_path / "loose.json")
    _, text, error = command(ExportConfig, export_main, plain, "--out", out, "--builder", "none", "--budget", budget,
                             "--precision", "fp32")
    bundle = Bundle.open(out)
    assert "depth_scale" in [one.fact for one in bundle.manifest.assumed], error
    assert "assumed and not verified: " in bundle.last_report().verdict
    with load(out, backend="onnxruntime-cpu") as runtime:
        assert runtime.assumed == bundle.manifest.assumed
    for place in (text, (out / "report.html").read_text(), (out / "MODEL_CARD.md").read_text()):
        assert "--depth-scale" in place
    command(ExportConfig, export_main, plain, "--out", out, "--builder", "none", "--budget", budget,
            "--precision", "fp32", "--depth-scale", "5")
    assert "depth_scale" not in [one.fact for one in Bundle.open(out).manifest.assumed]


def test_parity_reads_the_checkpoint_as_the_export_did(checkpoint, tmp_path, command):
    """With the same entry of the file, or its weights would not be those of the graphs."""
    state = dict(torch.load(checkpoint, weights_only=True))
    path, out, budget = tmp_path / "both.pth", tmp_path / "bundle", loose_budget(tmp_path / "loose.json")
    torch.save({"state_dict": state, "ema": {key: value + 1 for key, value in state.items()}}, path)
    command(ExportConfig, export_main, path, "--out", out, "--builder", "none", "--budget", budget, "--precision",
            "fp32", "--parity", "quick", "--weights-entry", "state_dict", "--backbone", "test_vit")
    status, text, error = command(ParityConfig, parity_main, out, "--budget", budget, "--checkpoint", path)
    assert status == 0, text + error


def test_a_quick_verdict_says_that_it_is_one(checkpoint, tmp_path, command):
    out, budget = tmp_path / "bundle", loose_budget(tmp_path / "loose.json")
    _, text, _ = command(ExportConfig, export_main, checkpoint, "--out", out, "--builder", "none", "--budget", budget,
                         "--precision", "fp32", "--parity", "quick")
    report = Bundle.open(out).last_report()
    assert report.inputs == ("scene 480x640", "scene 96x128", "noise")
    assert "quick: judged on 3 inputs only" in text
    command(ParityConfig, parity_main, out, "--budget", budget)
    assert "quick: judged on 3 inputs only" in Bundle.open(out).last_report().verdict


def test_an_image_that_cannot_be_decoded(checkpoint, tmp_path, command):
    image = tmp_path / "image.png"
    image.write_bytes(b"\x89PNG nothing")
    assert "cannot be decoded" in refused(command, tmp_path, checkpoint, "--images", image)


def test_out_is_a_file(checkpoint, tmp_path, command):
    file = tmp_path / "file"
    file.touch()
    status, _, error = command(ExportConfig, export_main, checkpoint, "--out", file)
    assert status == 2 and "expected a folder" in error


def test_a_full_disk_leaves_nothing_half_written(checkpoint, tmp_path):
    """The operating system refuses to write past a limit, as a full disk does."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "dpt_deploy.export", str(checkpoint), "--out", str(out), "--builder", "none"]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=limit, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and done.stderr.strip().count("\n") == 0
    assert not out.exists() or not list(out.iterdir())


def test_a_changed_a_missing_and_a_foreign_bundle(own_bundle, tmp_path, command):  # noqa: F811
    assert command(BuildConfig, build_main, tmp_path / "absent")[0] == 2
    graph = own_bundle / "model.fp16.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    status, _, error = command(BuildConfig, build_main, own_bundle, "--builder", "tensorrt-rtx", "--batch-range", "1,3")
    assert status == 2 and "does not match manifest.json" in error
    graph.unlink()
    status, _, error = command(BuildConfig, build_main, own_bundle, "--builder", "tensorrt-rtx", "--batch-range", "1,3")
    assert status == 2 and "is missing from the bundle" in error
    manifest = own_bundle / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    status, _, error = command(ParityConfig, parity_main, own_bundle)
    assert status == 2 and "is not valid JSON" in error


def test_two_commands_never_write_into_one_folder(own_bundle, checkpoint, tmp_path, command):  # noqa: F811
    before = {path.name: path.stat().st_mtime_ns for path in own_bundle.iterdir()}
    words = "another process is writing here"
    with locked(own_bundle):
        for config, main, arguments in (
            (ExportConfig, export_main, (checkpoint, "--out", own_bundle, "--builder", "none")),
            (BuildConfig, build_main, (own_bundle, "--builder", "tensorrt-rtx")),
            (ParityConfig, parity_main, (own_bundle,)),
        ):
            status, _, error = command(config, main, *arguments)
            assert status == 2 and words in error and error.count("\n") == 1
    assert {path.name: path.stat().st_mtime_ns for path in own_bundle.iterdir()} == before


def test_every_option_explains_itself():
    for config in (ExportConfig, BuildConfig, ParityConfig):
        assert config.__doc__ and dataclasses.fields(config)


def test_an_export_does_not_replace_files_of_the_user(checkpoint, tmp_path, command):
    out = tmp_path / "bundle"
    out.mkdir()
    for name in ("reference.npz", "model.fp32.onnx", "report.html", "notes.txt"):
        (out / name).write_text("of the user")
    status, _, error = command(ExportConfig, export_main, checkpoint, "--out", out, "--builder", "none")
    assert status == 2 and error.count("\n") == 1
    assert "received model.fp32.onnx, reference.npz, report.html, which would be replaced" in error
    assert {path.read_text() for path in out.iterdir()} == {"of the user"}
