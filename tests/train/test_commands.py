"""check, prepare, evaluate, and the command line itself."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput, MissingPackage
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint
from tests.eight_bits import add_eight_bits
from train import check, demo
from train.config import TrainConfig, read_yaml, to_yaml
from train.data import exr
from train.data.cache import CacheSource
from train.data.conventions import AXES, all_axes, compare_conventions, composed, require_assumed, with_axes
from train.data.dataset import MapDataset
from train.data.sample import to_network
from train.data.sources import open_source
from train.data.statistics import readable
from train.evaluate import EvaluateConfig, evaluate
from train.loop.trainer import Trainer
from train.monitoring.scores import METRICS
from train.prepare import PrepareConfig, prepare, verify


def run(*arguments: str, root: Path = Path(".")) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=root, timeout=500,
                          check=False)


def stored_as(vectors: np.ndarray, axes: str) -> np.ndarray:
    """What a file holds when `axes` says how to read it: the inverse of `with_axes`, by search."""
    probe = np.array([1.0, 2.0, 3.0], np.float32)
    inverse = next(a for a in all_axes() if np.array_equal(with_axes(with_axes(probe, a), axes), probe))
    return with_axes(vectors, inverse)


# -- check --------------------------------------------------------------------------------------------


def test_the_right_convention_is_the_best_of_48_by_far(data):
    convention = compare_conventions(readable(open_source(data), range(24)))
    medians = list(convention.medians.values())
    assert len(medians) == 48
    assert convention.best == AXES
    assert medians[0] < 3
    assert medians[1] > 15


@pytest.mark.parametrize("assumed", [AXES, "+y-z+x"])
@pytest.mark.parametrize("axes", ["+x-y-z", "-x+y+z", "+z+y-x", "-y+x+z"])
def test_another_convention_is_found_and_named_as_the_files_store_it(data, axes, assumed):
    source = open_source(data)
    samples = [dataclasses.replace(sample, normals=with_axes(stored_as(sample.normals, axes), assumed))
               for sample in readable(source, range(24))]
    convention = compare_conventions(samples, assumed)
    assert convention.best == axes
    assert any(line.startswith(assumed) and line.endswith("assumed") for line in convention.lines())
    with pytest.raises(BadInput, match=re.escape(f"give --normal-axes={axes};")):
        require_assumed(convention, prepared=False)


def test_axes_compose():
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for first, then in zip(all_axes(), reversed(all_axes()), strict=True):
        expected = with_axes(with_axes(vectors, first), then)
        np.testing.assert_array_equal(with_axes(vectors, composed(first, then)), expected)


def test_training_stops_before_it_starts_on_normals_of_another_convention(config):
    with pytest.raises(BadInput, match=r"give --normal-axes=\+x\+y\+z;"):
        Trainer(config(normal_axes="+y-z+x"))
    Trainer(config(normal_axes="+y-z+x", check_data=False))


def test_a_cache_of_another_convention_is_to_be_prepared_again(data, config, tmp_path):
    prepare(PrepareConfig(data, tmp_path / "cache", input_size=(64, 64), workers=1, normal_axes="+y-z+x"))
    with pytest.raises(BadInput, match=r"train\.check on the original files.*prepare"):
        Trainer(config(data_root=tmp_path / "cache"))


def test_check_prints_table_and_statistics(data, root):
    result = run("train.check", "--data-root", str(data), root=root)
    assert result.returncode == 0, result.stderr
    for text in ("24 samples: 8 face, 8 full_body, 8 upper_body", "--depth-scale", "+x+y+z", "assumed", "fits"):
        assert text in result.stdout
    result = run("train.check", "--data-root", str(data), "--normal-axes=-x+y+z", root=root)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


# -- prepare ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory) -> Path:
    """`data` prepared at 48x48."""
    out = tmp_path_factory.mktemp("cache") / "48"
    assert prepare(PrepareConfig(data, out, input_size=(48, 48), workers=1)) == (24, 0)
    return out


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_a_cache_gives_the_samples_of_the_files(data, tmp_path, resize):
    prepare(PrepareConfig(data, tmp_path, input_size=(48, 48), resize=resize, workers=1))
    contract = Contract(input_size=(48, 48), resize=resize)
    source, cached = open_source(data), open_source(tmp_path)
    assert isinstance(cached, CacheSource)
    assert cached.names == source.names and cached.kinds == source.kinds
    for i in (0, 9, 23):
        a, b = to_network(source.read(i), contract), cached.read(i)
        np.testing.assert_array_equal(a.rgb, b.rgb)
        np.testing.assert_allclose(a.depth, b.depth, rtol=6e-4)
        np.testing.assert_allclose(a.normals, b.normals, atol=6e-4)
        np.testing.assert_allclose(a.alpha, b.alpha, atol=0.51 / 255)
        np.testing.assert_allclose(a.intrinsics, b.intrinsics)


def test_a_run_on_a_cache_trains(config, cache):
    Trainer(config(data_root=cache, backbone_kwargs=("img_size=48",), max_train_batches=1)).run()
    with pytest.raises(BadInput, match="prepared with --resize stretch"):
        Trainer(config(data_root=cache, backbone_kwargs=("img_size=48",), resize="letterbox",
                       out=cache.parent / "run")).run()


def test_a_damaged_cache_is_noticed(data, cache, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    options = PrepareConfig(data, copy, input_size=(48, 48), workers=1)
    assert verify(options) == 24
    array = np.load(copy / "depth.npy", mmap_mode="r+")
    array[3, 20, 20] += 1
    array.flush()
    with pytest.raises(BadInput, match=r"0000003 is damaged"):
        open_source(copy).read(3)
    open_source(copy).read(4)
    with pytest.raises(BadInput, match="damaged"):
        verify(options)
    (copy / "samples.npz").write_bytes((copy / "samples.npz").read_bytes()[:-3] + b"abc")
    with pytest.raises(BadInput, match=r"SHA-256.*train\.prepare"):
        open_source(copy)


def test_a_cache_of_other_data_is_noticed(data, cache, tmp_path):
    with pytest.raises(BadInput, match="other data"):
        verify(PrepareConfig(data / "SynthHuman_0000", cache, input_size=(48, 48)))


def test_broken_samples_are_left_out_of_a_cache(data, tmp_path, capsys):
    shutil.copytree(data / "SynthHuman_0000", tmp_path / "data")
    (tmp_path / "data" / "alpha_0000002.png").write_bytes(b"no picture")
    assert prepare(PrepareConfig(tmp_path / "data", tmp_path / "cache", input_size=(32, 32), workers=1)) == (7, 1)
    assert len(open_source(tmp_path / "cache")) == 7
    with pytest.raises(BadInput, match="--max-broken 0"):
        prepare(PrepareConfig(tmp_path / "data", tmp_path / "other", input_size=(32, 32), workers=1, max_broken=0))
    assert not (tmp_path / "other" / "cache.json").exists(), "nothing that looks like a cache"


# -- evaluate -----------------------------------------------------------------------------------------


def test_a_checkpoint_is_scored_beside_constants(data, tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, depth_scale=1.0, backbone_kwargs={"img_size": 64}))
    result = evaluate(EvaluateConfig(tmp_path / "m.pth", data, workers=0))
    assert result["samples"] == 24
    assert list(result["metrics"]) == ["all", "face", "full_body", "upper_body"]
    assert set(result["metrics"]["all"]) == set(result["constant"]["all"]) == set(METRICS)
    fewer = evaluate(EvaluateConfig(tmp_path / "m.pth", data, workers=0, max_samples=17))
    assert fewer["samples"] == 17
    assert list(fewer["metrics"]) == ["all", "face", "full_body", "upper_body"], "spread over the set"


def test_evaluation_refuses_a_cache_of_another_resize_rule(data, tmp_path):
    prepare(PrepareConfig(data, tmp_path / "cache", input_size=(64, 64), resize="letterbox", workers=1))
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, backbone_kwargs={"img_size": 64}))
    with pytest.raises(BadInput, match="prepared with --resize letterbox"):
        evaluate(EvaluateConfig(tmp_path / "m.pth", tmp_path / "cache", workers=0))


def test_incomplete_samples_are_named_counted_and_limited(data, tmp_path, config, capsys):
    root = tmp_path / "data"
    shutil.copytree(data / "SynthHuman_0000", root)
    for name in ("rgb_0000001.png", "cam_0000002.txt"):
        (root / name).unlink()
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, backbone_kwargs={"img_size": 64}))
    commands = [
        lambda limit: check.main(check.CheckConfig(root, max_broken=limit)),
        lambda limit: prepare(PrepareConfig(root, tmp_path / "cache", (32, 32), workers=1, max_broken=limit)),
        lambda limit: evaluate(EvaluateConfig(tmp_path / "m.pth", root, workers=0, max_broken=limit)),
        lambda limit: Trainer(config(data_root=root, max_broken=limit)),
    ]
    for command in commands:
        with pytest.raises(BadInput, match=r"2 incomplete samples, more than --max-broken 1.*rgb_0000001\.png"):
            command(1)
        capsys.readouterr()
        command(2)
        text = "".join(capsys.readouterr())
        assert "rgb_0000001.png" in text and "cam_0000002.txt" in text


def test_evaluation_repeats_the_validation_of_the_run(config):
    options = config(ema=0.5, canonical_focal=100.0)
    row = Trainer(options).run()
    result = evaluate(EvaluateConfig(options.out / "final_model.pth", options.data_root, split="val", workers=0))
    for name, value in result["metrics"]["all"].items():
        assert value == pytest.approx(row[name], rel=1e-4, abs=1e-4), name


@pytest.mark.slow
def test_a_bundle_scores_as_its_checkpoint(data, tmp_path, root):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, depth_scale=1.0, backbone_kwargs={"img_size": 64}))
    result = run("dpt_deploy.export", str(tmp_path / "m.pth"), "--out", str(tmp_path / "bundle"), "--builder", "none",
                 root=root)
    assert result.returncode == 0, result.stderr
    tables = [evaluate(EvaluateConfig(model, data, workers=0))["metrics"]["all"]
              for model in (tmp_path / "m.pth", tmp_path / "bundle")]
    for name, value in tables[0].items():
        assert tables[1][name] == pytest.approx(value, rel=1e-3, abs=2e-3), name


def test_a_bundle_is_scored_in_the_precision_that_is_asked_for(data, own_bundle):
    add_eight_bits(Bundle.open(own_bundle))
    tables = {}
    for precision in (None, "int8"):
        result = evaluate(EvaluateConfig(own_bundle, data, workers=0, max_samples=2, precision=precision))
        assert f"frame.{precision or 'fp32'}.onnx" in result["model"]
        tables[precision] = result["metrics"]["all"]
    assert tables[None] != tables["int8"]


# -- the command line ---------------------------------------------------------------------------------


def test_yaml_options_and_the_command_line_are_one(tmp_path, data, config, monkeypatch):
    from train import config as module

    path = tmp_path / "run.yaml"
    path.write_text("data_root: data\nlr: 8e-4\nbackbone_kwargs: {img_size: 64, patch_size: 16}\n"
                    "heads: [alpha, depth]\npretrained: false\ninit: null\n")
    values = module.read_yaml(path)
    assert values == {"data_root": Path("data"), "lr": 8e-4, "backbone_kwargs": ("img_size=64", "patch_size=16"),
                      "heads": ("alpha", "depth"), "pretrained": False, "init": None}
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(path)])
    assert module.from_command_line().timm_kwargs == {"img_size": 64, "patch_size": 16}
    again = tmp_path / "again.yaml"
    again.write_text(module.to_yaml(config(ema=0.5, heads=("depth",))))
    assert module.TrainConfig(**module.read_yaml(again)) == config(ema=0.5, heads=("depth",))


@pytest.mark.parametrize(("command", "arguments", "new"), [
    ("__main__", ["--tasks", "depth"], "use --heads"), ("__main__", ["--limit-val-batches=3"], "use --max-val-batches"),
    ("evaluate", ["m.pth", "--limit", "3"], "use --max-samples"), ("check", ["data"], "use --data-root data"),
    ("check", ["--samples", "3"], "use --max-samples"), ("synthetic", ["--size", "64"], "use --image-size"),
])
def test_an_old_spelling_names_the_new_one(command, arguments, new, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"train.{command}").COMMAND.run()
    assert stopped.value.code == 2
    assert new in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [
    ("tasks: [depth]\n", "use heads"), ("limit_train_batches: 3\n", "use max_train_batches"),
    ("workers: -1\n", "expected auto or"), ("input_size: 0\n", "expected a size"),
    ("learning_rate: 1\n", "learning_rate"), ("epochs: many\n", "epochs"), ("a: [\n", "YAML"),
    ("- 1\n", "a list"), ("pretrained: maybe\n", "pretrained"),
])
def test_bad_yaml_is_one_sentence(tmp_path, text, said):
    from train.config import read_yaml

    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_yaml(tmp_path / "run.yaml")


@pytest.mark.parametrize(("changes", "said"), [
    ({"epochs": 0}, "epochs"), ({"lr": -1.0}, "lr"), ({"ema": 1.0}, "ema"), ({"heads": ("colour",)}, "heads"),
    ({"clip_norm": -1.0}, "clip_norm"), ({"seed": -1}, "seed"), ({"keep": -1}, "keep"), ({"w_alpha": -1.0}, "w_alpha"),
    ({"weight_decay": -0.1}, "weight_decay"), ({"max_val_batches": -1}, "max_val_batches.*no limit"),
    ({"max_broken": -1}, "max_broken"),
    ({"canonical_focal": -1.0}, "canonical_focal"), ({"lr": float("nan")}, "lr"), ({"workers": -2}, "workers"),
    ({"amp": "int8"}, "auto, fp16, bf16, fp32, received 'int8'"), ({"resize": "crop"}, "stretch, letterbox"),
    ({"normal_axes": "xyz"}, "axes"),
    ({"val_fraction": 2.0}, "val_fraction"), ({"zoom": 0.5}, "zoom"), ({"batch_size": 0}, "batch_size"),
])
def test_impossible_options_are_refused(config, changes, said):
    with pytest.raises(BadInput, match=said):
        config(**changes)
    with pytest.raises(BadInput, match="img_size=128"):
        _ = config(backbone_kwargs=("img_size",)).timm_kwargs


def test_the_guides_values_are_the_defaults():
    from train.config import TrainConfig

    default = TrainConfig(data_root=Path("x"))
    assert (default.batch_size, default.epochs, default.lr, default.clip_norm) == (6, 20, 8e-4, 1.0)
    assert (default.backbone, default.features, default.use_bn) == ("vit_base_patch16_384", 256, False)
    assert (default.pretrained, default.depth_scale) == (True, 5.0)
    assert (default.max_train_batches, default.max_val_batches) == (None, None)


def test_errors_of_the_command_are_one_sentence_and_status_2(tmp_path, root):
    result = run("train", "--data-root", str(tmp_path / "absent"), "--no-pretrained", "--out", str(tmp_path / "run"),
                 root=root)
    assert result.returncode == 2
    assert result.stderr.startswith("error: data root") and result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    result = run("train", "--data-root", str(tmp_path), "--config", str(tmp_path / "no.yaml"), root=root)
    assert result.returncode == 2 and "no.yaml" in result.stderr


@pytest.mark.parametrize("command", ["train", "train.synthetic", "train.check", "train.prepare", "train.evaluate"])
def test_a_missing_package_is_named_with_what_to_install(command, root):
    code = (f"import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x', '--help']; "
            f"runpy.run_module({command!r}, run_name='__main__', alter_sys=False)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=500,
                            check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: torch is needed") and "pip install" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("package", "use"), [
    ("OpenEXR", lambda folder: exr.read_depth(folder / "depth.exr")),
    ("yaml", lambda folder: read_yaml(folder / "run.yaml")),
    ("yaml", lambda folder: to_yaml(TrainConfig(data_root=folder))),
])
def test_a_package_that_only_some_steps_need_is_named(tmp_path, monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=r"(OpenEXR|PyYAML) is needed .*pip install"):
        use(tmp_path)


def test_a_run_goes_without_curves_and_event_files_and_says_so(config, monkeypatch, capsys):
    for package in ("matplotlib", "tensorboard", "matplotlib.figure", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    run = config(max_train_batches=1, tensorboard=True)
    Trainer(run).run()
    text = capsys.readouterr().out
    assert "matplotlib is needed to draw curves.png" in text and "tensorboard is needed to write" in text
    assert not (run.out / "curves.png").exists() and (run.out / "metrics.csv").exists()


def test_the_demonstration_runs_to_its_end(tmp_path, capsys):
    demo.main(demo.DemoConfig(tmp_path, count=60, epochs=2, image_size=(32, 32)))
    text = capsys.readouterr().out
    assert "150 people that the model has not seen" in text and "constant" in text
    for name in ("curves.png", "best_model.pth", "training_samples/epoch_02.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_workers_read_the_same_samples(data, cache):
    from train.data.dataset import ValBatches, create_loader

    dataset = MapDataset(open_source(cache), list(range(24)), Contract(input_size=(48, 48)))
    names = [list(batch["name"]) for batch in create_loader(dataset, ValBatches(24, 5, 0, 1), 1)]
    assert names == [list(batch["name"]) for batch in create_loader(dataset, ValBatches(24, 5, 0, 1), 0)]


def test_json_of_an_evaluation(data, tmp_path, root):
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, backbone_kwargs={"img_size": 64}))
    result = run("train.evaluate", str(tmp_path / "m.pth"), "--data-root", str(data), "--workers", "0",
                 "--max-samples", "6", "--json", "--out", str(tmp_path / "m.json"), root=root)
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "m.json").read_text())
    assert printed["samples"] == 6 and set(printed["constant"]["all"]) == set(METRICS)
